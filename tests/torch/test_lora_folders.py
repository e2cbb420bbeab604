"""LoRA folders of adapters on models that PEFT renames, wraps or copies parts of."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from tdecomp._xp import tol
from tdecomp.errors import SiteError
from tdecomp_torch import Adapter, attach
from tests.architectures import build
from tests.models import CASES, TEXT

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

IDS = torch.arange(3, 11)[None]


def move(adapter: Adapter) -> None:
    """Random factors, and heads that are no longer the ones they were."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for factor in adapter.factors().values():
            factor.copy_(0.3 * torch.randn(factor.shape, generator=generator))
        for parameter in adapter.trained_besides().values():
            parameter += torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found = model.eval()(input_ids=IDS)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def check(model: nn.Module, adapter: Adapter, fresh: nn.Module, folder: Path) -> None:
    """PEFT on a fresh model computes what the adapted one does, and another thing than before."""
    move(adapter)
    expected, before = logits(model), logits(fresh)
    adapter.save_lora(folder)
    got = logits(PeftModel.from_pretrained(fresh, folder))
    size = expected.abs().max()
    assert (got - expected).abs().max() <= 1e3 * tol("float32", 64) * size
    assert (before - expected).abs().max() > 1e-2 * size


@pytest.mark.parametrize(
    "name", ["Qwen3MoeForCausalLM", "DeepseekV3ForCausalLM", "Qwen2MoeForCausalLM"]
)
def test_dense_and_shared_blocks_of_a_mixture_of_experts_act_in_peft(name: str, tmp_path: Path):
    torch.manual_seed(0)
    model = build(name, "cpu")
    fresh = copy.deepcopy(model)
    adapter = attach(model, "lora", rank=2)
    assert any(".mlp." in target.path for target in adapter.targets)
    check(model, adapter, fresh, tmp_path / "lora")


def bert() -> nn.Module:
    torch.manual_seed(0)
    return tf.BertForSequenceClassification(tf.BertConfig(**TEXT))


@pytest.mark.parametrize(
    ("also_train", "modules"),
    [
        (["classifier"], ["classifier"]),
        (["classifier.weight"], ["classifier"]),
        (["pooler", "classifier"], ["bert.pooler.dense", "classifier"]),
        (["embeddings.LayerNorm"], ["bert.embeddings.LayerNorm"]),
    ],
    ids=str,
)
def test_what_is_trained_besides_is_in_the_folder(
    also_train: list[str], modules: list[str], tmp_path: Path
):
    model, fresh = bert(), bert()
    adapter = attach(model, "lora", rank=2, targets=["query"], also_train=also_train)
    check(model, adapter, fresh, tmp_path / "lora")
    written = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert written["modules_to_save"] == modules


def test_a_head_on_a_base_models_checkpoint_keeps_the_names_of_the_model(tmp_path: Path):
    torch.manual_seed(0)
    tf.BertModel(tf.BertConfig(**TEXT)).save_pretrained(tmp_path / "base")
    kind = tf.BertForSequenceClassification
    model, fresh = (kind.from_pretrained(tmp_path / "base") for _ in range(2))
    fresh.classifier.load_state_dict(model.classifier.state_dict())
    assert model.config.architectures == ["BertModel"]
    adapter = attach(model, "lora", rank=2, targets=["query"], also_train=["classifier"])
    check(model, adapter, fresh, tmp_path / "lora")
    written = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert written["target_modules"] == sorted(target.path for target in adapter.targets)


def test_a_tied_head_is_in_the_folder_under_both_names(tmp_path: Path):
    torch.manual_seed(0)
    model = CASES["gpt2"].make()
    fresh = copy.deepcopy(model)
    adapter = attach(model, "lora", rank=2, targets=["c_attn"], also_train=["wte"])
    check(model, adapter, fresh, tmp_path / "lora")
    written = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert written["modules_to_save"] == ["lm_head", "transformer.wte"]


@pytest.mark.parametrize("also_train", [["query.bias"], ["bert"]], ids=str)
def test_what_peft_cannot_keep_a_copy_of_is_refused(also_train: list[str], tmp_path: Path):
    adapter = attach(bert(), "lora", rank=2, targets=["query"], also_train=also_train)
    with pytest.raises(SiteError, match="is trained besides, and a LoRA folder holds whole"):
        adapter.save_lora(tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_modules_that_peft_refuses_are_refused(tmp_path: Path):
    adapter = attach(build("MambaForCausalLM", "cpu"), "lora", rank=1, targets=["out_proj"])
    adapter.model(torch.arange(3, 9)[None])  # whether it is called is known then
    with pytest.raises(SiteError, match="PEFT does not adapt .*out_proj in 'mamba' models"):
        adapter.save_lora(tmp_path / "lora")


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # pyright: ignore[reportReturnType]


def in_peft(model: nn.Module) -> nn.Module:
    return get_peft_model(model, LoraConfig(r=1, target_modules=["value"]))  # pyright: ignore


WRAPPED = {"DataParallel": nn.DataParallel, "compile": compiled, "PEFT": in_peft}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_names_of_what_wraps_a_model_are_not_in_the_folder(wrapper: str, tmp_path: Path):
    model, fresh = bert(), bert()
    adapter = attach(
        WRAPPED[wrapper](model),
        "lora",
        rank=2,
        targets=["query", "dense"],
        also_train=["classifier"],
    )
    check(model, adapter, fresh, tmp_path / "lora")
    written = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert written["modules_to_save"] == ["classifier"]
    assert {name.partition(".")[0] for name in written["target_modules"]} == {"bert"}
