"""Laws of training with transformers' Trainer: a run that was cut is the run that was not."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model

from tdecomp_torch import attach, load_adapter
from tdecomp_torch.peft import TensorAdapterConfig, adapter_of
from tdecomp_torch.trainer import AdapterCallback
from tests.torch.cases import seeded

IDS = torch.arange(48).reshape(8, 6) % 29


def llama() -> Any:
    """A tiny Llama, the same every time."""
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return seeded(lambda: transformers.LlamaForCausalLM(config))


def examples() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": row, "labels": row} for row in IDS]


def trainer(model: Any, folder: Path, *callbacks: Any, **options: Any) -> transformers.Trainer:
    """Four steps of two examples, each of them saved."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_steps=4,
        learning_rate=0.01,
        save_steps=1,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **options,
    )
    data: Any = examples()
    return transformers.Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, callbacks=[*callbacks]
    )


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(autouse=True)
def quiet():
    """Neither progress nor advice."""
    logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.mark.filterwarnings("ignore")
def test_peft_models_resume(tmp_path):
    def model() -> Any:
        config = TensorAdapterConfig(method="lotr", r=2, seed=0, task_type="CAUSAL_LM")
        return get_peft_model(llama(), config)

    whole, cut = model(), model()
    trainer(whole, tmp_path / "a").train()
    again = trainer(cut, tmp_path / "b", gradient_checkpointing=True)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    torch.testing.assert_close(logits(cut), logits(whole), rtol=1e-5, atol=1e-6)
    files = {file.name for file in (tmp_path / "a" / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files
    best = model()
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    run = trainer(best, tmp_path / "c", **options)
    run.train()
    loaded = PeftModel.from_pretrained(llama(), str(run.state.best_model_checkpoint))
    torch.testing.assert_close(logits(loaded), logits(best), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_attached_models_resume_with_the_callback(tmp_path):
    whole, cut = llama(), llama()
    adapters = [attach(model, "lotr", rank=2) for model in (whole, cut)]
    trainer(whole, tmp_path / "a", AdapterCallback(adapters[0])).train()
    again = trainer(cut, tmp_path / "b", AdapterCallback(adapters[1]))
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    torch.testing.assert_close(logits(cut), logits(whole), rtol=1e-5, atol=1e-6)
    assert adapters[1].at_step == 4
    plain = llama()
    loaded = load_adapter(plain, tmp_path / "b" / "checkpoint-4" / "adapter")
    assert loaded.at_step == 4
    torch.testing.assert_close(logits(plain), logits(whole), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_one_of_several_processes_writes_what_all_hold(tmp_path):
    adapter = attach(llama(), "lotr", rank=2)
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for first in (False, True):
        state = transformers.TrainerState(global_step=3, is_world_process_zero=first)
        AdapterCallback(adapter).on_save(arguments, state, None)
        assert (tmp_path / "checkpoint-3" / "adapter").exists() is first


def test_a_server_gets_merged_weights():
    """As GRPO brings a policy to its server: merged, by the names of the plain model."""
    plain = llama()
    model = get_peft_model(
        copy.deepcopy(plain),
        TensorAdapterConfig(method="lotr", r=2, init_weights=False, task_type="CAUSAL_LM"),
    )
    expected, server = logits(model), {}
    model.merge_adapter()
    for path, parameter in model.named_parameters():
        name = path.removeprefix("base_model.model.").replace(".base_layer", "")
        if model.prefix not in name and "original_module" not in name:
            server[name.replace("modules_to_save.default.", "")] = parameter.detach().clone()
    model.unmerge_adapter()
    assert server.keys() == {name for name, _ in plain.named_parameters()}
    plain.load_state_dict(server, strict=False)
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(model), expected)
    assert adapter_of(model).n_trainable == model.get_nb_trainable_parameters()[0]
