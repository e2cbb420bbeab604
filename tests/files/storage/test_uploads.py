"""Outputs on a server: there when the block succeeds, the old ones whole when it does not."""

from __future__ import annotations

from functools import partial

import pytest

from tdecomp import jobs
from tdecomp.errors import FileError
from tdecomp.files import load_factors
from tdecomp.files.atomic import output_file, output_folder
from tdecomp.files.ours import is_json

fsspec = pytest.importorskip("fsspec")
OUT = "memory://results/out"


@pytest.fixture(autouse=True)
def system():
    found = fsspec.filesystem("memory")
    yield found
    if found.exists("/results"):
        found.rm("/results", recursive=True)


def tree(system) -> dict[str, bytes]:
    return {name: system.cat_file(name) for name in system.find("/results")}


def written(overwrite: bool = False, **files: str) -> None:
    with output_folder(OUT, overwrite=overwrite) as new:
        for name, text in files.items():
            (new / name).write_text(text)


def test_what_decompose_writes_there_is_read_by_the_others(on_disk, tmp_path, system):
    told = jobs.decompose(*on_disk, OUT, rank=2)
    jobs.decompose(*on_disk, tmp_path / "here", rank=2)
    here = {p.name: p.read_bytes() for p in (tmp_path / "here").iterdir()}
    assert {name.removeprefix("/results/out/"): b for name, b in tree(system).items()} == here
    assert load_factors(OUT).n_params == told.n_params
    assert jobs.info(OUT).n_params == told.n_params
    assert jobs.verify(OUT, *on_disk).agrees
    jobs.apply(OUT, on_disk.base, "memory://results/model")
    jobs.apply(tmp_path / "here", on_disk.base, tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        assert system.cat_file(f"/results/model/{file.name}") == file.read_bytes()
    jobs.export(OUT, "memory://results/lora")
    assert system.exists("/results/lora/adapter_config.json")
    jobs.explore(*on_disk, out="memory://results/table.json")
    assert system.exists("/results/table.json")


def test_an_old_output_is_replaced_when_asked(system):
    written(a="1", b="2")
    with pytest.raises(FileError, match="already exists"):
        written(a="3")
    assert len(tree(system)) == 3
    written(overwrite=True, a="3")
    assert set(tree(system)) == {"/results/out/a", "/results/out/.tdecomp.json"}
    assert system.cat_file("/results/out/a") == b"3"


SPOILT = {
    "added": lambda system: system.pipe_file("/results/out/mine", b"work"),
    "changed": lambda system: system.pipe_file("/results/out/a", b"9"),
    "not ours": lambda system: system.rm_file("/results/out/.tdecomp.json"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_what_others_wrote_is_not_replaced(spoil, system):
    written(a="1")
    spoil(system)
    before = tree(system)
    with pytest.raises(FileError, match="not replaced"):
        written(overwrite=True, a="3")
    assert tree(system) == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_a_failure_leaves_the_old_output(stop, system):
    written(a="1")
    before = tree(system)

    def broken_off() -> None:
        with output_folder(OUT, overwrite=True) as new:
            (new / "a").write_text("half")
            raise stop

    with pytest.raises(stop):
        broken_off()
    assert tree(system) == before


def test_a_server_that_breaks_off_leaves_the_old_output(system, monkeypatch):
    written(a="1")
    before = tree(system)

    def broken(*_: object, **__: object) -> None:
        raise PermissionError("secret")

    monkeypatch.setattr(type(system), "put_file", broken)
    with pytest.raises(FileError, match="refuses access") as refused:
        written(overwrite=True, a="2")
    assert "secret" not in str(refused.value)
    assert tree(system) == before


def test_a_file(system):
    write = partial(output_file, ours=partial(is_json, made_by="me"), overwrite=True)
    for text in ('{"made_by": "me"}', '{"made_by": "me", "more": 1}'):
        with write("memory://results/a.json") as new:
            assert new.suffix == ".json"
            new.write_text(text)
        assert system.cat_file("/results/a.json").decode() == text
    system.pipe_file("/results/a.json", b"[]")
    with pytest.raises(FileError, match="not replaced"), write("memory://results/a.json"):
        pass


def test_no_input_and_nothing_unwritable(in_memory, on_disk):
    for out in (f"{in_memory}/base", f"{in_memory}/base/out", in_memory):
        with pytest.raises(FileError, match="input"):
            jobs.decompose(f"{in_memory}/base", on_disk.tuned, out, rank=1, overwrite=True)
    with pytest.raises(FileError, match="https:// is for reading"):
        jobs.decompose(*on_disk, "https://host/out", rank=1)
