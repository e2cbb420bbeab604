"""``python -m tests.bench.adapters``: one training step with adapters, against PEFT's LoRA.

A chain of 12 blocks, each with three frozen projections of 768 x 768 that read the same input. A
step is forward and backward over 8 x 128 tokens in float32, base products included; all variants
take turns, so that what else runs on the machine hits all of them alike.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tdecomp_torch import Adapter, attach
from tests.bench.tables import Printer, installed, printing, say

__all__ = ["Chain", "saved_bytes"]

NAMES = ("q_proj", "k_proj", "v_proj")
INNER = 16
METHODS = ("lotr", "tenslora_qkv_depth", "lorta", "fact_tk")
SMALL = {"lotr": 49, "tenslora_qkv_depth": 49, "lorta": 193, "fact_tk": 45}
LARGE = {"lotr": 136, "tenslora_qkv_depth": 135, "lorta": 1030, "fact_tk": 89}


class Attention(nn.Module):
    """Three projections of one input, and a norm."""

    def __init__(self, width: int):
        super().__init__()
        for name in NAMES:
            self.add_module(name, nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, token, width)`` to the same shape."""
        return functional.rms_norm(sum(getattr(self, n)(x) for n in NAMES), x.shape[-1:])


class Block(nn.Module):
    """Named as a transformer's layer."""

    def __init__(self, width: int):
        super().__init__()
        self.self_attn = Attention(width)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, token, width)`` to the same shape."""
        return self.self_attn(x)


class Chain(nn.Module):
    """`depth` blocks one after the other, with the configuration that heads are read from."""

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12):
        super().__init__()
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.config = _Config({"num_attention_heads": heads, "hidden_size": width})
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, token, width)`` to the same shape."""
        for layer in self.layers:
            x = layer(x)
        return x


class _Config(dict):
    def to_dict(self) -> dict:
        """Plain values."""
        return {"model_type": "llama", **self}


@dataclass(frozen=True)
class Variant:
    """One way to adapt the chain."""

    name: str
    model: nn.Module
    n_params: int


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of the tensors that a forward pass keeps for backward, weights not counted."""
    out = model(x)
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}
    nodes, known = [out.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in known:
            continue
        known.add(node)
        nodes += [parent for parent, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_saved_"):
                value = getattr(node, name)
                for tensor in value if isinstance(value, tuple | list) else (value,):
                    if isinstance(tensor, Tensor):
                        storage = tensor.untyped_storage()
                        if storage.data_ptr() not in own:
                            seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def variants(base: Chain, ranks: Mapping[str, int], lora: int) -> list[Variant]:
    """The chain as it is, with PEFT's LoRA, and with each method."""
    found = [Variant("no adapter", copy.deepcopy(base), 0)]
    if installed("peft"):
        found.append(_peft(base, lora))
    for method, rank in {"lora": lora, **ranks}.items():
        adapter = _attached(copy.deepcopy(base), method, rank)
        found.append(Variant(f"{method} r = {rank}", adapter.model, adapter.n_trainable))
    return found


def _attached(model: Chain, method: str, rank: int) -> Adapter:
    inner = rank if method != "tenslora_qkv_depth" else {"r": rank, "s": rank, "u": 3, "v": 12}
    return attach(model, method, targets=list(NAMES), rank=inner)


