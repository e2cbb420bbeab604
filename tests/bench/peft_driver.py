"""Inside of PEFT's source: its tests on our rows; run by `peft_tests`, in a process of its own."""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

from tdecomp_torch.peft import TensorAdapterConfig

CONFIGS = "test_name, model_id, config_cls, config_kwargs"
BOTH = {"target_modules": ["lin0", "lin1"]}
CUSTOM = {  # sizes at which three steps of PEFT's tests move every factor, and none to infinity
    "lora": ("MLP", {"method": "lora", "r": 2, **BOTH}),
    "lora on one": ("MLP", {"method": "lora", "r": 2, "target_modules": "lin0"}),
    "lora, the rest kept": (
        "MLP",
        {"method": "lora", "r": 2, "target_modules": ["lin0"], "modules_to_save": ["lin1"]},
    ),
    "lotr": ("MLP", {"method": "lotr", "r": 2, "alpha": 0.1, **BOTH}),
    "vera": ("MLP", {"method": "vera", "r": 4, **BOTH}),
    "loha": ("MLP", {"method": "loha", "r": 2, **BOTH}),
    "dora": ("MLP", {"method": "dora", "r": 2, **BOTH}),
    "hira": ("MLP", {"method": "hira", "r": 2, **BOTH}),
    "fact_tt": ("MLP", {"method": "fact_tt", "r": 2, **BOTH}),
    "tt_lora": ("MLP", {"method": "tt_lora", "r": 2, "alpha": 0.1, **BOTH}),
    "conv1d": ("EmbConv1D", {"method": "lora", "r": 2, "target_modules": ["conv1d"]}),
    "embedding": (
        "EmbConv1D",
        {"method": "lora", "r": 2, "alpha": 256, "target_modules": ["emb"]},
    ),
    "conv2d": ("Conv2d", {"method": "lora", "r": 2, "target_modules": ["conv2d"]}),
}
TWO = [
    (f"{method} {how}", "lin0", other)
    for method in ("lora", "lotr")
    for how, other in (("same", "lin0"), ("different", "lin1"))
]
LANGUAGE = ("lora", "lotr", "lorta", "tenslora_att_qkv_depth", "vera", "dora")
COMMON = {  # of PeftCommonTester, what the custom models do not run; and whether it starts moved
    "_test_prepare_for_training": False,
    "_test_save_pretrained_selected_adapters": True,
    "_test_merge_layers": True,
    "_test_merge_layers_multi": True,
    "_test_merge_layers_nan": False,
    "_test_generate": False,
    "_test_generate_half_prec": False,
    "_test_training_layer_indexing": False,
    "_test_training_gradient_checkpointing": False,
    "_test_unload_adapter": True,
    "_test_disable_adapter": True,
    "_test_weighted_combination_of_adapters": False,
    "_test_lora_conversion": True,
}


class Record:
    """What came of every test, as pytest reports it."""

    def __init__(self):
        self.found: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.split("::", 1)[1]
        if report.skipped:
            self.found[name] = ("skipped", str(report.longrepr[2]).removeprefix("Skipped: "))
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.found[name] = ("failed", str(crash or report.longrepr).splitlines()[0])
        elif report.when == "call":
            self.found.setdefault(name, ("passed", ""))

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if uses_ours(item)]


def uses_ours(item: Any) -> bool:
    """Whether a test runs on one of our rows or configurations."""
    given = getattr(item, "callspec", None)
    return given is not None and TensorAdapterConfig in given.params.values()


def main(source: Path, out: Path, chosen: str) -> None:
    """Run the tests and write what came of them."""
    for name in ("diffusers", "datasets"):  # which no test on our rows uses
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = stand_in(name)
    tables = importlib.import_module("tests.test_custom_models")
    tables.TEST_CASES[:] = [
        (name, model, TensorAdapterConfig, kwargs) for name, (model, kwargs) in CUSTOM.items()
    ]
    tables.ALL_PEFT_CONFIG_CLASSES[:] = [TensorAdapterConfig]
    tables.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES[:] = [
        (name, "tdecomp", TensorAdapterConfig, moved(name, first, 0), moved(name, second, 1))
        for name, first, second in TWO
    ]
    record = Record()
    with tempfile.TemporaryDirectory() as folder:
        common: Any = importlib.import_module("tests.testing_common")
        tables.TestLanguageModel = language_tests(common.PeftCommonTester, folder)
        options = ["-q", "-p", "no:cacheprovider", "--noconftest", "-W", "ignore", "-o", "addopts="]
        file = source / "tests" / "test_custom_models.py"
        pytest.main([str(file), *options, "-k", chosen], plugins=[record])
    out.write_text(json.dumps(record.found))


def moved(name: str, target: str, seed: int) -> dict[str, Any]:
    """The configuration of one of two adapters that act at once."""
    method = name.split()[0]
    plain = {"method": method, "r": 2, "target_modules": [target]}
    return plain | {"seed": seed, "init_weights": False}


def language_tests(common: type, folder: str) -> type:
    """A class of tests on a tiny Llama: what PEFT runs on language models from its hub."""
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    rows = [
        (name, folder, TensorAdapterConfig, {"method": name, "r": 4, "task_type": "CAUSAL_LM"})
        for name in LANGUAGE
    ]

    class TestLanguageModel(common):
        transformers_class = transformers.AutoModelForCausalLM

        def prepare_inputs_for_testing(self) -> dict[str, torch.Tensor]:
            ids = torch.tensor([[1, 3, 2], [5, 0, 7]])
            return {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 1]])}

        @pytest.mark.parametrize(CONFIGS, rows)
        @pytest.mark.parametrize("what", COMMON)
        def test_common(
            self,
            what: str,
            test_name: str,
            model_id: str,
            config_cls: type,
            config_kwargs: dict[str, Any],
        ) -> None:
            del test_name
            start = {"init_weights": False} if COMMON[what] else {}
            getattr(self, what)(model_id, config_cls, config_kwargs | start)

    return TestLanguageModel


def stand_in(name: str) -> ModuleType:
    """A module from which any class can be imported."""
    module: Any = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__getattr__ = _any_class
    return module


def _any_class(name: str) -> type:
    if name.startswith("__"):  # what asks for it is looking at modules, such as torch
        raise AttributeError(name)
    return type(name, (), {})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
