"""Tucker decomposition of all or some modes: HOSVD, then HOOI."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tdecomp._xp import Array, adjoint, namespace, sum_of_squares
from tdecomp.decomposition._fit import Fit, Rounding, Trace, dense, make_fit
from tdecomp.decomposition._hosvd import Bases, bases_of, core_energy, project, sequential_bases
from tdecomp.decomposition._ranks import Rank, Target, box_frontier
from tdecomp.decomposition._run import (
    Analysis,
    Method,
    Progress,
    floor,
    mode_names,
    part,
    run,
    silent,
)
from tdecomp.formats import Format, Tucker
from tdecomp.linalg import left_basis
from tdecomp.modes import positions
from tdecomp.stack import Stack
from tdecomp.tensor import unfold

__all__ = ["hooi", "hosvd", "hosvd_method", "tucker", "tucker_method", "tucker_like"]

_EXACT = 256  # largest mode whose basis HOOI takes from a full eigendecomposition

Modes = Sequence[str | int] | None
Build = Callable[[tuple[str, ...], Array, Bases], Format]


def tucker(
    x: Array | Stack,
    *,
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
    modes: Modes = None,
    names: str | Sequence[str] | None = None,
    n_iter_max: int = 10,
    tol: float = 1e-4,
    rounding: Rounding | None = None,
    progress: Progress = silent,
) -> Fit:
    """Tucker decomposition: ``X ≈ core ×₁ U₁ ×₂ U₂ ...`` with orthonormal bases.

    Starts from a HOSVD (sequentially truncated for a given rank) and improves it by HOOI
    ([delathauwer2000hooi]), whose error never rises from sweep to sweep; no
    guarantee of the global optimum. For an error or a budget, ranks are chosen from the core of
    the full HOSVD, where every choice has a known error.

    Parameters
    ----------
    x
        Array of order 2 or more, or a `Stack` (loaded whole, one at a time).
    rank
        An int (``min(rank, size)`` in every mode), one entry per compressed mode, or a mapping from
        mode names (missing ones stay full).
    error
        Relative Frobenius error, met by the returned factors.
    budget
        Numbers to store, at most: core and factors.
    modes
        Modes to compress, names or positions; all by default. The others stay in the core.
    names
        Mode names of an array, ``"layer proj out in"``.
    n_iter_max, tol
        HOOI sweeps at most, and the relative change of the error at which it stops; 0 sweeps
        leaves the HOSVD.
    rounding
        Applied to every factor before the error is measured (storage precision).
    progress
        Called with the fraction of the work done.

    Returns
    -------
    Fit
        With a `Tucker` tensor; `spectra` by mode name.

    Raises
    ------
    ArgumentError
        Not exactly one target, a rank below 1 or above its mode's size, a budget below rank 1.
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
    method = tucker_method(
        modes=modes, names=names, n_iter_max=n_iter_max, tol=tol, rounding=rounding
    )
    return run(method, [x], Target(rank, error, budget), progress)[0]


def hosvd(
    x: Array | Stack,
    *,
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
    modes: Modes = None,
    names: str | Sequence[str] | None = None,
    rounding: Rounding | None = None,
    progress: Progress = silent,
) -> Fit:
    """Higher-order SVD: `tucker` without the iterations.

    Sequentially truncated for a given rank ([vannieuwenhoven2012]); for an
    error or a budget, the truncated full HOSVD. Its squared error is at most the number of
    compressed modes times the best possible. Parameters as in `tucker`.

    Examples
    --------
    >>> import numpy as np
    >>> hosvd(np.ones((3, 4, 5)), rank=1).tensor.rank
    (1, 1, 1)
    """
    method = hosvd_method(modes=modes, names=names, rounding=rounding)
    return run(method, [x], Target(rank, error, budget), progress)[0]


def tucker_method(
    *,
    modes: Modes = None,
    names: str | Sequence[str] | None = None,
    n_iter_max: int = 10,
    tol: float = 1e-4,
    rounding: Rounding | None = None,
) -> Method:
    """`tucker` as the driver sees it."""

    def build(all_modes: tuple[str, ...], core: Array, bases: Bases) -> Tucker:
        return Tucker(all_modes, core, tuple(bases.get(k) for k in range(len(all_modes))))

    return tucker_like(build, modes, names, n_iter_max, tol, rounding)


def hosvd_method(
    *,
    modes: Modes = None,
    names: str | Sequence[str] | None = None,
    rounding: Rounding | None = None,
) -> Method:
    """`hosvd` as the driver sees it."""
    return tucker_method(modes=modes, names=names, n_iter_max=0, rounding=rounding)


