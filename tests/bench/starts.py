"""``python -m tests.bench.starts``: time and memory of starts from gradients, against PEFT's.

A random model of Llama's shape in bfloat16, short sequences of random tokens; the adapter goes on
q, k, v and o. Every variant runs in a process of its own. Forward and backward passes over the same
batches are rows of their own, with the targets' gradients and without: what a start takes beyond
the latter is its own, the activations anybody's. *checkpoint* holds those of one layer at a time.
Of starts that take a part of the weights off them it says what share of their energy that part
holds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tdecomp_torch import Adapter, attach, capture, gradients
from tests.bench.children import run_child
from tests.bench.tables import Printer, installed, printing, say

SHAPES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 1},
    "small": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
RANK, BATCHES, EXAMPLES, TOKENS = 16, 2, 2, 64


def model_of(shape: str) -> Any:
    """A random Llama in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape], vocab_size=1024, num_attention_heads=32, num_key_value_heads=8
    )
    torch.set_default_dtype(torch.bfloat16)  # twice as fast as to make it in float32 and cast it
    try:
        return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)


def batches(count: int = BATCHES, tokens: int = TOKENS) -> list[dict[str, torch.Tensor]]:
    """Random tokens that are their own labels."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(1024, (EXAMPLES, tokens), generator=generator) for _ in range(count)]
    return [{"input_ids": x, "labels": x} for x in ids]


def passes(model: Any, seen: list[dict[str, torch.Tensor]] | None = None) -> None:
    """Forward and backward over all batches, gradients of the targets on."""
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if any(target in name for target in TARGETS):
            parameter.requires_grad_(True)
    for batch in seen or batches():
        model(**batch).loss.backward()
        model.zero_grad(set_to_none=True)


def bare_passes(model: Any) -> None:
    """Forward and backward over all batches to the embeddings, no gradient of a weight."""
    model.requires_grad_(False)
    for batch in batches():
        embedded = model.get_input_embeddings()(batch["input_ids"]).requires_grad_(True)
        loss = model(inputs_embeds=embedded, labels=batch["labels"]).loss
        torch.autograd.grad(loss, embedded)


def forward(model: Any) -> None:
    """Forward over all batches, no gradients."""
    with torch.no_grad():
        for batch in batches():
            model(**batch)


def captures(**options: Any) -> Callable[[Any], None]:
    """`capture` of the targets."""

    def run(model: Any) -> None:
        capture(model, batches(), targets=TARGETS, **{"inputs": None, **options})

    return run


def ours(row: str, start: Callable[[], Any]) -> Callable[[Any], Adapter]:
    """`attach` with a start; gives the adapter."""

    def run(model: Any) -> Adapter:
        return attach(model, row, rank=RANK, targets=TARGETS, start=start())

    return run


def gradient_start(rule: str, **options: Any) -> Callable[[], Any]:
    """A start from all batches."""

    def start() -> Any:
        return gradients(batches(), rule=rule, **options)

    return start


def peft_lora(init: str) -> Callable[[Any], None]:
    """PEFT's LoRA with one of its starts."""

    def run(model: Any) -> None:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=RANK, target_modules=TARGETS, init_lora_weights=init)  # pyright: ignore
        get_peft_model(model, config)

    return run


