"""Tucker2: two modes compressed, each with one basis shared over all other modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tdecomp._xp import Array
from tdecomp.decomposition.fit import Fit, Rounding
from tdecomp.decomposition.method import Method
from tdecomp.decomposition.methods.tucker.hosvd import Bases
from tdecomp.decomposition.methods.tucker.method import Init, Options, tucker_like
from tdecomp.decomposition.run import run
from tdecomp.errors import ArgumentError
from tdecomp.formats import Tucker2
from tdecomp.linalg import Svd
from tdecomp.modes import positions
from tdecomp.passes.coordinates import Metric
from tdecomp.passes.slices import Input
from tdecomp.progress import Progress, silent
from tdecomp.ranking.target import Rank, Target

__all__ = ["tucker2", "tucker2_method"]


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
    names, n_iter_max, tol, init, random_state, svd, metric, weights, rounding, progress
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
    method = tucker2_method(
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
    return run(method, [x], Target(rank, error, budget), progress)[0]


def tucker2_method(*, modes: Sequence[str | int] = (-2, -1), **options: Any) -> Method:
    """`tucker2` with these options, as the driver sees it."""
    if not isinstance(modes, Sequence) or len(modes) != 2:
        raise ArgumentError(
            f"tucker2 compresses exactly two modes, got {modes!r}; use tucker(modes=...)"
        )

    def build(all_modes: tuple[str, ...], core: Array, bases: Bases) -> Tucker2:
        a, b = positions(all_modes, modes)
        return Tucker2(all_modes, core, bases[a], bases[b], (all_modes[a], all_modes[b]))

    return tucker_like(build, Options(modes=modes, **options))
