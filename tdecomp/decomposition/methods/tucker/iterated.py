"""Bases that are improved sweep by sweep, for all entries or for those that count."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tdecomp._xp import Array, namespace
from tdecomp.decomposition.checks import check_sweeps, is_one_of, seed_of
from tdecomp.decomposition.entries import checked_weights, observed, weighted_fit
from tdecomp.decomposition.fit import Fit, Trace
from tdecomp.decomposition.method import Analysis, Choice
from tdecomp.decomposition.methods.tucker.hooi import format_bases, hooi, random_bases
from tdecomp.decomposition.methods.tucker.hosvd import Bases, truncated_bases
from tdecomp.decomposition.methods.tucker.masked import weighted_hooi
from tdecomp.decomposition.methods.tucker.method import CoreAndBases, FullHosvd
from tdecomp.decomposition.methods.tucker.view import CoreView
from tdecomp.decomposition.which import Which
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format
from tdecomp.passes.data import Data
from tdecomp.progress import Progress, part

__all__ = ["Init", "Iterated"]

Init = Literal["hosvd", "random"] | Format


@dataclass(frozen=True, kw_only=True)
class Iterated(CoreAndBases):
    """A core and bases by higher-order orthogonal iteration; see `tucker` for the options."""

    n_iter_max: int = 10
    tol: float = 1e-4
    init: Init = "hosvd"
    random_state: int | np.random.Generator | None = None
    weights: Array | None = None

    def __post_init__(self):
        if not isinstance(self.init, Format) and not is_one_of(self.init, ("hosvd", "random")):
            raise ArgumentError(f"init={self.init!r} must be 'hosvd', 'random' or a format")
        check_sweeps(self.n_iter_max, self.tol)
        super().__post_init__()
        if self.weights is not None and self.metric is not None:
            raise ArgumentError("weights of the entries and a metric cannot be combined")
        _ = self._seed  # drawn once, and refused here

    @cached_property
    def _seed(self) -> int:
        return seed_of(self.random_state)

    @property
    def seed_of_sketch(self) -> int | None:
        """The seed given, where the sweeps start from an HOSVD."""
        return self._seed if self.init == "hosvd" else None

    def look(
        self, x: Data[Any], width: int, progress: Progress, passes: int = 0
    ) -> Analysis[FullHosvd]:
        """Spectra of all modes, down to `width` where a sketch is worth it."""
        if self.weights is not None:
            raise ArgumentError(
                "weights need rank=: the spectra of an incomplete tensor are not known"
            )
        if self.init != "hosvd":
            raise ArgumentError(
                f"init={self.init!r} needs rank=: error and budget start from HOSVD"
            )
        return self._looked(x, width, progress, passes)

    def fit(self, x: Data[Any], choice: Choice, state: FullHosvd | None, progress: Progress) -> Fit:
        """Factors of the given ranks, for all entries or for the weighted ones."""
        if self.weights is None:
            return self._fitted(x, choice, state, progress)
        return self._weighted(x, self.weights, self._ranked(x, choice), progress)

    def start(
        self, view: CoreView, rank: dict[int, int], which: Which, progress: Progress
    ) -> tuple[Bases, dict[int, np.ndarray]]:
        """Bases of random subspaces, of a format, or of an HOSVD."""
        if self.init == "random":
            rng = np.random.default_rng(seed_of(self.random_state))
            return random_bases(view.array, rank, rng), {}
        if isinstance(self.init, Format):
            return format_bases(view.array, self.init, rank, view.frame), {}
        return truncated_bases(view.array, rank, which, progress)

    def improve(self, view: CoreView, bases: Bases, progress: Progress) -> tuple[Bases, Trace]:
        """Sweep over the modes until the error settles."""
        return hooi(view.array, bases, self.n_iter_max, self.tol, progress, view.energy)

    def _weighted(
        self, x: Data[Any], weights: Array, rank: dict[int, int], progress: Progress
    ) -> Fit:
        """Factors for the entries that count: what is not observed is filled in sweep by sweep."""
        if x.is_format:
            raise ArgumentError("weights of the entries need an array or a stack, not a format")
        entries = checked_weights(weights, x.given)
        array = observed(x.given, entries)
        bases, _ = self.start(CoreView(array=array), rank, Which(self.svd), part(progress, 0, 0.2))
        core, bases, trace = weighted_hooi(
            array, entries, bases, self.n_iter_max, self.tol, part(progress, 0.2, 0.9)
        )
        xp, dtype = namespace(array), array.dtype  # the sweeps are in float64
        bases = {k: xp.astype(u, dtype) for k, u in bases.items()}
        tensor = self.build(x.modes, xp.astype(core, dtype), bases)
        return weighted_fit(array, entries, tensor, self.rounding, trace, {})
