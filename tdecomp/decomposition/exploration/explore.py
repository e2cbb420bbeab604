"""Which format for which budget: all candidates and budgets from a few reads of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from tdecomp._brief import brief, brief_count, brief_list
from tdecomp._xp import Array
from tdecomp.decomposition.checks import seed_of
from tdecomp.decomposition.exploration.candidate import Built, Candidate, Pairs
from tdecomp.decomposition.exploration.look import Look, Room, as_stack, look
from tdecomp.decomposition.fit import Fit
from tdecomp.decomposition.table import METHODS, Decomposition
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format
from tdecomp.passes.residual import relative, residual_of_pair
from tdecomp.passes.slices import (
    at_work,
    check_matrices,
    check_shape,
    each_slice,
    mode_names,
    on_workers,
)
from tdecomp.progress import Progress, part, silent
from tdecomp.ranking.allocate import allocate
from tdecomp.ranking.frontier import Frontier
from tdecomp.stack import Stack
from tdecomp.tasks import Executor, sendable

__all__ = ["Cell", "Exploration", "Row", "Winner", "explore"]

_BUDGETS = 5  # by default, each twice the one before, the last 1/16 of the data
_LARGEST = 20_000_000  # numbers in it at most: what a look keeps is some 15 times as much
_NOTHING = 1e-6  # an error that may be only rounding
_WIDER = 3  # times a sketch is made twice as wide

_NUMBER = (int, float, np.integer, np.floating)

_Frontiers = list[list[Frontier]]
"""Of one candidate: per stack, per unit."""

_Choice = list[Built]
"""One candidate within one budget: a `Built` per stack."""

_Place = tuple[int, int]
"""Row and column of the table."""


@dataclass(frozen=True)
class Cell:
    """One candidate within one budget.

    Attributes
    ----------
    n_params
        Numbers it stores, at most the budget.
    error
        Relative Frobenius error over all stacks.
    ranks
        One short text per stack: ``"12×8"``, or ``"0..9 (mean 4.2)"`` over its matrices.
    confirmed
        Whether `error` is the residual of the factors themselves; else it is from the sketches.
    """

    n_params: int
    error: float
    ranks: tuple[str, ...]
    confirmed: bool = False


@dataclass(frozen=True)
class Row:
    """One candidate over all budgets.

    Attributes
    ----------
    name
        ``"svd"``, ``"in shared over proj"``, ``"tucker2"``, ...
    method
        Name of the function in `tdecomp` that gives it.
    modes
        Its ``modes=``: the position of the one mode with a shared basis; None: the default.
    share
        Site modes that vary under one basis; the others make stacks of their own. None: all.
    cells
        One per budget; None where the budget is below rank 1.
    """

    name: str
    method: str
    modes: tuple[int, ...] | None
    share: tuple[str, ...] | None
    cells: tuple[Cell | None, ...]

    def call(self, budget: int) -> str:
        """The Python call that makes it; with `share`, of stacks made with that ``share=``."""
        stacks = "stacks" if self.share is None else f"stacks_shared_over_{'_'.join(self.share)}"
        modes = "" if self.modes is None else f"modes={self.modes}, "
        return f"td.decompose({stacks}, td.{self.method}, {modes}budget={budget})"


@dataclass(frozen=True)
class Winner:
    """The least error within one budget, and the next; both are confirmed."""

    budget: int
    name: str
    error: float
    runner_up: str | None = None
    runner_up_error: float | None = None


@dataclass(frozen=True)
class Exploration:
    """Errors of all candidates within all budgets.

    Attributes
    ----------
    budgets
        Numbers to store, increasing.
    rows
        One per candidate.
    winners
        One per budget.
    passes
        How often every matrix was read: the most over the stacks.
    energy
        ``‖X‖²`` over all stacks.
    n_numbers
        Numbers in the dense stacks.
    """

    budgets: tuple[int, ...]
    rows: tuple[Row, ...]
    winners: tuple[Winner, ...]
    passes: int
    energy: float
    n_numbers: int

    def row(self, name: str) -> Row:
        """The row of a candidate."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ArgumentError(
            f"no candidate {name!r}: there are {', '.join(row.name for row in self.rows)}"
        )

    def __repr__(self) -> str:
        least = [f"{w.name} {w.error:.3g} within {w.budget:,}" for w in self.winners]
        return brief(
            "Exploration",
            brief_count(len(self.rows), "candidate"),
            "least errors: " + ", ".join(brief_list(least, most=5)),
            f"{self.passes} passes",
        )


