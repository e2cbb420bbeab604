"""A whole model: several stacks decomposed under one rank, one error or one budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tdecomp._xp import Array
from tdecomp.decomposition.fit import Fit, Fits
from tdecomp.decomposition.method import Method
from tdecomp.decomposition.methods.cp.cp import CPMethod, cp
from tdecomp.decomposition.methods.network.als import NetworkMethod, als
from tdecomp.decomposition.methods.svd import SvdMethod, svd
from tdecomp.decomposition.methods.train.tt import (
    mpo,
    mpo_method,
    tensor_train,
    tensor_train_method,
)
from tdecomp.decomposition.methods.tucker.tucker import hosvd, hosvd_method, tucker, tucker_method
from tdecomp.decomposition.methods.tucker.tucker2 import tucker2, tucker2_method
from tdecomp.decomposition.run import run
from tdecomp.errors import ArgumentError
from tdecomp.progress import Progress, silent
from tdecomp.ranking.target import Rank, Target
from tdecomp.stack import Stack

__all__ = ["decompose"]

_METHODS: Mapping[Callable[..., Fit], Callable[..., Method[Any]]] = {
    svd: SvdMethod,
    hosvd: hosvd_method,
    tucker: tucker_method,
    tucker2: tucker2_method,
    tensor_train: tensor_train_method,
    mpo: mpo_method,
    cp: CPMethod,
    als: NetworkMethod,
}


def decompose(
    stacks: Sequence[Array | Stack],
    method: Callable[..., Fit],
    *,
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
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
        The function itself: `svd`, `hosvd`, `tucker`, `tucker2`, `tensor_train`, `mpo`, `cp` or
        `als` (with ``equation=``).
    rank, error, budget
        Exactly one; a rank applies to every stack.
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

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.standard_normal((4, 8, 8)), 0.01 * rng.standard_normal((4, 8, 8))
    >>> fits = decompose([a, b], svd, budget=300)
    >>> fits.n_params, [sum(f.tensor.ranks) for f in fits]
    (289, [17, 0])
    """
    if not isinstance(stacks, Sequence):
        raise ArgumentError(
            f"stacks must be a list of arrays or stacks, got a {type(stacks).__name__}"
        )
    if not callable(method) or method not in _METHODS:
        known = ", ".join(f.__name__ for f in _METHODS)
        raise ArgumentError(f"method must be one of the functions {known}, got {method!r}")
    return run(_METHODS[method](**options), stacks, Target(rank, error, budget), progress)
