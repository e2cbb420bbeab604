"""The least rank that meets an error, for methods that can only be tried."""

from __future__ import annotations

from collections.abc import Callable

from tdecomp.decomposition.fit import Fit
from tdecomp.errors import NotReached
from tdecomp.progress import Progress, silent

__all__ = ["largest_within", "search_rank"]


def search_rank(
    solve: Callable[[int, Fit | None], Fit],
    *,
    error: float,
    least: int = 1,
    most: int,
    advice: str = "",
    progress: Progress = silent,
) -> Fit:
    """A small rank that meets the error: upwards in doubles, then between the last two.

    Parameters
    ----------
    solve
        ``(rank, fit of the largest smaller rank tried, if any) -> Fit``.
    error
        Relative error wanted.
    least, most
        Ranks tried at least and at most.
    advice
        What to do when `most` is not enough, for the text of the error.
    progress
        Called with the fraction of the work done, estimated.

    Returns
    -------
    Fit
        Meets the error. Small, not proven smallest: the fits need not be optimal.

    Raises
    ------
    NotReached
        With the closest Fit as `best`.
    """
    fits: dict[int, Fit] = {}

    def attempt(rank: int) -> Fit:
        below = [r for r in fits if r < rank]
        fits[rank] = solve(rank, fits[max(below)] if below else None)
        progress(1 - 0.7 ** len(fits))
        return fits[rank]

    rank, failed = min(least, most), 0
    while attempt(rank).error > error:
        if rank == most:
            best = min(fits, key=lambda r: fits[r].error)
            raise NotReached(
                f"error={error:g} was not reached up to rank {most}: the best is"
                f" {fits[best].error:.3g} at rank {best} (attribute best); {advice}".rstrip("; "),
                fits[best],
            )
        failed, rank = rank, min(2 * rank, most)
    while failed and rank - failed > 1:
        middle = (rank + failed) // 2
        if attempt(middle).error <= error:
            rank = middle
        else:
            failed = middle
    return fits[rank]


def largest_within(count: Callable[[int], int], budget: int, most: int) -> int:
    """Largest size up to `most` whose count is within the budget, 0 if there is none.

    >>> largest_within(lambda n: 10 * n, 45, 100)
    4
    """
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        if count(middle) <= budget:
            low = middle
        else:
            high = middle
    return low
