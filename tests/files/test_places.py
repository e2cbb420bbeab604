"""Links, pipes, devices and folders where a file is expected: followed inside, or refused."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from tdecomp.errors import FileError
from tdecomp.files import checkpoint as ck
from tdecomp.files import safetensors
from tdecomp.files.loras import read_adapter
from tdecomp.files.weight_files import read_json

NAME = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def model(tmp_path) -> Path:
    """A folder with two shards, an index, a configuration and a tokenizer."""
    folder = tmp_path / "model"
    folder.mkdir()
    files = {"a.safetensors": NAME, "b.safetensors": "norm.weight"}
    for file, name in files.items():
        zeros = np.zeros(16, np.uint8)
        safetensors.write(folder / file, [(name, "F32", (2, 2))], lambda _: zeros)  # noqa: B023
    index = {"weight_map": {name: file for file, name in files.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modules.json").write_text("[]")
    return folder


PARTS = {
    "shard": "a.safetensors",
    "index": "model.safetensors.index.json",
    "config": "config.json",
    "tokenizer": "tokenizer.json",
    "modules": "modules.json",
}


def rewritten(folder: Path) -> dict[str, bytes]:
    """What `apply` would write."""
    out = folder.with_name("written")
    out.mkdir()
    ck.write_model(ck.open_checkpoint(folder), out, {})
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.mark.parametrize("part", PARTS)
def test_links_inside_the_folder_are_followed(part, model):
    before = rewritten(model)
    (model.with_name("written")).rename(model.with_name("before"))
    file = model / PARTS[part]
    (model / "blobs").mkdir()
    file.symlink_to(file.rename(model / "blobs" / "one.weights.gguf"))
    assert rewritten(model) == before


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("blobs", "folder"),
    [
        ("hub/models--me--it/blobs", "hub/models--me--it/snapshots/abc"),
        ("hub/models--me--it/blobs", "hub/models--me--it/snapshots/abc/text/deep"),
        ("hub/models--me--it/blobs", "elsewhere"),
        ("moved/blobs", "moved/snapshots/abc"),
    ],
)
def test_links_to_the_blobs_of_a_hub_cache_are_followed(part, blobs, folder, model, tmp_path):
    place = tmp_path / folder
    place.parent.mkdir(parents=True, exist_ok=True)
    model.rename(place)
    (tmp_path / blobs).mkdir(parents=True)
    (place / PARTS[part]).rename(tmp_path / blobs / "0123")
    (place / PARTS[part]).symlink_to(
        os.path.relpath(tmp_path / blobs / "0123", place), target_is_directory=False
    )
    (tmp_path / "here").symlink_to(place)
    for name in (place, tmp_path / "here"):
        assert ck.open_checkpoint(name).names == (NAME, "norm.weight")
    assert PARTS[part] in rewritten(place)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("place", ["secret", "blobs", "model-2", "x/models--me/other"])
def test_links_out_of_the_folder_are_refused(part, place, model, tmp_path):
    (tmp_path / place).mkdir(parents=True)
    target = (model / PARTS[part]).rename(tmp_path / place / "file")
    (model / PARTS[part]).symlink_to(target)
    with pytest.raises(FileError, match=f"{PARTS[part]} is a link out of its folder, to {target}"):
        rewritten(model)


def test_a_link_that_is_named_is_followed(model, tmp_path):
    for link, target in (("m", model), ("f.safetensors", model / "a.safetensors")):
        (tmp_path / link).symlink_to(target)
        assert NAME in ck.open_checkpoint(tmp_path / link).names


def make_folder(file: Path) -> None:
    file.mkdir()


def make_link_to_nothing(file: Path) -> None:
    file.symlink_to(file.with_name("nothing"))


def make_circle(file: Path) -> None:
    file.symlink_to(file)


def make_device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def make_socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(file))


ODD = {
    "folder": (make_folder, "not a regular file"),
    "pipe": (os.mkfifo, "not a regular file"),
    "socket": (make_socket, "not a regular file"),
    "device": (make_device, "not a regular file"),
    "link to nothing": (make_link_to_nothing, "leads nowhere"),
    "circle": (make_circle, "leads nowhere"),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ODD)
def test_what_is_not_a_file_is_refused_and_never_waited_for(kind, part, model, monkeypatch):
    make, message = ODD[kind]
    (model / PARTS[part]).unlink()
    monkeypatch.chdir(model)  # the name of a socket may not be long
    make(Path(PARTS[part]))
    if part == "tokenizer" and kind == "folder":
        assert "tokenizer.json" not in rewritten(model)  # an empty folder, as any other
        return
    with pytest.raises(FileError, match=message):
        rewritten(model)


@pytest.mark.parametrize("kind", ODD)
def test_a_named_json_file(kind, tmp_path, monkeypatch):
    make, message = ODD[kind]
    monkeypatch.chdir(tmp_path)
    make(Path("x.safetensors.index.json"))
    with pytest.raises(FileError, match=message.replace("leads nowhere", "does not exist")):
        ck.open_checkpoint(tmp_path / "x.safetensors.index.json")


def test_a_link_to_a_folder_is_refused(model, tmp_path):
    (tmp_path / "home").mkdir()
    (model / "onnx").symlink_to(tmp_path / "home")
    with pytest.raises(FileError, match="onnx is a link to a folder"):
        rewritten(model)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\ud800", "nul"])
def test_json_that_cannot_be_read(text, tmp_path):
    (tmp_path / "x.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(FileError, match="not valid JSON"):
        read_json(tmp_path / "x.json")


def test_json_above_the_limit(tmp_path):
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(10**9)  # a hole: it takes no room
    with pytest.raises(FileError, match="at most 100000000"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", '{"path": 3}', '[{"path": ["x"]}]', "\xff"])
def test_modules_that_cannot_be_read_are_none(text, model):
    (model / "modules.json").write_bytes(text.encode("latin-1"))
    assert "a.safetensors" in rewritten(model)


def test_a_configuration_that_utf8_cannot_write_is_cast(model, tmp_path):
    config = {"torch_dtype": "float32", "note": "\ud800 Δ \udfff", "x": {"dtype": "float32"}}
    (model / "config.json").write_text(json.dumps(config))
    (tmp_path / "out").mkdir()
    ck.write_model(ck.open_checkpoint(model), tmp_path / "out", {}, dtype="BF16")
    expected = config | {"torch_dtype": "bfloat16", "x": {"dtype": "bfloat16"}}
    assert json.loads((tmp_path / "out" / "config.json").read_bytes()) == expected


@pytest.mark.parametrize("code", ["I32", "U8", "BOOL", "I64"])
def test_integers_take_no_delta(code, tmp_path):
    file = tmp_path / "a.safetensors"
    size = safetensors.size_in_bytes(code, (2, 2))
    safetensors.write(file, [("x", code, (2, 2))], lambda _: np.zeros(size, np.uint8))
    with pytest.raises(FileError, match=f"'x' is stored as {code}, which takes no delta"):
        ck.write_model(ck.open_checkpoint(file), tmp_path / "out", {"x": lambda array: array})


def test_a_link_in_a_circle_is_refused_where_it_is_the_only_file(tmp_path):
    (tmp_path / "a.safetensors").symlink_to("a.safetensors")
    with pytest.raises(FileError, match=r"a\.safetensors"):
        read_adapter(tmp_path)
