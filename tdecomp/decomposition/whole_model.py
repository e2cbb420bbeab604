"""A whole model: several stacks decomposed under one rank, one error or one budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tdecomp._xp import Array
from tdecomp.decomposition.fit import Fit, Fits
from tdecomp.decomposition.run import run
from tdecomp.decomposition.table import METHODS
from tdecomp.errors import ArgumentError
from tdecomp.passes.slices import on_workers
from tdecomp.progress import Progress, silent
from tdecomp.ranking.target import Rank, Target
from tdecomp.stack import Stack
from tdecomp.tasks import Executor

__all__ = ["decompose"]


def decompose(
    stacks: Sequence[Array | Stack],
    method: Callable[..., Fit],
    *,
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
    rank_max: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Fits:
    """Decompose several stacks so that together they meet one target.

    An error is the total ``√Σ‖X − X̂‖² / √Σ‖X‖²``; a budget is shared out over all stacks by energy
    won per number stored, and a stack that is not worth its rank 1 gets rank 0. One stack is in
    memory at a time.

    Parameters
    ----------
    stacks
        Stacks or arrays.
    method
        The function itself: `svd`, `hosvd`, `tucker`, `tucker2`, `tensor_train`, `mpo`,
        `interpolative`, `cp` or `als`. The last two share an error or a budget out by estimates,
        and every stack keeps to its share. `als` needs ``equation=``; where a term is frozen or has
        no rank letter, every stack gets size 1 at least.
    rank, error, budget
        Exactly one; a rank applies to every stack.
    rank_max
        The largest rank that any stack may get for an error or a budget.
    executor
        Whose workers read the stacks, which must be of files: a `concurrent.futures.Executor`,
        Dask's ``client.get_executor()``, ... (see `Stack.on`); None: this process does.
    progress
        Called with the fraction of the work done.
    **options
        Further keywords of `method`.

    Returns
    -------
    Fits
        One `Fit` per stack, in order, and the total error.

    Raises
    ------
    ArgumentError, DataError
        As the method does.
    NotReached
        An error that needs ranks above `rank_max`; its `best` is the `Fits` of the largest allowed.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.standard_normal((4, 8, 8)), 0.01 * rng.standard_normal((4, 8, 8))
    >>> import tdecomp as td
    >>> fits = decompose([a, b], td.svd, budget=300)
    >>> fits.n_params, [sum(f.tensor.ranks) for f in fits]
    (289, [17, 0])
    """
    if not isinstance(stacks, Sequence):
        raise ArgumentError(
            f"stacks must be a list of arrays or stacks, got a {type(stacks).__name__}"
        )
    for row in METHODS.values():
        if row.function is method:
            if rank_max is not None and "rank_max" in row.options:  # the method's own search
                options["rank_max"], rank_max = rank_max, None
            target = Target(rank, error, budget, rank_max)
            return run(row.method(**options), on_workers(stacks, executor), target, progress)
    raise ArgumentError(f"method must be one of the functions {', '.join(METHODS)}, got {method!r}")
