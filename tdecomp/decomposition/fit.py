"""What every decomposition returns: the factors, and how far they are from the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tdecomp._brief import brief, brief_count
from tdecomp._equality import ByValue
from tdecomp._xp import Array
from tdecomp.drawing import Diagram, Drawable
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format
from tdecomp.passes.coordinates import Frame
from tdecomp.passes.data import Data
from tdecomp.passes.residual import measure, relative
from tdecomp.progress import Progress, silent

__all__ = [
    "Distance",
    "Fit",
    "Fits",
    "Rounding",
    "Trace",
    "make_fit",
    "relative_error",
    "rounded",
]

Rounding = Callable[[Array], Array]
"""Applied to every factor before the error is measured: the precision it will be stored in."""

Distance = Callable[[Any], tuple[np.ndarray, np.ndarray]]
"""Squared residual that a format leaves of the data, and their squared norm, as in `Fit`."""


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


@dataclass(frozen=True, eq=False)
class Fit(ByValue, Drawable):
    """A decomposition and its true error.

    Equal to another where every field is, the factors number by number.

    Attributes
    ----------
    tensor
        The factors, a format.
    error
        Relative Frobenius error ``‖X − X̂‖ / ‖X‖`` of `tensor` as returned; 0 for a zero `X`. With
        a metric or weights of the entries, in their norm.
    residual, energy
        Squared residual and squared norm of every matrix, in C order over the sites, float64; one
        number each where `X` is a format.
    spectra
        Singular values seen, by mode (or ``"sites"``: those kept, for independent SVDs).
    trace
        Sweeps of an iterative algorithm.
    error_method
        How `error` was obtained: ``"residual"`` (every entry of ``X − X̂`` was formed and summed),
        or ``"coordinates"`` (the same in orthonormal coordinates, where `X` is a format).
    error_plain
        The relative Frobenius error without the metric; None where none was given.
    svd
        Which singular value decompositions were used: ``"exact"``, or names of functions of
        `tdecomp.linalg`.
    passes
        Reads of the data where they were sketched, the last one for the error; else 2.
    """

    tensor: Format
    error: float
    residual: np.ndarray
    energy: np.ndarray
    spectra: Mapping[str, Any] = field(default_factory=dict)
    trace: Trace = Trace()
    error_method: str = "residual"
    error_plain: float | None = None
    svd: str = "exact"
    passes: int = 2

    @property
    def n_params(self) -> int:
        """Stored numbers."""
        return self.tensor.n_params

    def diagram(self) -> Diagram:
        """What `td.draw` draws: the tensor, and its error as it was measured."""
        (panel,) = self.tensor.diagram().panels
        return Diagram((replace(panel, notes=(*panel.notes, f"error {self.error:.4g}")),))

    def __repr__(self) -> str:
        return brief("Fit", f"error {self.error:.4g}", repr(self.tensor))


@dataclass(frozen=True)
class Fits(Drawable):
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

    def __repr__(self) -> str:
        return brief(
            "Fits",
            brief_count(len(self.fits), "fit"),
            f"error {self.error:.4g}",
            brief_count(self.n_params, "number"),
        )

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

    def diagram(self) -> Diagram:
        """What `td.draw` draws: one panel for each fit."""
        panels = [panel for fit in self.fits for panel in fit.diagram().panels]
        titled = (replace(p, title=f"{k}: {p.title}") for k, p in enumerate(panels))
        return Diagram(tuple(titled))


def make_fit(
    x: Data[Any],
    tensor: Format,
    *,
    rounding: Rounding | None = None,
    spectra: Mapping[str, Any] | None = None,
    trace: Trace | None = None,
    seen: tuple[Array, Frame] | None = None,
    in_metric: bool = False,
    svd: str = "exact",
    passes: int = 2,
    energies: Sequence[float] | None = None,
    measured: tuple[np.ndarray, np.ndarray] | None = None,
    distance: Distance | None = None,
    progress: Progress = silent,
) -> Fit:
    """Round the arrays as they will be stored, then measure what is left of `x`.

    Parameters
    ----------
    seen
        The coordinates that the tensor was found in, and their frame: a format is measured there,
        and everything in a metric.
    in_metric
        Whether those are the coordinates of a metric, and the plain error is wanted too.
    energies
        Squared norm of every matrix, where they are known.
    measured
        Squared residual and squared norm of every matrix, if this very tensor was measured before;
        with a rounding it is measured again.
    distance
        How far a tensor is from `x`, where the method has a way of its own.
    progress
        Of the measuring.
    """
    if rounding is not None:
        if x.is_format and distance is None:
            raise ArgumentError("rounding needs an array or a stack: cast the arrays of a format")
        tensor = rounded(tensor, rounding)
    if measured is not None and rounding is None:
        residual, energy = measured
    elif distance is not None:
        residual, energy = distance(tensor)
    elif seen is not None and (in_metric or x.is_format):
        array, frame = seen
        residual, energy = measure(array, frame.down(tensor))
    else:
        residual, energy = x.measure(tensor, energies, progress)
    if x.is_format:
        residual, energy = np.sum(residual, keepdims=True), np.sum(energy, keepdims=True)
    return Fit(
        tensor,
        relative_error(residual, energy),
        residual,
        energy,
        {} if spectra is None else spectra,
        Trace() if trace is None else trace,
        error_method="coordinates" if x.is_format else "residual",
        error_plain=relative_error(*x.measure(tensor)) if in_metric else None,
        svd=svd,
        passes=passes,
    )


def rounded(tensor: Format, rounding: Rounding | None) -> Format:
    """The tensor with its arrays as they will be stored."""
    if rounding is None:
        return tensor
    return tensor.with_arrays({name: rounding(a) for name, a in tensor.arrays.items()})


def relative_error(residual: np.ndarray, energy: np.ndarray) -> float:
    """Relative error from squared residuals and squared norms."""
    return relative(float(residual.sum()), float(energy.sum()))
