"""TRL's trainers on our method: ``python -m tests.bench.trl_runs``, where trl is installed.

A supervised run that is cut after two of four steps and resumed, against the whole one; and what
GRPO brings to its server, by TRL's own code with a stand-in for the server. TRL comes with 150 MB
of others and is in no extra: ``pip install trl`` into an environment of its own.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers

from tdecomp_torch.peft import TensorAdapterConfig

IDS = torch.arange(12).reshape(2, 6) + 3
_BOUND = 1e-5


def main() -> int:
    """Run both, print what differs, and whether it is rounding."""
    found = {"resumed against whole": resumed(), "server against adapted": served()}
    for what, difference in found.items():
        print(f"{what}: logits differ by {difference:.1e}")
    return int(not all(difference < _BOUND for difference in found.values()))


def resumed() -> float:
    """Largest difference of logits between a run that was resumed and one that was not."""
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = (supervised(Path(folder) / name) for name in "ab")
        whole.train()
        cut.train(resume_from_checkpoint=str(Path(folder) / "a" / "checkpoint-2"))
    return difference(whole.model, cut.model)


def served() -> float:
    """Largest difference between the adapted model and what GRPO's server has of it."""
    from trl.generation.vllm_generation import VLLMGeneration

    server, policy = llama(), get_peft_model(llama(), config(init_weights=False))
    received: dict[str, torch.Tensor] = {}
    generation: Any = object.__new__(VLLMGeneration)
    generation.model, generation.mode, generation._weight_metadata = policy, "server", None
    generation._dist = SimpleNamespace(is_fsdp=False, gather_params=lambda _: nullcontext())
    generation.accelerator = SimpleNamespace(is_main_process=True)
    generation.vllm_client = SimpleNamespace(
        update_named_params=lambda _, named: received.update({n: p.clone() for n, p in named}),
        reset_prefix_cache=lambda: None,
    )
    generation.sync_weights()
    if received.keys() != {name for name, _ in server.named_parameters()}:
        sys.exit("the server was sent other names than those of the plain model")
    server.load_state_dict(received, strict=False)
    return difference(server, policy)


def difference(one: Any, other: Any) -> float:
    """Of logits."""
    with torch.no_grad():
        return float((one(input_ids=IDS).logits - other(input_ids=IDS).logits).abs().max())


def config(**options: Any) -> TensorAdapterConfig:
    """LoTR."""
    return TensorAdapterConfig(method="lotr", r=2, seed=0, task_type="CAUSAL_LM", **options)


def llama() -> Any:
    """A tiny Llama, the same every time."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=63,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def supervised(folder: Path) -> Any:
    """TRL's SFT trainer of four steps, each of them saved."""
    import pyarrow
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from trl import SFTConfig, SFTTrainer

    ids = [list(range(start + 3, start + 11)) for start in range(24)]
    table = InMemoryTable(pyarrow.table({"input_ids": ids, "labels": ids}))
    return SFTTrainer(
        llama(),
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=4,
            save_steps=1,
            per_device_train_batch_size=2,
            learning_rate=0.01,
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
        ),
        train_dataset=Dataset(table, fingerprint="ids"),
        processing_class=tokenizer(),
        peft_config=config(),
    )


def tokenizer() -> Any:
    """Words w0 to w59."""
    words = ["<pad>", "<eos>", "<unk>", *(f"w{k}" for k in range(60))]
    plain = Tokenizer(models.WordLevel({w: k for k, w in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


if __name__ == "__main__":
    sys.exit(main())
