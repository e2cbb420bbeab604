"""What an adapter costs, ours, through PEFT, and PEFT's: `python -m tests.bench.peft_steps`.

A Llama of four layers: forward and backward on 4 x 64 tokens, then one token after another with a
cache and without gradient. The ways take turns, on one thread, and of every way the median of the
processor's seconds counts, so that a busy neighbour counts for little. Peak memory is that of a
process of its own that trains three steps (Linux).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import peft
import torch
import transformers

from tdecomp_torch import attach
from tdecomp_torch.peft import TensorAdapterConfig
from tests.bench.children import run_child

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
THROUGH = " through PEFT"
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
    "randlora": lambda m: attach(m, "randlora", rank=32, targets=TARGETS).model,
    "randlora through PEFT": lambda m: ours(m, "randlora", 32),
    "PEFT's RandLoRA": lambda m: peft.get_peft_model(
        m, peft.RandLoraConfig(r=32, target_modules=TARGETS, save_projection=False)
    ),
}
PEERS = {"lora": "PEFT's LoRA", "vera": "PEFT's VeRA", "randlora": "PEFT's RandLoRA"}
_TOKENS = 3


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


def step(model: Any) -> None:
    """Forward and backward."""
    ids = torch.randint(512, (4, 64), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids).loss.backward()


class Generation:
    """A model that has read 16 tokens."""

    def __init__(self, model: Any):
        self.model = model
        with torch.no_grad():
            ids = torch.arange(16)[None]
            self.cache = model(input_ids=ids, use_cache=True).past_key_values

    @torch.no_grad()
    def tokens(self) -> None:
        """A few more, which are forgotten."""
        ids = torch.tensor([[5]])
        for _ in range(_TOKENS):
            self.model(input_ids=ids, past_key_values=self.cache, use_cache=True)
        self.cache.crop(-_TOKENS)


def medians(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Seconds of the processor, the median over rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for own in runs.values():
        own()
    for _ in range(rounds):
        for name, own in runs.items():
            start = time.process_time()
            own()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(own) for name, own in seconds.items()}


def ratios(measured: dict[str, float]) -> dict[str, float]:
    """Ours of PEFT's, and through PEFT of without."""
    found = {f"{own} / {peer}": measured[own] / measured[peer] for own, peer in PEERS.items()}
    pairs = [(name, name.removesuffix(THROUGH)) for name in measured if name.endswith(THROUGH)]
    return found | {f"{name} / without": measured[name] / measured[own] for name, own in pairs}


def peak(way: str, hidden: int) -> float:
    """MB of a process that trains three steps."""
    command = [sys.executable, "-m", "tests.bench.peft_steps", "--only", way]
    return run_child([*command, "--hidden", str(hidden)]).rss / 1e6


def main() -> int:
    """Measure all ways in turns."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", choices=WAYS, help="train this one for three steps, and no more")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.only:
        model = WAYS[given.only](llama(given.hidden)).train()
        for _ in range(3):
            step(model)
        return 0
    models = {name: way(llama(given.hidden)) for name, way in WAYS.items()}
    report(models, given.hidden, given.rounds)
    return 0


def report(models: dict[str, Any], hidden: int, rounds: int) -> None:
    """Print a line for every way, and the ratios."""
    trained = medians({n: lambda m=m: step(m.train()) for n, m in models.items()}, rounds)
    made = {name: Generation(model.eval()) for name, model in models.items()}
    told = medians({name: own.tokens for name, own in made.items()}, rounds)
    held = {name: peak(name, hidden) for name in models}
    for n in models:
        each = 1e3 * told[n] / _TOKENS
        print(f"{n}: step {1e3 * trained[n]:.1f} ms, token {each:.2f} ms, peak {held[n]:.0f} MB")
    for what, own in (("step", trained), ("token", told), ("peak", held)):
        print(f"{what}: " + ", ".join(f"{k} {v:.3f}" for k, v in ratios(own).items()))


if __name__ == "__main__":
    sys.exit(main())
