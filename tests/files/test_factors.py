"""The factors file: true figures, exact round trips, clear refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file

import tdecomp as td
from tdecomp.adapters import lora_modules
from tdecomp.cli import main
from tdecomp.files import safetensors
from tdecomp.files.factors import load_factors, save_factors
from tdecomp.jobs.methods import METHODS
from tests.pairs import make_pair

TARGETS = [("--rank", "3"), ("--error", "0.6"), ("--budget", "1500")]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


def dense_delta(base, tuned) -> dict[str, np.ndarray]:
    """Tuned minus base in float64, read by the safetensors package."""
    old, new = (
        {
            k: v.double().numpy()
            for f in sorted(p.glob("*.safetensors"))
            for k, v in load_file(f).items()
        }
        for p in (base, tuned)
    )
    return {k: new[k] - old[k] for k in old}


def decoded(factors) -> dict[str, np.ndarray]:
    """Every covered tensor's approximate delta, from the dense formats."""
    result = {n: np.zeros(shape) for n, shape in factors.shapes.items()}
    for group, tensor in zip(factors.groups, factors.tensors, strict=True):
        matrices = tensor.to_dense().reshape(-1, *tensor.shape[-2:])
        for site, matrix in zip(group.sites, matrices, strict=True):
            site.take(result[site.tensor])[...] = matrix
    return result


@pytest.mark.parametrize(
    "dtype",
    ["bfloat16", *(pytest.param(d, marks=pytest.mark.slow) for d in ("float32", "float16"))],
)
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t[0])
@pytest.mark.parametrize("method", METHODS)
def test_the_claimed_error_is_the_dense_error_of_the_file(pair, method, target, dtype, tmp_path):
    out = tmp_path / "out"
    words = ("decompose", *pair, "-o", out, "--method", method, *target, "--dtype", dtype, "-q")
    assert run(*words) == 0
    assert run("verify", out, *pair, "-q") == 0
    factors, delta = load_factors(out), dense_delta(*pair)
    approximate = decoded(factors)
    residual = sum(np.sum((delta[n] - a) ** 2) for n, a in approximate.items())
    energy = sum(np.sum(delta[n] ** 2) for n in approximate)
    report = json.loads((out / "report.json").read_text())
    assert report["error"] == pytest.approx(np.sqrt(residual / energy), rel=1e-5)
    assert report["n_params"] == sum(np.prod(e.shape) for e in _entries(out).values())
    if target[0] == "--error":
        assert report["error"] <= 0.6
    if target[0] == "--budget":
        assert report["n_params"] <= 1500
    everything = sum(np.sum(d**2) for d in delta.values())
    assert report["uncovered_share"] == pytest.approx(1 - energy / everything, rel=1e-5)


def _entries(out):
    return safetensors.read_header(out / "factors.safetensors")[0]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_read_is_what_was_written(pair, method, tmp_path):
    run("decompose", *pair, "-o", tmp_path / "out", "--method", method, "--rank", 2, "-q")
    factors = load_factors(tmp_path / "out")
    save_factors(tmp_path / "again.safetensors", factors)
    again = load_factors(tmp_path / "again.safetensors")
    assert again.groups == factors.groups
    assert again.sources == factors.sources
    for a, b in zip(again.tensors, factors.tensors, strict=True):
        assert a.rank == b.rank
        np.testing.assert_array_equal(a.to_dense(), b.to_dense())


def test_sources_are_named_with_size_and_hash(pair, tmp_path):
    run("decompose", *pair, "-o", tmp_path / "out", "--rank", 2, "-q")
    sources = load_factors(tmp_path / "out").sources
    assert [f["file"] for f in sources["tuned"]["files"]] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert all(
        f["size"] > 0 and len(f["sha256"]) == 64 for s in sources.values() for f in s["files"]
    )


def test_the_rounding_floor_is_the_bfloat16_rounding(pair, tmp_path):
    """Against the rounding that really happened: the tuned model before it was stored."""
    run("decompose", *pair, "-o", tmp_path / "out", "--rank", 2, "-q")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    rng = np.random.default_rng(0)
    from tests.pairs import weights

    old = weights(rng)
    new = {n: a + 0.1 * rng.standard_normal(a.shape).astype(np.float32) for n, a in old.items()}
    covered = load_factors(tmp_path / "out").shapes
    rounding = sum(np.sum((new[n] - safetensors.rounded(new[n], "BF16")) ** 2) for n in covered)
    delta = dense_delta(*pair)
    energy = sum(np.sum(delta[n] ** 2) for n in covered)
    assert report["rounding_floor"] == pytest.approx(np.sqrt(rounding / energy), rel=0.1)


def test_a_wider_lora_than_allowed_is_truncated_and_says_so(pair, tmp_path):
    run("decompose", *pair, "-o", tmp_path / "out", "--method", "tucker2", "--rank", 6, "-q")
    factors = load_factors(tmp_path / "out")
    modules, _ = lora_modules(factors.groups, factors.tensors, factors.shapes, max_rank=2)
    delta = decoded(factors)
    assert max(m.rank for m in modules) == 2
    for m in modules:
        dense = delta[f"{m.module}.weight"]
        s = np.linalg.svd(dense, compute_uv=False)
        assert m.departure == pytest.approx(np.sum(s[2:] ** 2), rel=1e-4)
        assert np.sum((dense - m.b @ m.a) ** 2) == pytest.approx(m.departure, rel=1e-3)


BROKEN = [
    (lambda meta: {}, "not a tdecomp factors file"),
    (lambda meta: {"tdecomp": "{"}, "is damaged"),
    (lambda meta: {"tdecomp": "[]"}, "is damaged"),
    (
        lambda meta: {"tdecomp": meta.replace('"format_version": 1', '"format_version": 9')},
        "version 9",
    ),
    (lambda meta: {"tdecomp": meta.replace('"Tucker2"', '"Nothing"', 1)}, "is damaged"),
    (lambda meta: {"tdecomp": meta.replace('"core"', '"cores"', 1)}, "is damaged"),
]


@pytest.mark.parametrize(("change", "text"), BROKEN, ids=[t for _, t in BROKEN])
def test_damaged_files_are_refused(pair, change, text, tmp_path):
    out = tmp_path / "out"
    run("decompose", *pair, "-o", out, "--method", "tucker2", "--rank", 2, "-q")
    entries, metadata = safetensors.read_header(out / "factors.safetensors")
    rows = [(e.name, e.dtype, e.shape) for e in entries.values()]
    safetensors.write(
        tmp_path / "bad.safetensors",
        rows,
        lambda name: safetensors.raw(entries[name]),
        change(metadata["tdecomp"]),
    )
    with pytest.raises(td.FileError, match=text):
        load_factors(tmp_path / "bad.safetensors")
