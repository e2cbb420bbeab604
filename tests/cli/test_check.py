"""`tdecomp check` as it is typed: the table, the exit code, and what is not an adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.published import PUBLISHED, D, write_adapter

STEM = "base_model.model.model.layers.{}.self_attn.q_proj"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return PUBLISHED["Llama"].write(tmp_path / "model")


def adapter(folder: Path, *stems: str) -> Path:
    return write_adapter(folder, {stem: (D, D) for stem in stems})


def test_what_acts_is_one_sentence(model: Path, tmp_path: Path, done):
    lora = adapter(tmp_path / "lora", STEM.format(0), STEM.format(1))
    told = done("check", lora, model, "--for", "vllm").out
    assert told.splitlines()[0] == "4 of 4 tensors act in vllm."
    assert "--max-lora-rank 8" in told
    assert "q_proj" in done("check", lora, model, "--for", "vllm", "--all").out


def test_what_does_not_act_is_a_table_and_exit_code_1(model: Path, tmp_path: Path, call):
    wrong = STEM.replace("base_model.model.", "base_model.model._orig_mod.").format(0)
    lora = adapter(tmp_path / "lora", wrong, STEM.format(1))
    result = call("check", lora, model, "--for", "vllm")
    assert result.code == 1
    assert "2 of 4 tensors act in vllm." in result.out
    flat = " ".join(result.out.split())
    assert "(1) vLLM has no such module: _orig_mod is of a wrapper, and nothing is said" in flat
    assert "[vllm/lora/model_manager.py: " in flat
    assert "What acts is called base_model.model.model.layers.*.self_attn.q_proj." in flat
    assert result.err.strip().endswith("2 of 4 tensors of " + f"{lora} would not act in vllm")
    quiet = call("check", lora, model, "--for", "vllm", "-q")
    assert (quiet.code, quiet.out) == (1, "")
    report = json.loads(call("check", lora, model, "--for", "vllm", "--json").out)
    assert (report["acts"], report["acting"], report["tensors"]) == (False, 2, 4)
    assert report["keys"][0]["instead"] == STEM.format(0)


def test_what_would_act_is_written_and_acts(model: Path, tmp_path: Path, call, done):
    wrong = STEM.replace("base_model.model.", "base_model.model._orig_mod.").format(0)
    lora = adapter(tmp_path / "lora", wrong, STEM.format(1))
    told = call("check", lora, model, "--for", "vllm").out
    assert "tdecomp export ADAPTER --lora DIR --for vllm --base MODEL" in " ".join(told.split())
    made = ["export", lora, "--lora", tmp_path / "new", "--for", "vllm", "--base", model]
    told = done(*made).out
    assert told.splitlines()[0].startswith("2 pairs in ")
    assert "base_model.model.model.layers.*.self_attn.q_proj now." in told
    assert "4 of 4 tensors act in vllm." in told
    assert json.loads(done(*made, "--overwrite", "--json").out)["check"]["acts"]
    done("check", tmp_path / "new", model, "--for", "vllm")


def test_factors_are_written_for_a_loader(out: Path, tmp_path: Path, done):
    for loader in ("peft", "vllm", "sglang", "llama.cpp"):
        told = done("export", out, "--lora", tmp_path / loader, "--for", loader).out
        assert f"28 of 28 tensors act in {loader}." in told


def test_what_does_not_go_with_for_is_told(model: Path, tmp_path: Path, refused):
    lora = adapter(tmp_path / "lora", STEM.format(0))
    words = ["export", lora, "--lora", tmp_path / "new"]
    refused([*words, "--for", "vllm", "--lora-rank", "4"], "--for decides ranks itself")
    refused([*words, "--base", model], "--base names the model that --for is for")
    refused([*words, "--for", "vllm"], "does not say which model it is for")
    refused([*words, "--for", "vlm"], "no loader 'vlm' is known")
    assert not (tmp_path / "new").exists()


def test_an_index_and_a_configuration_are_enough(model: Path, tmp_path: Path, call, done):
    names = dict.fromkeys(PUBLISHED["Llama"].shapes, "model-00001-of-00001.safetensors")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    lora = adapter(tmp_path / "lora", STEM.format(0))
    done("check", lora, model, "--for", "peft")
    assert call("check", adapter(tmp_path / "b", "x." + STEM), model, "--for", "peft").code == 1


def test_bad_input_is_told(model: Path, tmp_path: Path, refused):
    lora = adapter(tmp_path / "lora", STEM.format(0))
    check = ["check", lora, model, "--for"]
    told = refused([*check, "vlm"], "no loader 'vlm' is known: there are peft, vllm, sglang")
    assert "did you mean 'vllm'?" in told
    refused(["check", lora, model], "Missing option '--for'")
    refused(["check", tmp_path / "none", model, "--for", "peft"], "does not exist")
    refused(["check", model, model, "--for", "peft"], "no known naming scheme")
    refused(["check", lora, tmp_path / "none", "--for", "peft"], "does not exist")
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "config.json").unlink()
    refused(["check", lora, bare, "--for", "peft"], "no config.json")
    (lora / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    refused([*check, "peft"], "is of type 'LOHA'")
    (lora / "adapter_config.json").write_text("{")
    refused([*check, "peft"], "is not valid JSON")
    (lora / "adapter_config.json").unlink()
    refused([*check, "peft"], "no adapter_config.json beside it")


def test_factors_are_to_be_exported_first(out: Path, base: Path, refused):
    told = refused(["check", out, base, "--for", "vllm"], "holds factors")
    assert "tdecomp export" in told
