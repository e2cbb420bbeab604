"""Higher-order orthogonal iteration, and where it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tdecomp._threads import threads_by_size
from tdecomp._xp import Array, adjoint, floor, namespace, sum_of_squares, to_numpy
from tdecomp.decomposition.fit import Trace
from tdecomp.decomposition.methods.tucker.hosvd import Bases, leading, project, sequential_bases
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format
from tdecomp.linalg import is_cheap, left_basis
from tdecomp.passes.coordinates import Frame, format_frame
from tdecomp.progress import Progress, silent
from tdecomp.tensor import unfold

__all__ = ["format_bases", "hooi", "random_bases", "trimmed"]


@threads_by_size
def hooi(
    x: Array,
    bases: Bases,
    n_iter_max: int,
    tol: float,
    progress: Progress = silent,
    energy: float | None = None,
) -> tuple[Bases, Trace]:
    """Higher-order orthogonal iteration from given bases.

    Each step improves one basis for the tensor projected on all the others: by its leading left
    singular vectors where they are cheap, else by one orthogonal iteration (higher-order QR
    iteration, [sun2025hoqri]), which costs two skinny products. Either way the captured energy
    ``‖core‖²`` never falls.

    Parameters
    ----------
    energy
        Squared norm of the tensor that `x` is a part of; that of `x` by default.

    Returns
    -------
    bases, trace
        `trace.errors` are ``√(1 − ‖core‖²/‖X‖²)``: good for stopping, not the error to report.
    """
    energy = sum_of_squares(x) if energy is None else energy
    cut = {k: u for k, u in bases.items() if u.shape[1] < u.shape[0]}  # the others keep all
    if n_iter_max == 0 or energy == 0 or any(u.shape[1] == 0 for u in bases.values()):
        return bases, Trace()
    if not cut:
        return bases, Trace(reason="every mode is kept whole")
    given, bases, errors, before = bases, cut, [], 0.0
    for sweep in range(n_iter_max):
        core = x
        for mode in bases:
            projected = project(x, {k: u for k, u in bases.items() if k != mode})
            bases[mode] = _improved(projected, mode, bases[mode])
            core = project(projected, {mode: bases[mode]})
        captured = sum_of_squares(core)
        errors.append(math.sqrt(max(0.0, 1 - captured / energy)))
        progress((sweep + 1) / n_iter_max)
        won, before = captured - before, captured
        seen = won > floor(x.dtype) * energy  # else rounding would decide
        if len(errors) > 1 and (not seen or errors[-2] - errors[-1] <= tol * errors[-2]):
            return given | bases, Trace(tuple(errors), True, f"error changed by less than {tol:g}")
        if len(bases) == 1:
            reason = "one mode: the first sweep is the optimum"
            return given | bases, Trace(tuple(errors), True, reason)
    return given | bases, Trace(tuple(errors), False, f"stopped after {n_iter_max} sweeps")


def random_bases(x: Array, ranks: dict[int, int], rng: np.random.Generator) -> Bases:
    """Orthonormal bases of random subspaces."""
    xp, bases = namespace(x), {}
    for k, rank in ranks.items():
        n = x.shape[k]
        width = min(rank, n, math.prod(x.shape) // n)
        drawn = xp.asarray(rng.standard_normal((n, width)), dtype=x.dtype, device=x.device)
        bases[k] = xp.linalg.qr(drawn, mode="reduced")[0]
    return bases


def format_bases(x: Array, tensor: Format, ranks: dict[int, int], frame: Frame) -> Bases:
    """Bases of a format's leading subspaces, completed from `x` where it has fewer columns."""
    if tuple(x.shape) != tuple(tensor.shape) and not frame:
        raise ArgumentError(f"init has the shape {tensor.shape}, the array {tuple(x.shape)}")
    core, inner = format_frame(frame.down(tensor))
    found, _ = sequential_bases(core, {k: min(r, core.shape[k]) for k, r in ranks.items()})
    xp, bases = namespace(x), {}
    for k, rank in ranks.items():
        u = inner.lift[k] @ found[k] if k in inner.lift else found[k]
        u = xp.astype(u, x.dtype)
        if missing := min(rank, math.prod(x.shape) // x.shape[k]) - u.shape[1]:
            own = left_basis(x, k)[0]
            rest = own - u @ (adjoint(u) @ own)
            more = leading(left_basis(rest, 0)[0], max(0, missing))
            u = xp.linalg.qr(xp.concat([u, more], axis=1), mode="reduced")[0]
        bases[k] = u
    return bases


def _improved(projected: Array, mode: int, basis: Array) -> Array:
    """A basis of the mode that captures at least as much of `projected` as the given one."""
    n, rank = basis.shape
    if is_cheap((n, math.prod(projected.shape) // n), width=0):
        return leading(left_basis(projected, mode)[0], rank)
    xp = namespace(projected)
    rows = unfold(projected, mode)  # (n, product of the other ranks)
    captured = adjoint(basis) @ rows  # (rank, ...)
    captured = captured / (float(xp.max(xp.abs(captured))) or 1.0)  # squares may leave float32
    return xp.linalg.qr(rows @ adjoint(captured), mode="reduced")[0]


def trimmed(core: Array, bases: Bases, room: float, sizes: Sequence[int]) -> tuple[Array, Bases]:
    """Drop singular directions of the core while `room` of squared error is left.

    What a dropped direction carries is added to the squared error exactly, because the bases are
    orthonormal. Of the modes that fit, the one whose columns save the most numbers goes first, with
    all that fit: a column of it saves as much after as before, one of another mode less. When
    nothing fits, no single mode can be cut by one within the error.
    """
    bases = dict(bases)
    while True:
        found = None
        for k in bases:
            directions, s = left_basis(core, k)
            n, least = _fitting(to_numpy(s), core.shape[k], room)
            saved = math.prod(core.shape) // core.shape[k] + sizes[k]
            if n and (found is None or saved > found[0]):
                found = saved, k, directions[:, : core.shape[k] - n], least
        if found is None:
            return core, bases
        _, k, kept, least = found
        room -= least
        core = project(core, {k: kept})
        bases[k] = bases[k] @ kept


def _fitting(s: np.ndarray, n: int, room: float) -> tuple[int, float]:
    """How many of the last of `n` directions fit, the first never, and what they carry."""
    energies = np.zeros(n)  # those beyond the singular values carry nothing
    energies[: len(s)] = s.astype(np.float64) ** 2
    lost = np.cumsum(energies[:0:-1])
    fitting = int(np.searchsorted(lost, room, side="right"))
    return fitting, float(lost[fitting - 1]) if fitting else 0.0
