"""Adapters compared from their factors: against the dense ΔW."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tdecomp import jobs
from tdecomp.cli import main
from tdecomp.collections import AdapterPair
from tdecomp.collections.comparing import alikeness, intruders, span
from tdecomp.errors import TdecompError
from tdecomp.files.loras import AdapterFile, write_adapter
from tdecomp.files.loras.adapter_file import HeldPair
from tdecomp.files.loras.base_names import weights_of

SHAPES = {"x.q": (12, 7), "x.out": (6, 15), "y.q": (5, 5)}


def pair(rng, shape: tuple[int, int], rank: int) -> AdapterPair:
    b, a = rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))
    return AdapterPair(b=b, a=a, scale=0.5)


def save(path: Path, pairs: dict[str, AdapterPair], base: str = "the base") -> Path:
    path.mkdir(parents=True)
    stored = {site: HeldPair(one) for site, one in pairs.items()}
    write_adapter(path, AdapterFile(path=path, name="", scheme=None, stored=stored, base=base))
    return path


def projector(columns: np.ndarray, rank: int) -> np.ndarray:
    u = np.linalg.svd(columns)[0][:, :rank]
    return u @ u.T


@pytest.mark.parametrize(("one", "two"), [(2, 3), (1, 1), (5, 4), (3, 9)])
def test_alikeness_is_that_of_the_dense_matrices(one: int, two: int, rng):
    first, second = pair(rng, (12, 7), one), pair(rng, (12, 7), two)
    x, y = first.dense(), second.dense()
    found = alikeness(span(first, (12, 7)), span(second, (12, 7)))
    r = min(two, 7)
    inside = projector(y, r) @ x @ projector(y.T, r)
    assert found.inner == pytest.approx(np.sum(x * y), rel=1e-10)
    assert found.first_in_second == pytest.approx(np.sum(inside**2), rel=1e-10)
    angles = np.linalg.svdvals(projector(x, one) @ projector(y, r))[: min(one, r)]
    assert np.allclose(found.out_cosines, angles)
    angles = np.linalg.svdvals(projector(x.T, one) @ projector(y.T, r))[: min(one, r)]
    assert np.allclose(found.in_cosines, angles)


def test_an_adapter_is_wholly_like_itself_and_not_at_all_like_nothing(rng):
    one = span(pair(rng, (12, 7), 3), (12, 7))
    same, none = alikeness(one, one), alikeness(one, span(None, (12, 7)))
    assert same.inner == pytest.approx(one.energy)
    assert same.first_in_second == same.second_in_first == pytest.approx(one.energy)
    assert np.allclose(same.out_cosines, 1)
    assert none.inner == none.first_in_second == none.out_cosines.size == 0


def test_intruder_dimensions_are_planted_ones():
    """W = diag(10 ... 1): what is added along a known direction intrudes only where it is mixed."""
    weight = np.diag(np.arange(10.0, 0, -1))
    mixed = np.ones((10, 1)) / np.sqrt(10)
    strong = AdapterPair(b=100 * mixed, a=mixed.T)
    along = AdapterPair(b=100 * np.eye(10)[:, :1], a=np.eye(10)[:1])
    weak = AdapterPair(b=1e-3 * mixed, a=mixed.T)
    one, *others = intruders(weight, [strong, along, weak, None])
    assert one >= 1
    assert others == [0, 0, 0]


NAMED = {
    "the same": ({}, "x.{k}.q", "x.{k}.q"),
    "with underscores": ({}, "x.{k}.q", "unet.x_{k}_q"),
    "a head on a base model": (
        {"model_type": "bert", "architectures": ["BertModel"]},
        "encoder.layer.{k}.attention.self.query",
        "bert.encoder.layer.{k}.attention.self.query",
    ),
    "a base model of one with a head": (
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        "model.layers.{k}.self_attn.q_proj",
        "layers.{k}.self_attn.q_proj",
    ),
    "renamed on loading": (
        {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"]},
        "model.layers.{k}.self_attn.q_proj",
        "model.language_model.layers.{k}.self_attn.q_proj",
    ),
}


@pytest.mark.parametrize("case", NAMED)
def test_names_of_an_adapter_are_those_of_the_base_as_it_is_loaded(case: str, tmp_path: Path, rng):
    config, stored, site = NAMED[case]
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    weights = {f"{stored.format(k=k)}.weight": (4.0**k * np.eye(6)).astype("f4") for k in range(2)}
    save_file(weights, tmp_path / "base" / "model.safetensors")
    find = weights_of(tmp_path / "base")
    for k in range(2):
        read = find(site.format(k=k))
        assert read is not None
        assert read()[0, 0] == 4.0**k
    assert find(site.format(k=2)) is None
    paths = [
        save(tmp_path / name, {site.format(k=k): pair(rng, (6, 6), 1) for k in range(2)})
        for name in ("one", "two")
    ]
    report = jobs.compare(paths, base=tmp_path / "base")
    assert all(row.intruders is not None for row in report.sites)


def test_totals_are_those_of_all_sites_together(tmp_path: Path, rng):
    one = {site: pair(rng, shape, 2) for site, shape in SHAPES.items()}
    two = {site: pair(rng, shape, 3) for site, shape in list(SHAPES.items())[:2]}
    paths = [save(tmp_path / "one", one), save(tmp_path / "two", two, base="another")]
    weights = {
        f"{site}.weight": rng.standard_normal(shape).astype("f4") for site, shape in SHAPES.items()
    }
    save_file(weights, tmp_path / "base.safetensors")
    report = jobs.compare(paths, base=tmp_path / "base.safetensors", out=tmp_path / "page.html")
    flat = [
        np.concatenate([p[s].dense().ravel() if s in p else np.zeros(25) for s in SHAPES])
        for p in (one, two)
    ]
    (both,) = report.pairs
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert both.cosine == pytest.approx(cosine, rel=1e-5)
    assert [m.norm for m in report.members] == pytest.approx(
        [np.linalg.norm(x) for x in flat], rel=1e-6
    )
    assert [(m.name, m.sites, m.missing, m.rank) for m in report.members] == [
        ("one", 3, 0, 2),
        ("two", 2, 1, 3),
    ]
    counted = [sum(site.intruders[k] for site in report.sites) for k in (0, 1)]
    assert [m.intruders for m in report.members] == counted
    lost = [s.pairs[0] for s in report.sites if s.site == "y.q"][0]
    assert (lost.cosine, lost.one_in_two, lost.out_angles) == (0, 0, (90.0, 90.0))
    assert "different base models" in report.notes[0]
    page = (tmp_path / "page.html").read_text()
    assert f"{both.cosine:.3f}" in page
    assert page.count('class="heat"') == 5
    assert "x.out" in page


def test_adapters_without_a_site_in_common_are_named(tmp_path: Path, rng):
    paths = [save(tmp_path / name, {f"{name}.q": pair(rng, (5, 4), 2)}) for name in ("one", "two")]
    report = jobs.compare(paths)
    assert report.pairs[0].cosine == 0
    assert report.notes == (
        "one and two have no site in common: one.q is a name of the one, two.q of the other",
    )


BAD = {
    "one alone": (["one"], {}, "two or more"),
    "not there": (["one", "nothing"], {}, "nothing does not exist"),
    "other shapes": (["one", "wide"], {}, "different base models"),
    "missing": (["one", "few"], {"missing": "refuse"}, "has no pair at"),
    "a base of other names": (["one", "few"], {"base": "strange.safetensors"}, "no weight of any"),
    "a base of other shapes": (["one", "few"], {"base": "wide.safetensors"}, "in the base"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_no_page_is_left(case: str, tmp_path: Path, rng):
    names, options, words = BAD[case]
    save(tmp_path / "one", {site: pair(rng, shape, 2) for site, shape in SHAPES.items()})
    save(tmp_path / "few", {"x.q": pair(rng, (12, 7), 2)})
    save(tmp_path / "wide", {"x.q": pair(rng, (12, 8), 2)})
    for name, site in (("strange", "z"), ("wide", "x.q")):
        save_file({f"{site}.weight": np.ones((12, 8), "f4")}, tmp_path / f"{name}.safetensors")
    options = {k: tmp_path / v if k == "base" else v for k, v in options.items()}
    with pytest.raises(TdecompError, match=words):
        jobs.compare([tmp_path / name for name in names], out=tmp_path / "page.html", **options)
    assert not (tmp_path / "page.html").exists()


def test_the_command_takes_a_folder_of_adapters(tmp_path: Path, rng, capsys):
    for name in ("a", "b", "c"):
        save(tmp_path / "all" / name, {"x.q": pair(rng, (12, 7), 2)})
    with pytest.raises(SystemExit) as left:
        main(["compare", str(tmp_path / "all"), "--json"])
    assert left.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(p["one"], p["two"]) for p in printed["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert printed == json.loads(json.dumps(jobs.compare([tmp_path / "all"]).to_json()))
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path / "all")])
    assert "how alike" in capsys.readouterr().out
