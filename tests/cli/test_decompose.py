"""`decompose`: what it writes and says of two good models."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tdecomp import decomposition
from tdecomp.files.factors import load_factors
from tests.cli import models

METHODS = ("svd", "tucker2", "tucker")
TARGETS = {
    "rank": ("--rank", "2"),
    "error": ("--error", "0.2"),
    "small error": ("--error", "1e-4"),
    "loose error": ("--error", "0.999"),
    "budget": ("--budget", "500"),
    "large budget": ("--budget", "60k"),
    "byte budget": ("--budget", "2kB"),
}


def true_error(base, tuned, folder) -> float:
    before, after = models.read(base), models.read(tuned)
    deltas = models.decoded(folder)
    names = [name for name in before if models.is_covered(name)]
    assert sorted(deltas) == sorted(names)
    residual = [after[n][1].astype(float) - before[n][1] - deltas[n] for n in names]
    norm = models.delta_norm(before, after, names)
    return float(np.sqrt(sum(np.sum(r**2) for r in residual))) / norm


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("method", METHODS)
def test_error_and_size_are_what_is_claimed(method, target, base, tuned, tmp_path, report):
    told = report("decompose", base, tuned, "-o", tmp_path / "out", "--method", method, *target)
    option, value = target
    assert told["error"] == pytest.approx(
        true_error(base, tuned, tmp_path / "out"), rel=1e-4, abs=1e-6
    )
    assert told["method"] == method
    assert told["delta_params"] == models.NUMBERS
    stored = models.read(tmp_path / "out" / "factors.safetensors")
    assert told["n_params"] == sum(a.size for _, a in stored.values())
    assert told["bytes"] == 4 * told["n_params"]
    if option == "--error":
        assert told["error"] <= float(value)
    if option == "--budget":
        assert told["n_params"] <= {"500": 500, "60k": 60_000, "2kB": 500}[value]


@pytest.mark.parametrize("method", METHODS)
def test_report_file_is_the_report(method, base, tuned, tmp_path, report):
    told = report("decompose", base, tuned, "-o", tmp_path / "out", "--method", method, "--rank=2")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == told
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        ".tdecomp.json",
        "factors.safetensors",
        "report.json",
    ]


def test_report_says_what_is_left_out(base, tuned, tmp_path, report):
    told = report("decompose", base, tuned, "-o", tmp_path / "out", "--rank", 1)
    before, after = models.read(base), models.read(tuned)
    rest = {name for name in before if not models.is_covered(name)}
    assert {row["tensor"] for row in told["uncovered"]} == rest
    whole = models.delta_norm(before, after, before)
    for row in told["uncovered"]:
        share = (models.delta_norm(before, after, [row["tensor"]]) / whole) ** 2
        assert row["energy_share"] == pytest.approx(share, rel=1e-4)
    assert told["uncovered_share"] == pytest.approx(
        (models.delta_norm(before, after, rest) / whole) ** 2, rel=1e-4
    )
    assert 0 < told["rounding_floor"] < 0.05  # the tuned model is stored in BF16
    for side, folder in (("base", base), ("tuned", tuned)):
        files = {row["file"] for row in told["sources"][side]["files"]}
        assert files == {p.name for p in folder.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("method", "rank", "ranks"),
    [
        ("svd", "3", {"mlp_in": [3] * 4}),
        ("svd", "20", {"attn_in.16x12": [12] * 2}),  # no more than the smaller side
        ("tucker2", "4,4", {"mlp_in": [4, 4], "attn_in.8x12": [4, 4]}),
        ("tucker2", "out=4,in=3", {"mlp_in": [4, 3], "mlp_out": [4, 3]}),
        ("tucker", "out=4,in=3", {"mlp_in": [2, 2, 4, 3]}),
        ("tucker", "3", {"mlp_in": [2, 2, 3, 3]}),
        ("tucker", "layer=1, out=8", {"attn_in.8x12": [1, 2, 8, 12]}),
    ],
)
def test_rank_is_per_mode(method, rank, ranks, base, tuned, tmp_path, report):
    told = report(
        "decompose", base, tuned, "-o", tmp_path / "out", "--method", method, "--rank", rank
    )
    for start, wanted in ranks.items():
        found = [g["rank"] for g in told["groups"] if g["name"].startswith(start)]
        assert found == [wanted]


@pytest.mark.parametrize(
    ("dtype", "code", "numbers"), [("bfloat16", "BF16", 1000), ("float16", "F16", 1000)]
)
def test_dtype_of_the_factors(dtype, code, numbers, base, tuned, tmp_path, report):
    arguments = ("--dtype", dtype, "--budget", "2kB")
    told = report("decompose", base, tuned, "-o", tmp_path / "out", *arguments)
    assert {c for c, _ in models.read(tmp_path / "out" / "factors.safetensors").values()} == {code}
    assert told["n_params"] <= numbers
    assert told["bytes"] == 2 * told["n_params"]
    assert told["error"] == pytest.approx(true_error(base, tuned, tmp_path / "out"), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "sites", "groups"),
    [
        ((), 14, 5),
        (("--targets", "q_proj,v_proj"), 4, 2),
        (("--targets", r".*\.0\.self_attn\.[qk]_proj"), 2, 2),
        (("--targets", "all-linear", "--exclude", "mlp.gate_proj"), 12, 5),
        (("--exclude", r".*mlp.*"), 8, 3),
        (("--layers", "1"), 7, 5),
        (("--layers", "0-5"), 14, 5),
        (("--pattern", "layers.{layer}.mlp.{proj:gate_proj|up_proj}"), 4, 1),
        (("--pattern", "mlp.up_proj", "--pattern", "mlp.down_proj"), 4, None),
        (("--share", "layer"), 14, 7),
        (("--share", "layer,proj"), 14, 5),
        (("--share", "none"), 14, 14),
        (("--share", "site"), 14, 5),
        (("--share", "head"), None, None),
    ],
    ids=str,
)
def test_selection_reaches_the_report(arguments, sites, groups, base, tuned, tmp_path, report):
    seen = report("inspect", base, *arguments)
    told = report("decompose", base, tuned, "-o", tmp_path / "out", "--rank", 1, *arguments)
    assert sites is None or sum(len(g["sites"]) for g in told["groups"]) == sites
    assert groups is None or len(told["groups"]) == groups
    for one, other in zip(told["groups"], seen["groups"], strict=True):
        assert [one[key] for key in ("name", "modes", "shape", "grid")] == [
            other[key] for key in ("name", "modes", "shape", "grid")
        ]
        assert [row["site"] for row in one["sites"]] == other["sites"]
    covered = {row["site"] for g in told["groups"] for row in g["sites"]}
    left_out = {row["tensor"].removesuffix(".weight") for row in told["uncovered"]}
    assert not covered & left_out
    for option in ("targets", "exclude", "layers", "share"):
        assert (told["options"][option] is not None) == (f"--{option}" in arguments)


def test_share_head_stacks_every_head(base, tuned, tmp_path, report):
    arguments = ("--share", "layer,head", "--targets", "q_proj,k_proj,v_proj")
    told = report("decompose", base, tuned, "-o", tmp_path / "out", "--rank", 1, *arguments)
    (heads,) = told["groups"]
    assert heads["modes"] == ["layer", "head", "hd", "in"]
    assert heads["shape"] == [2, models.HEADS + 2 * models.KV_HEADS, models.HEAD_DIM, models.HIDDEN]


@pytest.mark.parametrize("target", [("--rank", "2"), ("--error", "0.1"), ("--budget", "500")])
@pytest.mark.parametrize("lora", [(), ("--lora",)], ids=["", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_zero_delta_is_an_answer(method, lora, target, base, tmp_path, report, done):
    common = ("decompose", base, base, "--method", method, *target, *lora)
    told = report(*common, "-o", tmp_path / "out")
    assert told["zero_delta"] is True
    assert told["error"] == 0
    assert told["uncovered_share"] == 0
    assert (tmp_path / "out" / "lora" / "adapter_config.json").exists() == bool(lora)
    assert "BASE and TUNED are equal" in done(*common, "-o", tmp_path / "again").out
    assert report("verify", tmp_path / "out", base, base)["agrees"] is True
    done("apply", tmp_path / "out", base, "-o", tmp_path / "model")
    same = (tmp_path / "model" / "model.safetensors", base / "model.safetensors")
    assert same[0].read_bytes() == same[1].read_bytes()


def test_a_file_and_an_index_are_models_too(base, tuned, tmp_path, report):
    whole = report("decompose", base, tuned, "-o", tmp_path / "one", "--rank", 1)
    index = tuned / "model.safetensors.index.json"
    files = (base / "model.safetensors", index)
    assert (
        report("decompose", *files, "-o", tmp_path / "two", "--rank", 1)["error"] == whole["error"]
    )


def test_table_names_groups_total_and_place(base, tuned, tmp_path, done):
    text = done("decompose", base, tuned, "-o", tmp_path / "out", "--rank", 2, "--lora").out
    for wanted in ("attn_in.16x12", "mlp_out.12x20", "total", "relative error", "not covered"):
        assert wanted in text
    assert f"Written to {tmp_path / 'out'}." in text
    assert f"LoRA in {tmp_path / 'out' / 'lora'}: 14 modules, rank 2, exact." in text


def test_overwrite_replaces_an_old_output(out, base, tuned, report):
    told = report("decompose", base, tuned, "-o", out, "--rank", 1, "--overwrite")
    assert told["options"]["rank"] == 1
    assert json.loads((out / "report.json").read_text()) == told
    assert sorted(p.name for p in out.parent.iterdir()) == ["base", "out", "tuned"]


def test_awkward_names_are_printed_as_they_are(base, tuned, tmp_path, done, report):
    odd = tmp_path / "a [/b] :smile: ü" / "[red]out"
    odd.parent.mkdir(parents=True)
    assert str(odd) in done("decompose", base, tuned, "-o", odd, "--rank", 1, "--lora").out
    done("info", odd)
    done("export", odd, "--lora", odd.with_name("[bold]"))
    assert str(odd.with_name("[x")) in done("apply", odd, base, "-o", odd.with_name("[x")).out
    assert report("verify", odd, base, tuned)["agrees"]


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_the_hashes_are_of_the_files_that_were_read(
    change, base, tuned, tmp_path, done, monkeypatch
):
    """Whatever happens to their names meanwhile."""
    done("decompose", base, tuned, "-o", tmp_path / "before", "--rank", 1)
    shard, real = next(tuned.glob("*.safetensors")), decomposition.decompose
    other = models.write_base(tmp_path / "other", models.base_arrays()) / "model.safetensors"

    def fit(*arguments, **options):
        fits = real(*arguments, **options)
        if change == "replaced":
            other.replace(shard)
        else:
            shard.unlink()
        return fits

    monkeypatch.setattr(decomposition, "decompose", fit)
    done("decompose", base, tuned, "-o", tmp_path / "after", "--rank", 1)
    one, two = (load_factors(tmp_path / name).sources for name in ("before", "after"))
    assert one == two


def test_no_rank_is_above_the_largest_allowed(base, tuned, tmp_path, report, refused):
    def ranks(folder) -> set[int]:
        return {r for part in load_factors(folder).parts for r in part.tensor.ranks}

    asked, small = ["decompose", base, tuned, "--method", "svd"], ["--rank-max", 1]
    report(*asked, "--error", 0.2, "-o", tmp_path / "free")
    told = report(*asked, "--budget", "60k", *small, "-o", tmp_path / "capped")
    assert max(ranks(tmp_path / "free")) > 1
    assert ranks(tmp_path / "capped") == {1}
    assert told["error"] == pytest.approx(true_error(base, tuned, tmp_path / "capped"), rel=1e-4)
    best = f"the best is {told['error']:.3g}; raise --rank-max 1 or the error"
    missed = [*asked, "--error", "0.01", *small, "-o", tmp_path / "missed"]
    refused(missed, f"--error 0.01 was not reached: {best}")
