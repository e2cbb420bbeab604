"""What an adapter calls its tensors, taken apart whether or not a model has such modules."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdecomp.errors import FileError
from tdecomp.files import safetensors
from tdecomp.files.loras.peft_scales import PeftScales, read_scales
from tdecomp.files.loras.reading import CONFIG, adapter_weights, scheme_beside
from tdecomp.files.loras.schemes import NamingScheme
from tdecomp.files.places import is_there
from tdecomp.files.safetensors import Entry
from tdecomp.files.storage import local
from tdecomp.files.weight_files import read_json

__all__ = ["AdapterNames", "PairNames", "read_adapter_names"]

_IN_MEMORY = (".lora_A.default.weight", ".lora_B.default.weight")


@dataclass(frozen=True, kw_only=True)
class PairNames:
    """The tensors that an adapter has for one module.

    Attributes
    ----------
    stem
        What stands before their endings.
    parts
        Part (``"a"``, ``"b"``, ``"alpha"``, ``"magnitude"``, ``"bias"``, ``"whole"``) -> tensor.
    kind
        Of the pair, ``"lora"``; "" where there is none.
    in_memory
        The tensors have the adapter's name in theirs, as PEFT names them in memory.
    """

    stem: str
    parts: Mapping[str, Entry]
    kind: str
    in_memory: bool = False

    @property
    def rank(self) -> int:
        """Rows of A; 0 where there is no A."""
        a = self.parts.get("a")
        return a.shape[0] if a is not None and a.shape else 0

    @property
    def shape(self) -> tuple[int, int] | None:
        """(out, in) of a pair."""
        a, b = self.parts.get("a"), self.parts.get("b")
        if a is None or b is None or len(a.shape) < 2 or len(b.shape) < 2:
            return None
        return b.shape[0], math.prod(a.shape[1:])


@dataclass(frozen=True, kw_only=True)
class AdapterNames:
    """An adapter by names and shapes.

    Attributes
    ----------
    path, scheme
        What was named, and the naming scheme of its file.
    pairs
        By stem.
    unread
        Tensors whose names end in nothing that is known.
    config
        ``adapter_config.json``; empty for schemes without.
    scales
        What the configuration says of ranks and scales.
    """

    path: Path
    scheme: NamingScheme
    pairs: Mapping[str, PairNames]
    unread: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    scales: PeftScales | None = None


def read_adapter_names(path: str | os.PathLike[str]) -> AdapterNames:
    """Names and shapes of an adapter's tensors; none is read.

    Raises
    ------
    FileError
        A pickle, a damaged file, no known naming scheme, factors in the place of an adapter, or a
        configuration of something else than LoRA.
    """
    path = local(path, "adapters")
    file = adapter_weights(path)
    entries, metadata = safetensors.read_header(file)
    if any(key.startswith("tdecomp") and key != "tdecomp.pairs" for key in metadata):
        raise FileError(
            f"{path} holds factors, which no other program loads",
            tip=f"write them as LoRA: tdecomp export {path} --lora DIR --for TARGET",
        )
    beside = file.parent / CONFIG
    config = read_json(beside) if is_there(beside) else {}
    scheme = scheme_beside(beside, entries)
    if scheme is None:
        few = ", ".join(list(entries)[:6])
        raise FileError(f"{file} has tensors of no known naming scheme: {few}")
    if scheme.in_folder and not config:
        raise FileError(f"{file} has no {CONFIG} beside it, which says the scale of its pairs")
    scales = read_scales(config, beside)[0] if scheme.in_folder else None
    pairs, unread = _pairs(scheme, entries)
    return AdapterNames(
        path=path,
        scheme=scheme,
        pairs=pairs,
        unread=unread,
        config=config if scheme.in_folder else {},
        scales=scales,
    )


def _pairs(
    scheme: NamingScheme, entries: Mapping[str, Entry]
) -> tuple[dict[str, PairNames], tuple[str, ...]]:
    parts: dict[str, dict[str, Entry]] = {}
    kinds: dict[str, str] = {}
    unread: list[str] = []
    for name, entry in entries.items():
        ending = max((e for e in scheme.endings if name.endswith(e)), key=len, default="")
        other = max((e for e in scheme.besides if name.endswith(e)), key=len, default="")
        if ending:
            kind, part = scheme.endings[ending]
            stem = name.removesuffix(ending)
            kinds[stem] = kind or kinds.get(stem, "")
        elif other:
            stem = name.removesuffix(other)
            part = "bias" if "bias" in other or other == ".diff_b" else "whole"
        else:
            unread.append(name)
            continue
        parts.setdefault(stem, {})[part] = entry
    pairs = {
        stem: PairNames(
            stem=stem,
            parts=own,
            kind=kinds.get(stem, ""),
            in_memory=any(entry.name.endswith(_IN_MEMORY) for entry in own.values()),
        )
        for stem, own in parts.items()
    }
    return pairs, tuple(unread)
