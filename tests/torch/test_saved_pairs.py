"""Saved adapters as sources of `resize`, `compare`, `merge` and `basis`, read without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tdecomp import jobs
from tdecomp._xp import tol
from tdecomp.adapters import CATALOGUE
from tdecomp.errors import DataError, FileError
from tdecomp.files import safetensors
from tdecomp.files.attached import KEY
from tdecomp.files.loras import read_adapter
from tdecomp_torch import attach
from tests.torch.cases import CONFIG, adapted, tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_file(tiny().state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return folder


def changes(adapter) -> dict[str, np.ndarray]:
    """What an adapter does to the weights of its modules, as the model itself says."""
    with torch.no_grad():
        before = {t.path: t.kind.matrix(t.module).double().clone() for t in adapter.targets}
        adapter.merge()
        after = {t.path: t.kind.matrix(t.module).double() for t in adapter.targets}
    return {path: (after[path] - before[path]).numpy() for path in before}


def check(found, expected: dict[str, np.ndarray], loose: float = 100) -> None:
    assert set(found.pairs) == set(expected)
    for site, delta in expected.items():
        pair = found.pairs[site]
        assert pair.shape == found.shapes[site] == delta.shape
        assert pair.rank <= min(delta.shape)
        near = loose * tol("float64", 12) * max(1.0, np.abs(delta).max())
        np.testing.assert_allclose(pair.dense(), delta, rtol=0, atol=near)


def test_pairs_of_every_row_are_what_the_adapter_does(base, tmp_path):
    for name, spec in CATALOGUE.items():
        _, adapter = adapted(name)
        folder = tmp_path / name
        adapter.save(folder)
        needs = not spec.adds or any(f.init.kind == "weight" for f in spec.expanded.factors)
        if needs:
            with pytest.raises(FileError, match="name the base"):
                read_adapter(folder)
        check(read_adapter(folder, base=base if needs else None), changes(adapter))
        shutil.rmtree(folder)


def test_a_row_that_changes_weights_by_what_they_are_asks_for_the_base(base, tmp_path):
    _, adapter = adapted("dora")
    adapter.save(tmp_path / "dora")
    with pytest.raises(FileError, match=r"'dora' changes every weight.*name the base"):
        jobs.resize(tmp_path / "dora", tmp_path / "out", rank=1)
    assert not (tmp_path / "out").exists()
    report = jobs.resize(tmp_path / "dora", tmp_path / "out", rank=8, base=base)
    assert report.error < 1e-6  # float32 beside float64
    check(read_adapter(tmp_path / "out"), changes(adapter), loose=1e10)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", ["svfit", "quanta"])
def test_a_start_that_is_folded_or_subtracted_is_no_part_of_the_pairs(name, fold, tmp_path):
    model = tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    _, adapter = adapted(name, model, random=False, fold=fold)
    with torch.no_grad():
        for factor in adapter.factors().values():
            factor += 0.25
    adapter.save(tmp_path / "a")
    adapter.save_lora(tmp_path / "lora")
    adapter.merge()
    now = {t.path: t.kind.matrix(t.module).detach().numpy() for t in adapter.targets}
    expected = {path: w - before[f"{path}.weight"].numpy() for path, w in now.items()}
    check(read_adapter(tmp_path / "a"), expected)
    check(read_adapter(tmp_path / "lora"), expected, loose=1e10)


class Mixed(nn.Module):
    """A convolution, an embedding and a linear module."""

    def __init__(self):
        super().__init__()
        self.conv, self.embed = nn.Conv2d(4, 6, 3), nn.Embedding(10, 4)
        self.lin = nn.Linear(6, 5)


def test_embeddings_and_convolutions_are_written_as_what_they_are(tmp_path):
    torch.manual_seed(0)
    adapter = attach(Mixed(), "lora", rank=2, targets=["conv", "embed", "lin"])
    with torch.no_grad():
        for factor in adapter.factors().values():
            factor.normal_()
    adapter.save(tmp_path / "a")
    found = read_adapter(tmp_path / "a")
    assert found.pairs["conv"].kernel == (3, 3)
    jobs.resize(tmp_path / "a", tmp_path / "out", rank=2)
    entries, _ = safetensors.read_header(tmp_path / "out" / "adapter_model.safetensors")
    shapes = {name.removeprefix("base_model.model."): e.shape for name, e in entries.items()}
    assert shapes["conv.lora_A.weight"] == (2, 4, 3, 3)
    assert shapes["embed.lora_embedding_A"] == (2, 10)
    again = read_adapter(tmp_path / "out")
    check(again, {s: np.asarray(p.dense()) for s, p in found.pairs.items()}, loose=1e10)


def test_adapters_of_several_methods_are_one_collection(tmp_path):
    paths, live, expected = [], [], {}
    for name in ("lora", "lotr", "tt_lora"):
        _, adapter = adapted(name)
        paths.append(tmp_path / name)
        adapter.save(paths[-1])
        live.append(adapter.to_file(name))
        expected[name] = changes(adapter)
    merged = jobs.merge(paths, tmp_path / "sum", method="weighted_sum")
    assert merged.error == pytest.approx(0, abs=1e-6)
    assert [one.cosine > 0 for one in merged.members] == [True] * 3
    alike = jobs.compare(paths)
    assert [one.name for one in alike.members] == ["lora", "lotr", "tt_lora"]
    shared = jobs.basis(paths, tmp_path / "basis", error=1e-6)
    assert shared.error < 1e-6
    jobs.export_task(tmp_path / "basis", "lora", tmp_path / "again")
    check(read_adapter(tmp_path / "again"), expected["lora"], loose=1e10)


def test_adapters_on_a_model_are_sources_as_saved_ones_are(tmp_path):
    adapters = {name: adapted(name)[1] for name in ("lora", "lotr", "dora")}
    files = [adapter.to_file(name) for name, adapter in adapters.items()]
    expected = {name: changes(adapter) for name, adapter in adapters.items()}
    for file in files:
        check(file, expected[file.name])
    jobs.merge(files, tmp_path / "sum", method="weighted_sum", weights=[1.0, 2.0, -1.0])
    total = {
        site: delta + 2 * expected["lotr"][site] - expected["dora"][site]
        for site, delta in expected["lora"].items()
    }
    check(read_adapter(tmp_path / "sum"), total, loose=1e10)
    assert [one.name for one in jobs.compare(files).members] == list(adapters)
    assert jobs.basis(files, tmp_path / "basis", error=1e-6).error < 1e-6
    assert jobs.resize(files[1], tmp_path / "small", rank=1).adapters[0].name == "lotr"


def test_broken_files_are_told_by_name(tmp_path):
    _, adapter = adapted("lora")
    adapter.save(tmp_path / "a")
    file = tmp_path / "a" / "factors.safetensors"
    entries, metadata = safetensors.read_header(file)
    arrays = {name: safetensors.load(entry) for name, entry in entries.items()}
    first = sorted(arrays)[0]

    def written(changed, said=metadata):
        (tmp_path / "b").mkdir(exist_ok=True)
        save_file(
            {k: torch.tensor(v) for k, v in changed.items()},
            tmp_path / "b" / "factors.safetensors",
            dict(said),
        )
        return tmp_path / "b"

    with pytest.raises(FileError, match=f"misses the tensor '{first}'"):
        read_adapter(written({k: v for k, v in arrays.items() if k != first}))
    with pytest.raises(FileError, match="besides its factors, the tensor 'more'"):
        read_adapter(written(arrays | {"more": np.ones(2)}))
    with pytest.raises(FileError, match="its method makes it"):
        read_adapter(written(arrays | {first: arrays[first][..., :1]}))
    with pytest.raises(FileError, match="is damaged"):
        read_adapter(written(arrays, {**metadata, KEY: metadata[KEY][:-40]}))
    said = json.loads(metadata[KEY])
    other = metadata[KEY].replace("q_proj.weight", "q_proj")
    with pytest.raises(FileError, match=r"damaged.*q_proj' is no weight"):
        read_adapter(written(arrays, {**metadata, KEY: other}))
    for shape in ([4, 8], [12, 9], [12, 2, 5]):
        wrong = said | {"shapes": {"layers.0.self_attn.q_proj": shape}}
        with pytest.raises(FileError, match=r"damaged.*q_proj is said to be"):
            read_adapter(written(arrays, {**metadata, KEY: json.dumps(wrong)}))
    broken = arrays[first].copy()
    broken.flat[0] = np.nan
    with pytest.raises(DataError, match=f"'{first}'.*NaN"):
        read_adapter(written(arrays | {first: broken})).pairs["layers.0.self_attn.q_proj"]


def test_several_tasks_are_written_one_by_one(tmp_path):
    _, adapter = adapted("lora", tasks=("x", "y"))
    adapter.save(tmp_path / "a")
    with pytest.raises(FileError, match=r"2 tasks.*adapter\.task = 'x'"):
        read_adapter(tmp_path / "a")


def test_no_torch_is_needed(tmp_path):
    adapter = adapted("lotr")[1]
    adapter.save(tmp_path / "a")
    code = (
        "import sys\nfrom tdecomp.files.loras import read_adapter\n"
        f"found = read_adapter({str(tmp_path / 'a')!r})\nfound.pairs[next(iter(found.pairs))]\n"
        "assert 'torch' not in sys.modules and 'tdecomp_torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
