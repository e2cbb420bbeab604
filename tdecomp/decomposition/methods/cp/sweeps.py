"""Alternating least squares for CP: one sweep after another, and the error never rises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tdecomp._threads import threads_by_size
from tdecomp._xp import Array, double, namespace, sum_of_squares
from tdecomp.decomposition.fit import Trace
from tdecomp.progress import Progress, silent
from tdecomp.ranking.rounding import SAME

__all__ = ["Components", "als", "dense_of", "filled", "mttkrp", "residual_of"]

_TILE = 1 << 20  # numbers of the reconstruction formed at a time: 8 MiB
_RIDGE = 1e-12  # of the Gram's unit diagonal: enough for a rank-deficient one
_EXACT = 1e-14  # relative error below which a sweep only moves rounding


@dataclass(frozen=True)
class Components:
    """A CP tensor while it is computed: non-negative weights and unit columns, all float64.

    Attributes
    ----------
    weights : ``(R,)``
        Norm of each component.
    factors
        One ``(n_k, R)`` array per mode.
    """

    weights: Array
    factors: tuple[Array, ...]

    @classmethod
    def of(cls, factors: Sequence[Array], weights: Array | None = None) -> Components:
        """Normalise `factors`; `weights` of any sign multiply the components (1 by default).

        A component that is zero in some mode gets weight 0 and keeps its other columns.
        """
        xp = namespace(factors[0])
        rank = factors[0].shape[1]
        one = xp.ones((rank,), dtype=xp.float64, device=factors[0].device)
        signed = one if weights is None else weights
        units, total = [], xp.abs(signed)
        for factor in factors:
            unit, norms = _normalised(factor, xp.ones_like(factor) / math.sqrt(factor.shape[0]))
            units.append(unit)
            total = total * norms
        units[-1] = units[-1] * xp.where(signed < 0, -one, one)
        return cls(total, tuple(units))

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.weights.shape[0]

    def balanced(self) -> tuple[Array, ...]:
        """Factors with the weights spread evenly over them."""
        share = self.weights ** (1.0 / len(self.factors))
        return tuple(f * share for f in self.factors)

    def strongest(self, rank: int) -> Components:
        """The `rank` components of largest weight, strongest first."""
        xp = namespace(self.weights)
        order = xp.argsort(self.weights, descending=True, stable=True)[: min(rank, self.rank)]
        return Components(
            xp.take(self.weights, order, axis=0),
            tuple(xp.take(f, order, axis=1) for f in self.factors),
        )

    def holding(self, columns: Mapping[int, Array]) -> Components:
        """With other unit columns in some modes."""
        factors = (columns.get(k, f) for k, f in enumerate(self.factors))
        return Components(self.weights, tuple(factors))

    def joined(self, other: Components) -> Components:
        """The sum of two: components of both, side by side."""
        xp = namespace(self.weights)
        pairs = zip(self.factors, other.factors, strict=True)
        return Components(
            xp.concat([self.weights, other.weights]),
            tuple(xp.concat([a, b], axis=1) for a, b in pairs),
        )

    def signed(self) -> Components:
        """The largest entry of every column positive, in all modes but the last, which pays."""
        *free, last = self.factors
        fixed = []
        for factor in free:
            xp = namespace(factor)
            size = xp.abs(factor)
            largest = size >= (1 - SAME) * xp.max(size, axis=0)  # of equals the first
            top = xp.argmax(xp.astype(largest, xp.float64), axis=0)  # (R,)
            rows = xp.arange(factor.shape[0], device=factor.device)
            picked = xp.sum(xp.where(rows[:, None] == top[None, :], factor, 0 * factor), axis=0)
            sign = xp.where(picked < 0, -xp.ones_like(picked), xp.ones_like(picked))
            fixed.append(factor * sign)
            last = last * sign
        return Components(self.weights, (*fixed, last))


def mttkrp(x: Array, factors: Sequence[Array], mode: int) -> Array:
    """`x` contracted with the columns of all factors but one.

    ``M[i, r] = Σ X[.., i, ..] Π_{k≠mode} A_k[i_k, r]``, the unfolding times a Khatri-Rao product
    that is formed only for the modes of the other half of the tensor: see `_half`.

    Returns
    -------
    Array
        ``(n, R)``, float64.
    """
    at = _middle(x.shape)
    half = range(at) if mode < at else range(at, len(x.shape))
    return _within_half(_half(x, factors, at, left=mode < at), factors, half, mode)


def residual_of(x: Array, c: Components, entries: Array | None = None) -> float:
    """``‖X − X̂‖²``, every entry formed, a tile of rows at a time, in float64.

    With `entries`, non-negative weights of the shape of `x`: ``Σ entries (X − X̂)²``.
    """
    xp = namespace(x)
    at = _middle(x.shape)
    rows = xp.reshape(x, (math.prod(x.shape[:at]), -1))
    width = rows.shape[1]
    right = (_khatri_rao(c.factors[at:], 0, width) * c.weights).T  # (R, columns)
    step = max(1, _TILE // max(width, c.rank, 1))
    total = 0.0
    for start in range(0, rows.shape[0], step):
        stop = min(start + step, rows.shape[0])
        model = _khatri_rao(c.factors[:at], start, stop) @ right
        difference = double(rows[start:stop, :]) - model
        if entries is not None:
            weight = xp.reshape(entries, (-1, width))[start:stop, :]
            difference = difference * xp.sqrt(weight)
        total += sum_of_squares(difference)
    return total


def dense_of(c: Components) -> Array:
    """The tensor that the components add up to, float64."""
    shape = tuple(f.shape[0] for f in c.factors)
    at = _middle(shape)
    left = _khatri_rao(c.factors[:at], 0, math.prod(shape[:at]))
    right = _khatri_rao(c.factors[at:], 0, math.prod(shape[at:]))
    return namespace(left).reshape(left @ (right * c.weights).T, shape)


def filled(x: Array, c: Components, entries: Array) -> Array:
    """``X̂ + entries (X − X̂)``: the tensor with what is not observed taken from the model.

    For weights between 0 and 1 and every ``Y``, ``Σ entries (X − Y)²`` is at most
    ``‖filled − Y‖²`` and a constant, and equal at ``Y = X̂``: whatever comes closer to this
    tensor than ``X̂`` also lowers the weighted error.
    """
    model = dense_of(c)
    return model + entries * (double(x) - model)


@threads_by_size
def als(
    x: Array,
    start: Components,
    *,
    n_iter_max: int,
    tol: float,
    ridge: float = 0.0,
    line_search: bool = True,
    energy: float | None = None,
    lost: float = 0.0,
    entries: Array | None = None,
    fixed: Sequence[int] = (),
    progress: Progress = silent,
) -> tuple[Components, float, Trace]:
    """Improve a CP tensor by alternating least squares with extrapolation.

    Every factor in turn is the minimiser of ``‖X − X̂‖² + ρ‖A − A_old‖²``, so each update lowers the
    error whatever ``ρ`` and never meets a singular system ([li2013rals], the proximal form). After
    a sweep the step from the last factors to these is prolonged, and kept only if the error falls
    ([rajih2008elsals] choose the length better; ours grows while it pays).

    Parameters
    ----------
    x
        The tensor, order 3 or more.
    start
        Where to begin; its error is the first to beat.
    n_iter_max, tol
        Sweeps at most; relative change of the error at which to stop.
    ridge
        ``ρ`` relative to the unit diagonal of the normal equations; 1e-12 at least.
    line_search
        Whether to extrapolate.
    energy, lost
        Squared norm of what `x` stands for, and the part of it that `x` lacks: the errors of the
        trace are ``√((lost + ‖X − X̂‖²) / energy)``.
    entries
        Weights of the entries, between 0 and 1: then every sweep is one on `filled`
        ([tomasi2005]), and all residuals are weighted. Converges the slower the more is missing.
    fixed
        Modes whose columns stay as they are.
    progress
        Called with the fraction of the sweeps done.

    Returns
    -------
    components, residual, trace
        `residual` is `residual_of`; the errors of `trace` never rise.
    """
    energy = sum_of_squares(x) if energy is None else energy
    now, residual = start, residual_of(x, start, entries)
    errors: list[float] = []
    length = 1.0
    for sweep in range(n_iter_max):
        goal = x if entries is None else filled(x, now, entries)
        swept = _sweep(goal, now, max(ridge, _RIDGE), fixed)
        left = residual_of(x, swept, entries)
        if line_search and sweep > 1 and left > 0:
            ahead = _extrapolated(now, swept, length)
            beyond = residual_of(x, ahead, entries)
            if beyond < left:
                swept, left, length = ahead, beyond, 1.5 * length
            else:
                length = max(1.0, 0.4 * length)
        if not left < residual:
            return now, residual, Trace(tuple(errors), True, "a sweep no longer lowers the error")
        before = math.sqrt((lost + residual) / energy)
        now, residual = swept, left
        errors.append(math.sqrt((lost + residual) / energy))
        progress((sweep + 1) / n_iter_max)
        if math.sqrt(residual / energy) < _EXACT:
            return now, residual, Trace(tuple(errors), True, "exact to rounding")
        if sweep and before - errors[-1] <= tol * before:
            reason = f"error changed by less than {tol:g}"
            return now, residual, Trace(tuple(errors), True, reason)
    return now, residual, Trace(tuple(errors), False, f"stopped after {n_iter_max} sweeps")


def _sweep(x: Array, c: Components, ridge: float, fixed: Sequence[int]) -> Components:
    """One least-squares update of every factor that is not fixed."""
    xp = namespace(x)
    factors, weights = list(c.factors), c.weights
    shared, half = x, range(0)
    grams = [f.T @ f for f in factors]
    identity = xp.eye(c.rank, dtype=xp.float64, device=x.device)
    at = _middle(x.shape)
    for mode in range(len(factors)):
        if mode in (0, at):  # the factors of the other half stay as they are in this half
            half = range(at) if mode < at else range(at, len(factors))
            shared = _half(x, factors, at, left=mode < at)
        if mode in fixed:
            continue
        normal = ridge * identity
        normal = normal + math.prod(grams[:mode] + grams[mode + 1 :], start=xp.ones_like(identity))
        right = _within_half(shared, factors, half, mode) + ridge * (factors[mode] * weights)
        solved = xp.linalg.solve(normal, right.T).T  # (n, R)
        factors[mode], weights = _normalised(solved, factors[mode])
        grams[mode] = factors[mode].T @ factors[mode]
    return Components(weights, tuple(factors))


def _half(x: Array, factors: Sequence[Array], at: int, *, left: bool) -> Array:
    """`x` with one half of its modes contracted with their factors, ``(R, other modes)``.

    One matrix product in the precision of `x`, from which the updates of all modes of a half are
    read: two passes over `x` in a sweep, whatever its order (a dimension tree of depth 1, as in
    [phan2013]).
    """
    xp = namespace(x)
    matrix = xp.reshape(x, (math.prod(x.shape[:at]), -1))
    gone = factors[at:] if left else factors[:at]
    columns = xp.astype(_khatri_rao(gone, 0, matrix.shape[1 if left else 0]), x.dtype)
    product = (matrix @ columns).T if left else columns.T @ matrix
    sizes = x.shape[:at] if left else x.shape[at:]
    return xp.reshape(double(product), (columns.shape[1], *sizes))


def _within_half(y: Array, factors: Sequence[Array], half: range, mode: int) -> Array:
    """`mttkrp` from the half's tensor ``(R, modes of the half)``, batched over ``r``."""
    xp = namespace(y)
    left, rank = list(half), y.shape[0]
    while len(left) > 1:
        at_end = left[-1] != mode
        k = left.pop(-1 if at_end else 0)
        columns, n = factors[k].T, factors[k].shape[0]  # (R, n)
        if at_end:
            y = xp.reshape(y, (rank, -1, n)) @ columns[:, :, None]
        else:
            y = columns[:, None, :] @ xp.reshape(y, (rank, n, -1))
    return xp.reshape(y, (rank, -1)).T


