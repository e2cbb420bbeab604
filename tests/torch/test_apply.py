"""`apply` in memory is `tdecomp apply` on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, GPT2LMHeadModel

import tdecomp as td
from tdecomp.cli import main
from tdecomp_torch import apply
from tests.models import save_arrays, save_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apply")
    arrays = save_model("gpt2", folder / "base")
    save_model("gpt2", folder / "tuned")
    rng = np.random.default_rng(0)
    save_arrays(
        {k: v + rng.standard_normal(v.shape, np.float32) for k, v in arrays.items()},
        folder / "tuned",
    )
    for command in (
        ["decompose", folder / "base", folder / "tuned", "-o", folder / "out", "--rank", "3", "-q"],
        ["apply", folder / "out", folder / "base", "-o", folder / "model", "-q"],
    ):
        with pytest.raises(SystemExit, match="0"):
            main([str(word) for word in command])
    return folder


def test_it_gives_the_weights_of_the_command(folders):
    model = apply(GPT2LMHeadModel.from_pretrained(folders / "base"), folders / "out")
    applied = load_file(folders / "model" / "model.safetensors")
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.data, applied[name], rtol=0, atol=0)


def test_a_body_without_its_prefix_is_refused_untouched(folders):
    model = AutoModel.from_pretrained(folders / "base")  # names without "transformer."
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(td.SiteError, match="no such parameter"):
        apply(model, folders / "out")
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_model_that_adds_a_prefix_is_found(folders):
    model = torch.nn.ModuleDict({"inner": GPT2LMHeadModel.from_pretrained(folders / "base")})
    applied = load_file(folders / "model" / "model.safetensors")
    apply(model, folders / "out")
    weight = model["inner"].transformer.h[0].attn.c_attn.weight
    assert torch.equal(weight.data, applied["transformer.h.0.attn.c_attn.weight"])


def test_a_scaled_delta_can_be_taken_off(folders):
    model = GPT2LMHeadModel.from_pretrained(folders / "base")
    before = {n: p.clone() for n, p in model.named_parameters()}
    apply(model, folders / "out", scale=0.5)
    assert not torch.equal(
        model.transformer.h[0].attn.c_attn.weight, before["transformer.h.0.attn.c_attn.weight"]
    )
    apply(model, folders / "out", scale=-0.5)
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.data, before[n].data, rtol=1e-4, atol=1e-5)


def test_another_architecture_is_refused(folders):
    model = torch.nn.ParameterDict({"weight": torch.nn.Parameter(torch.zeros(2))})
    with pytest.raises(td.SiteError, match="cannot place"):
        apply(model, folders / "out")
