"""The decompositions that jobs know by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tdecomp.decomposition.table import METHODS as TABLE
from tdecomp.decomposition.table import Decomposition
from tdecomp.errors import ArgumentError

__all__ = ["EXPLORED", "METHODS", "checked_modes", "named"]

METHODS: Mapping[str, Decomposition] = {
    name: row for name, row in TABLE.items() if row.needs_nothing_else
}
"""What a factors file is made by."""

EXPLORED: Mapping[str, Decomposition] = {
    name: row for name, row in TABLE.items() if row.candidates is not None
}
"""What `explore` compares."""


def named(table: Mapping[str, Decomposition], name: str) -> Decomposition:
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
