"""What a decomposition takes, checked, whole or one matrix at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import numpy as np

from tdecomp._threads import one_each, side_by_side, threads_for, workers
from tdecomp._xp import (
    Array,
    check_array,
    check_not_traced,
    detached,
    float64_scope,
    namespace,
    scope_matters,
    working,
)
from tdecomp.errors import ArgumentError, DataError
from tdecomp.formats import Format
from tdecomp.modes import name_modes
from tdecomp.passes.tree import Addend, added
from tdecomp.progress import Progress, silent
from tdecomp.stack import Recipe, Stack
from tdecomp.tasks import Divided, Executor, sendable, spread, workers_of

__all__ = [
    "Input",
    "are_light",
    "at_work",
    "check_matrices",
    "check_shape",
    "dense",
    "each_slice",
    "first_slice",
    "mode_names",
    "on_workers",
    "slices_at_once",
    "sum_over",
]

Found = TypeVar("Found")

Input = Array | Stack | Format
"""What a decomposition takes: an array, a stack of slices read lazily, or a tensor as factors."""

_AT_ONCE = 1 << 28  # numbers of slices that are worked on side by side: 1 GiB of float32
_COPIES = 3  # of a slice: what it is read from, itself, what is made of it
_WORTH = 1 << 16  # numbers of a slice: work on fewer takes no longer than handing it to a thread
_HEAVY = 1 << 22  # numbers of a slice from which on threads of our own win
_TASK = 1 << 26  # numbers of the slices of one task for a worker, at most
_TASKS = 8  # of a stack, at least, where the number of workers is not known
_SQUARED = 1e150  # entries whose squares still fit float64, and the inverse of the smallest


def check_shape(x: Input) -> None:
    """Refuse what is not an array, stack or format with at least one mode and none empty."""
    if not isinstance(x, Stack | Format):
        check_array(x)
        check_not_traced(x)
    if len(x.shape) < 1 or 0 in x.shape:
        raise DataError(
            f"cannot decompose an array of shape {tuple(x.shape)}: one or more modes, none empty"
        )


def on_workers(xs: Sequence[Any], executor: Executor | None) -> Sequence[Any]:
    """The inputs, with passes over their slices handed to the workers of an executor if given.

    An ArgumentError for what is in the memory of this process.
    """
    if executor is None:
        return xs
    for x in xs:
        if not isinstance(x, Stack):
            raise ArgumentError(
                f"executor= takes stacks of model files, which its workers open themselves: a"
                f" {type(x).__name__} is in the memory of this process"
            )
    return [x.on(executor) for x in xs]


def check_matrices(shape: Sequence[int], what: str) -> None:
    """Refuse a shape that has no two modes for a matrix."""
    if len(shape) < 2:
        raise DataError(f"{what} needs two or more modes, got an array of shape {tuple(shape)}")


@contextmanager
def at_work(*xs: Input) -> Iterator[None]:
    """Inside, steps on `xs` have the precision they ask for, and as many threads as they are worth.

    See `float64_scope` and `threads_for`.
    """
    with _in_float64(*xs), threads_for(max(map(_numbers, xs))):
        yield


def _numbers(x: Input) -> int:
    """Numbers that there are to work on: those of a format are its parameters."""
    return x.n_params if isinstance(x, Format) else math.prod(x.shape)


def _in_float64(*xs: Input) -> AbstractContextManager[Any]:
    if not scope_matters():
        return nullcontext()
    arrays: list[Array] = []
    for x in xs:
        if isinstance(x, Format):
            arrays += x.arrays.values()
        else:  # the library of a stack shows only in a slice
            arrays.append(x.slice(0) if isinstance(x, Stack) else x)
    return float64_scope(*arrays)


def dense(x: Array | Stack) -> Array:
    """The array behind `x` in working precision, checked to be finite and within range."""
    array = detached(working(x.dense() if isinstance(x, Stack) else x))
    xp = namespace(array)
    largest = float(xp.max(xp.abs(array)))
    if not math.isfinite(largest):
        raise DataError("the array to decompose contains NaN or Inf")
    if largest > _SQUARED or 0 < largest < 1 / _SQUARED:
        raise DataError(
            f"the largest entry, {largest:.3g}, has no square in float64: divide the array by it"
        )
    if largest * math.sqrt(math.prod(array.shape)) > float(xp.finfo(array.dtype).max):
        raise DataError(
            f"with entries up to {largest:.3g} the norm may not fit {array.dtype}: divide the array"
            " by that, or give it in float64"
        )
    return array


@contextmanager
def each_slice(
    x: Array | Stack,
    work: Callable[[int, Array], Found],
    progress: Progress = silent,
    *,
    in_turn: bool = False,
) -> Iterator[Iterator[Found]]:
    """Inside, ``work(i, matrix)`` is at hand for each slice, in C order over the site modes.

    Nobody has looked at the matrices: NaN and Inf show only in what is computed from them. Those of
    numpy arrays, and of stacks that allow it, are worked on side by side where there are enough of
    them for all processors, unless they have to be taken in turn: `work` then runs in other
    threads, and its results are the same whatever their number. Of a stack with an executor they
    are worked on by its workers, so `work` has to be `sendable` with all that it is given.
    """
    if isinstance(x, Stack) and x.executor is not None and not in_turn:
        with _by_others(x, x.executor, work, progress) as found:
            yield found
        return
    n = 1 if in_turn else _at_once(x)
    if n > 1:
        with side_by_side(lambda i: work(i, _raw(x, i)), range(_n_slices(x)), n) as found:
            yield _told(found, _n_slices(x), progress)
    elif isinstance(x, Stack):
        ready = (detached(working(matrix)) for matrix in x.slices())
        yield _told((work(i, matrix) for i, matrix in enumerate(ready)), x.n_sites, progress)
    else:
        found = (work(i, _raw(x, i)) for i in range(_n_slices(x)))
        yield _told(found, _n_slices(x), progress)


def sum_over(
    x: Array | Stack, work: Callable[[int, Array], Addend], progress: Progress = silent
) -> Addend:
    """The sum of ``work(i, matrix)`` over all slices, as `each_slice` works on them.

    Of a stack with an executor, workers add up what is theirs. The work is a product or two, so
    slices that `are_light` are taken in turn.
    """
    if isinstance(x, Stack) and x.executor is not None:
        with _by_others(x, x.executor, work, progress, summed=True) as parts:
            return added(parts)
    with each_slice(x, work, progress, in_turn=are_light(x)) as parts:
        return added(parts)


def are_light(x: Array | Stack) -> bool:
    """Whether a product with a slice is best shared by the threads of the BLAS.

    So it is for matrices in memory, unless they are large. Where it is not, the BLAS should do what
    is small in one thread: after others its threads stay awake for a while, in the way of ours.
    """
    return not isinstance(x, Stack) and math.prod(x.shape[-2:]) < _HEAVY


def _told(found: Iterator[Found], n: int, progress: Progress) -> Iterator[Found]:
    """The same, while progress hears how many of the `n` there were."""
    for i, one in enumerate(found, 1):
        progress(i / n)
        yield one


@contextmanager
def _by_others(
    x: Stack,
    executor: Executor,
    work: Callable[[int, Array], Found],
    progress: Progress,
    *,
    summed: bool = False,
) -> Iterator[Iterator[Found]]:
    """`each_slice` by the workers of an executor, some neighbouring slices to a task."""
    tasks = workers_of(executor) or _TASKS
    size = max(1, min(_TASK // math.prod(x.shape[-2:]), -(-x.n_sites // tasks)))
    some = [range(i, min(i + size, x.n_sites)) for i in range(0, x.n_sites, size)]
    assert x.recipe is not None  # `Stack.on` sees to that
    known = [site in x.beside for site in x.group.sites]
    calls = (
        partial(
            _visited,
            x.recipe,
            list(mine),
            _part(work, mine),
            summed,
            not all(known[i] for i in mine),
        )
        for mine in some
    )
    # one thread of the BLAS, as many as `side_by_side` leaves
    with threads_for(1), spread(executor, calls, near=True) as given:
        yield _taken_up(x, some, given, progress)


def _taken_up(
    x: Stack,
    some: Sequence[Sequence[int]],
    given: Iterator[tuple[list[Found], dict[int, float]]],
    progress: Progress,
) -> Iterator[Found]:
    """What workers found of some slices after the other, with all that is told of these."""
    for mine, (found, beside) in zip(some, given, strict=True):
        x.beside.update({x.group.sites[i]: number for i, number in beside.items()})
        for i in mine:
            x.visited(x.group.sites[i])
        progress((1 + mine[-1]) / x.n_sites)
        yield from found


def _part(work: Any, mine: Sequence[int]) -> Any:
    """The work, or one of its arguments, with what it needs for these slices only."""
    if isinstance(work, partial):
        return partial(work.func, *(_part(one, mine) for one in work.args))
    if isinstance(work, Mapping):
        return {key: _part(one, mine) for key, one in work.items()}
    return work.only(mine) if isinstance(work, Divided) else work


@sendable
def _visited(
    recipe: Recipe, mine: list[int], work: Callable[[int, Array], Any], summed: bool, beside: bool
) -> tuple[list[Any], dict[int, float]]:
    """What comes of some slices, or its sum, and what was found beside; this runs on a worker."""
    x = recipe.opened(mine, beside=beside)
    n = one_each(len(mine))
    with threads_for(1), side_by_side(lambda i: work(i, _raw(x, i)), mine, n) as found:
        results = [added(found)] if summed else list(found)
    sites = x.group.sites
    return results, {i: x.beside[sites[i]] for i in mine if sites[i] in x.beside}


def first_slice(x: Array | Stack) -> Array:
    """One of the matrices that `each_slice` gives."""
    return _raw(x, 0)


def slices_at_once(x: Array | Stack) -> int:
    """Slices in memory while `each_slice` is at work: in use, read ahead, just dropped."""
    return 1 + max(2, _at_once(x))


def _at_once(x: Array | Stack) -> int:
    """Slices that are worked on side by side."""
    numbers, room = math.prod(x.shape[-2:]), _AT_ONCE
    if isinstance(x, Stack):
        if x.max_memory is not None:
            room = min(room, x.max_memory // 8)  # half of it, in float32
        alone = not x.concurrent
    else:
        alone = type(x) is not np.ndarray
    if alone or numbers < _WORTH:
        return 1
    return workers(_n_slices(x), max(1, room // (_COPIES * numbers)))


def _n_slices(x: Array | Stack) -> int:
    return math.prod(x.shape[:-2])


def _raw(x: Array | Stack, i: int) -> Array:
    """A slice in working precision that nobody has looked at."""
    if isinstance(x, Stack):
        return detached(working(x.slice(i)))
    return working(detached(namespace(x).reshape(x, (-1, *x.shape[-2:]))[i, ...]))


def mode_names(x: Input, names: str | Sequence[str] | None) -> tuple[str, ...]:
    """Modes of a stack or format, or of an array under the given names."""
    if not isinstance(x, Stack | Format):
        return name_modes(len(x.shape), names)
    if names is not None:
        raise ArgumentError(f"names={names!r} is for arrays: a stack or format names its modes")
    return x.modes