def peft_lora_ga(model: Any, *, checkpoint: bool = False) -> None:
    """PEFT's LoRA-GA on the same batches."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraGAConfig, preprocess_loraga

    config = LoraConfig(
        r=RANK,
        target_modules=TARGETS,
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(),
    )

    if checkpoint:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()

    def step() -> None:
        for batch in batches():
            model(**batch).loss.backward()

    preprocess_loraga(model, config, step)
    get_peft_model(model, config)


FULL, BARE = "forward and backward", "forward and backward, targets' gradients off"
VARIANTS: dict[str, Callable[[Any], Adapter | None]] = {
    FULL: passes,
    BARE: bare_passes,
    "forward": forward,
    "capture, inputs": captures(inputs="whole"),
    "capture, gradients, 2 passes": captures(gradients=RANK),
    "lora, gradients": ours("lora", gradient_start("zero")),
    "lora, gradients, 2 passes": ours("lora", gradient_start("zero", passes=2)),
    "lora, gradients, checkpoint": ours("lora", gradient_start("zero", checkpoint=True)),
    "lora, LoRA-GA's rule": ours("lora", gradient_start("lora_ga")),
    "lotr, gradients": ours("lotr", gradient_start("zero")),
    "lotr, gradients, checkpoint": ours("lotr", gradient_start("zero", checkpoint=True)),
    "PEFT LoRA-GA": peft_lora_ga,
    "PEFT LoRA-GA, checkpoint": partial(peft_lora_ga, checkpoint=True),
    "lora, PiSSA's rule": ours("lora", lambda: "pissa"),
    "PEFT PiSSA, niter 4": peft_lora("pissa_niter_4"),
    "PEFT PiSSA, full": peft_lora("pissa"),
}


def energy_held(model: Any, adapter: Adapter | None, shape: str) -> float:
    """``1 - Σ ‖W - B A‖² / Σ ‖W‖²`` over the targets, for a start that takes BA off the weights W.

    PEFT leaves the rest in the place of the weights; of ours the factors are read.
    """
    pairs = {} if adapter is None else lora_pairs(adapter)
    rest = whole = 0.0
    for path, module in model_of(shape).named_modules():
        if path.rpartition(".")[2] in TARGETS:
            weight = module.weight.detach().float()
            if adapter is None:
                left = model.get_submodule(path).base_layer.weight.detach().float()
            else:
                b, a = pairs[path]
                left = weight - b @ a
            rest += float(left.square().sum())
            whole += float(weight.square().sum())
    return 1 - rest / whole


def lora_pairs(adapter: Adapter) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """B and A of every module, ``(out, r)`` and ``(r, in)``, as they are trained (scale 1)."""
    found = {}
    for m, grid in enumerate(adapter.grids):
        factors = adapter.pool.factors(m)
        for k, site in enumerate(grid.sites):
            b, a = (factors[name][k].detach().float() for name in ("b", "a"))
            found[site.path] = b, a
    return found


def measure(name: str, shape: str) -> dict[str, float]:
    """Seconds, extra memory and the load of the machine for one variant, in this process.

    With the share of the weights' energy where the start takes a part of them off.
    """
    if "PEFT" in name:
        import peft  # noqa: F401 - its import is not its work
    model = model_of(shape)
    passes(model, batches(1, 4))  # what is allocated once
    before, load = _memory("VmRSS"), os.getloadavg()[0]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.perf_counter()
    adapter = VARIANTS[name](model)
    seconds = time.perf_counter() - start
    found = {"seconds": seconds, "extra": _memory("VmHWM") - before, "load": load}
    return found | ({"held": energy_held(model, adapter, shape)} if "PiSSA" in name else {})


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def cells(own: dict[str, float], found: dict[str, dict[str, float]]) -> list[str]:
    """What the table says of a variant; its own memory is that beyond activations."""
    return [
        f"{own['seconds']:.2f}",
        f"{own['seconds'] / found[FULL]['seconds']:.1f}",
        f"{own['extra'] / 1e6:.0f}",
        f"{(own['extra'] - found[BARE]['extra']) / 1e6:.0f}",
        f"{own['load']:.1f}",
        f"{own['held']:.6f}" if "held" in own else "",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Starts from gradients and weights.")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--only", choices=VARIANTS, help="measure one variant, in this process")
    printing(parser)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.shape)))
        return
    names = [name for name in VARIANTS if "PEFT" not in name or installed("peft")]
    found = {}
    for name in names:
        say(name)
        command = [sys.executable, "-m", "tests.bench.starts", "--shape", options.shape]
        child = run_child([*command, "--only", name])
        found[name] = json.loads(child.output.splitlines()[-1])
    rows = [[name, *cells(found[name], found)] for name in names]
    title = f"starts on a random model of Llama's shape, {options.shape}, rank {RANK}"
    header = ["start", "s", f"× {FULL}", "extra MB", "its own MB", "load", "energy held"]
    Printer(options.markdown).table(title, header, rows)


if __name__ == "__main__":
    main()
