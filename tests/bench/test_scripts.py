"""The scripts that make the tables of docs/benchmarks.md, on sizes that take no time."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

import tdecomp as td
from tdecomp.files.delta import open_delta
from tdecomp.files.loras import read_adapter
from tdecomp.stack import Selection
from tests.bench import (
    adapters,
    bases,
    datasets,
    in_memory,
    limits,
    loras,
    processes,
    scaling,
    smooth,
    storage,
    whole_model,
)
from tests.bench.children import run_child
from tests.bench.synthetic import write_pair
from tests.bench.tables import Printer

SHAPE = (3, 2, 40, 32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair") / "tiny"
    write_pair("tiny", folder)
    return folder


@pytest.mark.parametrize("data", in_memory.DATA)
def test_data_are_float32_stacks_and_repeat(data):
    x = in_memory.DATA[data](SHAPE, 4)
    assert (x.shape, x.dtype, x.flags.c_contiguous) == (SHAPE, np.float32, True)
    np.testing.assert_array_equal(x, in_memory.DATA[data](SHAPE, 4))


def test_planted_ranks_leave_the_noise():
    """Noise of a tenth: an error of 0.1 / √1.01, less what the factors catch of it."""
    noise = 0.1 / 1.01**0.5
    shared, cp = in_memory.shared(SHAPE, 4), in_memory.components(SHAPE, 4)
    assert 0.85 * noise < td.tucker2(shared, rank=4).error < noise
    assert 0.85 * noise < td.cp(cp, rank=4).error < 1.05 * noise


def test_the_error_of_a_row_is_the_one_of_the_fit():
    x = in_memory.shared(SHAPE, 8)
    fit = td.tucker2(x, rank=4)
    assert in_memory.relative_error(x, fit.tensor.to_dense()) == pytest.approx(fit.error, rel=1e-4)


def test_what_a_hundred_adapters_share_decides_whether_sharing_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(bases, "COMMON", 4)
    rows = {}
    for shared in (1.0, 0.0):
        place = tmp_path / str(shared)
        place.mkdir()
        rows[shared] = bases.row(shared, place, count=12, sites=1, width=64)
    assert [row[6] for row in rows.values()] == ["yes", "no"]
    assert float(rows[1.0][3]) < 0.5 * float(rows[0.0][3])


@pytest.mark.parametrize("data", in_memory.DATA)
def test_tables_in_memory(data, capsys):
    x = in_memory.DATA[data]((2, 64, 48), in_memory.RANK)
    in_memory.table(Printer(markdown=True), data, x, runs=1, peers=False)
    shown = capsys.readouterr().out
    assert ("td.cp" in shown) == (data == "components")
    assert ("| td.tucker (2, 16, 16) |" in shown) == (data != "components")


def test_steps_add_up(capsys):
    in_memory.steps(Printer(markdown=True), in_memory.shared((2, 96, 80), 16), runs=1)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:2] == "| "]
    spent = [float(row[2]) for row in rows[2:]]
    assert sum(spent[:-1]) == pytest.approx(spent[-1], abs=1e-3)


def test_passes_are_told_apart(pair, capsys):
    delta = open_delta(pair / "base", pair / "tuned", Selection(targets=["k_proj", "v_proj"]))
    (stack,) = delta.stacks
    watched = whole_model.Watched(stack.read)
    for _ in range(3):
        assert len(list(replace(stack, read=watched))) == 6
    spent = watched.passes(end=watched.times[2][-1])
    assert len(spent) == 3
    assert sum(spent) == pytest.approx(watched.times[2][-1] - watched.times[0][0])
    site = stack.group.sites[0]
    parts = {site.shape: whole_model.parts_of(delta.pair, site)}
    assert min(parts[site.shape].file, parts[site.shape].widen, parts[site.shape].product) > 0
    whole_model.passes_table(Printer(markdown=True), delta, "tucker2", parts)
    assert "| attn_in.48x96 | 6 |" in capsys.readouterr().out


def test_memory_of_a_child_is_its_own():
    held = np.ones(25_000_000)  # what the parent holds does not count
    child = run_child([sys.executable, "-c", "print('x' * 5); import time; time.sleep(0.2)"])
    assert child.output == "xxxxx\n"
    assert 0 < child.anonymous <= child.rss < held.nbytes
    with pytest.raises(RuntimeError, match="failed with 3"):
        run_child([sys.executable, "-c", "raise SystemExit(3)"])


def test_memory_of_a_lazy_stack_is_less_than_the_stack(tmp_path):
    size, layers = 512, 24  # above what is decomposed exactly, and then as a whole
    scaling.write_layers(tmp_path, layers, size)
    assert size**2 * 4 < scaling.measure_memory(tmp_path, rank=4) < layers * size**2 * 4


def test_widening_gives_the_difference():
    assert limits.widen_and_subtract((8, 16)) > 0


def test_steps_with_adapters_are_compared(capsys):
    torch = pytest.importorskip("torch")
    x = torch.ones(2, 3, 24)
    base = adapters.Chain(width=24, depth=2, heads=2)
    ranks = dict.fromkeys(adapters.METHODS, 4)
    found = adapters.variants(base, ranks, 4)
    adapters.table(Printer(markdown=True), "steps", found, x, runs=1)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:2] == "| "]
    assert [row[1].split()[0] for row in rows[2:]] == ["no", "PEFT", "lora", *adapters.METHODS]
    lora, ours = (v for v in found if v.name.endswith("LoRA r = 4") or v.name == "lora r = 4")
    assert lora.n_params == ours.n_params == 2 * 3 * 4 * (24 + 24)


def test_saved_bytes_are_those_of_the_activations():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(5, 4, bias=False), torch.nn.Sigmoid())
    x = torch.ones(3, 5)
    assert adapters.saved_bytes(model, x) == 4 * (3 * 5 + 3 * 4)  # the input, and what sigmoid gave


def test_the_rebuilt_stack_is_the_same_adapter():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    base = adapters.Chain(width=24, depth=2, heads=2)
    rebuilt = adapters.Rebuilt(base, 4)
    with torch.no_grad():
        rebuilt.core.normal_()
    x = torch.randn(2, 24)
    dense = torch.einsum(
        "ir,os,pu,lv,rsuv->plio",
        *(rebuilt.right, rebuilt.left, rebuilt.proj, rebuilt.layer, rebuilt.core),
    )
    layer = base.layers[1].self_attn.k_proj
    torch.testing.assert_close(
        layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias) + x @ dense[1, 1]
    )


def test_smooth_rows_are_made_of_small_sizes():
    for rows in (smooth.kernels([(9, 8, 3, 3)]), smooth.trains((3,)), smooth.tiny_matrices((5,))):
        assert all(float(cell) >= 0 for cell in rows[0][2:4] if cell)


@pytest.mark.slow
def test_a_start_is_measured_beside_a_plain_pass():
    command = [sys.executable, "-m", "tests.bench.starts", "--shape", "tiny", "--only"]
    for name in ("forward and backward", "lotr, gradients"):
        found = json.loads(run_child([*command, name]).output.splitlines()[-1])
        assert found["seconds"] > 0
        assert found["extra"] >= 0
    held = {}
    for name in ("lora, PiSSA's rule", "PEFT PiSSA, full"):
        held[name] = json.loads(run_child([*command, name]).output.splitlines()[-1])["held"]
    ours, exact = held.values()
    assert 0.3 < ours <= 1
    assert ours == pytest.approx(exact, abs=1e-3)  # bfloat16 is rounded in what PEFT leaves


def test_loras_are_made_narrower_and_compared_with_a_dense_svd(tmp_path, capsys, monkeypatch):
    sites = {"model.layers.0.q": (40, 24), "model.layers.0.k": (24, 40)}
    monkeypatch.setattr(loras, "SHAPES", {"tiny": ("peft", sites, "model.layers.0.q")})
    printer = Printer(markdown=True)
    path = loras.whole(printer, "tiny", 8, 2, tmp_path)
    pair = loras.Planted((40, 24), 8, 0).read()
    stored = read_adapter(path).pairs["model.layers.0.q"]
    assert np.array_equal(pair.b, stored.b)
    loras.beside_dense(printer, pair, "model.layers.0.q", 2)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:2] == "| "]
    error, dense = (float(cell) for cell in rows[-1][4:6])
    assert error == pytest.approx(dense, abs=2e-6)


@pytest.mark.parametrize("name", datasets.TABLES)
def test_tables_of_scikit_learn_are_tensors(name):
    pytest.importorskip("sklearn")
    x = datasets.data(name)
    assert x.shape == datasets.TABLES[name][1]
    if name not in ("digits", "iris"):  # pictures as they are; flowers of all species in a column
        np.testing.assert_allclose(np.linalg.norm(x, axis=0), 1)


def test_errors_beside_tensorly_are_counted(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["datasets", "--data", "linnerud", "--markdown"])
    datasets.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:2] == "| "]
    assert [row[4].strip() for row in rows if row[2].strip() in ("7", "10")] == ["fails"] * 2
    compared, larger, largest = (cell.strip() for cell in rows[-1][1:4])
    assert (compared, larger) == ("5", "0")
    assert 0.9 < float(largest) <= 1.0001


@pytest.mark.slow
def test_a_server_gives_the_bits_of_the_disk(capsys):
    storage.main(["--preset", "tiny", "--rank", "4", "--repeats", "1"])
    assert capsys.readouterr().out.count("same bits") == 8


def test_the_cost_model_falls_with_workers_down_to_the_storage(pair):
    constants = processes.measured(pair)
    sizes = processes.SHAPES["8B"]
    times = [constants.seconds(sizes, w, 2e9, 4) for w in (1, 8, 64, 10**6)]
    assert times == sorted(times, reverse=True)
    numbers = sum(a * b for a, b in sizes.projections.values()) * sizes.layers
    assert times[-1] > 6 * 4 * numbers / 2e9  # five reads and the hashes
    assert [processes.minutes(t) for t in (3, 600, 36_000)] == ["3 s", "10 min", "10.0 h"]


@pytest.mark.slow
def test_many_processes_are_measured(pair, tmp_path):
    (tmp_path / "pair").symlink_to(pair)
    rows, passes = processes.here(tmp_path, "tiny", processes.measured(pair), 1)
    assert [row[0] for row in rows[1:]] == [
        "--dask local",
        "a cluster of 2 processes",
        "the command",
        "the command, --dask local",
        "2 parts in a folder",
    ]
    assert passes >= 0
