"""The undamaged inputs: tiny models, factors and adapters, and what is done with each kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.cli import models

Words = tuple[str, ...]
"""A command: ``{x}`` is the damaged folder, ``{home}`` where the good ones are, ``{out}`` new."""


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes
    ----------
    source
        Folder below the good ones of which every case gets a copy, to be damaged.
    commands
        One of them is run.
    """

    source: str
    commands: tuple[Words, ...]


def _read(base: str, tuned: str, *factors: str) -> tuple[Words, ...]:
    """Commands that read the damaged model in the place of `base` or of `tuned`."""
    base, tuned = f"{{home}}/{base}", f"{{home}}/{tuned}"
    out = ("-o", "{out}")
    rows: list[Words] = [
        ("inspect", "{x}"),
        ("inspect", "{x}", "--json"),
        ("inspect", "{x}", "--targets", "all-linear", "--share", "head"),
        ("inspect", "{x}", "--targets", r".*\.q_proj", "--layers", "0-99999", "--share", "none"),
        ("inspect", "{x}", "--pattern", "layers.{layer}.*.{proj}", "--share", "site"),
        ("decompose", "{x}", tuned, *out, "--rank", "1"),
        ("decompose", base, "{x}", *out, "--error", "0.5", "--method", "tucker2"),
        ("decompose", base, "{x}", *out, "--budget", "300", "--lora", "--json"),
        ("explore", "{x}", tuned, *out),
        ("check", "{home}/svd/lora", "{x}", "--for", "vllm"),
        ("export", "{home}/svd/lora", "--lora", "{out}", "--for", "peft", "--base", "{x}"),
        ("explore", base, "{x}", "--method", "svd,tucker2", "--json"),
    ]
    for place in (f"{{home}}/{name}" for name in factors):
        rows += [
            ("verify", place, "{x}", tuned),
            ("verify", place, base, "{x}", "--json"),
            ("apply", place, "{x}", *out),
            ("apply", place, "{x}", *out, "--dtype", "bfloat16"),
        ]
    return tuple(rows)


_DENSE = _read("base", "tuned", "svd", "tucker")
_FACTORS: tuple[Words, ...] = (
    ("info", "{x}"),
    ("info", "{x}", "--json"),
    ("verify", "{x}", "{home}/base", "{home}/tuned"),
    ("verify", "{x}", "{home}/base", "{home}/tuned", "--json"),
    ("apply", "{x}", "{home}/base", "-o", "{out}"),
    ("apply", "{x}", "{home}/tuned", "-o", "{out}", "--dtype", "float16"),
    ("export", "{x}", "--lora", "{out}"),
    ("export", "{x}", "--lora", "{out}", "--rank-pattern", "--lora-rank", "1", "--json"),
    ("report", "{x}", "-o", "{out}"),
    ("inspect", "{x}"),
)
_AGAIN: tuple[Words, ...] = (
    ("decompose", "{home}/base", "{home}/tuned", "-o", "{x}", "--rank", "1", "--overwrite", "-q"),
    ("apply", "{home}/svd", "{home}/base", "-o", "{x}", "--overwrite"),
    ("export", "{home}/svd", "--lora", "{x}", "--overwrite", "-q"),
)
_LORA: tuple[Words, ...] = (
    ("inspect", "{x}", "--targets", "all-linear"),
    ("inspect", "{x}", "--pattern", "layers.{layer}.*.{proj}.lora_A", "--json"),
    ("decompose", "{home}/base", "{x}", "-o", "{out}", "--rank", "1"),
    ("decompose", "{x}", "{home}/svd/lora", "-o", "{out}", "--rank=1", "--targets=all-linear"),
    ("explore", "{home}/svd/lora", "{x}", "--targets", r".*\.lora_B", "-o", "{out}"),
    ("check", "{x}", "{home}/base", "--for", "peft"),
    ("check", "{x}", "{home}/base", "--for", "vllm", "--all", "--json"),
    ("check", "{home}/svd/lora", "{x}", "--for", "sglang"),
    ("export", "{x}", "--lora", "{out}", "--for", "llama.cpp", "--base", "{home}/base"),
    ("export", "{x}", "--lora", "{out}", "--for", "comfyui", "--base", "{home}/base"),
)


def _members(other: str, out: str = "{out}") -> tuple[Words, ...]:
    """Commands on collections that read the damaged adapter beside another one."""
    small = ("-o", out, "--rank", "1")
    return (
        ("resize", "{x}", *small),
        ("resize", "{x}", "-o", out, "--error", "0.3", "--same-rank", "--json"),
        ("resize", "{x}", "-o", out, "--noise", "--rank-max", "2"),
        ("compare", "{x}", other, "-o", "{out}"),
        ("compare", other, "{x}", "--base", "{home}/base", "--json"),
        ("merge", "{x}", other, *small, "--method", "ties"),
        ("merge", "{x}", other, *small, "--method", "knots", "--missing", "refuse", "--json"),
        ("merge", other, "{x}", "--base", "{home}/base", "--model", "-o", "{out}"),
        ("basis", "{x}", other, "-o", "{out}", "--error", "0.3"),
        ("basis", other, "{x}", "-o", "{out}", "--rank", "1", "--over-layers", "--json"),
        ("check", "{x}", "{home}/base", "--for", "peft"),
    )


