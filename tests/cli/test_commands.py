"""inspect, verify, apply, export, info, and what all commands have in common."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tdecomp as td
from tests.cli import models

COMMANDS = {
    "inspect": ("inspect", "{base}"),
    "decompose": ("decompose", "{base}", "{tuned}", "-o", "{new}", "--rank", "2", "--lora"),
    "verify": ("verify", "{out}", "{base}", "{tuned}"),
    "apply": ("apply", "{out}", "{base}", "-o", "{new}"),
    "export": ("export", "{out}", "--lora", "{new}"),
    "info": ("info", "{out}"),
}


def words(command, **places):
    return [word.format(**places) for word in COMMANDS[command]]


@pytest.fixture
def places(base, tuned, out, tmp_path):
    return {"base": base, "tuned": tuned, "out": out, "new": tmp_path / "new"}


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_prints_nothing(command, places, done):
    assert done(*words(command, **places), "--quiet").out == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_there_is_something_to_print(command, places, done):
    assert len(done(*words(command, **places)).out.splitlines()) >= 1


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "apply"])
def test_json_is_one_document(command, places, report):
    assert isinstance(report(*words(command, **places)), dict)


def test_version(done):
    assert done("--version").out == f"{td.__version__}\n"


def test_help(done):
    assert "Usage: tdecomp" in done("--help").out


def test_no_command_shows_the_help(call):
    result = call()
    assert result.code == 2
    assert "Usage: tdecomp" in result.out + result.err
    assert "tdecomp: " not in result.err


# ---------------------------------------------------------------------------------------- inspect


def test_inspect_tells_family_groups_and_the_rest(base, report):
    told = report("inspect", base)
    assert told["family"] == "llama"
    assert told["covered_numbers"] == models.NUMBERS
    assert told["numbers"] == sum(a.size for _, a in models.read(base).values())
    assert {g["name"]: g["shape"] for g in told["groups"]} == {
        "attn_in.16x12": [2, 1, 16, 12],
        "attn_in.8x12": [2, 2, 8, 12],
        "attn_out.12x16": [2, 1, 12, 16],
        "mlp_in.20x12": [2, 2, 20, 12],
        "mlp_out.12x20": [2, 1, 12, 20],
    }
    rest = {name for name in models.read(base) if not models.is_covered(name)}
    assert {row["tensor"] for row in told["uncovered"]} == rest


def test_inspect_shows_groups_and_reasons(tuned, done):
    text = done("inspect", tuned).out
    for wanted in ("attn_in.16x12", "bfloat16", models.EMBEDDING, "q_proj", "0, 1"):
        assert wanted in text


# ----------------------------------------------------------------------------------------- verify


def test_verify_agrees_with_what_decompose_wrote(out, base, tuned, report):
    told = report("verify", out, base, tuned)
    assert told["agrees"] is True
    assert told["changed_files"] == []
    assert len(told["sites"]) == 14
    for row in told["sites"]:
        assert row["measured"] == pytest.approx(row["claimed"], rel=1e-5)
        assert row["agrees"] is True


@pytest.mark.parametrize("value", [7.0, 1e20, 3e38], ids=str)
def test_verify_finds_a_changed_factor(value, out, base, tuned, call, check_line):
    models.spoil(out, "0.u", models.put(value))
    result = call("verify", out, base, tuned)
    assert result.code == 1
    check_line(result.err, out, "claims a relative error of 0.", "measured")
    assert "differs" in result.out
    quiet = call("verify", out, base, tuned, "--quiet")
    assert (quiet.code, quiet.out) == (1, "")
    check_line(quiet.err, "measured")


def test_verify_json_when_it_fails(out, base, tuned, call, check_line):
    models.spoil(out, "0.u", models.put(7.0))
    result = call("verify", out, base, tuned, "--json")
    told = json.loads(result.out)
    assert (result.code, told["agrees"]) == (1, False)
    # The last entry of u belongs to the last site of the first group only.
    assert [row["site"] for row in told["sites"] if not row["agrees"]] == [
        "model.layers.1.self_attn.q_proj"
    ]
    check_line(result.err, f"{told['measured']:.6g}", f"{told['claimed']:.6g}")


def test_verify_table_has_the_worst_site_first(out, base, tuned, call):
    models.spoil(out, "0.u", models.put(7.0))
    text = call("verify", out, base, tuned, "--all").out
    rows = [line for line in text.splitlines() if "model." in line]
    assert "model.layers.1.self_attn.q_proj" in rows[0]
    assert "differs" in rows[0]
    assert all("agrees" in row for row in rows[1:])


def test_verify_notices_swapped_models(out, base, tuned, call, check_line):
    result = call("verify", out, tuned, base, "-q")
    assert result.code == 1
    check_line(result.err, "measured")


def test_verify_names_files_that_are_not_the_originals(out, base, tuned, report, call):
    file = models.spoil(tuned, models.NORM0, models.put(3.0))
    told = report("verify", out, base, tuned)
    assert told["changed_files"] == [f"tuned/{file.name}"]
    assert told["agrees"] is True  # a norm is not covered
    result = call("verify", out, base, tuned)
    assert result.code == 0
    assert f"tuned/{file.name} is not the file" in result.err


# ------------------------------------------------------------------------------------------ apply


@pytest.mark.parametrize("base_is_sharded", [False, True])
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32", "float16"])
def test_apply_writes_a_model_like_the_base(
    base_is_sharded, dtype, base, tuned, tmp_path, done, out
):
    if base_is_sharded:
        base = models.write_tuned(tmp_path / "sharded", models.base_arrays())
    cast = () if dtype is None else ("--dtype", dtype)
    text = done("apply", out, base, "-o", tmp_path / "model", *cast).out
    assert text == f"Changed 14 tensors; model in {tmp_path / 'model'}.\n"
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == sorted(
        [".tdecomp.json", *(p.name for p in base.iterdir())]
    )
    before, after, deltas = models.read(base), models.read(tmp_path / "model"), models.decoded(out)
    code = {"bfloat16": "BF16", "float32": "F32", "float16": "F16"}.get(str(dtype))
    for name, (stored, array) in before.items():
        wanted = array + deltas.get(name, 0.0)
        rounding = {"F32": 1e-6, "F16": 2**-11, "BF16": 2**-8}[code or stored]
        assert after[name][0] == (code or stored)
        np.testing.assert_allclose(after[name][1], wanted, rtol=rounding, atol=2e-6)
    for file in sorted(base.glob("*.safetensors")):
        assert list(models.read(file)) == list(models.read(tmp_path / "model" / file.name))
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (
        base / "tokenizer.json"
    ).read_bytes()
    kept = json.loads((base / "config.json").read_text())
    wanted = kept if dtype is None else kept | {"torch_dtype": dtype}
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == wanted


def test_apply_of_everything_gives_the_tuned_model(base, tuned, tmp_path, done):
    done("decompose", base, tuned, "-o", tmp_path / "out", "--error", "1e-5", "-q")
    done("apply", tmp_path / "out", base, "-o", tmp_path / "model", "-q")
    after, wanted = models.read(tmp_path / "model"), models.read(tuned)
    for name in filter(models.is_covered, wanted):
        np.testing.assert_allclose(after[name][1], wanted[name][1], atol=1e-3)


# ----------------------------------------------------------------------------------------- export


def products(folder) -> dict[str, np.ndarray]:
    """Scaled B @ A of every module, with PEFT's rule for rank_pattern."""
    config = json.loads((folder / "adapter_config.json").read_text())
    rows = models.read(folder / "adapter_model.safetensors")
    deltas = {}
    for name in [n for n in rows if n.endswith("lora_A.weight")]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        rank = config["rank_pattern"].get(module, config["r"])
        alpha = config["alpha_pattern"].get(module, config["lora_alpha"])
        a, b = rows[name][1], rows[name.replace("lora_A", "lora_B")][1]
        assert a.shape[0] == b.shape[1] == rank
        deltas[f"{module}.weight"] = b.astype(float) @ a * (alpha / rank)
    return deltas


