"""Merges of files: what is written is the merge of the table, whatever the members are."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tdecomp import jobs
from tdecomp._xp import tol
from tdecomp.collections.merging import MERGES, MergeSite
from tdecomp.errors import TdecompError
from tdecomp.files import safetensors
from tdecomp.files.checkpoint import open_checkpoint
from tdecomp.files.loras import read_adapter
from tdecomp.files.statistics_file import save_statistics
from tdecomp.statistics import Statistics
from tdecomp.statistics.inputs import InputStatistics
from tdecomp.statistics.statistics import SiteStatistics
from tests.cli import models
from tests.collections.files import SITES, adapter

WEIGHTS = (0.5, -1.0, 2.0)


@pytest.fixture
def three(tmp_path):
    """Mixed ranks, scales and dtypes; the last one lacks a site."""
    fewer = dict(list(SITES.items())[1:])
    return [
        adapter(tmp_path / "a", 1),
        adapter(tmp_path / "b", 2, rank=3, scale=0.5),
        adapter(tmp_path / "c", 3, rank=1, dtype="BF16", sites=fewer),
    ]


def deltas_of(paths, base=None) -> dict[str, np.ndarray]:
    """(task, out, in) of every site, zeros where there is no pair."""
    members = [read_adapter(path, base=base) for path in paths]
    return {
        site: np.stack([m.pairs[site].dense() if site in m.pairs else np.zeros(s) for m in members])
        for site, s in SITES.items()
    }


def expected(paths, method, options, weights) -> dict[str, np.ndarray]:
    row = MERGES[method]
    merged = {}
    for site, deltas in deltas_of(paths).items():
        pairs = tuple((d, np.eye(d.shape[1])) for d in deltas)
        merged[site] = row(
            MergeSite(name=site, pairs=pairs, weights=weights), row.with_options(**options)
        ).dense()
    return merged


def norm(arrays) -> float:
    return float(np.sqrt(sum(np.sum(x**2) for x in arrays)))


@pytest.mark.parametrize("method", ["weighted_sum", "tsv", "knots", "ties", "karcher"])
def test_an_adapter_is_the_merge_of_the_deltas(method, three, tmp_path):
    weights = tuple(map(abs, WEIGHTS)) if method == "karcher" else WEIGHTS
    small = {"rank": 20} if method == "ties" else {}
    report = jobs.merge(three, tmp_path / "out", method=method, weights=weights, **small)
    made = read_adapter(tmp_path / "out")
    wanted = expected(three, method, {}, weights)
    away = norm(made.pairs[s].dense() - x if s in made.pairs else x for s, x in wanted.items())
    assert away <= tol(np.float32, 400) * norm(wanted.values())
    assert report.error == pytest.approx(away / norm(wanted.values()), rel=1e-2, abs=1e-9)
    assert report.norm == pytest.approx(norm(wanted.values()))
    deltas = deltas_of(three)
    for t, row in enumerate(report.members):
        mine = norm(d[t] for d in deltas.values())
        inner = sum(np.vdot(wanted[s], d[t]) for s, d in deltas.items())
        assert row.norm == pytest.approx(mine)
        assert row.cosine == pytest.approx(inner / mine / report.norm, abs=1e-12)
        away = norm(wanted[s] - d[t] for s, d in deltas.items())
        assert row.departure == pytest.approx(away / mine)
    assert [(m.member, m.site) for m in report.missing] == [("c", next(iter(SITES)))]
    assert read_adapter(tmp_path / "out").base == "base"


@pytest.mark.parametrize("small", [{"rank": 2}, {"error": 0.3}, {"budget": 300}])
def test_what_is_cut_is_told(small, three, tmp_path):
    report = jobs.merge(three, tmp_path / "out", method="weighted_sum", **small)
    wanted = expected(three, "weighted_sum", {}, (1.0, 1.0, 1.0))
    made = read_adapter(tmp_path / "out")
    away = norm(made.pairs[s].dense() - x if s in made.pairs else x for s, x in wanted.items())
    assert report.error == pytest.approx(away / norm(wanted.values()), rel=1e-5)
    assert report.error > 0.05
    assert report.error <= small.get("error", 1)
    assert report.numbers <= small.get("budget", 10**9)
    assert report.rank <= small.get("rank", 100)
    if "rank" in small:
        tails = [np.linalg.svd(x, compute_uv=False)[2:] for x in wanted.values()]
        assert away == pytest.approx(norm(tails), rel=1e-5)


def test_tucker_tells_what_every_member_lost(three, tmp_path):
    options = {"rank": 3}
    report = jobs.merge(three, tmp_path / "out", method="tucker", options=options)
    lost = np.zeros(3)
    for deltas in deltas_of(three).values():
        kept = MERGES["tucker"].with_options(**options).kept(deltas)
        lost += np.sum((kept - deltas) ** 2, axis=(1, 2))
    for row, square in zip(report.members, lost, strict=True):
        assert row.lost == pytest.approx(np.sqrt(square) / row.norm, rel=1e-6)


def test_a_model_is_base_and_merged_delta(three, tmp_path):
    arrays = models.base_arrays()
    base = models.write_base(tmp_path / "base", arrays)
    report = jobs.merge(
        three, tmp_path / "out", method="ties", base=base, model=True, dtype="float32"
    )
    wanted = expected(three, "ties", {}, (1.0, 1.0, 1.0))
    model = open_checkpoint(tmp_path / "out")
    for name, before in arrays.items():
        change = wanted.get(name.removesuffix(".weight"), 0.0)
        assert np.allclose(model.read(name), before + change, rtol=1e-6, atol=1e-7), name
    assert (report.sites, report.rank, report.error) == (len(SITES), None, None)


def test_a_tuned_model_is_a_member_against_its_base(tmp_path):
    arrays = models.base_arrays()
    base = models.write_base(tmp_path / "base", arrays)
    tuned = models.tuned_arrays(arrays)
    other = models.write_tuned(tmp_path / "tuned", tuned)
    first = adapter(tmp_path / "a", 1)
    report = jobs.merge([first, other], tmp_path / "out", method="mean", base=base)
    made, lora = read_adapter(tmp_path / "out"), read_adapter(first)
    assert len(made.pairs) == 2 * len(models.SHAPES)
    for site, pair in made.pairs.items():
        name = f"{site}.weight"
        delta = tuned[name] - arrays[name]
        wanted = (delta + (lora.pairs[site].dense() if site in lora.pairs else 0)) / 2
        assert np.linalg.norm(pair.dense() - wanted) < 1e-5 * np.linalg.norm(wanted), site
    left = {row.tensor for row in report.not_covered}
    assert models.NORM0 in left
    assert not any("_proj" in name for name in left)


def test_schemes_and_factors_merge_with_each_other(tmp_path, three):
    arrays = models.base_arrays()
    base = models.write_base(tmp_path / "base", arrays)
    tuned = models.write_tuned(tmp_path / "tuned", models.tuned_arrays(arrays))
    jobs.decompose(base, tuned, tmp_path / "factors", method="tucker2", rank=3)
    jobs.merge([three[0], tmp_path / "factors"], tmp_path / "out")
    made, parts = (read_adapter(tmp_path / name) for name in ("out", "factors"))
    for site in parts.pairs:
        wanted = parts.pairs[site].dense()
        if site in SITES:
            wanted = wanted + read_adapter(three[0]).pairs[site].dense()
        assert np.allclose(made.pairs[site].dense(), wanted / 2, atol=1e-5)


def test_a_file_of_another_scheme_stays_one(tmp_path):
    sites = {"unet.blocks.0.attn.to_q": (7, 5), "unet.blocks.1.attn.to_q": (7, 5)}
    paths = [
        adapter(tmp_path / f"{name}.safetensors", seed, sites=sites, scheme="kohya")
        for seed, name in enumerate("ab")
    ]
    out = tmp_path / "out.safetensors"
    jobs.merge(paths, out, method="weighted_sum")
    jobs.merge(paths, out, method="weighted_sum", overwrite=True)
    made, (a, b) = read_adapter(out), map(read_adapter, paths)
    assert made.scheme == a.scheme
    for site, pair in made.pairs.items():
        assert np.allclose(pair.dense(), a.pairs[site].dense() + b.pairs[site].dense(), atol=1e-5)


def statistics_of(seed, *, fisher: bool) -> Statistics:
    rng, sites, inputs = np.random.default_rng(seed), {}, {}
    for site, (out, in_) in SITES.items():
        x = rng.standard_normal((3 * in_, in_))
        inputs[site] = InputStatistics(
            tokens=len(x), total=x.sum(0), squares=(x**2).sum(0), whole=x.T @ x
        )
        found = (2, np.abs(rng.standard_normal((out, in_)))) if fisher else None
        sites[f"{site}.weight"] = SiteStatistics(shape=(out, in_), input=site, fisher=found)
    return Statistics(sites=sites, inputs=inputs)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_captured_statistics_are_used(method, three, tmp_path):
    seen = [statistics_of(seed, fisher=True) for seed in range(3)]
    files = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    for one, file in zip(seen, files, strict=True):
        save_statistics(one, file)
    jobs.merge(three, tmp_path / "out", method=method, statistics=files, rank=20)
    made = read_adapter(tmp_path / "out")
    for site, deltas in deltas_of(three).items():
        name = f"{site}.weight"
        if method == "fisher":
            each = np.stack([one.sites[name].fisher[1] for one in seen])
            wanted = (each * deltas).sum(0) / each.sum(0)
        else:
            each = [one.inputs_of(name).second_moment() for one in seen]
            each = [np.where(np.eye(len(c)) > 0, c, 0.9 * c) for c in each]
            total = sum(d @ c for d, c in zip(deltas, each, strict=True))
            wanted = total @ np.linalg.inv(sum(each))
        assert np.allclose(made.pairs[site].dense(), wanted, atol=1e-4 * np.abs(wanted).max())


def spoiled(folder, change) -> None:
    file = folder / "adapter_model.safetensors"
    entries, _ = safetensors.read_header(file)
    arrays = {name: safetensors.load(entry) for name, entry in entries.items()}
    change(arrays)
    rows = [(name, "F32", x.shape) for name, x in arrays.items()]
    safetensors.write(file, rows, lambda n: safetensors.encode(arrays[n], "F32"), {"format": "pt"})


def with_nan(folder) -> None:
    spoiled(folder, lambda arrays: next(iter(arrays.values())).__setitem__((0, 0), np.nan))


def with_zeros(*folders) -> None:
    for folder in folders:
        spoiled(folder, lambda arrays: [x.fill(0) for x in arrays.values()])


REFUSED = {
    "weights": (lambda p, t: {"weights": [1.0]}, "1 weights for 3 adapters"),
    "names": (lambda p, t: {"names": ["a", "a", "b"]}, "named 'a'"),
    "missing": (lambda p, t: {"missing": "refuse"}, "no pair at model.layers.0.self_attn.q_proj"),
    "dense": (lambda p, t: {"method": "ties"}, "dense deltas.*rank=32"),
    "unknown": (lambda p, t: {"method": "tiess"}, "'tiess'.*ties"),
    "option": (lambda p, t: {"method": "ties", "options": {"x": 1.0}}, "no option 'x'"),
    "whole": (lambda p, t: {"method": "tsv", "options": {"rank": 1.5}}, "rank=1.5.*whole number"),
    "two": (lambda p, t: {"rank": 3, "error": 0.1}, "one of rank and error"),
    "model": (lambda p, t: {"model": True}, "needs the base"),
    "statistics": (lambda p, t: {"method": "regmean"}, "statistics of every adapter, got 0 for 3"),
    "cancel": (lambda p, t: {"weights": [1, 1, -2]}, "add up to 0"),
    "nan": (lambda p, t: with_nan(p[1]), "lora_A.*holds NaN"),
    "zero": (lambda p, t: with_zeros(*p), "zero at every site"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_nothing_is_written(case, three, tmp_path):
    change, said = REFUSED[case]
    options = change(three, tmp_path) or {}
    with pytest.raises(TdecompError, match=said) as caught:
        jobs.merge(three, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_adapters_of_other_shapes_are_refused(three, tmp_path):
    other = adapter(tmp_path / "d", 4, sites={next(iter(SITES)): (7, 5)})
    with pytest.raises(TdecompError, match=r"is \(16, 12\) in 'a' and \(7, 5\) in 'd'"):
        jobs.merge([three[0], other], tmp_path / "out")


def test_what_a_user_should_know_is_told(three, tmp_path):
    other = adapter(tmp_path / "d", 4, base="elsewhere")
    config = json.loads((other / "adapter_config.json").read_text(encoding="utf-8"))
    config |= {"lora_alpha": 0, "alpha_pattern": {}}
    (other / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    report = jobs.merge([three[0], other], tmp_path / "out")
    told = " ".join(report.notes)
    assert "different base models: 'a' base, 'd' elsewhere" in told
    assert "alpha is 0" in told
    assert "d changes nothing" in told
