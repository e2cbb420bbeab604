"""Sizes and names of chains whose cores carry one mode each, or a pair."""

from __future__ import annotations

from typing import Any

from tdecomp.errors import ArgumentError
from tdecomp.formats.fields import read_axes, read_sizes
from tdecomp.modes import Axis, check_names, flatten, name_modes

__all__ = ["Legs", "name_legs", "read_legs"]

Legs = tuple[tuple[int, ...], ...]
"""For each core the sizes of its modes, as many for every core."""


def read_legs(field: str, given: Any) -> Legs:
    """Sizes of plain cores ``(4, 5)``, or of cores with several modes, ``[(2, 3), (4, 5)]``.

    >>> read_legs("shape", (4, 5)), read_legs("shape", [(2, 3), (4, 5)])
    (((4,), (5,)), ((2, 3), (4, 5)))
    """
    entries = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(entries, tuple | list) or not entries:
        raise ArgumentError(
            f"{field}={given!r} must be sizes, or pairs of sizes, one for each core"
        )
    many = [hasattr(n, "__len__") for n in entries]
    each = tuple(read_sizes(field, n if own else [n]) for n, own in zip(entries, many, strict=True))
    if len(set(map(len, each))) != 1 or not each[0] or 0 in flatten_sizes(each):
        raise ArgumentError(
            f"{field}={given!r} must be sizes of 1 or more, as many modes for every core"
        )
    return each


def flatten_sizes(legs: Legs) -> list[int]:
    return [n for core in legs for n in core]


def name_legs(
    n_cores: int, n_legs: int, names: Any
) -> tuple[tuple[tuple[str, ...], ...], tuple[Axis, ...]]:
    """Axes of every core and output axes of a chain; its matrix or tensor is in C order.

    One mode on each core: those given, else m0, m1, ...; two: ``(o1 i1) (o2 i2)``, the output
    ``(o1 o2) (i1 i2)``; more: a, b, c, ... in their place.

    >>> name_legs(2, 2, None)
    ((('o1', 'i1'), ('o2', 'i2')), (('o1', 'o2'), ('i1', 'i2')))
    """
    if n_legs == 1:
        modes = name_modes(n_cores, names)
        return tuple((m,) for m in modes), modes
    stems = "oi" if n_legs == 2 else [f"m{k}_" for k in range(n_legs)]
    if names is None:
        axes = tuple(tuple(f"{s}{k + 1}" for s in stems) for k in range(n_cores))
    else:
        axes = tuple(flatten((axis,)) for axis in read_axes("names", names))
    if [len(axis) for axis in axes] != [n_legs] * n_cores:
        raise ArgumentError(
            f"names={names!r} must be {n_cores} groups of {n_legs} names, such as (o1 i1) (o2 i2)"
        )
    check_names(flatten(axes))
    split = tuple(zip(*axes, strict=True))
    return axes, split if n_cores > 1 else axes[0]
