"""Adapters in common bases: what is recovered, what is told, and what stays byte by byte."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from tdecomp import jobs
from tdecomp.adapters import LoRAModule, principal_directions
from tdecomp.errors import TdecompError
from tdecomp.files import safetensors
from tdecomp.files.basis_folder import open_basis
from tdecomp.files.checkpoint import open_checkpoint
from tdecomp.files.loras import read_adapter
from tests.cli import models
from tests.collections.files import SITES, adapter, related


@pytest.fixture
def three(tmp_path):
    fewer = dict(list(SITES.items())[1:])
    return [
        adapter(tmp_path / "a", 1),
        adapter(tmp_path / "b", 2, rank=3, scale=0.5),
        adapter(tmp_path / "c", 3, rank=1, sites=fewer),
    ]


def deltas(path) -> dict[str, np.ndarray]:
    return {site: pair.dense() for site, pair in read_adapter(path).pairs.items()}


def norm(arrays) -> float:
    return float(np.sqrt(sum(np.sum(x**2) for x in arrays)))


def digests(folder) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*.safetensors"))
    }


def recovered(tmp_path, basis, name) -> dict[str, np.ndarray]:
    jobs.export_task(basis, name, tmp_path / f"out_{name}", overwrite=True)
    found = deltas(tmp_path / f"out_{name}")
    return {site: found.get(site, np.zeros(shape)) for site, shape in SITES.items()}


@pytest.mark.parametrize("over_layers", [False, True])
def test_with_full_ranks_every_member_comes_back(over_layers, three, tmp_path):
    report = jobs.basis(three, tmp_path / "basis", rank=1000, over_layers=over_layers)
    assert report.groups == (2 if over_layers else 4)
    for row, path in zip(report.members, three, strict=True):
        back, own = recovered(tmp_path, tmp_path / "basis", row.name), deltas(path)
        away = norm(back[site] - own.get(site, 0.0) for site in SITES)
        assert away <= 1e-5 * norm(own.values())
        assert row.lost == pytest.approx(away / norm(own.values()), rel=0.05, abs=1e-9)
    assert report.error < 1e-5
    assert read_adapter(tmp_path / "out_a").base == "base"


@pytest.mark.parametrize("small", [{"rank": 2}, {"error": 0.3}, {"budget": 700}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_losses_are_those_of_the_dense_deltas(small, dtype, three, tmp_path):
    report = jobs.basis(three, tmp_path / "basis", dtype=dtype, **small)
    total, whole = 0.0, 0.0
    for row, path in zip(report.members, three, strict=True):
        back, own = recovered(tmp_path, tmp_path / "basis", row.name), deltas(path)
        away = norm(back[site] - own.get(site, 0.0) for site in SITES)
        assert row.norm == pytest.approx(norm(own.values()))
        assert row.lost == pytest.approx(away / norm(own.values()), rel=1e-5)
        total, whole = total + away**2, whole + norm(own.values()) ** 2
    assert report.error == pytest.approx(np.sqrt(total / whole), rel=1e-5)
    assert report.error <= small.get("error", 1) * (1.02 if dtype == "bfloat16" else 1.0001)
    assert report.numbers <= small.get("budget", 10**9)
    stored = [
        np.prod(entry.shape)
        for file in (tmp_path / "basis").rglob("*.safetensors")
        for entry in safetensors.read_header(file)[0].values()
    ]
    assert report.numbers == sum(stored)


def test_what_is_planted_is_found_and_sharing_is_told_to_win_or_lose(three, tmp_path):
    alike = jobs.basis(
        [related(tmp_path / f"t{seed}", seed) for seed in range(8)], tmp_path / "alike", error=0.05
    )
    assert alike.rank <= 4
    assert alike.numbers < alike.separate_numbers
    assert alike.sharing_wins
    assert alike.error < alike.resized_error
    apart = jobs.basis(three, tmp_path / "apart", rank=2)
    assert apart.sharing_wins is False
    assert apart.error > apart.resized_error
    spectra = np.concatenate(
        [
            np.linalg.svd(x, compute_uv=False)[:, None] ** [2, 0] * [1, sum(x.shape)]
            for path in three
            for x in deltas(path).values()
        ]
    )  # (s², numbers) of every direction: the best is by energy per number
    order = np.argsort(-spectra[:, 0] / spectra[:, 1])
    within = np.cumsum(spectra[order, 1]) <= apart.numbers
    best = np.sqrt(1 - spectra[order[within], 0].sum() / spectra[:, 0].sum())
    assert apart.resized_error == pytest.approx(best, rel=0.1)


@pytest.mark.slow
def test_a_hundred_adapters_that_share_take_a_quarter_of_the_room(tmp_path):
    sites = {f"model.layers.{layer}.mlp.up_proj": (96, 80) for layer in range(3)}
    options = {"directions": 12, "rank": 4, "sites": sites}
    paths = [related(tmp_path / f"t{seed}", seed, **options) for seed in range(100)]
    report = jobs.basis(paths, tmp_path / "basis", error=0.02)
    assert report.rank == 12
    assert 4 * report.numbers < report.separate_numbers
    assert max(row.lost for row in report.members) < 0.03
    assert report.resized_error > 10 * report.error


def test_members_come_and_go_without_a_byte_of_the_others(three, tmp_path):
    folder = tmp_path / "basis"
    jobs.basis(three[:2], folder, rank=1000)
    before = digests(folder)
    report = jobs.add_to_basis(three[2], folder, name="new one")
    after = digests(folder)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"members/new one.safetensors"}
    own, back = deltas(three[2]), recovered(tmp_path, folder, "new one")
    away = norm(back[site] - own.get(site, 0.0) for site in SITES)
    (row,) = (row for row in report.members if row.name == "new one")
    assert row.lost == pytest.approx(away / norm(own.values()), rel=1e-5)
    assert row.lost > 0.1  # it was not asked when the bases were made
    jobs.remove_from_basis(folder, "a")
    left = digests(folder)
    assert left.keys() == after.keys() - {"members/a.safetensors"}
    assert all(after[name] == left[name] for name in left)
    assert [row.name for row in jobs.basis_info(folder).members] == ["b", "new one"]


def test_a_member_is_the_same_bits_whatever_multiplies(three, tmp_path, monkeypatch):
    """No product of matrices is taken on the way back: only sums in an order that is fixed."""
    jobs.basis(three, tmp_path / "basis", rank=3)
    first = open_basis(tmp_path / "basis").adapter("b")
    monkeypatch.setattr(np, "matmul", None)
    monkeypatch.setattr(np, "dot", None)
    monkeypatch.setattr(np, "einsum", None)
    for site, held in open_basis(tmp_path / "basis").adapter("b").stored.items():
        assert np.array_equal(held.pair.b, first.stored[site].pair.b)
        bases, core = (
            open_basis(tmp_path / "basis").bases(open_basis(tmp_path / "basis").group_of[site]),
            open_basis(tmp_path / "basis").cores("b")[site],
        )
        left, right, rows = (x.astype(np.float64) for x in (bases.left, bases.right, core))
        total = np.zeros((core.shape[0], right.shape[1]))
        for k in range(core.shape[1]):
            for i in range(core.shape[0]):
                total[i] += rows[i, k] * right[k]
        assert np.array_equal(held.pair.b, left.astype(np.float32))
        assert np.array_equal(held.pair.a, total.astype(np.float32))


def test_the_bases_are_directions_for_a_new_adapter(tmp_path):
    paths = [related(tmp_path / f"t{seed}", seed) for seed in range(4)]
    jobs.basis(paths, tmp_path / "basis", rank=3)
    found = open_basis(tmp_path / "basis").directions()
    members = [
        [
            LoRAModule(module=s, a=p.a, b=p.b, transpose=False, departure=0.0, energy=p.energy())
            for s, p in read_adapter(path).pairs.items()
        ]
        for path in paths
    ]
    known = principal_directions(members, 3)
    assert found.keys() == known.keys()
    for side, by_site in known.items():
        for site, wanted in by_site.items():
            mine = found[side][site]
            assert mine.shape == wanted.shape
            one, two = (x if side == "directions_out" else x.T for x in (mine, wanted))
            cosines = np.linalg.svd(one.T @ two, compute_uv=False)
            assert cosines.min() > 0.99  # both hold what was planted
    jobs.basis(paths, tmp_path / "uneven", error=0.3)
    with pytest.raises(TdecompError, match="one is needed"):
        open_basis(tmp_path / "uneven").directions()


def test_a_member_is_applied_to_its_base(three, tmp_path):
    arrays = models.base_arrays()
    base = models.write_base(tmp_path / "base", arrays)
    jobs.basis(three, tmp_path / "basis", rank=1000)
    jobs.apply_task(tmp_path / "basis", "b", base, tmp_path / "model", dtype="float32")
    model, own = open_checkpoint(tmp_path / "model"), deltas(three[1])
    for name, before in arrays.items():
        wanted = before + own.get(name.removesuffix(".weight"), 0.0)
        assert np.allclose(model.read(name), wanted, atol=1e-5), name


def damaged(folder) -> None:
    file = next((folder / "members").glob("*.safetensors"))
    entries, metadata = safetensors.read_header(file)
    arrays = {name: safetensors.load(entry)[:1] for name, entry in entries.items()}
    rows = [(name, "F32", array.shape) for name, array in arrays.items()]
    safetensors.write(file, rows, lambda n: safetensors.encode(arrays[n], "F32"), metadata)


def renamed(folder) -> None:
    file = next((folder / "members").glob("*.safetensors"))
    entries, metadata = safetensors.read_header(file)
    arrays = {name: safetensors.load(entry) for name, entry in entries.items()}
    changed = {key: text.replace('"energy"', '"energy": -1, "_"') for key, text in metadata.items()}
    rows = [(name, "F32", array.shape) for name, array in arrays.items()]
    safetensors.write(file, rows, lambda n: safetensors.encode(arrays[n], "F32"), changed)


REFUSED = {
    "no target": (lambda t: jobs.basis([t / "a"], t / "new"), "exactly one of rank"),
    "a name twice": (lambda t: jobs.add_to_basis(t / "a", t / "basis"), "'a' already"),
    "no member": (lambda t: jobs.remove_from_basis(t / "basis", "x"), "no member 'x'.*'a', 'b'"),
    "no basis": (lambda t: jobs.basis_info(t / "a"), "no folder that 'tdecomp basis' wrote"),
    "unknown task": (lambda t: jobs.export_task(t / "basis", "x", t / "new"), "no member 'x'"),
    "other weights": (lambda t: jobs.add_to_basis(t / "other", t / "basis"), "bases of none"),
    "other shapes": (lambda t: jobs.add_to_basis(t / "wide", t / "basis"), r"\(16, 12\)"),
    "no list": (lambda t: (renamed(t / "basis"), jobs.basis_info(t / "basis")), "no readable list"),
    "damaged": (
        lambda t: (damaged(t / "basis"), jobs.export_task(t / "basis", "a", t / "new")),
        "does not fit its bases",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(case, three, tmp_path):
    jobs.basis(three[:2], tmp_path / "basis", rank=2)
    adapter(tmp_path / "other", 9, sites={"model.layers.7.mlp.x": (6, 5)})
    adapter(tmp_path / "wide", 9, sites={next(iter(SITES)): (6, 5)})
    act, said = REFUSED[case]
    names = sorted(digests(tmp_path))
    with pytest.raises(TdecompError, match=said) as caught:
        act(tmp_path)
    assert "\n" not in str(caught.value)
    assert sorted(digests(tmp_path)) == names