def explore(
    stacks: Array | Stack | Sequence[Array | Stack],
    budgets: int | Sequence[int] | None = None,
    *,
    formats: Sequence[Callable[..., Fit]] | None = None,
    names: str | Sequence[str] | None = None,
    random_state: int | np.random.Generator | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> Exploration:
    """Error of every format within every budget, from a few reads of the data.

    The candidates are independent truncated SVDs; one basis of ``in`` or of ``out`` shared by all
    matrices that differ in some of the site modes only, for every choice of these (`td.tucker` with
    ``modes=("in",)`` on the parts of a stack); and `td.tucker2`, `td.tucker`, `td.tensor_train` of
    the whole stacks. Each is what the function of that name makes for that budget, over all stacks
    together as in `td.decompose`.

    Parameters
    ----------
    stacks
        A stack, an array ``(..., out, in)``, or several.
    budgets
        Numbers to store, one or several; by default 1/256, 1/128, 1/64, 1/32 and 1/16 of the
        numbers in the stacks, without those below rank 1. All are halved as often as the largest
        would be above 20 million.
    formats
        The functions to compare, some of `td.svd`, `td.tucker2`, `td.tucker` (with it, the bases
        of one side), `td.tensor_train` and `td.cp`; all but `td.cp` by default, which iterates
        longest.
    names
        Mode names of arrays, ``"layer proj out in"``.
    random_state
        Seed or generator of the sketches; None is seed 0.
    executor
        Whose workers read the stacks, which must be of files: see `Stack.on`.
    progress
        Called with the fraction of the work done.

    Returns
    -------
    Exploration
        The table and, per budget, the winner and the runner-up.

    Raises
    ------
    ArgumentError
        A budget that is not a positive number or below the least that any candidate can store; a
        format that is not one of these.
    DataError
        NaN, Inf, an empty mode, or no matrices.

    Notes
    -----
    Large stacks are read three times, one matrix in memory at a time; small ones once, and held
    meanwhile. The first read takes the leading singular triplets of every matrix ([halko2011]);
    stacked, they give first bases for all matrices that share one. The second improves these by a
    step of subspace iteration, the third measures what they capture and projects the stack on the
    bases of both long modes, where the formats of whole stacks are fitted. A last read measures
    the factors of the winner and of the runner-up of every budget directly. All other errors are
    estimates: they include the energy outside the sketches, and agree with separate decompositions
    to about 1 %, down to errors of about 1e-3 in float32.

    The sketches are two to three times as wide as an even share of the largest budget needs, over
    the stacks by size and over the matrices of a stack. Where a candidate would use all of that,
    they are doubled and the stack is read again. Kept are the triplets, the bases and the
    projections: in all some 15 times the numbers of the largest budget.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> shared = rng.standard_normal((2, 16))
    >>> x = rng.standard_normal((6, 24, 2)) @ shared  # one `in` basis for all layers
    >>> found = explore(x, budgets=[350], names="layer out in")
    >>> found.winners[0].name, found.winners[0].error < 1e-6
    ('in shared over layer', True)
    """
    xs = stacks if isinstance(stacks, Sequence) else [stacks]
    chosen = _checked_formats(formats)
    _check(xs)
    xs = on_workers(xs, executor)
    with at_work(*xs):
        opened = [as_stack(x, mode_names(x, None if isinstance(x, Stack) else names)) for x in xs]
        total = sum(math.prod(s.shape) for s in opened)
        wanted = _budgets(budgets, total)
        seed = seed_of(random_state)
        over = part(progress, 0, 0.6)
        looks, candidates, frontiers = _look_all(opened, total, wanted[-1], chosen, seed, over)
        wanted = _affordable(wanted, frontiers, given=budgets is not None)
        over = part(progress, 0.6, 0.9)
        table: list[list[_Choice | None]] = []
        for i, (candidate, fs) in enumerate(zip(candidates, frontiers, strict=True)):
            table.append([_choose(candidate, looks, fs, b) for b in wanted])
            over((i + 1) / len(candidates))
        energy = sum(seen.energy for seen in looks)
        over = part(progress, 0.9, 1)
        cells, winners = _confirmed(candidates, table, looks, wanted, energy, over)
        progress(1.0)
    passes = 1 + max(seen.passes for seen in looks)
    rows = tuple(_row(c, tuple(r)) for c, r in zip(candidates, cells, strict=True))
    return Exploration(tuple(wanted), rows, winners, passes, energy, total)


def _check(xs: Sequence[Any]) -> None:
    if not xs:
        raise ArgumentError("nothing to explore: no array or stack was given")
    for x in xs:
        if isinstance(x, Format):
            raise ArgumentError(
                f"explore takes arrays and stacks, not a {type(x).__name__}: give its to_dense()"
            )
        check_shape(x)
        check_matrices(x.shape, "explore")


def _checked_formats(formats: Any) -> list[Decomposition]:
    """Rows of the table that are compared, in its order."""
    known = [row for row in METHODS.values() if row.candidates is not None]
    if formats is None:
        return [row for row in known if row.by_default]
    words = ", ".join(f"td.{row.name}" for row in known)
    if callable(formats) or isinstance(formats, str) or not formats:
        raise ArgumentError(f"formats={formats!r} must list some of the functions {words}")
    functions = [row.function for row in known]
    for given in formats:
        if given not in functions:
            raise ArgumentError(f"formats names {given!r}: expected some of the functions {words}")
    return [row for row in known if row.function in formats]


def _candidates(looks: Sequence[Look], formats: Sequence[Decomposition]) -> list[Candidate]:
    """All candidates for some stacks; first those that are made of slices."""
    found = [c for row in formats if row.candidates is not None for c in row.candidates(looks)]
    return sorted(found, key=lambda candidate: candidate.part != "slices")


def _budgets(budgets: Any, total: int) -> list[int]:
    """Increasing whole numbers."""
    if budgets is None:
        largest = 16 * 2 ** max(0, math.ceil(math.log2(total / 16 / _LARGEST)))
        return sorted({max(1, total // (largest << k)) for k in range(_BUDGETS)})
    given = list(budgets) if isinstance(budgets, list | tuple | np.ndarray) else [budgets]
    if not given:
        raise ArgumentError("budgets=[] names no budget: give stored numbers, or None")
    for b in given:
        if isinstance(b, bool) or not (isinstance(b, _NUMBER) and 1 <= b < math.inf):
            raise ArgumentError(f"budget {b!r} must be a positive number of stored numbers")
    return sorted({int(b) for b in given})


def _least(frontiers: _Frontiers) -> int | None:
    """Numbers of the smallest rank 1; None where there is nothing to store."""
    return min(
        (int(f.params[1]) for fs in frontiers for f in fs if len(f.params) > 1), default=None
    )


def _affordable(wanted: list[int], frontiers: list[_Frontiers], *, given: bool) -> list[int]:
    """The budgets that at least one candidate can keep to."""
    least = min((n for fs in frontiers if (n := _least(fs)) is not None), default=0)
    if given and wanted[0] < least:
        raise ArgumentError(
            f"budget {wanted[0]} is below rank 1: the smallest possible is {least} numbers"
        )
    return [b for b in wanted if b >= least] or [least]


def _look_all(
    stacks: Sequence[Stack],
    total: int,
    largest: int,
    formats: Sequence[Decomposition],
    seed: int,
    progress: Progress,
) -> tuple[list[Look], list[Candidate], list[_Frontiers]]:
    """Look at every stack, again and wider where a candidate would use all of a sketch."""
    shares = [min(largest, total) * math.prod(s.shape) / total for s in stacks]
    ends = np.append(0.0, np.cumsum(shares) / sum(shares))
    rooms, looks = [Room() for _ in stacks], []
    for i, (stack, share) in enumerate(zip(stacks, shares, strict=True)):
        looks.append(look(stack, share, rooms[i], seed, part(progress, ends[i], ends[i + 1])))
    candidates = _candidates(looks, formats)
    frontiers = [[c.frontiers(seen) for seen in looks] for c in candidates]
    for _ in range(_WIDER):
        narrow = _too_narrow(candidates, frontiers, looks, largest)
        for i in {i for i, _ in narrow}:
            wider = {p: 2.0 * getattr(rooms[i], p) for j, p in narrow if j == i}
            rooms[i] = replace(rooms[i], **wider)
            again = look(stacks[i], shares[i], rooms[i], seed)
            looks[i] = replace(again, passes=looks[i].passes + again.passes)
            for candidate, fs in zip(candidates, frontiers, strict=True):
                fs[i] = candidate.frontiers(looks[i])
    return looks, candidates, frontiers


def _too_narrow(
    candidates: Sequence[Candidate],
    frontiers: Sequence[_Frontiers],
    looks: Sequence[Look],
    budget: int,
) -> set[tuple[int, str]]:
    """Stacks, and the part of their look, whose limits the largest budget would reach."""
    found = set()
    for candidate, fs in zip(candidates, frontiers, strict=True):
        for i, at in enumerate(_allocated(fs, budget) or []):
            ranks = _ranks(fs[i], at)
            limits = candidate.limits(looks[i])
            if any((np.array(r) >= n).any() for r, n in zip(ranks, limits, strict=True)):
                found.add((i, candidate.part))
    return found


def _allocated(frontiers: _Frontiers, budget: int) -> list[list[int]] | None:
    """Positions on the frontiers, per stack; None where the budget is below rank 1."""
    least = _least(frontiers)
    if least is not None and budget < least:
        return None
    at = iter(allocate([f for fs in frontiers for f in fs], budget=budget))
    return [[next(at) for _ in fs] for fs in frontiers]


def _ranks(frontiers: Sequence[Frontier], at: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(f.ranks[i].tolist()) for f, i in zip(frontiers, at, strict=True)]


def _choose(
    candidate: Candidate, looks: Sequence[Look], frontiers: _Frontiers, budget: int
) -> _Choice | None:
    """Build a candidate; numbers that its frontiers leave over are dealt out in proportion."""
    chosen = _allocated(frontiers, budget)
    if chosen is None:
        return None
    pairs = list(zip(frontiers, chosen, strict=True))
    taken = [sum(int(f.params[i]) for f, i in zip(fs, at, strict=True)) for fs, at in pairs]
    scale = budget / sum(taken) if sum(taken) else 0.0
    return [
        candidate.build(seen, _ranks(fs, at), int(n * scale))
        for seen, (fs, at), n in zip(looks, pairs, taken, strict=True)
    ]


def _cell(choice: _Choice | None, energy: float) -> Cell | None:
    if choice is None:
        return None
    error = min(1.0, relative(sum(b.lost for b in choice), energy))
    return Cell(sum(b.n_params for b in choice), error, tuple(b.ranks for b in choice))


def _confirmed(
    candidates: Sequence[Candidate],
    table: list[list[_Choice | None]],
    looks: Sequence[Look],
    budgets: Sequence[int],
    energy: float,
    progress: Progress,
) -> tuple[list[list[Cell | None]], tuple[Winner, ...]]:
    """Measure the two best of every budget, all in one read, and name the winners."""
    cells = [[_cell(choice, energy) for choice in row] for row in table]
    best = {}
    for j in range(len(budgets)):
        fits = [(_order(c), i) for i, row in enumerate(cells) if (c := row[j])]
        best[j] = [i for _, i in sorted(fits)[:2]]
    wanted = {(i, j): choice for j in best for i in best[j] if (choice := table[i][j])}
    for (i, j), error in _errors(looks, wanted, progress).items():
        cell = cells[i][j]
        assert cell is not None
        cells[i][j] = replace(cell, error=error, confirmed=True)
    winners = []
    for j, budget in enumerate(budgets):
        two = sorted((_order(c), i, c.error) for i in best[j] if (c := cells[i][j]))
        found = [x for _, i, error in two for x in (candidates[i].name, error)]
        winners.append(Winner(budget, *found))
    return cells, tuple(winners)


def _order(cell: Cell) -> tuple[float, int]:
    """The smaller error first; of errors equal to four digits, or to nothing, the fewer numbers."""
    return float(f"{max(cell.error, _NOTHING):.4g}"), cell.n_params


def _errors(
    looks: Sequence[Look], wanted: dict, progress: Progress
) -> dict[tuple[int, int], float]:
    """Relative residuals of the factors, in one read of every stack."""
    residual, energy = dict.fromkeys(wanted, 0.0), 0.0
    for g, seen in enumerate(looks):
        pairs = {key: choice[g].pairs for key, choice in wanted.items()}
        over = part(progress, g / len(looks), (g + 1) / len(looks))
        with each_slice(seen.stack, partial(_losses, pairs), over) as found:
            for losses in found:
                for key, (lost, _) in losses.items():
                    residual[key] += lost
                energy += max((norm for _, norm in losses.values()), default=0.0)
    return {key: relative(lost, energy) for key, lost in residual.items()}


@sendable
def _losses(
    pairs: Mapping[_Place, Pairs], site: int, matrix: Array
) -> dict[_Place, tuple[float, float]]:
    """What each choice of factors leaves of a slice, and the squared norm of that."""
    return {key: residual_of_pair(matrix, *p.pair(site, matrix)) for key, p in pairs.items()}


def _row(candidate: Candidate, cells: tuple[Cell | None, ...]) -> Row:
    method = candidate.method or candidate.name
    return Row(candidate.name, method, candidate.modes, candidate.share, cells)
