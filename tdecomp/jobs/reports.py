"""What all reports have in common: typed fields, and the same as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, cast

from tdecomp.decomposition import relative

__all__ = [
    "IN_PYTHON_ONLY",
    "OPTIONAL",
    "Report",
    "Unknown",
    "relative_error",
    "unknown_of",
    "without_numbers",
]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # a layer or expert inside a name

IN_PYTHON_ONLY: Mapping[str, Any] = {"in JSON": False}
"""Metadata of a field that `Report.to_json` leaves out."""
OPTIONAL: Mapping[str, Any] = {"in JSON": "unless None"}
"""Metadata of a field that `Report.to_json` leaves out where it is None."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a job found."""

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and texts; the keys are the fields, in their order."""
        return _plain(self)


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """A tensor of which nobody knows how it changed; no figure of a report contains it.

    Attributes
    ----------
    tensor, reason
        Its name and why.
    site
        Whether it was to be covered.
    """

    tensor: str
    reason: str
    site: bool


def unknown_of(rows: Iterable[tuple[str, str, bool]]) -> tuple[Unknown, ...]:
    """Rows of a factors file."""
    return tuple(Unknown(tensor=tensor, reason=why, site=site) for tensor, why, site in rows)


def relative_error(residuals: Iterable[float], energies: Iterable[float]) -> float:
    """Relative error of a whole, from squared residuals and squared norms of its parts."""
    return relative(sum(map(float, residuals)), sum(map(float, energies)))


def without_numbers(name: str) -> str:
    """The name of a tensor with a star for every layer or expert in it.

    >>> without_numbers("model.layers.3.norm.weight")
    'model.layers.*.norm.weight'
    """
    return _NUMBER.sub("*", name)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        named = {f.name: (getattr(value, f.name), f.metadata.get("in JSON")) for f in fields(value)}
        return {
            name: _plain(part)
            for name, (part, shown) in named.items()
            if not (shown is False or (shown is not None and part is None))
        }
    if isinstance(value, Mapping):
        named = cast("Mapping[str, Any]", value)
        return {key: _plain(part) for key, part in named.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in cast("Sequence[Any]", value)]
    return value
