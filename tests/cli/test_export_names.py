"""What `export` says of the names in a LoRA folder, and what it does with what files claim."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tdecomp.files import safetensors
from tdecomp.files.factors import FACTORS
from tests.cli.conftest import Result


def pair(folder: Path, config: dict[str, object], names: list[str]) -> tuple[Path, Path]:
    """Two models with matrices of these names."""
    rng = np.random.default_rng(0)
    for side in ("base", "tuned"):
        (folder / side).mkdir()
        arrays = {f"{n}.weight": rng.standard_normal((6, 4), np.float32) for n in names}
        save_file(arrays, folder / side / "model.safetensors")
        (folder / side / "config.json").write_text(json.dumps(config))
    return folder / "base", folder / "tuned"


def targets(folder: Path) -> list[str]:
    return json.loads((folder / "adapter_config.json").read_text())["target_modules"]


LLAVA = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
HUB = [f"language_model.model.layers.{i}.self_attn.q_proj" for i in range(2)]
LOADED = [f"model.language_model.layers.{i}.self_attn.q_proj" for i in range(2)]


def test_modules_are_named_as_they_are_loaded_and_that_is_said(done, tmp_path: Path):
    base, tuned = pair(tmp_path, LLAVA, HUB)
    both: Result = done("decompose", base, tuned, "-o", tmp_path / "out", "--rank", 2, "--lora")
    told: Result = done("export", tmp_path / "out", "--lora", tmp_path / "lora")
    for folder in (tmp_path / "lora", tmp_path / "out" / "lora"):
        assert targets(folder) == LOADED
    for text in (both.out, told.out):
        flat = " ".join(text.split())
        assert f"2 modules are named as transformers 5 loads them: {LOADED[0]} for {HUB[0]}" in flat


def test_what_peft_refuses_is_left_out_and_named(done, refused, tmp_path: Path):
    names = ["backbone.layers.0.mixer.out_proj", "backbone.layers.0.mixer.in_proj"]
    base, tuned = pair(tmp_path, {"model_type": "mamba"}, names)
    done("decompose", base, tuned, "-o", tmp_path / "out", "--rank", 2)
    told: Result = done("export", tmp_path / "out", "--lora", tmp_path / "lora")
    assert targets(tmp_path / "lora") == names[1:]
    flat = " ".join(told.out.split())
    assert f"Not in the LoRA, as PEFT does not adapt them in such models: {names[0]}." in flat
    done("decompose", base, tuned, "-o", tmp_path / "one", "--rank", 2, "--targets", "out_proj")
    refused(["export", tmp_path / "one", "--lora", tmp_path / "none"], "PEFT adapts none")


def test_what_is_not_the_weight_of_a_module_is_left_out_and_named(done, tmp_path: Path):
    base, tuned = pair(tmp_path, {"model_type": "mine"}, ["layers.0.attn.q_proj"])
    for seed, folder in enumerate((base, tuned)):
        rng, path = np.random.default_rng(seed), folder / "model.safetensors"
        rows = rng.standard_normal((12, 4), np.float32)
        save_file(load_file(path) | {"layers.0.attn.in_proj_weight": rows}, path)
    done("decompose", base, tuned, "-o", tmp_path / "out", "--rank", 2)
    told: Result = done("export", tmp_path / "out", "--lora", tmp_path / "lora")
    assert targets(tmp_path / "lora") == ["layers.0.attn.q_proj"]
    left = "(not the weight of a linear module): layers.0.attn.in_proj_weight."
    assert left in " ".join(told.out.split())


@pytest.mark.parametrize(
    "model",
    [None, 7, {"model_type": ["llava"]}, {"model_type": "mixtral", "num_experts": 10**12}],
    ids=str,
)
def test_factors_that_say_nothing_or_nonsense_of_the_model_keep_their_names(
    model: object, done, tmp_path: Path
):
    names = ["layers.0.block_sparse_moe.experts.99999999.w2", "layers.0.self_attn.q_proj"]
    base, tuned = pair(tmp_path, {"model_type": "mixtral"}, names)
    done("decompose", base, tuned, "-o", tmp_path / "out", "--rank", 2)
    path = tmp_path / "out" / FACTORS
    entries, metadata = safetensors.read_header(path)
    document = json.loads(metadata["tdecomp"])
    document["sources"]["base"]["model"] = model
    arrays = {name: np.array(safetensors.load(entry)) for name, entry in entries.items()}
    save_file(arrays, path, metadata=dict(metadata, tdecomp=json.dumps(document)))
    told: Result = done("export", tmp_path / "out", "--lora", tmp_path / "lora")
    known = isinstance(model, dict) and model["model_type"] == "mixtral"
    assert ("does not say of which type" in " ".join(told.out.split())) != known
    assert targets(tmp_path / "lora") == (names[1:] if known else sorted(names))
