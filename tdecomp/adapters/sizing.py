"""Sizes: every letter of an adapter gets one on a grid of weights."""
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tdecomp._nearest import nearest
from tdecomp.adapters.bound import Bound, wrap_factors
from tdecomp.adapters.grid import Grid
from tdecomp.adapters.spec import Spec
from tdecomp.adapters.terms import SIDES, SITE_MODES
from tdecomp.errors import ArgumentError
from tdecomp.modes import Axis, flatten, write_axis

__all__ = ["AskedRank", "bind"]

AskedRank = int | Mapping[str, int]
"""Size of every rank that an adapter leaves open, or sizes by letter."""


def bind(
    spec: Spec,
    grid: Grid,
    rank: AskedRank | None = None,
    *,
    alpha: float | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Bound:
    """Give every letter of an adapter its size on a grid of weights.

    Parameters
    ----------
    spec
        The adapter.
    grid
        The weights.
    rank
        Size of every rank that the adapter leaves open, or sizes by letter; these also replace the
        adapter's own.
    alpha
        For the scale; default is the paper's for this adapter.
    sizes
        Sizes of the axes of factors that are held ``across`` several grids.

    Raises
    ------
    ArgumentError
        A size is missing, not positive, or a split does not divide.

    Examples
    --------
    >>> lotr = Spec.parse("lotr", "out r, site r s, s in", ["normal", "zeros", "normal"])
    >>> bound = bind(lotr, Grid.full((768, 768), layer=12, proj=2), rank=2)
    >>> bound.shapes, bound.n_trainable
    ({'out_r': (768, 2), 'site_r_s': (24, 2, 2), 's_in': (2, 768)}, 3168)
    """
    if not isinstance(spec, Spec) or not isinstance(grid, Grid):
        given = f"{type(spec).__name__} and {type(grid).__name__}"
        raise ArgumentError(f"bind takes a Spec and then a Grid, got {given}")
    spec = spec.expanded
    turned = _is_turned(spec, grid)
    known = _sizes_of(spec, grid, turned)
    known |= _ranks(spec, rank, known)
    _resolve(spec, grid, known, turned)
    known["alpha"] = float(spec.alpha(known)) if alpha is None else float(alpha)
    axes = {n: int(known[n]) for n in spec.letters}
    shapes = _shapes(spec, grid, axes, across=axes | dict(sizes or {}))
    _check_leading(spec, grid, axes, shapes)
    return Bound(spec=spec, grid=grid, sizes=axes, numbers=known, shapes=shapes, turned=turned)


def _shapes(
    spec: Spec, grid: Grid, sizes: Mapping[str, int], across: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Shape of every factor; those of a wrap come last and see the weight as it is."""
    shapes: dict[str, tuple[int, ...]] = {}
    for f in spec.factors:
        shapes[f.name] = _of(f.modes, across if f.across else sizes)
    whole = {"out": grid.shape[0], "in": grid.shape[1], "site": grid.n_sites}
    for f in wrap_factors(spec):
        shapes[f.name] = _of(f.modes, whole)
    return shapes


def _of(modes: tuple[str, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[n] for n in modes)


def _check_leading(
    spec: Spec, grid: Grid, sizes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a factor that is smaller than what a term takes of it."""
    for operand in {o: None for term in spec.terms for o in term.operands}:
        for n, size in zip(operand.letters, shapes[operand.factor], strict=True):
            if sizes[n] > size:
                raise ArgumentError(
                    f"{spec.name!r} on {grid.name}: the factor {operand.factor!r} of sizes"
                    f" {shapes[operand.factor]} cannot stand as '{' '.join(operand.letters)}' with"
                    f" {n} = {sizes[n]}: say its own axes, modes="
                    f"{{{operand.factor!r}: '...'}}"
                )


def _is_turned(spec: Spec, grid: Grid) -> bool:
    """Whether the equation is that of the transposed weight."""
    if spec.sides != SIDES[0]:
        first, second = grid.shape
        return first < second if spec.sides[0] == "long" else first > second
    rows, columns = (flatten((axis,)) for axis in spec.output)
    return ("head" in rows and grid.heads_in) or (
        "head" in columns and bool(grid.heads) and not grid.heads_in
    )


def _sizes_of(spec: Spec, grid: Grid, turned: bool) -> dict[str, Any]:
    """What the grid says: sizes of site modes and sides."""
    if clash := sorted(grid.rows.keys() & {*spec.weight_modes}):
        raise ArgumentError(
            f"{clash[0]!r} is a part of a weight in '{spec.equation}', and a site mode of"
            f" {grid.name}: choose one of them"
        )
    rows, columns = grid.shape[::-1] if turned else grid.shape
    known: dict[str, Any] = {mode: len(labels) for mode, labels in grid.modes}
    known |= {"site": grid.n_sites, "long": max(grid.shape), "short": min(grid.shape)}
    known |= dict(zip(("out", "in"), grid.shape, strict=True))
    known |= dict(zip(spec.sides, (rows, columns), strict=True))
    if "head" in spec.weight_modes:
        if not grid.heads:
            raise ArgumentError(
                f"{spec.name!r} needs the number of heads of {grid.name}: it is known for query,"
                " key and value (and the output projection) of models with a configuration"
            )
        known["head"] = grid.heads
    own = {n for n in spec.letters if n in SITE_MODES and n not in spec.weight_modes}
    if absent := sorted(own - known.keys() - dict(spec.where).keys()):
        modes = [mode for mode, _ in grid.modes]
        raise ArgumentError(
            f"{spec.name!r} has the mode {absent[0]!r}, the weights of {grid.name} have"
            f" {', '.join(modes) or 'no site modes'}{nearest(absent[0], modes)}"
        )
    return known


def _ranks(spec: Spec, rank: AskedRank | None, known: Mapping[str, Any]) -> dict[str, int]:
    """Sizes that the user gives, by letter."""
    given = dict(rank) if isinstance(rank, Mapping) else {}
    free = spec.open_ranks(known, given)
    rules = dict(spec.where)
    settable = {*free, *rules, *(n for n in spec.weight_modes if n not in spec.sides)}
    if unknown := sorted(given.keys() - settable):
        raise ArgumentError(
            f"rank names {unknown[0]!r}{nearest(unknown[0], settable)}: {spec.name!r} has"
            f" {', '.join(sorted(settable)) or 'no rank'}"
        )
    if rank is not None and not isinstance(rank, Mapping):
        if not free:
            raise ArgumentError(
                f"{spec.name!r} has no rank to be {rank!r}: leave it out"
                + (f", or set {', '.join(rules)}: rank={{{[*rules][0]!r}: ..}}" if rules else "")
            )
        given = dict.fromkeys(free, rank)
    if missing := [n for n in free if n not in given]:
        raise ArgumentError(
            f"{spec.name!r} needs the rank {', '.join(missing)}: give rank=8, or"
            f" rank={{{missing[0]!r}: 8}}"
        )
    for letter, size in given.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise ArgumentError(f"the rank {letter}={size!r} must be a whole number, 1 or more")
    return {letter: int(size) for letter, size in given.items()}


def _resolve(spec: Spec, grid: Grid, known: dict[str, Any], turned: bool) -> None:
    """Evaluate the formulas for sizes, in whatever order they need each other."""
    rules = {n: text for n, text in spec.where if n not in known}
    sides = dict(zip(spec.sides, grid.shape[::-1] if turned else grid.shape, strict=True))
    parts = {side: axis for side, axis in zip(spec.sides, spec.output, strict=True) if axis != side}
    progress = True
    while progress:
        progress = False
        for letter, text in list(rules.items()):
            if text.names <= known.keys():
                is_size = letter in spec.letters
                known[letter] = text.size(known, letter) if is_size else text(known)
                del rules[letter]
                progress = True
        for side, axis in parts.items():
            open_parts = [n for n in flatten((axis,)) if n not in known]
            if len(open_parts) == 1 and open_parts[0] not in rules:
                rest = math.prod(known[n] for n in flatten((axis,)) if n in known)
                if sides[side] % rest and side not in spec.crop:
                    raise ArgumentError(_misfit(spec, grid, side, axis, known, sides[side]))
                known[open_parts[0]] = -(-sides[side] // rest)
                progress = True
    if missing := sorted({*spec.letters, *rules} - known.keys()):
        raise ArgumentError(
            f"{spec.name!r} on {grid.name}: no size for {missing[0]!r}; give rank="
            f"{{{missing[0]!r}: ...}}"
        )
    for side, axis in parts.items():
        product = math.prod(known[n] for n in flatten((axis,)))
        if product < sides[side] or (product > sides[side] and side not in spec.crop):
            raise ArgumentError(_misfit(spec, grid, side, axis, known, sides[side]))


def _misfit(
    spec: Spec, grid: Grid, side: str, axis: Axis, known: Mapping[str, Any], size: int
) -> str:
    sizes = ", ".join(f"{n} = {known[n]}" for n in flatten((axis,)) if n in known)
    return (
        f"{spec.name!r} splits {side} = {size} of {grid.name} into {write_axis(axis)} with {sizes}:"
        f" that does not divide; choose sizes whose product is {size}"
    )
