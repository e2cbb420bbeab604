"""Spectra of the unfoldings, and what ranks different rules would read off them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tdecomp._brief import brief, brief_modes
from tdecomp._equality import ByValue
from tdecomp._xp import floor, to_numpy
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format
from tdecomp.linalg import left_basis
from tdecomp.modes import positions
from tdecomp.passes.coordinates import format_frame
from tdecomp.passes.slices import Input, at_work, check_shape, dense, mode_names
from tdecomp.progress import Progress, silent

__all__ = [
    "Spectra",
    "denoising_threshold",
    "entropy_rank",
    "noise_edge",
    "noise_level",
    "ranks",
    "stable_rank",
]

_POINTS = 4096  # of the Marchenko-Pastur density: its median to about 1e-7
_TIE = 1e-6  # relative: a value this near below a threshold reaches it


@dataclass(frozen=True, eq=False)
class Spectra(ByValue):
    """Singular values of the unfoldings of a tensor, and the ranks they suggest.

    Attributes
    ----------
    shape
        Sizes of the tensor's modes.
    values
        Singular values of the unfolding of each mode looked at, largest first, float64.
    floor
        Singular values up to this share of the first are rounding.

    Examples
    --------
    >>> import numpy as np
    >>> s = ranks(np.diag([3.0, 2.0, 1e-4]), names="out in")
    >>> s.energy(0.99), s.above(0.5), round(s.stable["out"], 3)
    ({'out': 2, 'in': 2}, {'out': 2, 'in': 2}, 1.444)
    """

    shape: tuple[int, ...]
    values: Mapping[str, np.ndarray]
    floor: float = 1e-14

    def __repr__(self) -> str:
        lengths = [len(s) for s in self.values.values()]
        return brief("Spectra", "singular values of " + brief_modes(list(self.values), lengths))

    @property
    def stable(self) -> dict[str, float]:
        """Stable rank of every unfolding; see `stable_rank`."""
        return {mode: stable_rank(s) for mode, s in self.values.items()}

    @property
    def entropy(self) -> dict[str, float]:
        """Entropy rank of every unfolding; see `entropy_rank`."""
        return {mode: entropy_rank(s) for mode, s in self.values.items()}

    def above(self, share: float) -> dict[str, int]:
        """How many singular values are at least `share` of the first."""
        return self._each(lambda s, _: int(np.sum(s >= (1 - _TIE) * share * s[0])))

    def energy(self, share: float) -> dict[str, int]:
        """The smallest ranks that keep `share` of the energy ``Σ σ²`` of each unfolding.

        Squared, the relative error of a Tucker tensor of these ranks is at most the number of
        modes times ``1 - share`` ([delathauwer2000svd]).
        """
        return self._each(lambda s, _: _enough(s, share))

    @property
    def noise(self) -> dict[str, int]:
        """How many singular values stand out of the noise bulk; see `noise_edge`."""
        return self._each(lambda s, n: self._standing_out(s, noise_edge(s, n)))

    @property
    def denoised(self) -> dict[str, int]:
        """How many singular values are worth keeping to denoise; see `denoising_threshold`."""
        return self._each(lambda s, n: self._standing_out(s, denoising_threshold(s, n)))

    @property
    def choices(self) -> dict[str, dict[str, int]]:
        """Rank of every mode by every rule, 1 at least: ``tucker(x, rank=choices["noise"])``.

        ``"stable"`` and ``"entropy"`` are rounded up; ``"energy 0.9"``, ``"energy 0.99"`` keep that
        share of the energy, ``"above 0.01"`` what reaches 1 % of the largest singular value.
        """
        rules: dict[str, Mapping[str, float]] = {
            "stable": self.stable,
            "entropy": self.entropy,
            "energy 0.9": self.energy(0.9),
            "energy 0.99": self.energy(0.99),
            "above 0.01": self.above(0.01),
            "noise": self.noise,
            "denoised": self.denoised,
        }
        return {
            rule: {mode: max(1, math.ceil(r - 1e-9)) for mode, r in of.items()}
            for rule, of in rules.items()
        }

    def _standing_out(self, s: np.ndarray, edge: float) -> int:
        """How many singular values are above an edge and more than rounding."""
        return int(np.sum(s > max(edge, self.floor * float(s[0]))))

    def _each(self, rule: Callable[[np.ndarray, int], int]) -> dict[str, int]:
        """Rule applied to the spectrum of each mode and the longer side of its unfolding."""
        numbers = math.prod(self.shape)
        found = {}
        for mode, s in self.values.items():
            found[mode] = rule(s, numbers // len(s)) if s[0] > 0 else 0
        return found


def ranks(
    x: Input,
    *,
    modes: Sequence[str | int] | None = None,
    names: str | Sequence[str] | None = None,
    progress: Progress = silent,
) -> Spectra:
    """Spectra of the unfoldings of `x`, effective ranks, and what each rule would choose.

    Parameters
    ----------
    x
        Array, `Stack` (loaded whole), or any format: then the spectra are those of the core of
        `tdecomp.formats.to_tucker`, with the zeros that the dense tensor would add; it is never
        formed.
    modes
        Modes to look at, all by default.
    names
        Mode names of an array.
    progress
        Called with the fraction of the work done.

    Returns
    -------
    Spectra
        One spectrum per mode; its properties are the rules.

    Raises
    ------
    ArgumentError
        An unknown mode, or `names` for a format.
    DataError
        NaN, Inf or an empty mode.

    Notes
    -----
    Singular values of float32 data are good to about 1e-7 of the largest. A Gram matrix per mode.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> signal = 60 * np.einsum("ir,jr,kr->ijk", *(np.linalg.qr(rng.standard_normal((n, 2)))[0]
    ...                                            for n in (20, 30, 25)))
    >>> found = ranks(signal + rng.standard_normal((20, 30, 25)), names="layer out in")
    >>> found.choices["noise"]
    {'layer': 2, 'out': 2, 'in': 2}
    """
    check_shape(x)
    if isinstance(x, Format) and names is not None:
        raise ArgumentError(f"names={names!r} is for arrays: a format names its modes itself")
    present = mode_names(x, names)
    where = positions(present, present if modes is None else modes)
    with at_work(x):
        array, values = dense(format_frame(x)[0] if isinstance(x, Format) else x), {}
        shape = tuple(int(n) for n in x.shape)
        for i, k in enumerate(where):
            s = to_numpy(left_basis(array, k)[1]).astype(np.float64)
            short = min(shape[k], max(1, math.prod(shape) // shape[k]))
            values[present[k]] = np.pad(s, (0, short - len(s)))
            progress((i + 1) / len(where))
    return Spectra(shape, values, floor(array.dtype))


def stable_rank(s: np.ndarray) -> float:
    """``Σ σ² / σ₁²``: at most the rank, insensitive to small singular values; 0 for a zero matrix.

    >>> stable_rank(np.array([2.0, 2.0, 1.0]))
    2.25
    """
    if s[0] == 0:
        return 0.0
    return float(np.sum((s / s[0]) ** 2))


def entropy_rank(s: np.ndarray) -> float:
    """``exp(H(p))`` with ``p = σ² / Σ σ²`` and the Shannon entropy H; 0 for a zero matrix.

    The effective rank of [roy2007], of the squared singular values where the paper has the values
    themselves: shares of the energy, as everywhere here. Between 1 and the rank, which it reaches
    when all singular values are equal.

    >>> round(entropy_rank(np.array([2.0, 2.0, 0.0])), 9)
    2.0
    """
    if s[0] == 0:
        return 0.0
    p = (s / s[0]) ** 2
    p = p[p > 0] / p.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def noise_level(s: np.ndarray, long: int) -> float:
    """Standard deviation of the entries of white noise, from the median singular value.

    ``median(σ) / √(long · μ)`` with the median μ of the Marchenko-Pastur law of ``short / long``
    ([gavish2014], the estimate for unknown noise).

    Parameters
    ----------
    s
        All singular values of a matrix, ``(short,)``.
    long
        Its longer side.

    Notes
    -----
    Right when fewer than half of the singular values are signal and the noise is independent with
    one variance: a handful of values, or a spectrum without a bulk, say nothing about noise.
    """
    if not 0 < len(s) <= long:
        raise ArgumentError(f"{len(s)} singular values cannot belong to a matrix of side {long}")
    return float(np.median(s)) / math.sqrt(long * _median(len(s) / long))


def noise_edge(s: np.ndarray, long: int) -> float:
    """Largest singular value that white noise of the estimated level would have.

    ``σ̂ (√long + √short)``, the upper edge of the bulk ([marchenko1967]) with σ̂ of `noise_level`.
    The largest of pure noise scatters around the edge by about ``short^(-2/3)`` of it, so one value
    close above it may still be noise.
    """
    return noise_level(s, long) * (math.sqrt(long) + math.sqrt(len(s)))


def denoising_threshold(s: np.ndarray, long: int) -> float:
    """Cut of the singular values that is best for the error against the signal without its noise.

    ``λ(β) √long σ̂`` with ``β = short / long`` and
    ``λ(β)² = 2(β + 1) + 8β / (β + 1 + √(β² + 14β + 1))``, 4/√3 for square matrices ([gavish2014]):
    above the edge of the bulk, because directions that barely stand out are mostly noise.
    """
    beta = len(s) / long
    square = 2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1))
    return math.sqrt(square * long) * noise_level(s, long)


def _median(beta: float) -> float:
    """Median of the Marchenko-Pastur law, ``0 < beta ≤ 1``.

    The density is integrated over the angle of ``λ = 1 + β + 2√β cos θ``, where it is smooth.
    """
    theta = (np.arange(_POINTS) + 0.5) * (np.pi / _POINTS)
    values = 1 + beta + 2 * math.sqrt(beta) * np.cos(theta)  # falling
    mass = np.cumsum(np.sin(theta) ** 2 / values)
    ends = 1 + beta + 2 * math.sqrt(beta) * np.cos(theta + np.pi / (2 * _POINTS))
    return float(np.interp(0.5, mass / mass[-1], ends))


def _enough(s: np.ndarray, share: float) -> int:
    energy = (s / s[0]) ** 2
    tails = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
    return int(np.argmax(tails <= (1 - share) * (1 + _TIE) * tails[0]))
