"""What ``adapter_config.json`` says of the scale and the rank of every module."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdecomp.errors import FileError
from tdecomp.files.plain import is_list, is_object

__all__ = ["PeftScales", "is_involved", "read_scales"]

_LONGEST = 500  # characters of a pattern
_MOST_REPEATS = 4
_REPEATED_GROUP = re.compile(r"\)\s*[*+{]")
_REPEAT = re.compile(r"[*+{]")
_STARTS = ("pissa", "olora", "loftq", "corda", "lora_ga")


@dataclass(frozen=True, kw_only=True)
class PeftScales:
    """Ranks and scales of a LoRA folder, as PEFT takes them.

    Attributes
    ----------
    rank, alpha
        Where no pattern matches.
    ranks, alphas
        Patterns, the first of which that matches is the one.
    rooted
        ``alpha / √r`` (rsLoRA) in the place of ``alpha / r``.
    turned
        ``fan_in_fan_out``: the weights are stored (in, out).
    parameters
        ``target_parameters``: tensors that are adapted where they are, such as fused experts.
    """

    rank: int
    alpha: float
    ranks: tuple[tuple[re.Pattern[str], int], ...] = ()
    alphas: tuple[tuple[re.Pattern[str], float], ...] = ()
    rooted: bool = False
    turned: bool = False
    parameters: tuple[str, ...] = ()

    def rank_of(self, module: str) -> int:
        """Rank of a module's pair."""
        return next((r for pattern, r in self.ranks if pattern.match(module)), self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        """What the product of a module's pair is multiplied with."""
        alpha = next((a for pattern, a in self.alphas if pattern.match(module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rooted else rank)

    def names_inside(self, module: str) -> tuple[str, ...]:
        """Full names of the parameters of a module that may be adapted, the module's own first."""
        plain = module.replace(".base_layer", "")
        owners = (name.rpartition(".") for name in self.parameters)
        inside = (f"{plain}.{p}" for owner, _, p in owners if f".{plain}".endswith(f".{owner}"))
        return (plain, *dict.fromkeys(inside))


def read_scales(config: Mapping[str, Any], path: Path) -> tuple[PeftScales, tuple[str, ...]]:
    """Scales of a configuration, and notes.

    Raises
    ------
    FileError
        It is not of a LoRA, or what it says is not of the type that PEFT writes.
    """
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise FileError(f"{path} is of type {kind!r}: only LoRA has pairs that are read here")
    if config.get("layer_replication"):
        raise FileError(f"{path} replicates layers of the base: such adapters are not read")
    alpha = _number(config.get("lora_alpha", 8), "lora_alpha", path)
    parameters: object = config.get("target_parameters") or list[str]()
    if not is_list(parameters) or not all(isinstance(name, str) for name in parameters):
        raise FileError(f"{path}: target_parameters is not a list of names")
    scales = PeftScales(
        rank=_whole(config.get("r", 8), "r", path),
        alpha=alpha,
        ranks=tuple(
            (pattern, _whole(value, "rank_pattern", path))
            for pattern, value in _patterns(config, "rank_pattern", path)
        ),
        alphas=tuple(
            (pattern, _number(value, "alpha_pattern", path))
            for pattern, value in _patterns(config, "alpha_pattern", path)
        ),
        rooted=config.get("use_rslora") is True,
        turned=config.get("fan_in_fan_out") is True,
        parameters=tuple(parameters),
    )
    return scales, tuple(_notes(config))


def _notes(config: Mapping[str, Any]) -> list[str]:
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_STARTS):
        return [
            f"started by {start!r}, which changes the base: the pairs may be against that changed"
            " base, as PEFT saves them by default"
        ]
    return []


def _patterns(config: Mapping[str, Any], key: str, path: Path) -> list[tuple[re.Pattern[str], Any]]:
    """The rows of a pattern, compiled as PEFT matches; refused where that may take for ever."""
    found: object = config.get(key) or dict[str, Any]()
    if not is_object(found):
        raise FileError(f"{path}: {key} is not a map from names to numbers")
    rows: list[tuple[re.Pattern[str], Any]] = []
    for text, value in found.items():
        if is_involved(text, most=_MOST_REPEATS):
            raise FileError(f"{path}: the {key} {text[:80]!r} is too involved to be matched safely")
        try:
            rows.append((re.compile(rf"(.*\.)?({text})$"), value))
        except re.error as error:
            raise FileError(f"{path}: the {key} {text!r} is no pattern ({error})") from error
    return rows


def is_involved(text: str, *, most: int) -> bool:
    """Whether matching a pattern may take for ever: it is long, or repeats repeated groups."""
    if len(text) > _LONGEST or len(_REPEAT.findall(text)) > most:
        return True
    return _REPEATED_GROUP.search(text) is not None


def _number(value: object, key: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FileError(f"{path}: {key} is {value!r}, not a finite number")
    return float(value)


def _whole(value: object, key: str, path: Path) -> int:
    if type(value) is not int or value < 1:
        raise FileError(f"{path}: {key} is {value!r}, not a whole number of 1 or more")
    return value
