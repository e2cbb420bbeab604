"""Tucker2: two modes compressed, each with one basis shared over all other modes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tdecomp._xp import Array
from tdecomp.decomposition.fit import Fit, Rounding
from tdecomp.decomposition.methods.tucker.hosvd import Bases
from tdecomp.decomposition.methods.tucker.iterated import Init, Iterated
from tdecomp.decomposition.run import run_one
from tdecomp.errors import ArgumentError
from tdecomp.formats import Tucker2
from tdecomp.linalg import Svd
from tdecomp.modes import positions
from tdecomp.passes.coordinates import Metric
from tdecomp.passes.slices import Input
from tdecomp.progress import Progress, silent
from tdecomp.ranking.target import Rank, Target
from tdecomp.tasks import Executor

__all__ = ["Tucker2Method", "tucker2"]


def tucker2(
    x: Input,
    *,
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
    modes: Sequence[str | int] = (-2, -1),
    names: str | Sequence[str] | None = None,
    n_iter_max: int = 10,
    tol: float = 1e-4,
    init: Init = "hosvd",
    random_state: int | np.random.Generator | None = None,
    svd: Svd | None = None,
    metric: Metric | None = None,
    weights: Array | None = None,
    rounding: Rounding | None = None,
    rank_max: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> Fit:
    """Tucker2 decomposition: ``X[..., o, i] ≈ Σ_rs left[o, r] core[..., r, s] right[i, s]``.

    One basis for each of two modes, shared over all the others; every other index has a core of its
    own (LoTR's layout, [bershatsky2024lotr]). Algorithm, guarantees and parameters as in `tucker`.

    Parameters
    ----------
    x
        Array of order 2 or more, a `Stack` (loaded whole unless sketched), or any format.
    rank, error, budget
        Exactly one; see `tucker`. Rank tuples are ``(left, right)``.
    modes
        The two compressed modes, the last two by default.
    executor
        Whose workers read the stack, which must be of files; see `Stack.on`.
    names, n_iter_max, tol, init, random_state, svd, metric, weights, rounding, rank_max, progress
        See `tucker`.

    Returns
    -------
    Fit
        With a `Tucker2` tensor.

    Examples
    --------
    >>> import numpy as np
    >>> fit = tucker2(np.ones((5, 3, 4)), rank=1, names="layer out in")
    >>> fit.tensor.core.shape, fit.tensor.left.shape, round(fit.error, 12)
    ((5, 1, 1), (3, 1), 0.0)
    """
    method = Tucker2Method(
        modes=modes,
        names=names,
        n_iter_max=n_iter_max,
        tol=tol,
        init=init,
        random_state=random_state,
        svd=svd,
        metric=metric,
        weights=weights,
        rounding=rounding,
    )
    return run_one(method, x, Target(rank, error, budget, rank_max), progress, executor)


@dataclass(frozen=True, kw_only=True)
class Tucker2Method(Iterated):
    """A core for every matrix, between two orthonormal bases that all matrices share."""

    modes: Sequence[str | int] = (-2, -1)

    def __post_init__(self):
        if not isinstance(self.modes, Sequence) or len(self.modes) != 2:
            raise ArgumentError(
                f"tucker2 compresses exactly two modes, got {self.modes!r}; use tucker(modes=...)"
            )
        super().__post_init__()

    def build(self, modes: tuple[str, ...], core: Array, bases: Bases) -> Tucker2:
        """A `Tucker2` with the bases in the order that the modes were given in."""
        a, b = positions(modes, self.modes)
        return Tucker2(modes, core, bases[a], bases[b], (modes[a], modes[b]))
