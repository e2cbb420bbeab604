"""LoRA folders follow the rules that vLLM and PEFT read them by."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

import tdecomp as td
from tdecomp.adapters import LoRAModule
from tdecomp.files.peft_lora import vllm_rank, write_lora
from tests.pairs import make_pair


def module(name: str, rank: int) -> LoRAModule:
    rng = np.random.default_rng(rank)
    a, b = rng.standard_normal((rank, 5)), rng.standard_normal((7, rank))
    return LoRAModule(
        module=name,
        a=a.astype(np.float32),
        b=b.astype(np.float32),
        transpose=False,
        departure=0.0,
        energy=1.0,
    )


def written(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, load_file(folder / "adapter_model.safetensors")


def test_narrow_modules_are_padded_to_one_rank_at_scale_one(tmp_path):
    modules = [module("h.0.q", 3), module("h.0.k", 1)]
    assert write_lora(tmp_path, modules, base="somewhere") == 3
    config, arrays = written(tmp_path)
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (3, 3, {})
    assert config["target_modules"] == ["h.0.k", "h.0.q"]
    assert config["modules_to_save"] is None
    for m in modules:
        a, b = (arrays[f"base_model.model.{m.module}.lora_{x}.weight"] for x in "AB")
        assert (a.shape, b.shape) == ((3, 5), (7, 3))
        np.testing.assert_allclose(b @ a, m.b @ m.a, rtol=1e-6)


def test_rank_pattern_keeps_own_ranks_and_scales(tmp_path):
    write_lora(tmp_path, [module("h.0.q", 3), module("h.0.k", 1)], base="", rank_pattern=True)
    config, arrays = written(tmp_path)
    assert config["rank_pattern"] == config["alpha_pattern"] == {"h.0.k": 1}
    assert arrays["base_model.model.h.0.k.lora_A.weight"].shape == (1, 5)


def test_modules_of_rank_zero_are_left_out(tmp_path):
    write_lora(tmp_path, [module("h.0.q", 2), module("h.0.k", 0)], base="")
    assert written(tmp_path)[0]["target_modules"] == ["h.0.q"]


def test_a_zero_delta_is_still_an_adapter(tmp_path):
    assert write_lora(tmp_path, [module("h.0.q", 0)], base="") == 1
    config, arrays = written(tmp_path)
    assert config["target_modules"] == ["h.0.q"]
    assert not any(a.any() for a in arrays.values())


def test_no_module_at_all_is_refused(tmp_path):
    with pytest.raises(td.FileError, match="no module"):
        write_lora(tmp_path, [], base="")


@pytest.mark.parametrize(
    ("rank", "limit"), [(1, 1), (2, 8), (64, 64), (65, 128), (300, 320), (513, None)]
)
def test_the_rank_that_vllm_must_be_told(rank, limit):
    assert vllm_rank(rank) == limit


def test_the_whole_job_runs_without_torch(tmp_path):
    """With torch and its company made unimportable."""
    base, tuned = make_pair(tmp_path)
    blocked = ("torch", "transformers", "peft", "jax", "tensorly", "sympy", "matplotlib")
    out = tmp_path / "out"
    commands = [
        ["decompose", base, tuned, "-o", out, "--method", "tucker", "--budget", "2k", "--lora"],
        ["verify", out, base, tuned],
        ["apply", out, base, "-o", tmp_path / "model"],
        ["export", out, "--lora", tmp_path / "lora"],
        ["info", out],
    ]
    driver = f"""
import json, sys
sys.modules.update(dict.fromkeys({blocked}))
from tdecomp.cli import main
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as left:
        assert left.code == 0, words
    else:
        raise AssertionError(words)
print("all done")
"""
    words = json.dumps([[str(word) for word in command] for command in commands])
    command = [sys.executable, "-c", driver, words]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("all done\n")
