"""Fit of any network: closed form for trees, alternating least squares and Newton for the rest."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tdecomp._xp import Array, floor, sum_of_squares
from tdecomp.decomposition.checks import check_iteration, check_real, is_one_of, seed_of
from tdecomp.decomposition.fit import Fit, Rounding, Trace, make_fit
from tdecomp.decomposition.method import Analysis, Choice, Method, Share
from tdecomp.decomposition.methods.network.frontier import network_frontier
from tdecomp.decomposition.methods.network.parse import Ansatz, parse, positions_of
from tdecomp.decomposition.methods.network.skeleton import Skeleton
from tdecomp.decomposition.methods.network.solve import NetworkIteration
from tdecomp.decomposition.methods.network.task import Task
from tdecomp.decomposition.rank_search import search_rank
from tdecomp.decomposition.run import run_one
from tdecomp.errors import ArgumentError, DataError
from tdecomp.formats import Format
from tdecomp.modes import Axis, Equation
from tdecomp.passes.data import Data
from tdecomp.passes.slices import Input
from tdecomp.progress import Progress, part, silent
from tdecomp.ranking.target import Target

__all__ = ["NetworkMethod", "als"]

Init = Literal["auto", "random"] | Format


def als(
    x: Input,
    equation: str | Equation,
    *,
    rank: int | Mapping[str, int] | None = None,
    error: float | None = None,
    budget: int | None = None,
    free: str | None = None,
    sizes: Mapping[str, int] | None = None,
    frozen: Mapping[int, Array] | None = None,
    tied: Iterable[Sequence[int]] = (),
    init: Init = "auto",
    n_iter_max: int = 200,
    tol: float = 1e-8,
    ridge: float = 0.0,
    n_restarts: int = 1,
    newton: bool = True,
    random_state: int | np.random.Generator | None = None,
    rank_max: int = 64,
    rounding: Rounding | None = None,
    progress: Progress = silent,
) -> Fit:
    """Fit of any einsum over named modes: ``X ≈ Σ_addends Σ_ranks A_1[..] A_2[..] ...``.

    Names in the output are modes, all others ranks; a name may stand in any number of terms. What
    is done depends on the equation:

    - A tree (every rank in two terms, every mode in one, no cycle; modes that all terms have only
      repeat the problem) gets a truncated SVD per bond: LoRA, LoTR, Tucker, TT, MPO, and Kronecker
      products ([vanloan1993], by rearrangement). This is optimal for one or two terms, and
      exact on data that are such a network; else sweeps follow.
    - One rank in all terms (CP, LoRTA) starts from `cp`; the entrywise product of two low-rank
      matrices (LoHa) from its column space, by linear algebra if ``out`` or ``in`` has
      ``r(r+1)s(s+1)/4`` or more entries, also where one of the two is the same in all slices; a
      factor that scales entries (VeRA vectors, gates) from eigenvectors, the rest from a closed
      form; a sum from its addends one by one; everything else from the best of eight short random
      starts.
    - Then alternating least squares, each factor in turn the minimiser given the others, and
      Levenberg-Marquardt steps ([marquardt1963]) in all factors at once. Random starts of small
      problems and problems with tied factors get only the latter.

    Parameters
    ----------
    x
        Real array, or a `Stack` (loaded whole), or any format, whose modes are those of the output
        in order: it is fitted in orthonormal coordinates of every mode that a single term carries.
    equation
        ``"out r, layer r s, s in -> layer out in"``; the output names the axes of `x` in order,
        and may split them, ``(o1 o2)``. Several addends are joined by ``+``:
        ``"out r, r in + out a, layer a b, b in -> layer out in"``; an addend without an output
        mode is constant along it, and its network holds a vector of ones for that mode. A letter
        in two addends has one size and is summed separately.
    rank
        Size of the rank letters that neither `sizes` nor `frozen` fixes: one for all (cut where a
        letter between two terms cannot use it), or by letter (kept as given; what is too large is
        filled with zeros by the closed form). ``{}`` for an equation without ranks.
    error
        Relative Frobenius error, met by the returned factors: the size of `free` is doubled from
        1, then bisected. It is small, not proven smallest. One start of every size is the fit of
        the smaller one, so that a larger size is never worse. Zeros get size 0, where that stores
        nothing.
    budget
        Numbers to store, at most (frozen, tied and ones arrays counted as they stand in the
        network): the largest size of `free` that fits and is of use.
    free
        The letter that `error` or `budget` chooses; default the only one without a size.
    sizes
        Of split modes, ``{"o1": 8}`` (one part of each axis may be left out), and of rank letters.
    frozen
        Arrays that stay as they are, by the position of their term: 0-based, over all addends.
    tied
        Groups of positions of terms that hold one and the same array, of the same shape.
    init
        ``"auto"``, ``"random"``, or a `Network` (a `Sum` of them) of this equation and these sizes.
    n_iter_max, tol
        Sweeps at most (and Newton steps at most), and the relative change of the error at which
        they stop.
    ridge
        Pull of each update towards the factor it replaces, relative to the largest eigenvalue of
        the normal equations; at least 1e-12. It slows the iteration, its limit is the same
        ([li2013rals]).
    n_restarts
        Number of starts for equations that are no tree: the first as `init` says, the others
        random; the best wins, and an exact one ends the search.
    newton
        Whether Levenberg-Marquardt steps in all factors may follow the sweeps. They cost far more
        than sweeps and pay where those creep; False leaves them out.
    random_state
        Seed or generator; None is seed 0.
    rank_max
        Largest size of `free` that the search for `error` may try.
    rounding
        Applied to every array before the error is measured (storage precision).
    progress
        Called with the fraction of the work done.

    Returns
    -------
    Fit
        With a `Network`, or a `Sum` of one network per addend, in the library and working
        precision of `x`. `trace.reason` says which path led to it.

    Raises
    ------
    ArgumentError
        An equation, rank, size, frozen or tied term that cannot be honoured; the text says why.
    NotReached
        The error was not met up to `rank_max`; its `best` is the closest Fit.
    DataError
        NaN, Inf, complex entries, an empty mode, an order other than that of the output.

    Notes
    -----
    The error of sweeps and steps never rises. Trees apart, the global optimum is not guaranteed,
    and a best approximation need not exist (CP: [desilva2008]); from random starts, scales and
    entrywise products end in local minima more often than not. A sweep
    costs two contractions of the size of `x` per factor; two copies of `x` are kept. Up to 4
    million numbers all is float64; beyond, products with `x` stay in its precision. Newton steps
    are taken for up to 260 000 numbers, beyond that only where the Jacobian has at most 20 million.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> out, core, in_ = (rng.standard_normal(n) for n in ((6, 2), (3, 2, 2), (2, 5)))
    >>> fit = als(out @ core @ in_, "out r, layer r s, s in -> layer out in", rank=2)
    >>> fit.tensor.rank, fit.n_params, fit.error < 1e-12
    ((2, 2), 34, True)
    """
    method = NetworkMethod(
        equation=equation,
        free=free,
        sizes=sizes,
        frozen=frozen,
        tied=tied,
        init=init,
        n_iter_max=n_iter_max,
        tol=tol,
        ridge=ridge,
        n_restarts=n_restarts,
        newton=newton,
        random_state=random_state,
        rank_max=rank_max,
        rounding=rounding,
    )
    return run_one(method, x, Target(rank, error, budget), progress)


@dataclass(frozen=True, kw_only=True)
class NetworkMethod(Method[None]):
    """Any einsum over named modes: trees in closed form, the rest by alternating least squares.

    Over several inputs an error is divided by what singular values promise: those of the data
    unfolded between the terms that have a mode and all others, of which the letters between them
    bound the rank. Each share is then met by a search of its own. A budget is divided the same way,
    and each share is kept. Both divisions are estimates, exact for two free terms.
    """

    equation: str | Equation
    free: str | None = None
    sizes: Mapping[str, int] | None = None
    frozen: Mapping[int, Array] | None = None
    tied: Iterable[Sequence[int]] = ()
    init: Init = "auto"
    n_iter_max: int = 200
    tol: float = 1e-8
    ridge: float = 0.0
    n_restarts: int = 1
    newton: bool = True
    random_state: int | np.random.Generator | None = None
    rank_max: int = 64

    def __post_init__(self):
        check_iteration(
            counts={
                "n_iter_max": self.n_iter_max,
                "n_restarts": self.n_restarts,
                "rank_max": self.rank_max,
            },
            amounts={"tol": self.tol, "ridge": self.ridge},
        )
        if self.names is not None:
            raise ArgumentError(
                f"names={self.names!r}: the output of the equation names the axes, leave names out"
            )
        if not isinstance(self.init, Format) and not is_one_of(self.init, ("auto", "random")):
            raise ArgumentError(f"init={self.init!r} must be 'auto', 'random' or a Network")
        if self.tied and not self.newton:
            raise ArgumentError("tied terms are fitted by Newton steps: leave newton=False out")
        # a generator, of seeds or of groups, is read once: every rank and every input has the same
        object.__setattr__(self, "random_state", seed_of(self.random_state))
        object.__setattr__(self, "tied", tuple(map(tuple, self.tied)))
        for what, groups in (("frozen", [self.frozen or ()]), ("tied", self.tied)):
            for group in groups:
                positions_of(self.ansatz, group, what)

    @cached_property
    def ansatz(self) -> Ansatz:
        """The equation, read."""
        return parse(self.equation)

    @cached_property
    def iteration(self) -> NetworkIteration:
        """How to iterate, whatever the tensor."""
        return NetworkIteration(
            from_data=self.init == "auto",
            n_iter_max=self.n_iter_max,
            tol=self.tol,
            ridge=self.ridge,
            n_restarts=self.n_restarts,
            seed=seed_of(self.random_state),
            newton=self.newton,
        )

    def cut_sizes(self, x: Data[Any]) -> Sequence[int]:
        """No bound: a letter may be larger than every mode, `ranks` cuts it to what is of use."""
        if len(x.shape) != len(self.ansatz.output):
            raise DataError(
                f"{'a format' if x.is_format else 'an array'} of shape {x.shape} has"
                f" {len(x.shape)} modes, the output of '{self.ansatz}' has"
                f" {len(self.ansatz.output)}"
            )
        return [sys.maxsize]

    def ranks(self, x: Data[Any], target: Target) -> Choice:
        """Sizes of all letters that have none yet."""
        shape = x.shape  # an array is not loaded for that
        if x.is_format:
            shape = tuple(x.coordinates(self._opened(x))[0].shape)
        return [tuple(self._skeleton(x, shape).ranks(target.rank).values())]

    def look(self, x: Data[Any], width: int, progress: Progress, passes: int = 0) -> Analysis[None]:
        """What the size of the free letter promises, from singular values of the whole data."""
        del width
        task = self._task(x)
        letter = task.skeleton.free_letter(self.free)
        over = part(progress, 0.1, 1)
        return Analysis(
            frontiers=[network_frontier(task.skeleton, letter, task.array, over)],
            floor=floor(task.array.dtype),
            passes=passes + 1,
        )

    def fit(self, x: Data[Any], choice: Choice, state: None, progress: Progress) -> Fit:
        """The best network found, of letters of these sizes."""
        del state
        task = self._task(x)
        return self._fitted(
            x, task, dict(zip(task.skeleton.open, choice[0], strict=True)), progress
        )

    def spend(
        self, x: Data[Any], choice: Choice, share: Share, state: None, progress: Progress
    ) -> Fit:
        """The largest useful size within a budget; a small size that meets an error."""
        del state
        task = self._task(x)
        letter = task.skeleton.free_letter(self.free)
        if choice == [(0,)]:
            return self._nothing(x, task)
        if share.params is not None:
            size = task.skeleton.within(letter, share.params)
            return self._fitted(x, task, {letter: size}, progress)
        assert share.lost is not None
        energy, least = sum_of_squares(task.array), floor(task.array.dtype)
        return search_rank(
            lambda size, smaller: self._fitted(x, task, {letter: size}, silent, smaller),
            error=max(math.sqrt(share.lost / energy), least) if energy else least,
            most=min(self.rank_max, task.skeleton.reach(letter)),
            advice=f"raise rank_max={self.rank_max}, n_restarts or n_iter_max, or the error",
            progress=progress,
        )

    def _fitted(
        self,
        x: Data[Any],
        task: Task,
        ranks: Mapping[str, int],
        progress: Progress,
        smaller: Fit | None = None,
    ) -> Fit:
        given = self.init if isinstance(self.init, Format) else None
        below = None if smaller is None else smaller.tensor
        tensor, trace = task.solve(ranks, given, below, self.iteration, progress)
        return self._measured(x, task, tensor, trace)

    def _nothing(self, x: Data[Any], task: Task) -> Fit:
        """Letters of size 0, for data that are not worth size 1."""
        nothing = task.skeleton.nothing
        assert nothing is not None
        return self._measured(x, task, task.nothing(nothing), Trace())

    def _measured(self, x: Data[Any], task: Task, tensor: Format, trace: Trace) -> Fit:
        return make_fit(
            x, tensor, rounding=self.rounding, trace=trace, seen=(task.array, task.frame)
        )

    def _task(self, x: Data[Any]) -> Task:
        """The data in the coordinates that they are fitted in."""
        array, frame = x.coordinates(self._opened(x))
        check_real(array, "als")
        return Task.of(self._skeleton(x, tuple(array.shape)), array, frame)

    def _skeleton(self, x: Data[Any], shape: tuple[int, ...]) -> Skeleton:
        """All sizes that are known of data with coordinates of this shape."""
        frozen = self.frozen or {}
        places = positions_of(self.ansatz, frozen, "frozen")
        return Skeleton.of(
            self.ansatz,
            shape,
            x.shape,
            sizes=self.sizes or {},
            frozen=dict(zip(places, frozen.values(), strict=True)),
            tied=[positions_of(self.ansatz, group, "tied") for group in self.tied],
        )

    def _opened(self, x: Data[Any]) -> list[str]:
        """Modes that keep their size in the coordinates of a format.

        Those that several terms of an addend share, or none has, or a frozen one.
        """
        fixed = set(positions_of(self.ansatz, self.frozen or {}, "frozen"))
        free = {k for k in self.ansatz.written if k not in fixed}
        axes = zip(x.modes, self.ansatz.output, strict=True)
        return [mode for mode, axis in axes if not self._is_alone(axis, free)]

    def _is_alone(self, axis: Axis, free: set[int]) -> bool:
        """Whether one term of every addend has this axis, and is free."""
        terms = self.ansatz.terms
        having = [[k in free for k in block if axis in terms[k]] for block in self.ansatz.blocks]
        return all(found == [True] for found in having)