def _peft(base: Chain, rank: int) -> Variant:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(NAMES))
    chain = copy.deepcopy(base)
    chain.config = None  # pyright: ignore[reportAttributeAccessIssue] - PEFT wants its own kind
    model = get_peft_model(chain, config)  # pyright: ignore[reportArgumentType]
    return Variant(
        f"PEFT LoRA r = {rank}",
        model,
        sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def step(model: nn.Module, x: Tensor) -> None:
    """Forward and backward."""
    x = x.detach().requires_grad_()  # as behind an embedding whose gradient is not wanted
    model(x).sum().backward()
    for p in model.parameters():
        p.grad = None


def interleaved(works: Mapping[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of every work, all taking turns, after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for k in range(runs + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if k:
                times[name].append(time.perf_counter() - start)
    return times


def table(printer: Printer, title: str, found: list[Variant], x: Tensor, runs: int) -> None:
    """Time, bytes and numbers of every variant, and their ratios to PEFT's LoRA."""
    works = {v.name: (lambda v=v: step(v.model, x)) for v in found}
    times = interleaved(works, runs)
    reference = next((v.name for v in found if v.name.startswith("PEFT")), found[1].name)
    held = {v.name: saved_bytes(v.model, x.detach().requires_grad_()) for v in found}
    rows = []
    for v in found:
        pairs = zip(times[v.name], times[reference], strict=True)
        rows.append(
            [
                v.name,
                f"{v.n_params:,}",
                f"{1e3 * statistics.median(times[v.name]):.0f}",
                f"{statistics.median(a / b for a, b in pairs):.2f}",
                f"{held[v.name] / 1e6:.1f}",
                f"{held[v.name] / held[reference]:.2f}",
            ]
        )
    columns = ["adapter", "trainable", "ms / step", "time ratio", "saved MB", "saved ratio"]
    printer.table(title, columns, rows)


class Rebuilt(nn.Module):
    """TensLoRA qkv_depth as its public code runs it: the whole stack in every projection."""

    def __init__(self, base: Chain, rank: int):
        super().__init__()
        self.base = base
        width, depth = base.config["hidden_size"], len(base.layers)
        make = lambda *shape: nn.Parameter(torch.randn(*shape) / shape[0] ** 0.5)
        self.left, self.right = make(width, rank), make(width, rank)
        self.proj, self.layer = make(len(NAMES), len(NAMES)), make(depth, depth)
        self.core = nn.Parameter(torch.zeros(rank, rank, len(NAMES), depth))
        for i, layer in enumerate(base.layers):
            for j, name in enumerate(NAMES):
                hook = lambda _, args, out, i=i, j=j: out + args[0] @ self.stack()[:, :, j, i]
                getattr(layer.self_attn, name).register_forward_hook(hook)

    def stack(self) -> Tensor:
        """Every ΔW: ``(in, out, proj, layer)``, by one mode product after the other."""
        x = torch.tensordot(self.right, self.core, dims=([1], [0]))
        x = torch.tensordot(x, self.left, dims=([1], [1])).movedim(-1, 1)
        x = torch.tensordot(x, self.proj, dims=([2], [1])).movedim(-1, 2)
        return torch.tensordot(x, self.layer, dims=([3], [1]))

    def forward(self, x: Tensor) -> Tensor:
        """As the chain."""
        return self.base(x)


def rebuilding(printer: Printer, base: Chain, x: Tensor, runs: int) -> None:
    """What rebuilding the stack costs: the time above that of the bare chain, against ours."""
    say("rebuilding the stack in every projection: half a minute a step")
    adapter = _attached(copy.deepcopy(base), "tenslora_qkv_depth", 8)
    works = {
        "no adapter": lambda: step(base, x),
        "tenslora_qkv_depth r = 8": lambda: step(adapter.model, x),
    }
    times = interleaved(works, runs)
    rebuilt = Rebuilt(copy.deepcopy(base), 8)
    slow = statistics.median(interleaved({"rebuilt": lambda: step(rebuilt, x)}, 1)["rebuilt"])
    bare, ours = (statistics.median(t) for t in times.values())
    own = statistics.median(b - a for a, b in zip(*times.values(), strict=True))
    rows = [
        ["no adapter", f"{1e3 * bare:.0f}", "", ""],
        ["tenslora_qkv_depth r = 8", f"{1e3 * ours:.0f}", f"{1e3 * own:.0f}", "1"],
        [
            "the whole stack in every projection",
            f"{1e3 * slow:.0f}",
            f"{1e3 * (slow - bare):.0f}",
            f"{(slow - bare) / own:.0f}",
        ],
    ]
    printer.table(
        "Rebuilding the stack", ["", "ms / step", "adapter alone, ms", "against ours"], rows
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Training steps with adapters, against PEFT.")
    parser.add_argument("--runs", type=int, default=11, help="timed steps of every variant")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    printing(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    printer, base, x = Printer(options.markdown), Chain(), torch.randn(8, 128, 768)
    same = dict.fromkeys(METHODS, INNER)
    for title, ranks, lora in (
        ("(a) inner rank 16", same, INNER),
        ("(b) as many numbers as LoRA r = 3", SMALL, 3),
        ("(c) as many numbers as LoRA r = 16", LARGE, INNER),
    ):
        say(f"{title}: {options.runs} steps of each")
        table(printer, title, variants(base, ranks, lora), x, options.runs)
    rebuilding(printer, base, x, options.runs)


if __name__ == "__main__":
    main()