@pytest.mark.parametrize("method", ["svd", "tucker2", "tucker"])
@pytest.mark.parametrize("pattern", [(), ("--rank-pattern",)], ids=["padded", "pattern"])
@pytest.mark.parametrize("share", [(), ("--share", "layer,head")], ids=["", "head"])
def test_export_is_exact(method, pattern, share, base, tuned, tmp_path, report):
    arguments = ("--method", method, "--error", "0.3", *share)
    told = report("decompose", base, tuned, "-o", tmp_path / "out", "--lora", *arguments)
    again = report("export", tmp_path / "out", "--lora", tmp_path / "lora", *pattern)
    assert told["lora"]["truncated"] == again["truncated"] == []
    deltas = models.decoded(tmp_path / "out")
    for folder in (tmp_path / "lora", tmp_path / "out" / "lora"):
        pairs = products(folder)
        for name, delta in deltas.items():
            np.testing.assert_allclose(pairs.get(name, 0 * delta), delta, atol=1e-5)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert bool(config["rank_pattern"]) == bool(pattern)


def test_truncation_is_stated_with_a_number(base, tuned, tmp_path, report, done):
    report("decompose", base, tuned, "-o", tmp_path / "out", "--rank", 3)
    cut = ("--lora-rank", "1")
    told = report("export", tmp_path / "out", "--lora", tmp_path / "lora", *cut)
    deltas, pairs = models.decoded(tmp_path / "out"), products(tmp_path / "lora")
    lost = np.sqrt(sum(np.sum((deltas[n] - pairs[n]) ** 2) for n in deltas))
    whole = np.sqrt(sum(np.sum(d**2) for d in deltas.values()))
    assert told["departure"] == pytest.approx(lost / whole, rel=1e-4)
    assert told["exact"] is False
    assert (told["rank"], len(told["truncated"])) == (1, 14)
    text = done("export", tmp_path / "out", "--lora", tmp_path / "again", *cut).out
    assert f"‖factors − LoRA‖/‖factors‖ = {told['departure']:.2g}" in text
    assert "14 modules needed more than rank 1" in text
    whole_job = ("decompose", base, tuned, "-o", tmp_path / "both", "--rank", 3, "--lora", *cut)
    assert f"= {told['departure']:.2g}" in done(*whole_job).out


