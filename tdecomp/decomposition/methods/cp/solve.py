"""One CP tensor of a given rank: compress, alternate on the core, expand, polish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tdecomp._xp import Array, double, floor, namespace, sum_of_squares, to_numpy
from tdecomp._xp import tol as rounding_of
from tdecomp.decomposition.fit import Trace
from tdecomp.decomposition.methods.cp.starts import STARTS, StartError
from tdecomp.decomposition.methods.cp.sweeps import Components, als, dense_of
from tdecomp.decomposition.methods.tucker.hosvd import Bases, project, sequential_bases
from tdecomp.formats import CP
from tdecomp.linalg import truncated_svd
from tdecomp.progress import Progress, part, silent
from tdecomp.ranking.rounding import first_least

__all__ = ["SHORT", "CPIteration", "Spectra", "components_of", "cp_tensor", "solve_cp"]

SHORT = 10  # sweeps for a start: of another format, or of the components that one lacks
_SMALL = 1 << 22  # numbers up to which the whole tensor is widened to float64
_CHEAP = 1 << 18  # numbers, of a core times rank, up to which a sweep is mostly calls
_TRIES = 8  # short runs on a core whose sweeps are cheap
_TRIED = 40  # sweeps of each
_KEPT = 2  # of them that go on, where sweeps on the data are cheap as well
_ON_DATA = "hosvd, on the data from the beginning"
_LITTLE = 1e-3  # share of the squared error that is not worth looking for another start


@dataclass(frozen=True, kw_only=True)
class CPIteration:
    """How to iterate; see `cp`.

    Attributes
    ----------
    entries
        Weights of the entries, the largest 1.
    also
        Whether the start named `init` is tried beside the one that is given.
    outside
        Squared norm of what the tensor to fit lacks of the one to count errors by.
    n_on_core
        Sweeps on a core that loses something, before those on the data.
    fixed
        Modes whose columns stay those of the start that is given.
    tries
        Whether a start of our choice is the best of several where sweeps are cheap.
    """

    init: str
    n_iter_max: int
    tol: float
    ridge: float
    compress: bool
    line_search: bool
    n_restarts: int
    seed: int
    entries: Array | None = None
    also: bool = False
    outside: float = 0.0
    n_on_core: int = 100
    fixed: tuple[int, ...] = ()
    tries: bool = False


Spectra = dict[int, np.ndarray]
"""Singular values of the unfoldings looked at, by position of the mode."""


def _matrix(x: Array, rank: int) -> tuple[Components, Spectra]:
    """Truncated SVD of a tensor with at most two modes larger than 1."""
    xp = namespace(x)
    if len(x.shape) == 1:
        found, spectra = _matrix(x[:, None], rank)
        column, one = found.factors
        return Components(found.weights, (column * one,)), {0: spectra[0]}
    rows, columns = sorted(sorted(range(len(x.shape)), key=lambda k: -x.shape[k])[:2])
    u, s, vh = truncated_svd(xp.reshape(x, (x.shape[rows], x.shape[columns])), rank)
    one = xp.ones((1, rank), dtype=xp.float64, device=x.device)
    factors = {k: one for k in range(len(x.shape))} | {rows: double(u), columns: double(vh.T)}
    values = to_numpy(s).astype(np.float64)
    return Components(double(s), tuple(factors.values())), {rows: values, columns: values}


def solve_cp(
    x: Array, rank: int, warm: Components | None, iteration: CPIteration, progress: Progress
) -> tuple[Components, Trace, Spectra]:
    """CP from `warm` if given, else from the start `iteration.init`, and from restarts."""
    entries = iteration.entries
    if rank == 0:
        return _zero(x, rank), Trace(), {}
    if entries is None and not iteration.fixed and sum(n > 1 for n in x.shape) <= 2:
        found, spectra = _matrix(x, rank)
        return found, Trace(), spectra
    energy = sum_of_squares(x if entries is None else double(x) * namespace(x).sqrt(entries))
    energy += iteration.outside
    if energy == 0:
        return _zero(x, rank), Trace(), {}
    if warm is not None:
        warm = warm.strongest(rank)
        if warm.rank < rank:
            warm = _grown(x, rank, warm, iteration)
    core, bases, lost, spectra = _compressed(x, rank, warm, iteration.compress)
    problem = _Cored(
        x=x,
        core=core,
        bases=bases,
        lossless=lost <= energy * rounding_of(x.dtype, math.prod(x.shape)) ** 2,
        energy=energy,
        lost=lost,
        iteration=iteration,
    )
    tried = iteration.tries and warm is None and math.prod(core.shape) * rank <= _CHEAP
    if tried:
        many = replace(iteration, n_restarts=max(iteration.n_restarts, _TRIES))
        starts = _promising(problem, _starts(core, bases, rank, None, many))
    else:
        starts = _starts(core, bases, rank, warm, iteration)
    found, trace = _best_start(problem, starts, part(progress, 0.2 if tried else 0, 1))
    return found, trace, spectra


def _zero(x: Array, rank: int) -> Components:
    xp = namespace(x)
    made = {"dtype": xp.float64, "device": x.device}
    units = tuple(xp.ones((n, rank), **made) / math.sqrt(n) for n in x.shape)
    return Components(xp.zeros((rank,), **made), units)


def _grown(x: Array, rank: int, c: Components, iteration: CPIteration) -> Components:
    """`c` and further components, a short CP of what it leaves of `x`."""
    left = x - namespace(x).astype(dense_of(c), x.dtype)
    if iteration.entries is not None:
        left = namespace(x).where(iteration.entries > 0, left, 0 * left)
    short = replace(
        iteration,
        n_iter_max=SHORT,
        n_on_core=SHORT,
        n_restarts=1,
        also=False,
        outside=0.0,
        tries=False,
    )
    more, _, _ = solve_cp(left, rank - c.rank, None, short, silent)
    return c.joined(more)


def _compressed(
    x: Array, rank: int, kept: Components | None, compress: bool
) -> tuple[Array, Bases, float, Spectra]:
    """The core, bases of the modes that are larger than the rank, and the energy they cut off.

    The span of `kept` is added to the bases, so that it loses nothing; the energy is then an upper
    bound.
    """
    width = rank if kept is None else rank + kept.rank
    numbers = math.prod(x.shape)
    large = {k: min(rank, numbers // n) for k, n in enumerate(x.shape) if n > width}
    if not compress or not large:
        return _widened(x), {}, 0.0, {}
    xp = namespace(x)
    bases, spectra = sequential_bases(x, large)
    tails = [s[large[k] :].astype(np.float64) for k, s in spectra.items()]
    lost = math.fsum(float(np.sum(tail**2)) for tail in tails)
    if kept is not None:
        for k, u in bases.items():
            both = xp.concat([u, xp.astype(kept.factors[k], u.dtype)], axis=1)
            bases[k] = xp.linalg.qr(both, mode="reduced")[0]
    return double(project(x, bases)), bases, lost, spectra


def _widened(x: Array) -> Array:
    return double(x) if math.prod(x.shape) <= _SMALL else x


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cored:
    """A tensor and its core.

    Attributes
    ----------
    x, core, bases
        The core is `x` in the bases.
    lossless
        Whether the core loses nothing but rounding: then sweeps on it are sweeps on the data.
    energy, lost
        Squared norm to count errors by, and of what the core lacks of `x`.
    """

    x: Array
    core: Array
    bases: Bases
    lossless: bool
    energy: float
    lost: float
    iteration: CPIteration

    def solved(
        self, start: Components, progress: Progress, *, on_core: bool = True
    ) -> tuple[Components, float, Trace]:
        """The components that one start leads to, and their squared error on the data.

        On a core that loses something sweeps only come close, as many whatever was asked for; those
        that were follow on the data, so that more of them are never worse.
        """
        n = self.iteration.n_iter_max
        found, residual, trace = self.swept(
            self.core,
            start,
            n if self.lossless else self.iteration.n_on_core * on_core,
            self.lost + self.iteration.outside,
            part(progress, 0, 1 if self.lossless else 0.3),
        )
        found = Components(
            found.weights,
            tuple(
                double(self.bases[k]) @ f if k in self.bases else f
                for k, f in enumerate(found.factors)
            ),
        )
        if self.lossless:
            return found, residual, trace
        outside, rest = self.iteration.outside, part(progress, 0.3, 1)
        found, residual, last = self.swept(_widened(self.x), found, n, outside, rest)
        reason = f"{last.reason}; before that, on the core: {trace.reason}"
        return found, residual, Trace(trace.errors + last.errors, last.converged, reason)

    def swept(
        self, x: Array, start: Components, n_iter_max: int, lost: float, progress: Progress
    ) -> tuple[Components, float, Trace]:
        """Sweeps on the tensor or its core, which lacks `lost`."""
        return als(
            x,
            start,
            n_iter_max=n_iter_max,
            tol=self.iteration.tol,
            ridge=self.iteration.ridge,
            line_search=self.iteration.line_search,
            energy=self.energy,
            lost=lost,
            entries=self.iteration.entries,
            fixed=self.iteration.fixed,
            progress=progress,
        )


def _promising(
    problem: _Cored, starts: Sequence[tuple[str, Components]]
) -> list[tuple[str, Components]]:
    """The starts of least error on the core after a few sweeps, where they are by then.

    Where the first leaves next to nothing of the core, no other could win anything.
    """
    n_sweeps = min(_TRIED, problem.iteration.n_iter_max)
    unseen = problem.lost + problem.iteration.outside
    enough = max(_LITTLE * unseen, floor("float64") ** 2 * problem.energy)
    tried = []
    for label, start in starts:
        found, residual, _ = problem.swept(problem.core, start, n_sweeps, unseen, silent)
        if not tried and residual <= enough:
            return [(label, found), *starts[1 : problem.iteration.n_restarts]]
        tried.append((residual, label, found))
    several = problem.lossless or math.prod(problem.x.shape) <= _CHEAP
    going_on = []
    for _ in range(max(_KEPT if several else 1, problem.iteration.n_restarts)):
        least = first_least([residual for residual, _, _ in tried], enough)
        _, label, found = tried.pop(least)
        going_on.append((f"{label}, of {len(starts)} tried", found))
    if several and not problem.lossless:
        going_on.append((_ON_DATA, starts[0][1]))
    return going_on


def _best_start(
    problem: _Cored, starts: Sequence[tuple[str, Components]], progress: Progress
) -> tuple[Components, Trace]:
    """Sweeps from every start; the one of least error on the data."""
    results = []
    for i, (label, start) in enumerate(starts):
        own = part(progress, i / len(starts), (i + 1) / len(starts))
        found, residual, trace = problem.solved(start, own, on_core=label != _ON_DATA)
        origin = f"start {i + 1} of {len(starts)}: {label}"
        results.append((residual, found, replace(trace, reason=f"{trace.reason} ({origin})")))
    nothing = floor("float64") ** 2 * problem.energy
    _, found, trace = results[first_least([result[0] for result in results], nothing)]
    return found, trace


def _starts(
    core: Array, bases: Bases, rank: int, warm: Components | None, iteration: CPIteration
) -> list[tuple[str, Components]]:
    """Named starts in the coordinates of the core."""
    xp = namespace(core)
    sizes = [bases[k].shape[0] if k in bases else n for k, n in enumerate(core.shape)]

    def inside(factors: Sequence[Array]) -> list[Array]:
        return [double(bases[k]).T @ f if k in bases else f for k, f in enumerate(factors)]

    def begin(name: str, restart: int) -> tuple[str, Components]:
        rng = np.random.default_rng(np.random.SeedSequence(iteration.seed, spawn_key=(restart,)))
        # drawn for the whole tensor: the start must not depend on the signs of the bases
        drawn = [rng.standard_normal((n, rank)) for n in sizes]
        columns = inside([xp.asarray(d, dtype=xp.float64, device=core.device) for d in drawn])
        try:
            return name, STARTS[name](core, rank, columns.__getitem__)
        except (StartError, np.linalg.LinAlgError) as problem:
            label = f"hosvd, because {name} failed: {problem}"
            return label, STARTS["hosvd"](core, rank, columns.__getitem__)

    starts = [begin("random", i) for i in range(1, iteration.n_restarts)]
    if warm is None:
        return [begin(iteration.init, 0), *starts]
    given = Components.of(inside(warm.factors), warm.weights)
    starts = [*([begin(iteration.init, 0)] if iteration.also else []), *starts]
    held = {k: given.factors[k] for k in iteration.fixed}
    return [("given", given), *((name, start.holding(held)) for name, start in starts)]


def components_of(tensor: CP) -> Components:
    """Columns and weights of a CP tensor, in float64."""
    return Components.of([double(f) for f in tensor.factors], double(tensor.weights))


def cp_tensor(modes: tuple[str, ...], c: Components, dtype: object) -> CP:
    """Strongest first, signs fixed, in the precision of the input."""
    xp = namespace(c.weights)
    c = c.strongest(c.rank).signed()
    return CP(modes, xp.astype(c.weights, dtype), tuple(xp.astype(f, dtype) for f in c.factors))
