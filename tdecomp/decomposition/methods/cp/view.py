"""A tensor as the sweeps of CP see it, and the fit of what they find to the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tdecomp._xp import Array, double, namespace, sum_of_squares
from tdecomp.decomposition.entries import weighted_fit
from tdecomp.decomposition.fit import Fit, Rounding, Trace, make_fit
from tdecomp.decomposition.methods.cp.frontier import reach
from tdecomp.decomposition.methods.cp.nonnegative import solve_nonnegative
from tdecomp.decomposition.methods.cp.solve import (
    SHORT,
    CPIteration,
    Spectra,
    components_of,
    cp_tensor,
    solve_cp,
)
from tdecomp.decomposition.methods.cp.sweeps import Components
from tdecomp.formats import CP, Format
from tdecomp.passes.coordinates import Frame
from tdecomp.passes.data import Data
from tdecomp.passes.slices import dense
from tdecomp.passes.stream import Stream
from tdecomp.progress import Progress, silent

__all__ = ["CPView"]


@dataclass(frozen=True, kw_only=True)
class CPView:
    """One tensor in the coordinates it is fitted in.

    Attributes
    ----------
    x
        The data.
    array, frame
        Their dense coordinates, and the way back.
    start
        A format to begin from, in the coordinates.
    iteration, nonnegative, rounding
        As asked for.
    stream
        The sketch that a large stack is seen through.
    """

    x: Data[Any]
    array: Array
    frame: Frame
    start: Format | None
    iteration: CPIteration
    nonnegative: bool
    rounding: Rounding | None
    stream: Stream | None = None

    @property
    def most(self) -> int:
        """A rank that is enough."""
        return reach(tuple(self.array.shape))

    @cached_property
    def energy(self) -> float:
        """Squared norm of the coordinates, of the weighted entries where there are weights."""
        entries = self.iteration.entries
        if entries is None:
            return sum_of_squares(self.array)
        return sum_of_squares(double(self.array) * namespace(entries).sqrt(entries))

    @property
    def whole_energy(self) -> float:
        """The same with what a sketch leaves out."""
        return self.energy + self.iteration.outside

    def solve(
        self, rank: int, smaller: Fit | None, known: Spectra | None, progress: Progress
    ) -> Fit:
        """Best CP of this rank found, from a smaller one if there is one.

        `known` are singular values of the unfoldings from an earlier look.
        """
        if self.nonnegative and rank > 0 and self.energy > 0:
            given = self._warm(rank, None) if self.start is not None else None
            found, trace = solve_nonnegative(self.array, rank, given, self.iteration, progress)
            seen = {}
        else:
            warm = self._warm(rank, smaller)
            found, trace, seen = solve_cp(self.array, rank, warm, self.iteration, progress)
        spectra = {self.x.modes[k]: s for k, s in sorted((seen | (known or {})).items())}
        return self._fit(self._lifted(found), trace, spectra)

    def _lifted(self, found: Components) -> CP:
        lift = self.frame.lift
        factors = [double(lift[k]) @ f if k in lift else f for k, f in enumerate(found.factors)]
        lifted = Components(found.weights, tuple(factors))
        return cp_tensor(self.x.modes, lifted, self.array.dtype)

    def _fit(self, tensor: CP, trace: Trace, spectra: Mapping[str, np.ndarray]) -> Fit:
        entries, stream = self.iteration.entries, self.stream
        if entries is not None:
            return weighted_fit(self.array, entries, tensor, self.rounding, trace, spectra)
        return make_fit(
            self.x,
            tensor,
            rounding=self.rounding,
            spectra=spectra,
            trace=trace,
            seen=(self.array, self.frame),
            svd="sketch, exact" if stream else "exact",
            passes=(stream.passes if stream else 1) + 1,
            energies=stream.energies if stream else None,
        )

    def _warm(self, rank: int, smaller: Fit | None) -> Components | None:
        """Components to begin from, in the coordinates."""
        if smaller is not None:
            tensor = smaller.tensor
            return _components(self.frame.down(tensor) if self.frame else tensor)
        if isinstance(self.start, CP):
            return _components(self.start)
        if self.start is not None:
            short = replace(
                self.iteration,
                n_iter_max=SHORT,
                n_on_core=SHORT,
                n_restarts=1,
                entries=None,
                tries=False,
            )
            return solve_cp(dense(self.start.to_dense()), rank, None, short, silent)[0]
        return None


def _components(tensor: Format) -> Components:
    assert isinstance(tensor, CP)
    return components_of(tensor)