def _middle(shape: Sequence[int]) -> int:
    """Where to cut the modes so that the two halves have about equally many indices."""
    cuts = range(1, len(shape))
    return min(cuts, key=lambda k: math.prod(shape[:k]) + math.prod(shape[k:]))


def _extrapolated(before: Components, after: Components, length: float) -> Components:
    pairs = zip(before.balanced(), after.balanced(), strict=True)
    return Components.of([b + length * (b - a) for a, b in pairs])


def _normalised(factor: Array, instead: Array) -> tuple[Array, Array]:
    """Unit columns and their norms; a zero column becomes that of `instead`."""
    xp = namespace(factor)
    largest = xp.max(xp.abs(factor), axis=0)  # scaled first: squares may underflow
    safe = xp.where(largest > 0, largest, xp.ones_like(largest))
    scaled = factor / safe
    norms = xp.sqrt(xp.sum(scaled * scaled, axis=0))
    unit = xp.where(largest > 0, scaled / xp.where(largest > 0, norms, safe), instead)
    return unit, norms * largest


def _khatri_rao(factors: Sequence[Array], start: int, stop: int) -> Array:
    """Rows ``start:stop`` of the Khatri-Rao product, the last factor's index fastest."""
    xp = namespace(factors[0])
    index = xp.arange(start, stop, device=factors[0].device)
    *others, last = factors
    product = xp.take(last, index % last.shape[0], axis=0)
    for factor, below in zip(reversed(others), reversed(factors), strict=False):
        index = index // below.shape[0]
        product = product * xp.take(factor, index % factor.shape[0], axis=0)
    return product
