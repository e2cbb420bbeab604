"""Adapters that start from what ``tdecomp decompose`` wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tdecomp import ArgumentError, FileError, SiteError, jobs
from tdecomp.files import Factors, load_factors
from tdecomp_torch import apply, attach, factors, load_adapter
from tests.torch.cases import HIDDEN, assert_close, inputs, set_random, tiny

QKV = ["q_proj", "k_proj", "v_proj"]


def decomposed(folder: Path, method: str, *, targets: list[str] | None = None, **how) -> Factors:
    """Of `tiny` and a neighbour of it."""
    folder.mkdir(exist_ok=True)
    base, tuned = folder / "base.safetensors", folder / "tuned.safetensors"
    old = {n: p.detach().float().contiguous() for n, p in tiny().named_parameters()}
    new = {n: w + 0.1 * inputs(*w.shape, seed=k).float() for k, (n, w) in enumerate(old.items())}
    save_file(old, base)
    save_file(new, tuned)
    chosen = jobs.Selection(targets=targets)
    jobs.decompose(base, tuned, folder / "out", method=method, selection=chosen, **how)
    return load_factors(folder / "out")


def deltas(made: Factors) -> dict[str, np.ndarray]:
    """By module path."""
    return {
        site.path: np.asarray(part.tensor.matrix(k))
        for part in made.parts
        for k, site in enumerate(part.group.sites)
    }


def away(adapter, wanted: dict[str, np.ndarray]) -> float:
    """Relative distance of the adapter from the deltas."""
    found = {path: adapter.delta(path).detach().numpy() for path in wanted}
    missed = sum(np.sum((found[p] - w) ** 2) for p, w in wanted.items())
    return float(np.sqrt(missed / sum(np.sum(w**2) for w in wanted.values())))


EXACT = [
    ("svd", dict(budget=500), "lora"),  # ranks differ from weight to weight
    ("svd", dict(budget=500), "rslora"),
    ("tucker2", dict(rank=3), "lora"),
    ("tucker2", dict(rank=3), "lotr"),
    ("cp", dict(rank=3), "tenslora_qkv_depth_cp"),
    ("tucker", dict(rank={"layer": 2, "proj": 2, "out": 3, "in": 4}), "tenslora_qkv_depth"),
]


@pytest.mark.parametrize(("method", "how", "row"), EXACT)
def test_what_was_decomposed_is_the_start(tmp_path, method, how, row):
    targets = QKV if row.startswith("tenslora") else None
    made = decomposed(tmp_path, method, targets=targets, **how)
    model = tiny()
    adapter = attach(model, row, start=factors(tmp_path / "out"), dtype=torch.float64)
    assert away(adapter, deltas(made)) < 1e-6
    assert not any("away from the factors" in note for note in adapter.notes)
    assert {target.path for target in adapter.targets} == {*deltas(made)}
    expected = apply(tiny(), made)(inputs(2, 5, HIDDEN))
    assert_close(model(inputs(2, 5, HIDDEN)).float(), expected.float())


def test_ranks_are_those_of_the_factors_and_groups_theirs(tmp_path):
    made = decomposed(tmp_path, "tucker2", rank={"out": 3, "in": 4})
    adapter = attach(tiny(), "lotr", start=factors(made))
    assert adapter.n_trainable == made.n_params
    assert [g.grid.name for g in adapter.groups] == [g.name for g in made.groups]
    pairs = decomposed(tmp_path / "pairs", "svd", budget=500)
    widest = max(max(part.tensor.rank) for part in pairs.parts)
    assert {b.ranks["r"] for b in attach(tiny(), "lora", start=factors(pairs)).groups} == {widest}


@pytest.mark.parametrize(("method", "how", "row"), EXACT)
def test_ranks_beyond_change_nothing_and_are_trained(tmp_path, method, how, row):
    """Zero in one factor, and not in the others: a gradient reaches the first."""
    targets = QKV if row.startswith("tenslora") else None
    made = decomposed(tmp_path, method, targets=targets, **how)
    model = tiny()
    adapter = attach(model, row, rank=7, start=factors(made), dtype=torch.float64)
    assert away(adapter, deltas(made)) < 1e-6
    model(inputs(2, 5, HIDDEN)).square().mean().backward()
    for bound in adapter.groups:
        keys = [k for k in adapter.factors() if k.startswith(bound.grid.name.replace(".", "_"))]
        for letter, size in bound.ranks.items():
            reached = []
            for key in keys:
                name = key.rpartition("__")[2]
                modes = next(f.modes for f in bound.factors if f.name == name)
                if letter in modes:
                    last = adapter.factors()[key].grad.select(modes.index(letter), size - 1)
                    reached.append(bool(last.abs().max() > 0))
            assert any(reached), (bound.grid.name, letter)


@pytest.mark.parametrize("row", ["lotr", "lorta", "tt_lora", "metatt"])
def test_a_start_that_is_not_exact_is_the_nearest_and_says_how_far(tmp_path, row):
    made = decomposed(tmp_path, "svd", targets=QKV, rank=2)
    adapter = attach(tiny(), row, rank=2, start=factors(made), dtype=torch.float64)
    (note,) = [note for note in adapter.notes if "away from the factors" in note]
    told = float(note.split(" starts ")[1].split(" ")[0])
    measured = away(adapter, deltas(made))
    assert 0 < measured < 1
    assert told == pytest.approx(measured, abs=1e-4)


def test_a_smaller_rank_is_the_nearest_by_brute_force(tmp_path):
    made = decomposed(tmp_path, "svd", rank=4)
    adapter = attach(tiny(), "lora", rank=2, start=factors(made), dtype=torch.float64)
    for path, delta in deltas(made).items():
        u, s, vh = np.linalg.svd(delta)
        assert np.allclose(adapter.delta(path).detach(), u[:, :2] * s[:2] @ vh[:2], atol=1e-6)


def test_it_is_trained_merged_saved_and_exported(tmp_path):
    made = decomposed(tmp_path, "tucker2", rank=3)
    model = tiny()
    adapter = attach(model, "lotr", start=factors(made))
    set_random(adapter)
    expected = model(inputs(2, 5, HIDDEN))
    adapter.save(tmp_path / "saved")
    again = tiny()
    load_adapter(again, tmp_path / "saved")
    assert_close(again(inputs(2, 5, HIDDEN)), expected)
    modules = adapter.save_lora(tmp_path / "lora")
    for pair in modules:
        found = torch.as_tensor(np.asarray(pair.b) @ np.asarray(pair.a))
        assert_close(found.float(), adapter.delta(pair.module).detach().float())
    adapter.merge()
    assert_close(model(inputs(2, 5, HIDDEN)), expected)


def test_some_of_the_weights_and_a_note_on_the_others(tmp_path):
    made = decomposed(tmp_path, "svd", rank=2)
    adapter = attach(tiny(), "lora", targets=["q_proj"], layers=[1], start=factors(made))
    assert [target.path for target in adapter.targets] == ["layers.1.self_attn.q_proj"]
    assert "The factors change 7 more modules, which are not among the targets." in adapter.notes


def test_a_model_that_is_a_part_of_another(tmp_path):
    made = decomposed(tmp_path, "svd", rank=2)
    whole = torch.nn.ModuleDict({"body": tiny(), "more": torch.nn.Linear(2, 2)})
    adapter = attach(whole, "lora", start=factors(made))
    assert len(adapter.targets) == 8
    assert {target.path.partition(".")[0] for target in adapter.targets} == {"body"}


def test_factors_of_another_model_are_refused_by_name(tmp_path):
    made = decomposed(tmp_path, "svd", rank=2)
    model = tiny()
    model.layers[1].self_attn.k_proj = torch.nn.Linear(HIDDEN, 7)
    with pytest.raises(SiteError, match=r"layers\.1\.self_attn\.k_proj\.weight is \(7, 8\) in"):
        attach(model, "lora", start=factors(made))
    del model.layers[1]
    with pytest.raises(SiteError, match=r"change layers\.1\.\S+\.weight, and this model has no"):
        attach(model, "lora", start=factors(made))
    assert not any("tdecomp" in name for name, _ in model.named_modules())
    two = torch.nn.ModuleList([tiny(), tiny()])
    with pytest.raises(SiteError, match="several modules end in it"):
        attach(two, "lora", start=factors(made))


def test_refusals(tmp_path):
    made = decomposed(tmp_path, "svd", targets=["q_proj"], rank=2)
    for row, options, text in (
        ("lotr", {}, "another equation than the LowRank factors of .* give rank="),
        ("hira", {"rank": 2}, "one product of factors"),
        ("svfit", {"rank": 2}, "a start of its own"),
        ("lora", {"tasks": ["a", "b"]}, "leave out tasks"),
        ("lora", {"patterns": ["layers.{layer}.x"]}, "leave out tasks, patterns"),
    ):
        with pytest.raises(ArgumentError, match=text):
            attach(tiny(), row, start=factors(made), **options)
    with pytest.raises(SiteError, match=r"hold nothing of layers\.0\.self_attn\.k_proj"):
        attach(tiny(), "lora", targets=["k_proj"], start=factors(made))
    with pytest.raises(FileError, match=r"holds no factors\.safetensors"):
        factors(tmp_path)
