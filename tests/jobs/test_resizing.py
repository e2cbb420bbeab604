"""LoRAs made smaller: against the dense SVD of every ΔW, in files and from the command line."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tdecomp import jobs
from tdecomp.cli import main
from tdecomp.collections import AdapterPair
from tdecomp.collections.resizing import PairSpectrum, choose_ranks, resized
from tdecomp.errors import ArgumentError, TdecompError
from tdecomp.files import safetensors
from tdecomp.files.loras import SCHEMES, AdapterFile, read_adapter, write_adapter
from tdecomp.files.loras.adapter_file import HeldPair
from tdecomp.ranking.target import Target

SIZES = {"blocks.0.q": (12, 7, 5), "blocks.1.q": (12, 7, 9), "blocks.1.out": (6, 15, 3)}
"""Site -> out, in and rank of the pair."""
BY_NAME = {scheme.name: scheme for scheme in SCHEMES}


def save(path: Path, scheme: str, seed: int = 0, dtype: str = "F32", network: str = "") -> Path:
    rng = np.random.default_rng(seed)
    stored = {}
    for site, (out, in_, rank) in SIZES.items():
        b = rng.standard_normal((out, rank)) * 0.5 ** np.arange(rank)
        a = rng.standard_normal((rank, in_))
        b, a = (safetensors.rounded(x.astype(np.float32), dtype) for x in (b, a))
        stored[network + site] = HeldPair(AdapterPair(b=b, a=a, scale=0.5), dtype)
    adapter = AdapterFile(path=path, name="it", scheme=None, stored=stored, base="the base")
    if BY_NAME[scheme].in_folder:
        path.mkdir()
    write_adapter(path, adapter, scheme=BY_NAME[scheme])
    return path


def deltas(path: Path) -> dict[str, np.ndarray]:
    return {site: pair.dense() for site, pair in read_adapter(path).pairs.items()}


def relative(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> float:
    """Dense relative error; a site that is not there is zero."""
    lost = sum(np.sum((x - after.get(site, 0)) ** 2) for site, x in before.items())
    return float(np.sqrt(lost / sum(np.sum(x**2) for x in before.values())))


@pytest.mark.parametrize("rank", [0, 1, 2, 4, 9])
@pytest.mark.parametrize("dtype", ["F64", "BF16"])
def test_a_narrower_pair_is_the_best_one_and_its_error_is_true(rank, dtype, rng):
    b, a = rng.standard_normal((12, 5)), rng.standard_normal((5, 7))
    pair = AdapterPair(b=b, a=a, scale=0.3)
    new = resized(
        pair,
        rank,
        rounding=lambda x: safetensors.rounded(np.float32(x), "BF16") if dtype == "BF16" else x,
    )
    dense, s = pair.dense(), np.linalg.svdvals(pair.dense())
    measured = float(np.sum((dense - new.pair.dense()) ** 2))
    assert new.departure == pytest.approx(measured, rel=1e-9, abs=1e-25)
    assert new.energy == pytest.approx(np.sum(s**2), rel=1e-12)
    assert new.pair.rank == min(rank, 5)
    if dtype == "F64":
        assert measured == pytest.approx(np.sum(s[rank:] ** 2), rel=1e-9, abs=1e-25)
        assert np.allclose(new.pair.b.T @ new.pair.b, new.pair.a @ new.pair.a.T)


def test_no_matrix_of_the_size_of_the_weight_is_made(rng):
    b, a = rng.standard_normal((3000, 4)), rng.standard_normal((4, 4000))
    resized(AdapterPair(b=b[:5], a=a[:, :5]), 2)  # what is imported on the way does not count
    tracemalloc.start()
    try:
        resized(AdapterPair(b=b, a=a), 2)
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert used < 8 * (b.nbytes + a.nbytes)


def test_ranks_go_where_the_energy_per_number_is():
    spectra = [
        PairSpectrum(np.array([9.0, 3, 1]), (10, 10)),
        PairSpectrum(np.array([4.0, 2]), (5, 5)),
    ]
    total = 91.0 + 20.0
    ranks = lambda same=False, **target: choose_ranks(spectra, Target(**target), same=same)
    assert ranks(rank=2) == [2, 2]
    assert ranks(rank=7) == [3, 2]
    assert ranks(rank=7, same=True) == [7, 7]
    assert ranks(budget=30) == [1, 1]  # 81/20, then 16/10
    assert ranks(budget=65) == [2, 2]  # then 9/20 and 4/10
    assert ranks(error=np.sqrt(10.1 / total)) == [1, 2] or ranks(error=np.sqrt(10.1 / total)) == [
        2,
        1,
    ]
    assert ranks(error=np.sqrt(5.1 / total)) == [2, 1]
    assert ranks(budget=65, same=True) == [2, 2]
    assert ranks(error=np.sqrt(5.1 / total), same=True) == [2, 2]
    assert ranks(error=1e-5, rank_max=1) == [1, 1]
    for bad in ({"budget": 29, "same": True}, {"budget": 9}, {"rank": (1, 2)}):
        with pytest.raises(ArgumentError):
            ranks(**bad)


@pytest.mark.parametrize("scheme", ["peft", "kohya", "comfyui", "diffusers"])
def test_a_file_is_made_smaller_and_says_its_true_error(scheme: str, tmp_path: Path):
    network = {"peft": "", "diffusers": "transformer."}.get(scheme, "unet.")
    end = "" if scheme == "peft" else ".safetensors"
    source = save(tmp_path / f"a{end}", scheme, network=network, dtype="BF16")
    before = deltas(source)
    for k, target in enumerate(
        ({"rank": 2}, {"error": 0.2}, {"budget": 90}, {"rank": 12, "same_rank": True})
    ):
        report = jobs.resize(source, tmp_path / f"out{k}{end}", **target)
        after = read_adapter(tmp_path / f"out{k}{end}")
        assert report.error == pytest.approx(relative(before, deltas(after.path)), abs=1e-7)
        (one,) = report.adapters
        assert {s.site: s.rank for s in one.sites if s.rank} == {
            s: p.rank for s, p in after.pairs.items()
        }
        assert report.numbers == sum(p.rank * sum(p.shape) for p in after.pairs.values())
        assert all(pair.scale == 1 for pair in after.pairs.values())
        assert (after.dtype, after.base) == ("BF16", "the base" if scheme == "peft" else "")
        assert report.numbers_before == 19 * 5 + 19 * 9 + 21 * 3
        if "error" in target:
            assert report.error <= 0.2
        if "budget" in target:
            assert report.numbers <= 90
        if "same_rank" in target:
            assert {p.rank for p in after.pairs.values()} == {12}


def test_a_folder_of_adapters_is_resized_together(tmp_path: Path):
    (tmp_path / "many").mkdir()
    save(tmp_path / "many" / "one", "peft", seed=1)
    save(tmp_path / "many" / "two.safetensors", "kohya", seed=2, network="unet.")
    report = jobs.resize(tmp_path / "many", tmp_path / "out", error=0.3, same_rank=True)
    assert [one.name for one in report.adapters] == ["one", "two"]
    places = [tmp_path / "out" / "one", tmp_path / "out" / "two.safetensors"]
    assert [one.path for one in report.adapters] == list(map(str, places))
    ranks = {pair.rank for place in places for pair in read_adapter(place).pairs.values()}
    assert len(ranks) == 1
    both = [
        {f"{k}{s}": d for k in (0, 1) for s, d in deltas(p[k]).items()}
        for p in zip_of(tmp_path, places)
    ]
    assert report.error == pytest.approx(relative(*both), abs=1e-7)
    assert report.error <= 0.3


def zip_of(folder: Path, places: list[Path]) -> list[list[Path]]:
    """The adapters before, and after."""
    return [[folder / "many" / place.name for place in places], places]


def noisy(shape: tuple[int, int], width: int, signal: list[float], rng) -> AdapterPair:
    """A pair of some width: planted singular values, in units of the edge of the noise beside."""
    out, in_ = shape
    q, p = (np.linalg.qr(rng.standard_normal((n, min(n, width))))[0] for n in (out, in_))
    core = rng.standard_normal((q.shape[1], p.shape[1]))
    edge = sum(np.sqrt(core.shape))
    u, v = (np.linalg.qr(rng.standard_normal((n, len(signal))))[0] for n in core.shape)
    return AdapterPair(b=q @ (core + u @ np.diag(edge * np.array(signal)) @ v.T), a=p.T)


@pytest.mark.parametrize(("width", "shape"), [(48, (96, 80)), (200, (96, 80)), (48, (300, 60))])
def test_what_stands_out_of_noise_is_kept(width, shape, rng):
    for signal in ([], [3.0], [8.0, 4.0, 2.0, 0.3]):
        pair = noisy(shape, width, signal, rng)
        spectrum = PairSpectrum(pair.spectrum(), pair.shape)
        assert spectrum.above_noise() == sum(s > 1 for s in signal)
    assert PairSpectrum(np.zeros(0), shape).above_noise() == 0
    assert PairSpectrum(np.zeros(7), shape).above_noise() == 0


def test_ranks_above_noise_differ_by_site_and_are_told(tmp_path: Path, rng):
    planted = {"one": [9.0, 5.0, 4.0], "two": [2.0], "none": []}
    stored = {
        f"unet.{name}": HeldPair(noisy((64, 56), 48, signal, rng))
        for name, signal in planted.items()
    }
    adapter = AdapterFile(path=tmp_path / "a", name="a", scheme=None, stored=stored)
    source = tmp_path / "a.safetensors"
    write_adapter(source, adapter, scheme=BY_NAME["kohya"])
    report = jobs.resize(source, tmp_path / "b.safetensors", noise=True)
    assert [site.rank for site in report.adapters[0].sites] == [3, 1, 0]
    assert report.error == pytest.approx(
        relative(deltas(source), deltas(tmp_path / "b.safetensors"))
    )
    for options, ranks in (({"same_rank": True}, [3, 3, 3]), ({"rank_max": 2}, [2, 1, 0])):
        out = tmp_path / f"{len(options)}{ranks[0]}.safetensors"
        report = jobs.resize(source, out, noise=True, **options)
        assert [site.rank for site in report.adapters[0].sites] == ranks
    with pytest.raises(SystemExit) as left:
        main(["resize", str(source), "-o", str(tmp_path / "c.safetensors"), "--noise", "--quiet"])
    assert left.value.code == 0
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    stored = {"unet.none": stored["unet.none"]}
    mere = tmp_path / "mere.safetensors"
    write_adapter(
        mere,
        AdapterFile(path=mere, name="mere", scheme=None, stored=stored),
        scheme=BY_NAME["kohya"],
    )
    with pytest.raises(ArgumentError, match="no singular value of any site stands out"):
        jobs.resize(mere, tmp_path / "d.safetensors", noise=True)
    assert not (tmp_path / "d.safetensors").exists()


BAD = {
    "noise and a rank": ("b.safetensors", {"rank": 2, "noise": True}, "exactly one"),
    "none of three": ("b.safetensors", {}, "exactly one"),
    "two of three": ("b.safetensors", {"rank": 2, "error": 0.1}, "exactly one"),
    "unknown scheme": ("b.safetensors", {"rank": 2, "scheme": "koyha"}, "kohya"),
    "a kind of pairs": ("b.safetensors", {"rank": 2, "scheme": "LoKr"}, "read and not written"),
    "dots are lost": ("b", {"rank": 2, "scheme": "peft"}, "without dots"),
    "a folder is no file": ("b", {"rank": 2}, "ends in .safetensors"),
    "in itself": ("a.safetensors", {"rank": 2}, "a.safetensors"),
    "budget below rank 1": ("b.safetensors", {"budget": 3}, "below rank 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_leaves_nothing_behind(case: str, tmp_path: Path):
    out, options, words = BAD[case]
    source = save(tmp_path / "a.safetensors", "kohya", network="unet.")
    content = source.read_bytes()
    with pytest.raises(TdecompError, match=words):
        jobs.resize(source, tmp_path / out, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert source.read_bytes() == content


def test_an_adapter_with_nan_is_named_and_nothing_is_written(tmp_path: Path):
    arrays = {"lora_unet_x.lora_down.weight": np.full((2, 5), np.nan, np.float32)}
    arrays["lora_unet_x.lora_up.weight"] = np.ones((6, 2), np.float32)
    save_file(arrays, tmp_path / "a.safetensors")
    for options in ({"rank": 1}, {"error": 0.1}):
        with pytest.raises(TdecompError, match=r"lora_unet_x\.lora_down\.weight.*NaN"):
            jobs.resize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_command_does_what_the_job_does(tmp_path: Path, capsys):
    source = save(tmp_path / "a", "peft")
    report = jobs.resize(source, tmp_path / "one", rank=2)
    with pytest.raises(SystemExit) as left:
        main(["resize", str(source), "-o", str(tmp_path / "two"), "--rank", "2", "--json"])
    assert left.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["error"] == report.error
    assert printed["adapters"][0]["sites"] == report.to_json()["adapters"][0]["sites"]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with pytest.raises(SystemExit) as left:
        main(["resize", str(source), "-o", str(tmp_path / "two"), "--rank", "2"])
    assert left.value.code == 2
    assert "already exists" in capsys.readouterr().err
