"""Seconds of a training step, ours, through PEFT, and PEFT's: `python -m tests.bench.peft_steps`.

A Llama of four layers, forward and backward on 4 x 64 tokens. The ways take turns, and the fastest
of their steps counts, so that a busy neighbour counts for none. Peak memory is in no figure here:
on a CPU there is none that torch measures.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import peft
import torch
import transformers

from tdecomp_torch import attach
from tdecomp_torch.peft import TensorAdapterConfig

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
WAYS: dict[str, Callable[[Any], Any]] = {
    "lora": lambda m: attach(m, "lora", rank=8, targets=TARGETS).model,
    "lora through PEFT": lambda m: ours(m, "lora"),
    "PEFT's LoRA": lambda m: peft.get_peft_model(m, peft.LoraConfig(r=8, target_modules=TARGETS)),
    "lotr": lambda m: attach(m, "lotr", rank=8, targets=TARGETS).model,
    "lotr through PEFT": lambda m: ours(m, "lotr"),
    "vera": lambda m: attach(m, "vera", rank=64, targets=TARGETS).model,
    "vera through PEFT": lambda m: ours(m, "vera", 64),
    "PEFT's VeRA": lambda m: peft.get_peft_model(
        m, peft.VeraConfig(r=64, target_modules=TARGETS, save_projection=False)
    ),
}


def ours(model: Any, method: str, rank: int = 8) -> Any:
    """A row by way of PEFT."""
    config = TensorAdapterConfig(method=method, rank=rank, target_modules=TARGETS)
    return peft.get_peft_model(model, config)


def llama(hidden: int) -> Any:
    """With as many heads for keys as for queries: PEFT's VeRA takes one shape."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=512,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
        )
    )


def main() -> int:
    """Time all ways in turns."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    ids = torch.randint(512, (4, 64), generator=torch.Generator().manual_seed(0))
    models = {name: way(llama(given.hidden)).train() for name, way in WAYS.items()}
    best = dict.fromkeys(models, float("inf"))
    for _ in range(given.rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model(input_ids=ids, labels=ids).loss.backward()
            best[name] = min(best[name], time.perf_counter() - start)
    for name, seconds in best.items():
        base = best[name.removesuffix(" through PEFT")]
        share = f", {seconds / base:.3f} of without" if name.endswith("through PEFT") else ""
        print(f"{name}: {1e3 * seconds:.1f} ms{share}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
