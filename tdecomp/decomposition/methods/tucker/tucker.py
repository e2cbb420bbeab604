"""Tucker decomposition of all or some modes: HOSVD, then HOOI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tdecomp._xp import Array
from tdecomp.decomposition.fit import Fit, Rounding, Trace
from tdecomp.decomposition.method import Analysis, Choice
from tdecomp.decomposition.methods.tucker.hosvd import Bases, leading_bases, truncated_bases
from tdecomp.decomposition.methods.tucker.iterated import Init, Iterated
from tdecomp.decomposition.methods.tucker.method import CoreAndBases, FullHosvd, Modes
from tdecomp.decomposition.methods.tucker.view import CoreView
from tdecomp.decomposition.run import run_one
from tdecomp.decomposition.which import Which
from tdecomp.formats import Tucker
from tdecomp.linalg import Svd
from tdecomp.passes.coordinates import Metric
from tdecomp.passes.data import Data
from tdecomp.passes.slices import Input
from tdecomp.progress import Progress, silent
from tdecomp.ranking.target import Rank, Target
from tdecomp.tasks import Executor

__all__ = ["HosvdMethod", "TuckerMethod", "hosvd", "tucker"]


def tucker(
    x: Input,
    *,
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
    modes: Modes = None,
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
    """Tucker decomposition: ``X ≈ core ×₁ U₁ ×₂ U₂ ...`` with orthonormal bases.

    Starts from a HOSVD (sequentially truncated for a given rank) and improves it by HOOI
    ([delathauwer2000hooi]), whose error never rises from sweep to sweep; no
    guarantee of the global optimum. For a budget, ranks are chosen from the core of the full HOSVD,
    where every choice has a known error. For an error likewise; after the sweeps every direction of
    the core that the error still has room for is cut, so that no single mode can be one smaller.

    Parameters
    ----------
    x
        Array of order 1 or more, a `Stack` (loaded whole unless `svd` sketches), or any format: it
        is decomposed in orthonormal coordinates, without ever being formed (recompression, and
        conversion with an error).
    rank
        An int, cut to what every mode can use; or one entry per compressed mode, or a mapping from
        mode names (missing ones stay full): the core then has exactly that shape. Directions that
        the tensor has no use for are orthonormal columns, and zeros in the core.
    error
        Relative Frobenius error, met by the returned factors; never stores more than cutting each
        of ``d`` modes at ``error / √d``.
    budget
        Numbers to store, at most: core and factors.
    modes
        Modes to compress, names or positions; all by default. The others stay in the core.
    names
        Mode names of an array, ``"layer proj out in"``.
    n_iter_max, tol
        HOOI sweeps at most, and the relative change of the error at which it stops; 0 sweeps
        leaves the start.
    init
        Where the sweeps start for a given rank: ``"hosvd"``, ``"random"``, or any format of the
        same shape (its leading subspaces; missing columns come from `x`; it is not modified).
    random_state
        Seed or generator of a random start; None is seed 0.
    svd
        Truncated SVD of the HOSVD of a given rank, for example `linalg.svd_randomized`; None: exact
        where that is cheap, else sketched until the captured energy settles (`linalg.svd_auto`);
        where both last modes are long and their ranks small, they are reduced by a few passes of
        skinny products first, one slice of a stack in memory at a time (``fit.svd`` begins with
        ``"sketch"``). An error or a budget needs whole spectra, which are exact.
    metric
        ``{"in": C}``: a symmetric positive semidefinite matrix for some modes, such as the
        covariance of what comes in there. The error that is minimised and returned is
        ``‖(X − X̂) ×_k C_k^½‖ / ‖X ×_k C_k^½‖`` ([chen2021drone] for one matrix), ``error_plain``
        is without. Where the smallest eigenvalue is below 1e-6 of the largest, that much of the
        identity is added first. Factors of these modes are orthonormal in the metric.
    weights
        Of the entries, non-negative or a boolean mask of those observed, in the shape of `x`; needs
        `rank`. What `x` holds where the weight is 0 (NaN, say) plays no part. Converges the slower
        the more is missing, so raise `n_iter_max`.
    rounding
        Applied to every factor before the error is measured (storage precision).
    rank_max
        The largest rank of any mode that an error or a budget may give.
    executor
        Whose workers read the stack, which must be of files; see `Stack.on`.
    progress
        Called with the fraction of the work done.

    Returns
    -------
    Fit
        With a `Tucker` tensor; `spectra` by mode name.

    Raises
    ------
    ArgumentError
        Not exactly one target, a rank below 1 or above its mode's size, a budget below rank 1, a
        metric that is not symmetric positive semidefinite, options that exclude each other.
    NotReached
        An error that needs ranks above `rank_max`; its `best` is the Fit of the largest allowed.
    DataError
        NaN, Inf or an empty mode.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.einsum("a,b,c->abc", np.arange(1.0, 4), np.ones(4), np.ones(5))
    >>> fit = tucker(x, error=1e-10, names="layer out in")
    >>> fit.tensor.rank, fit.n_params, fit.error < 1e-10
    ((1, 1, 1), 13, True)
    """
    method = TuckerMethod(
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


def hosvd(
    x: Input,
    *,
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
    modes: Modes = None,
    names: str | Sequence[str] | None = None,
    sequential: bool = True,
    svd: Svd | None = None,
    metric: Metric | None = None,
    rounding: Rounding | None = None,
    rank_max: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> Fit:
    """Higher-order SVD: `tucker` without the iterations.

    With exact SVDs its squared error is at most the number of compressed modes times the best
    possible, sequentially truncated or not. Other parameters as in `tucker`.

    Parameters
    ----------
    sequential
        For a given rank, whether each mode is projected before the next is looked at, in the order
        of the fewest flops ([vannieuwenhoven2012]); False takes every basis from the whole tensor
        ([delathauwer2000svd]). An error or a budget always takes the latter.

    Examples
    --------
    >>> import numpy as np
    >>> hosvd(np.ones((3, 4, 5)), rank=1).tensor.rank
    (1, 1, 1)
    """
    method = HosvdMethod(
        modes=modes, names=names, sequential=sequential, svd=svd, metric=metric, rounding=rounding
    )
    return run_one(method, x, Target(rank, error, budget, rank_max), progress, executor)


@dataclass(frozen=True, kw_only=True)
class TuckerMethod(Iterated):
    """A core and one orthonormal basis for each mode, improved by sweeps over the modes."""

    def build(self, modes: tuple[str, ...], core: Array, bases: Bases) -> Tucker:
        """A `Tucker`, without factors for the modes that are not compressed."""
        return _tucker(modes, core, bases)


@dataclass(frozen=True, kw_only=True)
class HosvdMethod(CoreAndBases):
    """A core and one orthonormal basis for each mode, from one SVD for each."""

    sequential: bool = True

    @property
    def seed_of_sketch(self) -> int | None:
        """0, where each mode may be projected before the next is looked at."""
        return 0 if self.sequential else None

    def look(
        self, x: Data[Any], width: int, progress: Progress, passes: int = 0
    ) -> Analysis[FullHosvd]:
        """Spectra of all modes, down to `width` where a sketch is worth it."""
        return self._looked(x, width, progress, passes)

    def fit(self, x: Data[Any], choice: Choice, state: FullHosvd | None, progress: Progress) -> Fit:
        """Factors of the given ranks."""
        return self._fitted(x, choice, state, progress)

    def start(
        self, view: CoreView, rank: dict[int, int], which: Which, progress: Progress
    ) -> tuple[Bases, dict[int, np.ndarray]]:
        """Leading singular vectors of every mode."""
        if self.sequential:
            return truncated_bases(view.array, rank, which, progress)
        return leading_bases(view.array, rank, progress)

    def improve(self, view: CoreView, bases: Bases, progress: Progress) -> tuple[Bases, Trace]:
        """The bases as they are: an HOSVD has no sweeps."""
        return bases, Trace()

    def build(self, modes: tuple[str, ...], core: Array, bases: Bases) -> Tucker:
        """A `Tucker`, without factors for the modes that are not compressed."""
        return _tucker(modes, core, bases)


def _tucker(modes: tuple[str, ...], core: Array, bases: Bases) -> Tucker:
    return Tucker(modes, core, tuple(bases.get(k) for k in range(len(modes))))
