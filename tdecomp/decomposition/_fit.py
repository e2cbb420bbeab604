"""What every decomposition returns: the factors, and how far they are from the data."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tdecomp._xp import Array, double, float64_scope, namespace, sum_of_squares, working
from tdecomp.errors import DataError
from tdecomp.formats import Format
from tdecomp.stack import Stack

__all__ = [
    "Fit",
    "Fits",
    "Rounding",
    "Trace",
    "check_shape",
    "dense",
    "in_float64",
    "make_fit",
    "measure",
    "relative",
    "slices",
]

Rounding = Callable[[Array], Array]
"""Applied to every factor before the error is measured: the precision it will be stored in."""

_DIRECT_IN_DOUBLE = 1e-4  # below this, float32 products would round the residual itself


@dataclass(frozen=True)
class Trace:
    """How an iterative algorithm went.

    Attributes
    ----------
    errors
        Relative error after each sweep, as the algorithm saw it (from captured energy).
    converged
        Whether the last sweep changed the error by less than `tol`.
    reason
        One phrase: why it stopped.
    """

    errors: tuple[float, ...] = ()
    converged: bool = True
    reason: str = "closed form"


@dataclass(frozen=True)
class Fit:
    """A decomposition and its true error.

    Attributes
    ----------
    tensor
        The factors, a format.
    error
        Relative Frobenius error ``‖X − X̂‖ / ‖X‖`` of `tensor` as returned; 0 for a zero `X`.
    error_method
        How `error` was obtained: ``"residual"`` (every entry of ``X − X̂`` was formed and summed).
    residual, energy
        Squared residual and squared norm of every matrix, in C order over the sites, float64.
    spectra
        Singular values seen, by mode (or ``"sites"``: those kept, for independent SVDs).
    trace
        Sweeps of an iterative algorithm.
    """

    tensor: Format
    error: float
    residual: np.ndarray
    energy: np.ndarray
    spectra: Mapping[str, Any] = field(default_factory=dict)
    trace: Trace = Trace()
    error_method: str = "residual"

    @property
    def n_params(self) -> int:
        """Stored numbers."""
        return self.tensor.n_params


@dataclass(frozen=True)
class Fits:
    """One `Fit` per stack of a model, and their total.

    Attributes
    ----------
    fits
        In the order of the stacks.
    error
        ``√Σ‖X − X̂‖² / √Σ‖X‖²`` over all of them.
    """

    fits: tuple[Fit, ...]

    def __iter__(self) -> Iterator[Fit]:
        return iter(self.fits)

    def __len__(self) -> int:
        return len(self.fits)

    def __getitem__(self, i: int) -> Fit:
        return self.fits[i]

    @property
    def error(self) -> float:
        """Total relative error."""
        return relative(
            sum(float(f.residual.sum()) for f in self.fits),
            sum(float(f.energy.sum()) for f in self.fits),
        )

    @property
    def n_params(self) -> int:
        """Stored numbers over all fits."""
        return sum(f.n_params for f in self.fits)


def relative(residual: float, energy: float) -> float:
    """Relative error from squared residual and squared norm; 0 for a zero tensor."""
    return math.sqrt(residual / energy) if energy > 0 else 0.0


def check_shape(x: Array | Stack) -> None:
    """Refuse what is not an array or stack of order at least 2 without empty modes."""
    if not isinstance(x, Stack):
        namespace(x)
    if len(x.shape) < 2 or 0 in x.shape:
        raise DataError(
            f"cannot decompose an array of shape {tuple(x.shape)}: two or more modes, none empty"
        )


def in_float64(x: Array | Stack) -> AbstractContextManager[Any]:
    """Context in which float64 steps on `x` are float64 (jax needs one; see `float64_scope`)."""
    if isinstance(x, Stack):  # its library shows only in a slice, and only jax is asked for
        return float64_scope(x.slice(0)) if "jax" in sys.modules else nullcontext()
    return float64_scope(x)


def dense(x: Array | Stack) -> Array:
    """The array behind `x` in working precision, checked to be finite."""
    array = working(x.dense() if isinstance(x, Stack) else x)
    xp = namespace(array)
    if not math.isfinite(float(xp.max(xp.abs(array)))):
        raise DataError("the array to decompose contains NaN or Inf")
    return array


def slices(x: Array | Stack) -> Iterator[Array]:
    """The matrices of `x`, one at a time, in C order over the site modes."""
    if isinstance(x, Stack):
        yield from (dense(x.slice(i)) for i in range(x.n_sites))
    else:
        xp = namespace(x)
        matrices = xp.reshape(x, (-1, *x.shape[-2:]))
        yield from (dense(matrices[i, ...]) for i in range(matrices.shape[0]))


def measure(x: Array | Stack, tensor: Format) -> tuple[np.ndarray, np.ndarray]:
    """Squared residual and squared norm of every matrix, formed directly, one matrix at a time.

    Differences are taken in the working precision and summed in float64; where the relative error
    is below 1e-4 the products are formed in float64 too.
    """
    pairs = [
        _residual(matrix, *tensor.pair(site)) for site, matrix in enumerate(slices(x))
    ]  # one (residual², norm²) per site
    residual, energy = np.array(pairs, dtype=np.float64).T
    return residual, energy


def make_fit(
    x: Array | Stack,
    tensor: Format,
    rounding: Rounding | None,
    spectra: Mapping[str, Any],
    trace: Trace = Trace(),
) -> Fit:
    """Round the arrays as they will be stored, then measure what is left of `x`."""
    if rounding is not None:
        tensor = tensor.with_arrays({name: rounding(a) for name, a in tensor.arrays.items()})
    residual, energy = measure(x, tensor)
    error = relative(float(residual.sum()), float(energy.sum()))
    return Fit(tensor, error, residual, energy, spectra, trace)


def _residual(matrix: Array, left: Array, right: Array) -> tuple[float, float]:
    energy = sum_of_squares(matrix)
    residual = sum_of_squares(matrix - left @ right)
    if residual < _DIRECT_IN_DOUBLE**2 * energy:
        residual = sum_of_squares(double(matrix) - double(left) @ double(right))
    return residual, energy
