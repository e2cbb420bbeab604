"""For every family: decompose at full rank, apply, and get the tuned weights back; export LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.numpy import load_file

from tdecomp._xp import tol
from tdecomp.adapters import lora_modules
from tdecomp.cli import main
from tdecomp.files.delta import updates
from tdecomp.files.factors import Factors, load_factors
from tests.models import CASES, save_arrays, save_model


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    assert stop.value.code == 0


def report_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    capsys.readouterr()
    run(*arguments, "--json")
    return json.loads(capsys.readouterr().out)


def make_pair(name: str, folder: Path) -> tuple[Path, Path]:
    """A base model and one whose every floating tensor was changed."""
    base, tuned = folder / "base", folder / "tuned"
    arrays = save_model(name, base)
    save_model(name, tuned)
    rng = np.random.default_rng(0)
    save_arrays(
        {
            k: v + rng.standard_normal(v.shape).astype(v.dtype) / 8 if v.dtype.kind == "f" else v
            for k, v in arrays.items()
        },
        tuned,
    )
    return base, tuned


METHODS = (
    "tucker2",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("svd", "tucker", "tensor_train")),
)
"""Some of the table; all of it goes through tests/cli/test_every_method.py."""


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory) -> tuple[str, Path, Path]:
    return request.param, *make_pair(request.param, tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("method", METHODS)
def test_full_rank_gives_the_tuned_weights_back(pair, method, tmp_path, capsys):
    _, base, tuned = pair
    seen = report_of(capsys, "inspect", base)
    largest = max(max(group["shape"]) for group in seen["groups"])
    report = report_of(
        capsys,
        "decompose",
        base,
        tuned,
        "-o",
        tmp_path / "out",
        "--method",
        method,
        "--rank",
        largest,
    )
    assert report["error"] <= tol("float32", largest**2)
    run("verify", tmp_path / "out", base, tuned)
    run("apply", tmp_path / "out", base, "-o", tmp_path / "model")
    old, new, got = (load_file(p / "model.safetensors") for p in (base, tuned, tmp_path / "model"))
    uncovered = {row["tensor"] for row in report["uncovered"]}
    assert uncovered == {row["tensor"] for row in seen["uncovered"]}
    for name, array in got.items():
        if name in uncovered:
            np.testing.assert_array_equal(array, old[name])
        else:
            np.testing.assert_allclose(array, new[name], atol=8 * tol("float32", array.size))


@pytest.mark.parametrize("method", METHODS)
def test_lora_pairs_are_the_decoded_delta(pair, method, tmp_path):
    """Of every module: fused, transposed and grouped-query ones too, however they are stacked."""
    name, base, tuned = pair
    for share in ("layer", "layer,proj", *["layer,proj,head"] * bool(CASES[name].by_head)):
        out = tmp_path / share
        run(
            "decompose",
            base,
            tuned,
            "-o",
            out,
            "--method",
            method,
            "--rank",
            3,
            "--share",
            share,
            "-q",
        )
        check_lora(load_factors(out))


def check_lora(factors: Factors) -> None:
    modules, left_out = lora_modules(factors.groups, factors.tensors, factors.shapes)
    delta = {n: np.zeros(shape, np.float32) for n, shape in factors.shapes.items()}
    delta = {n: add(delta[n]) for n, add in updates(factors).items()}
    assert {m.module + ".weight" for m in modules} | set(left_out) == set(delta)
    assert all(len(factors.shapes[n]) == 3 for n in left_out)
    for m in modules:
        dense = delta[f"{m.module}.weight"]
        np.testing.assert_allclose(
            m.b @ m.a, dense.T if m.transpose else dense, atol=tol("float32", dense.size)
        )
        assert m.departure <= tol("float32", dense.size) ** 2 * max(m.energy, 1e-30)
        assert m.energy == pytest.approx(float(np.sum(np.square(dense))), rel=1e-4, abs=1e-12)


LOGITS = {
    "llama": transformers.LlamaForCausalLM,
    "gpt2": transformers.GPT2LMHeadModel,
    "phi3": transformers.Phi3ForCausalLM,
    "bert": transformers.BertForSequenceClassification,
    "t5": transformers.T5ForConditionalGeneration,
    "whisper": transformers.WhisperForConditionalGeneration,
}


def logits(model: torch.nn.Module, name: str) -> torch.Tensor:
    ids = torch.arange(3, 11)[None]
    inputs = {"input_ids": ids}
    if name == "t5":
        inputs |= {"decoder_input_ids": ids}
    if name == "whisper":
        audio = torch.linspace(-1, 1, 4 * 16).reshape(1, 4, 16)
        inputs = {"input_features": audio, "decoder_input_ids": ids}
    with torch.no_grad():
        return model.eval()(**inputs).logits.double()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "rank_pattern"])
@pytest.mark.parametrize("name", LOGITS)
def test_peft_gives_the_logits_of_the_applied_model(name, method, padded, tmp_path):
    base, tuned = make_pair(name, tmp_path)
    out, lora, model = tmp_path / "out", tmp_path / "lora", tmp_path / "model"
    run("decompose", base, tuned, "-o", out, "--method", method, "--rank", 3, "-q")
    run("export", out, "--lora", lora, "-q", *([] if padded else ["--rank-pattern"]))
    run("apply", out, base, "-o", model, "--dtype", "float32", "-q")
    load = LOGITS[name].from_pretrained
    adapted = PeftModel.from_pretrained(load(base), str(lora))
    got, expected, before = (
        logits(adapted, name),
        logits(load(model), name),
        logits(load(base), name),
    )
    assert torch.linalg.norm(expected - before) > 1e-3 * torch.linalg.norm(before)
    assert torch.linalg.norm(got - expected) <= 1e-4 * torch.linalg.norm(expected)
