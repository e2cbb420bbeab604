"""The decompositions that jobs know by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tdecomp.decomposition import Fit, cp, svd, tensor_train, tucker, tucker2
from tdecomp.errors import ArgumentError

__all__ = ["EXPLORED", "METHODS", "NamedMethod", "checked_modes", "named"]


@dataclass(frozen=True, kw_only=True)
class NamedMethod:
    """A decomposition by name.

    Attributes
    ----------
    function
        Of `tdecomp`.
    sentence
        What it makes, for a list of choices.
    by_modes
        Whether ``modes`` says which modes it compresses.
    """

    function: Callable[..., Fit]
    sentence: str
    by_modes: bool = False


METHODS: Mapping[str, NamedMethod] = {
    "svd": NamedMethod(
        function=svd, sentence="every matrix by itself, each with a rank of its own"
    ),
    "tucker2": NamedMethod(
        function=tucker2,
        sentence="one basis of the outputs and one of the inputs per group",
        by_modes=True,
    ),
    "tucker": NamedMethod(
        function=tucker,
        sentence="a basis for every mode of a group, layers and projections too",
        by_modes=True,
    ),
    "tensor_train": NamedMethod(
        function=tensor_train, sentence="a chain of small cores, one for every mode of a group"
    ),
}
"""What a factors file is made by."""

EXPLORED: Mapping[str, NamedMethod] = {
    **METHODS,
    "cp": NamedMethod(function=cp, sentence="sums of outer products, found by iteration"),
}
"""What `explore` compares."""


def named(table: Mapping[str, NamedMethod], name: str) -> NamedMethod:
    """A row of one of the tables; an ArgumentError tells the others."""
    if name not in table:
        raise ArgumentError(f"method={name!r} is not known: choose {', '.join(table)}")
    return table[name]


def checked_modes(name: str, modes: tuple[str | int, ...] | None) -> Mapping[str, Any]:
    """The keyword ``modes``, where it is given; refused where a method has no such choice."""
    if modes is None:
        return {}
    if not named(METHODS, name).by_modes:
        able = sorted(other for other, row in METHODS.items() if row.by_modes)
        raise ArgumentError(f"modes={modes!r} goes with method {' or '.join(able)}, not {name}")
    return {"modes": modes}
