"""What workers of an executor find is what one process finds, to the bit."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tdecomp as td
from tdecomp import jobs
from tdecomp.errors import ArgumentError, FileError
from tdecomp.files import safetensors
from tdecomp.files.delta import open_delta

LAYERS, OUT, IN = 10, 384, 512


def write(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    rows = [(name, "F32", a.shape) for name, a in arrays.items()]
    safetensors.write(
        folder / "model.safetensors", rows, lambda name: arrays[name].view("u1").ravel()
    )


def write_models(folder: Path) -> tuple[Path, Path]:
    """Matrices large enough for sketches, with a shared basis of rank 4 and noise."""
    rng = np.random.default_rng(0)
    names = [f"model.layers.{i}.self_attn.{p}_proj.weight" for i in range(LAYERS) for p in "qv"]
    base = {name: rng.standard_normal((OUT, IN)).astype("f4") for name in names}
    shared = rng.standard_normal((4, IN))
    tuned = {
        name: (w + rng.standard_normal((OUT, 4)) @ shared / 9 + rng.standard_normal(w.shape) / 50)
        for name, w in base.items()
    }
    base["model.embed_tokens.weight"] = np.ones((50, IN), "f4")
    tuned["model.embed_tokens.weight"] = np.full((50, IN), 1.01)
    write(folder / "base", base)
    write(folder / "tuned", {name: w.astype("f4") for name, w in tuned.items()})
    return folder / "base", folder / "tuned"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    return write_models(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


ASKED = [
    (td.svd, {"rank": 3}),
    (td.svd, {"error": 0.2}),
    (td.tucker2, {"rank": 4}),
    (td.tucker, {"rank": 4, "modes": ("in",)}),
    (td.tensor_train, {"rank": 4}),
    (td.cp, {"rank": 4}),
    (td.interpolative, {"rank": 6}),
    (td.interpolative, {"error": 0.5, "modes": ("out",)}),
]


def test_decompositions_are_the_same(models, pool):
    for method, asked in ASKED:
        one, many = (
            td.decompose(open_delta(*models).stacks, method, executor=executor, **asked)
            for executor in (None, pool)
        )
        assert (one.error, one[0].passes) == (many.error, many[0].passes)
        for name, array in one[0].tensor.arrays.items():
            np.testing.assert_array_equal(array, many[0].tensor.arrays[name], str(method))
    (stack,) = open_delta(*models).stacks
    assert td.tucker2(stack, rank=4, executor=pool).error == pytest.approx(
        td.tucker2(stack, rank=4).error, abs=0
    )


@pytest.mark.parametrize("method", [td.svd, td.tucker2, td.tensor_train, td.cp])
def test_every_slice_of_every_pass_is_told(models, pool, method):
    """Where the bar stands, and the bytes that went by: wherever the work is done."""
    for executor in (None, pool):
        (stack,), seen, sites = open_delta(*models).stacks, [], []
        watched = replace(stack, visited=sites.append).on(executor)
        fit = method(watched, rank=4, progress=seen.append)
        assert seen == sorted(seen)
        assert seen[-1] <= 1
        assert len(set(seen)) >= fit.passes * (2 if executor else stack.n_sites)  # two tasks a pass
        counts = Counter(sites)
        assert counts.keys() == set(stack.group.sites)
        assert set(counts.values()) <= {fit.passes, 1 + fit.passes}  # one is looked at beforehand


def test_bytes_that_passes_go_over_are_told(models, pool, tmp_path):
    for executor in (None, pool):
        heard = []
        machine = jobs.Machine(executor=executor, heard=heard.append)
        jobs.decompose(*models, tmp_path / "out", rank=3, machine=machine, overwrite=True)
        slice_of_both = 2 * 4 * OUT * IN
        assert sum(heard) in [n * slice_of_both for n in (2 * LAYERS, 2 * LAYERS + 1)]


def test_exploring_is_the_same(models, pool):
    one, many = (
        td.explore(open_delta(*models).stacks, [20_000], executor=executor)
        for executor in (None, pool)
    )
    assert one == many
    assert one.passes == 4


@pytest.mark.parametrize("method", ["svd", "tucker2"])
def test_jobs_write_the_same_files(models, pool, tmp_path, method):
    """Hashes, roundings and what is not covered, too."""
    for name, executor in [("one", None), ("many", pool)]:
        machine = jobs.Machine(executor=executor)
        jobs.decompose(*models, tmp_path / name, method=method, rank=3, machine=machine)
    for file in ("factors.safetensors", "report.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "many" / file).read_bytes()


def test_weights_do_not_pass_through_the_process_that_leads(models, pool):
    """What goes out and comes back is as large as the states, here a fortieth of the weights."""
    sizes = []

    class Counting:
        def submit(self, fn, /, *args):
            future = pool.submit(fn, *args)
            sizes.append(len(args[1]))
            future.add_done_callback(lambda done: sizes.append(len(done.result())))
            return future

    delta = open_delta(*models)
    fits = td.decompose(delta.stacks, td.tucker2, rank=4, executor=Counting())
    width = (4 + 10) * 3 // 2
    of_a_pass = 2 * 4 * LAYERS * 2 * width * max(OUT, IN) + 20_000 * LAYERS * 2
    assert sum(sizes) < (fits[0].passes + 1) * of_a_pass


def test_what_is_in_memory_is_refused(models, pool):
    with pytest.raises(ArgumentError, match="a ndarray is in the memory of this process"):
        td.decompose([np.ones((3, 4, 4))], td.svd, rank=1, executor=pool)
    (stack,) = td.Stack.from_arrays({f"layers.{i}.mlp.weight": np.ones((4, 4)) for i in range(3)})
    with pytest.raises(ArgumentError, match="executor= cannot take .*in the memory"):
        td.svd(stack, rank=1, executor=pool)
    with pytest.raises(ArgumentError, match="executor=.*memory"):
        td.explore(np.ones((3, 4, 4)), executor=pool)
    stacks = open_delta(*models).stacks
    with pytest.raises(ArgumentError, match="a function cannot be sent"):
        td.decompose(stacks, td.svd, rank=1, rounding=lambda x: x, executor=pool)
    with pytest.raises(ArgumentError, match="either the device or an executor"):
        jobs.Machine("cpu", executor=pool).stacks(open_delta(*models))


def test_files_that_change_are_told(models, pool, tmp_path):
    for name, folder in zip(("base", "tuned"), models, strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()
        )
    (stack,) = open_delta(tmp_path / "base", tmp_path / "tuned").stacks
    file = tmp_path / "tuned" / "model.safetensors"
    again = file.read_bytes()
    file.unlink()
    file.write_bytes(again)
    with pytest.raises(FileError, match="model.safetensors is another file for a worker"):
        td.svd(stack, rank=1, executor=pool)