def test_pairs_as_wide_as_their_matrix_are_not_truncated(base, tuned, tmp_path, report):
    heads = ("--share", "layer,head", "--rank", models.HEAD_DIM)  # 4 heads of rank 4 on 12 columns
    told = report("decompose", base, tuned, "-o", tmp_path / "out", "--lora", *heads)["lora"]
    assert (told["rank"], told["exact"], told["truncated"]) == (12, True, [])
    assert told["departure"] < 1e-6


def test_departure_counts_the_cast(out, tmp_path, report):
    told = report("export", out, "--lora", tmp_path / "lora", "--dtype", "bfloat16")
    deltas, pairs = models.decoded(out), products(tmp_path / "lora")
    lost = np.sqrt(sum(np.sum((deltas[n] - pairs[n]) ** 2) for n in deltas))
    whole = np.sqrt(sum(np.sum(d**2) for d in deltas.values()))
    assert (told["exact"], told["truncated"]) == (False, [])
    assert told["departure"] == pytest.approx(lost / whole, rel=1e-3)


@pytest.mark.parametrize(
    ("dtype", "code"), [(None, "BF16"), ("float32", "F32"), ("float16", "F16")]
)
def test_export_dtype_is_that_of_the_factors_by_default(dtype, code, base, tuned, tmp_path, done):
    common = ("--rank", "2", "--dtype", "bfloat16", "-q")
    done("decompose", base, tuned, "-o", tmp_path / "out", *common)
    cast = () if dtype is None else ("--dtype", dtype)
    done("export", tmp_path / "out", "--lora", tmp_path / "lora", *cast)
    rows = models.read(tmp_path / "lora" / "adapter_model.safetensors")
    assert {stored for stored, _ in rows.values()} == {code}


# ------------------------------------------------------------------------------------------- info


def test_info_is_what_decompose_reported(out, report, done):
    told = json.loads((out / "report.json").read_text())
    shown = report("info", out)
    assert shown == {key: told[key] for key in shown}
    assert report("info", out / "factors.safetensors") == shown
    text = done("info", out).out
    assert f"{told['n_params']:,} numbers" in text
    assert f"relative error {told['error']:.4f}" in text
