"""Coordinates that a tensor is decomposed in: of a format, or of a metric on its modes.

A frame changes some modes: ``coordinates = x ×_k drop_k`` and ``x = coordinates ×_k lift_k``. The
Frobenius norm of the coordinates is the norm in which the error counts, so every algorithm for
plain arrays works in them as it is, and the result is lifted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tdecomp._xp import Array, double, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format, mode_product, to_tucker
from tdecomp.modes import positions
from tdecomp.tasks import sendable
from tdecomp.tensor import mode_product as multiply_array

__all__ = ["Frame", "Metric", "format_frame", "metric_frame"]

Metric = Mapping[str | int, Array]
"""A symmetric positive semidefinite ``(n, n)`` matrix for some modes, by name or position."""

_RIDGE = 1e-6  # of the largest eigenvalue: added to a metric whose smallest is below it
_ROUNDING = 1e-6  # asymmetry and negative eigenvalues up to this share of the largest are rounding


@sendable
@dataclass(frozen=True)
class Frame:
    """Matrices from the coordinates of a mode to the mode and back, by position.

    Attributes
    ----------
    lift, drop
        ``(n, k)`` and ``(k, n)`` with ``drop @ lift = 1``; modes without an entry are as they are.
    """

    lift: Mapping[int, Array] = field(default_factory=dict)
    drop: Mapping[int, Array] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.lift)

    def into(self, x: Array) -> Array:
        """A dense tensor in the coordinates."""
        for k, matrix in self.drop.items():
            x = multiply_array(x, matrix, k)
        return x

    def up(self, tensor: Format) -> Format:
        """A format in the coordinates as one of the tensor's own modes."""
        return _multiplied(tensor, self.lift)

    def down(self, tensor: Format) -> Format:
        """A format of the tensor's own modes in the coordinates."""
        return _multiplied(tensor, self.drop)

    def then(self, inner: Frame) -> Frame:
        """Coordinates within the coordinates: first these, then those of `inner`."""
        lift, drop = dict(self.lift), dict(self.drop)
        for k in inner.lift:
            lift[k] = lift[k] @ inner.lift[k] if k in lift else inner.lift[k]
            drop[k] = inner.drop[k] @ drop[k] if k in drop else inner.drop[k]
        return Frame(lift, drop)


def metric_frame(
    metric: Metric | None, modes: Sequence[str], shape: Sequence[int], like: Array
) -> Frame:
    """Coordinates in which the plain norm is the norm of a metric, ``‖X ×_k C_k^½‖``.

    Parameters
    ----------
    metric
        ``C_k`` by mode. One with an eigenvalue below 1e-6 of its largest gets that much of the
        identity added (a relative ridge), or the way back would not exist.
    modes, shape
        Of the tensor.
    like
        An array of the library and dtype to use.

    Raises
    ------
    ArgumentError
        A mode that does not exist, a matrix that is not ``(n, n)``, finite, symmetric and positive
        semidefinite up to 1e-6 of its largest eigenvalue, or that is zero.
    """
    if metric is None:
        return Frame()
    if not isinstance(metric, Mapping):
        raise ArgumentError(
            f"metric must give a matrix for each of some modes, {{'in': C}}, got a"
            f" {type(metric).__name__}"
        )
    xp, lift, drop = namespace(like, *metric.values()), {}, {}
    for k, matrix in zip(positions(modes, metric), metric.values(), strict=True):
        values, vectors = _eigen(matrix, modes[k], shape[k])
        if float(values[0]) < _RIDGE * float(values[-1]):
            values = xp.clip(values, min=0.0) + _RIDGE * values[-1]
        roots = xp.sqrt(values)
        drop[k] = xp.astype(roots[:, None] * vectors.T, like.dtype)
        lift[k] = xp.astype(vectors / roots[None, :], like.dtype)
    return Frame(lift, drop)


def format_frame(tensor: Format, opened: Collection[str] = ()) -> tuple[Array, Frame]:
    """A format as a dense core in orthonormal coordinates; modes in `opened` keep their size.

    Returns
    -------
    core, frame
        ``tensor = core ×_k lift_k``: nothing is lost and the large tensor is never formed.
    """
    tucker = to_tucker(tensor).opened(opened)
    lift = {k: f for k, f in enumerate(tucker.factors) if f is not None}
    xp = namespace(tucker.core)
    conj = xp.conj if xp.isdtype(tucker.core.dtype, "complex floating") else lambda f: f
    return tucker.core, Frame(lift, {k: conj(f).T for k, f in lift.items()})


def _multiplied(tensor: Format, matrices: Mapping[int, Array]) -> Format:
    for k, matrix in matrices.items():
        tensor = mode_product(tensor, matrix, k)
    return tensor


def _eigen(matrix: Array, mode: str, n: int) -> tuple[Array, Array]:
    """Checked eigenvalues, smallest first, and eigenvectors in float64."""
    xp = namespace(matrix)
    if xp.isdtype(matrix.dtype, "complex floating"):
        raise ArgumentError(f"the metric of mode {mode!r} must be real, not {matrix.dtype}")
    if tuple(matrix.shape) != (n, n):
        raise ArgumentError(
            f"the metric of mode {mode!r} has the shape {tuple(matrix.shape)}, not {(n, n)}"
        )
    wide = double(matrix)
    largest = float(xp.max(xp.abs(wide)))
    asymmetry = float(xp.max(xp.abs(wide - wide.T)))
    if not asymmetry <= _ROUNDING * largest or largest == 0:
        raise ArgumentError(
            f"the metric of mode {mode!r} must be finite, symmetric and not zero:"
            f" its largest entry is {largest:.3g}, |C - Cᵀ| reaches {asymmetry:.3g}"
        )
    values, vectors = xp.linalg.eigh((wide + wide.T) / 2)
    if float(values[0]) < -_ROUNDING * float(values[-1]):
        raise ArgumentError(
            f"the metric of mode {mode!r} must be positive semidefinite:"
            f" its eigenvalues reach from {float(values[0]):.3g} to {float(values[-1]):.3g}"
        )
    return values, vectors
