"""One tensor and the network that is to come near it: from the data to arrays and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tdecomp._xp import Array, double, namespace
from tdecomp.decomposition.checks import check_real
from tdecomp.decomposition.fit import Trace
from tdecomp.decomposition.methods.network.parse import Ansatz
from tdecomp.decomposition.methods.network.problem import Problem
from tdecomp.decomposition.methods.network.skeleton import Skeleton
from tdecomp.decomposition.methods.network.solve import NetworkIteration, solve_network
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format, Network, Sum
from tdecomp.modes import Equation, flatten
from tdecomp.passes.coordinates import Frame
from tdecomp.passes.slices import dense
from tdecomp.progress import Progress

__all__ = ["Task"]

_SMALL = 1 << 22  # numbers up to which the data are widened to float64


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything but the sizes of the ranks.

    Attributes
    ----------
    skeleton
        The equation and all sizes that are known.
    array, frame
        The data in their coordinates and working precision, and the way back.
    kept
        Frozen arrays as given, ones included, by position.
    """

    skeleton: Skeleton
    array: Array
    frame: Frame
    kept: Mapping[int, Array]

    @classmethod
    def of(cls, skeleton: Skeleton, array: Array, frame: Frame) -> Task:
        """The task, with all arrays checked against the data."""
        for a in skeleton.frozen.values():
            namespace(array, a)
            check_real(dense(a), "als")
        xp, made = namespace(array), {"dtype": array.dtype, "device": array.device}
        ansatz, kept = skeleton.ansatz, dict(skeleton.frozen)
        for k, term in enumerate(ansatz.terms):
            if k not in ansatz.written:
                kept[k] = xp.ones((skeleton.sizes[term[0]],), **made)
        return cls(skeleton=skeleton, array=array, frame=frame, kept=kept)

    @property
    def ansatz(self) -> Ansatz:
        """The equation."""
        return self.skeleton.ansatz

    def solve(
        self,
        ranks: Mapping[str, int],
        given: Format | None,
        smaller: Format | None,
        iteration: NetworkIteration,
        progress: Progress,
    ) -> tuple[Format, Trace]:
        """A network or a sum of them in the precision of the data, and how it was found.

        The first start is `given`; `smaller`, of smaller ranks, is one start more.
        """
        scale = self._scale()
        problem = self._problem(ranks, scale)
        starts = [None if start is None else self._tensors(start) for start in (given, smaller)]
        if starts[0] is not None:
            self._check_given(starts[0], problem)
        scaled = [self._scaled(arrays, problem, scale) for arrays in starts]
        found = solve_network(problem, scaled[0], scaled[1], iteration, progress)
        powers, dtype = self._powers(scale), self.array.dtype
        xp = namespace(self.array)
        arrays = [
            xp.astype(a * powers[k] if k in powers else self.kept[k], dtype, copy=False)
            for k, a in enumerate(found.arrays)
        ]
        trace = Trace(found.errors, found.converged, found.reason)
        return self.frame.up(self._format(arrays)), trace

    def nothing(self, ranks: Mapping[str, int]) -> Format:
        """The network of letters of size 0."""
        known, xp = {**self.skeleton.sizes, **ranks}, namespace(self.array)
        made = {"dtype": self.array.dtype, "device": self.array.device}
        shapes = [tuple(known[n] for n in term) for term in self.ansatz.terms]
        return self.frame.up(self._format([xp.zeros(shape, **made) for shape in shapes]))

    def _problem(self, ranks: Mapping[str, int], scale: float) -> Problem:
        """The data and the frozen arrays in float64, scaled to a largest entry of 1."""
        sizes, output = {**self.skeleton.sizes, **ranks}, flatten(self.ansatz.output)
        self._check_tied(sizes)
        x = namespace(self.array).reshape(self.array, tuple(sizes[n] for n in output))
        if math.prod(x.shape) <= _SMALL:
            x = double(x)
        return Problem(
            self.ansatz.terms,
            self.ansatz.blocks,
            output,
            sizes,
            self.skeleton.groups,
            {k: double(a) / (scale if self._carries(k) else 1.0) for k, a in self.kept.items()},
            x / scale,
        )

    def _scaled(
        self, arrays: Sequence[Array] | None, problem: Problem, scale: float
    ) -> list[Array] | None:
        """A start for the scaled data."""
        if arrays is None:
            return None
        powers = self._powers(scale)
        return [
            double(a) / powers[k] if k in powers else problem.frozen[k]
            for k, a in enumerate(arrays)
        ]

    def _scale(self) -> float:
        """Largest entry of the data; 1 where tied arrays of different addends forbid scaling."""
        largest = float(namespace(self.array).max(namespace(self.array).abs(self.array)))
        groups = self.skeleton.groups
        crossing = any(len({self._n_free(k) for k in group}) > 1 for group in groups)
        return 1.0 if crossing or largest == 0 else largest

    def _powers(self, scale: float) -> dict[int, float]:
        """What each free array is multiplied by when the data are multiplied by `scale`."""
        free = [k for group in self.skeleton.groups for k in group]
        return {k: scale ** (1 / self._n_free(k)) for k in free}

    def _block(self, k: int) -> tuple[int, ...]:
        return next(block for block in self.ansatz.blocks if k in block)

    def _n_free(self, k: int) -> int:
        return sum(j not in self.kept for j in self._block(k))

    def _carries(self, k: int) -> bool:
        """Whether a frozen array carries the scale: the first of an addend that has only those."""
        return self._n_free(k) == 0 and k == self._block(k)[0]

    def _tensors(self, start: Format) -> list[Array]:
        """Arrays of a network or sum of networks of this equation, in the coordinates."""
        networks = start._summands()
        wanted = [Equation(e.terms, e.output) for e in self.ansatz.addends]
        if [n.equation for n in networks] != wanted:
            told = " + ".join(str(n.equation) for n in networks)
            raise ArgumentError(f"init '{told}' is not a Network of the equation '{self.ansatz}'")
        lowered = [self.frame.down(network) for network in networks]
        return [a for network in lowered for a in network.arrays.values()]

    def _format(self, arrays: Sequence[Array]) -> Format:
        networks = tuple(
            Network(equation, tuple(arrays[k] for k in block))
            for equation, block in zip(self.ansatz.addends, self.ansatz.blocks, strict=True)
        )
        return networks[0] if len(networks) == 1 else Sum(networks)

    def _check_tied(self, sizes: Mapping[str, int]) -> None:
        for group in self.skeleton.groups:
            shapes = {k: tuple(sizes[n] for n in self.ansatz.terms[k]) for k in group}
            if len(set(shapes.values())) > 1:
                told = ", ".join(
                    f"'{' '.join(self.ansatz.terms[k])}' {s}" for k, s in shapes.items()
                )
                raise ArgumentError(f"tied terms must have one shape, got {told}")

    def _check_given(self, given: Sequence[Array], problem: Problem) -> None:
        for k, a in enumerate(given):
            namespace(self.array, a)
            check_real(dense(a), "als")
            if tuple(a.shape) != problem.shape(k):
                raise ArgumentError(
                    f"init has an array of shape {tuple(a.shape)} for the term"
                    f" '{' '.join(problem.terms[k])}' of shape {problem.shape(k)}"
                )
        for group in problem.groups:
            xp = namespace(given[group[0]])
            if any(bool(xp.any(given[k] != given[group[0]])) for k in group[1:]):
                raise ArgumentError("init has different arrays for terms that are tied")