def tucker_like(
    build: Build,
    modes: Modes,
    names: str | Sequence[str] | None,
    n_iter_max: int,
    tol: float,
    rounding: Rounding | None,
) -> Method:
    """Driver's view of a format that is a core and bases of some modes; `build` makes it."""

    def chosen(x) -> tuple[tuple[str, ...], tuple[int, ...]]:
        all_modes = mode_names(x, names)
        return all_modes, positions(all_modes, all_modes if modes is None else modes)

    def analyse(x, progress: Progress) -> Analysis:
        _, where = chosen(x)
        array = dense(x)
        bases, spectra = bases_of(array, where, part(progress, 0.1, 0.7))
        energy = core_energy(project(array, bases), sorted(where))
        energy = energy.transpose(np.argsort(np.argsort(where)))
        frontier = box_frontier(
            energy,
            sizes(x),
            math.prod(n for k, n in enumerate(x.shape) if k not in where),
        )
        kept = sum(math.prod(u.shape) for u in bases.values())
        return Analysis([frontier], floor(array.dtype), (bases, spectra), kept)

    def ranks(x, target: Target) -> list[tuple[int, ...]]:
        all_modes, where = chosen(x)
        return [target.ranks_of([all_modes[k] for k in where], sizes(x))]

    def fit(x, choice: list[tuple[int, ...]], state, progress: Progress) -> Fit:
        all_modes, where = chosen(x)
        rank = dict(zip(where, choice[0], strict=True))
        array = dense(x)
        progress(0.1)
        if state is not None:
            bases, spectra = state
        elif 0 in choice[0]:
            bases, spectra = bases_of(array, where, part(progress, 0.1, 0.5))
        else:
            bases, spectra = sequential_bases(array, rank, part(progress, 0.1, 0.5))
        bases = {k: u[:, : rank[k]] for k, u in bases.items()}
        bases, trace = hooi(array, bases, n_iter_max, tol, part(progress, 0.5, 0.9))
        tensor = build(all_modes, project(array, bases), bases)
        return make_fit(x, tensor, rounding, {all_modes[k]: s for k, s in spectra.items()}, trace)

    def sizes(x) -> list[int]:
        return [x.shape[k] for k in chosen(x)[1]]

    return Method(sizes, analyse, ranks, fit)


def hooi(
    x: Array, bases: Bases, n_iter_max: int, tol: float, progress: Progress = silent
) -> tuple[Bases, Trace]:
    """Higher-order orthogonal iteration from given bases.

    Each step improves one basis for the tensor projected on all the others: by its leading left
    singular vectors in modes of up to 256, beyond that by one orthogonal iteration (higher-order QR
    iteration, [sun2025hoqri]), which costs two skinny products. Either way the captured energy
    ``‖core‖²`` never falls.

    Returns
    -------
    bases, trace
        `trace.errors` are ``√(1 − ‖core‖²/‖X‖²)``: good for stopping, not the error to report.
    """
    energy = sum_of_squares(x)
    if n_iter_max == 0 or energy == 0 or any(u.shape[1] == 0 for u in bases.values()):
        return bases, Trace()
    bases, errors = dict(bases), []
    for sweep in range(n_iter_max):
        core = x
        for mode in bases:
            projected = project(x, {k: u for k, u in bases.items() if k != mode})
            bases[mode] = _improved(projected, mode, bases[mode])
            core = project(projected, {mode: bases[mode]})
        captured = sum_of_squares(core)
        errors.append(math.sqrt(max(0.0, 1 - captured / energy)))
        progress((sweep + 1) / n_iter_max)
        if len(errors) > 1 and errors[-2] - errors[-1] <= tol * errors[-2]:
            return bases, Trace(tuple(errors), True, f"error changed by less than {tol:g}")
        if len(bases) == 1:
            return bases, Trace(tuple(errors), True, "one mode: the first sweep is the optimum")
    return bases, Trace(tuple(errors), False, f"stopped after {n_iter_max} sweeps")


def _improved(projected: Array, mode: int, basis: Array) -> Array:
    """A basis of the mode that captures at least as much of `projected` as the given one."""
    n, rank = basis.shape
    if n <= _EXACT:
        return left_basis(projected, mode)[0][:, :rank]
    xp = namespace(projected)
    rows = unfold(projected, mode)  # (n, product of the other ranks)
    captured = adjoint(basis) @ rows  # (rank, ...)
    return xp.linalg.qr(rows @ adjoint(captured), mode="reduced")[0]