_SHARED: tuple[Words, ...] = (
    ("basis", "{x}"),
    ("basis", "{x}", "--json"),
    ("basis", "{home}/kohya.safetensors", "--add-to", "{x}"),
    ("basis", "{x}", "--remove", "lora"),
    ("export", "{x}", "--task", "lora", "--lora", "{out}"),
    ("apply", "{x}", "{home}/base", "--task", "lora", "-o", "{out}"),
    ("merge", "{x}", "{home}/svd/lora", "-o", "{out}"),
)
_MODEL: tuple[Words, ...] = (
    ("merge", "{x}", "{home}/svd/lora", "--base", "{home}/base", "-o", "{out}", "--rank", "1"),
    ("merge", "{home}/svd/lora", "--base", "{x}", "--model", "-o", "{out}", "--json"),
    ("basis", "{x}", "{home}/svd/lora", "--base", "{home}/base", "-o", "{out}", "--rank", "1"),
    ("compare", "{home}/svd/lora", "{home}/svd", "--base", "{x}", "--json"),
)
ADAPTER = "load_adapter"
"""The one command that is not of the command line: ``tdecomp_torch.load_adapter``."""

KINDS: Mapping[str, Kind] = {
    "file": Kind("base/model.safetensors", _DENSE),
    "folder": Kind("base", _DENSE),
    "shards": Kind("tuned", _DENSE),
    "experts": Kind("experts", _read("experts", "experts-tuned", "experts-svd")),
    "members": Kind("tuned", _MODEL),
    "svd factors": Kind("svd", (*_FACTORS, *_members("{home}/svd/lora"))),
    "tucker factors": Kind("tucker", _FACTORS),
    "old output": Kind("svd", _AGAIN),
    "LoRA": Kind("svd/lora", (*_LORA, *_members("{home}/svd"))),
    "LoRA file": Kind("kohya.safetensors", _members("{home}/svd/lora", "{out}.safetensors")),
    "basis": Kind("basis", _SHARED),
    "adapter": Kind(
        "adapter",
        (
            *((ADAPTER, "{x}"), ("inspect", "{x}"), ("info", "{x}")),
            *(words for words in _members("{home}/adapter") if "--base" not in words),
        ),
    ),
}


def build(home: Path, run: Callable[[list[str]], int]) -> tuple[str, ...]:
    """Make the good inputs; returns the kinds that there are (adapters need torch)."""
    arrays = models.base_arrays()
    models.write_base(home / "base", arrays)
    models.write_tuned(home / "tuned", models.tuned_arrays(arrays))
    _write_experts(home / "experts", seed=3)
    _write_experts(home / "experts-tuned", seed=4)
    words = ["decompose", str(home / "base"), str(home / "tuned"), "-q", "-o"]
    assert run([*words, str(home / "svd"), "--rank", "2", "--lora"]) == 0
    experts = [str(home / name) for name in ("experts", "experts-tuned", "experts-svd")]
    assert run(["decompose", *experts[:2], "-q", "-o", experts[2], "--rank", "1"]) == 0
    assert run([*words, str(home / "tucker"), "--rank", "2", "--method", "tucker"]) == 0
    _write_kohya(home / "kohya.safetensors")
    lora, basis = str(home / "svd" / "lora"), str(home / "basis")
    assert run(["basis", lora, "-o", basis, "--rank", "2", "-q"]) == 0
    try:
        _write_adapter(home / "adapter")
    except ImportError:
        return tuple(name for name in KINDS if name != "adapter")
    return tuple(KINDS)


def _write_experts(folder: Path, *, seed: int) -> None:
    """Fused experts, as other code than a matrix per tensor reads them."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    shapes = {"mlp.experts.gate_up_proj": (3, 8, 4), "mlp.experts.down_proj": (3, 4, 4)}
    rows = {
        f"model.layers.{i}.{name}": ("F32", rng.standard_normal(shape).astype(np.float32))
        for i in range(2)
        for name, shape in shapes.items()
    }
    models.write(folder / "model.safetensors", rows)
    config: dict[str, Any] = {"model_type": "mixtral", "hidden_size": 4, "num_attention_heads": 2}
    config |= {"text_config": {"num_hidden_layers": 2}, "quantization_config": {"bits": [4]}}
    (folder / "config.json").write_text(json.dumps(config))


def _write_kohya(file: Path) -> None:
    """A LoRA, a LoHa and a LoKr in one file, at weights that the models have."""
    rng = np.random.default_rng(5)
    shapes = {
        "0_self_attn_q_proj": {"lora_up.weight": (16, 2), "lora_down.weight": (2, 12)},
        "0_self_attn_k_proj": {
            **{f"hada_w{k}_a": (8, 2) for k in (1, 2)},
            **{f"hada_w{k}_b": (2, 12) for k in (1, 2)},
        },
        "1_self_attn_q_proj": {"lokr_w1": (4, 3), "lokr_w2_a": (4, 1), "lokr_w2_b": (1, 4)},
    }
    rows = {
        f"lycoris_model_layers_{module}.{part}": (
            "F32",
            rng.standard_normal(shape).astype(np.float32),
        )
        for module, parts in shapes.items()
        for part, shape in parts.items()
    }
    rows |= {f"lycoris_model_layers_{m}.alpha": ("F32", np.float32(1.0)) for m in shapes}
    models.write(file, rows)


def network() -> Any:
    """The model of the adapter."""
    from torch import nn

    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(2)))


def _write_adapter(folder: Path) -> None:
    from tdecomp_torch import attach

    adapter = attach(network(), "lotr", rank=2)
    for factor in adapter.factors().values():
        factor.data.fill_(0.5)
    adapter.save(folder)


def copy(kind: Kind, home: Path, place: Path) -> Path:
    """Put a copy of the kind's files at `place`; returns what stands for ``{x}``."""
    source = home / kind.source
    if source.is_dir():
        shutil.copytree(source, place)
        return place
    place.mkdir()
    return Path(shutil.copy(source, place))
