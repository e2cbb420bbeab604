"""CP with non-negative factors, by TensorLy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tdecomp._xp import Array, double, namespace, sum_of_squares, to_numpy
from tdecomp.decomposition.fit import Trace
from tdecomp.decomposition.methods.cp.solve import CPIteration
from tdecomp.decomposition.methods.cp.starts import STARTS
from tdecomp.decomposition.methods.cp.sweeps import Components, filled, residual_of
from tdecomp.errors import ArgumentError
from tdecomp.progress import Progress
from tdecomp.ranking.rounding import first_least

__all__ = ["solve_nonnegative"]


def solve_nonnegative(
    x: Array, rank: int, given: Components | None, iteration: CPIteration, progress: Progress
) -> tuple[Components, Trace]:
    """Hierarchical alternating least squares with non-negative factors ([cichocki2009]).

    Computed in numpy on the host, float64. The starts are ours, in absolute value: TensorLy's own
    hold zeros, which stay zero, and warn where the rank is above the size of a mode. The first is
    `given`, its strongest components and random ones where it has too few, or else the one that
    `iteration.init` names; the others are random, and the best one wins. With weights of the
    entries every sweep is one on `filled`.
    """
    try:
        import tensorly
        from tensorly.decomposition import non_negative_parafac_hals
    except ImportError:
        raise ArgumentError("nonnegative=True needs TensorLy: pip install tensorly") from None
    hals = _Hals(tensorly, non_negative_parafac_hals, iteration.fixed)
    xp, data, entries = namespace(x), to_numpy(x).astype(np.float64), iteration.entries
    entries = None if entries is None else to_numpy(entries).astype(np.float64)
    largest = float(np.max(np.abs(data), initial=0.0)) or 1.0
    scaled = data / largest
    if data.ndim == 1:  # TensorLy starts at matrices, as weights do
        scaled = scaled[:, None]
    found, starts = [], _starts(scaled, rank, given, largest, iteration)
    for i, start in enumerate(starts):
        if entries is None:
            c, errors, done = hals(scaled, start, iteration.n_iter_max, iteration.tol)
        else:
            c, errors, done = _weighted(hals, scaled, entries, start, iteration)
        reason = "error changed by less than tol" if done else f"stopped after {len(errors)} sweeps"
        trace = Trace(tuple(errors), done, f"{reason} (start {i + 1}, TensorLy)")
        found.append((residual_of(scaled, c, entries), c, trace))
        progress((i + 1) / iteration.n_restarts)
    _, c, trace = found[first_least([result[0] for result in found])]
    c = Components(c.weights * largest, c.factors)
    if data.ndim == 1:
        c = Components(c.weights * c.factors[1][0], c.factors[:1])
    made = {"dtype": xp.float64, "device": x.device}
    factors = tuple(double(xp.asarray(f, **made)) for f in c.factors)
    return Components(xp.asarray(c.weights, **made), factors), trace


@dataclass(frozen=True)
class _Hals:
    """Sweeps of TensorLy from given components, of which some modes are held."""

    tensorly: Any
    parafac: Any
    fixed: tuple[int, ...]

    def __call__(
        self, x: np.ndarray, start: Components, n_iter_max: int, tol: float
    ) -> tuple[Components, list[float], bool]:
        """Components, the relative error after each sweep, and whether they stopped by `tol`.

        TensorLy never holds the last mode, so one that is free goes last.
        """
        order = sorted(range(x.ndim), key=lambda k: k not in self.fixed)
        back, factors = np.argsort(order), start.balanced()
        with self.tensorly.backend_context("numpy", local_threadsafe=True):
            tensor, errors = self.parafac(
                x.transpose(order),
                start.rank,
                n_iter_max=n_iter_max,
                init=self.tensorly.cp_tensor.CPTensor(
                    (np.ones(start.rank), [np.array(to_numpy(factors[k])) for k in order])
                ),
                tol=tol,
                fixed_modes=list(range(len(self.fixed))),
                return_errors=True,
            )
        # rounding may leave a negative zero
        swept = [np.clip(np.asarray(tensor.factors[k]), 0.0, None) for k in back]
        c = Components.of(swept, np.asarray(tensor.weights, dtype=np.float64))
        c = c.holding({k: start.factors[k] for k in self.fixed})
        return c, [float(e) for e in errors], len(errors) < n_iter_max


def _weighted(
    hals: _Hals, x: np.ndarray, entries: np.ndarray, start: Components, iteration: CPIteration
) -> tuple[Components, list[float], bool]:
    """One sweep at a time, on what is observed and the model of the rest ([tomasi2005])."""
    energy = sum_of_squares(x * np.sqrt(entries))
    now, residual, errors = start, residual_of(x, start, entries), []
    for _ in range(iteration.n_iter_max):
        swept, _, _ = hals(to_numpy(filled(x, now, entries)), now, 1, 0.0)
        left = residual_of(x, swept, entries)
        if not left < residual:
            return now, errors, True
        won = math.sqrt(residual) - math.sqrt(left)
        now, residual, before = swept, left, residual
        errors.append(math.sqrt(left / energy))
        if won <= iteration.tol * math.sqrt(before):
            return now, errors, True
    return now, errors, False


def _starts(
    x: np.ndarray, rank: int, given: Components | None, unit: float, iteration: CPIteration
) -> list[Components]:
    """As many as asked for, the first of them `given`; `x` is in units of `unit`."""
    names = [iteration.init, *["random"] * (iteration.n_restarts - 1)]
    drawn = [_start(x, rank, name, iteration.seed, i) for i, name in enumerate(names)]
    if given is None:
        return drawn
    first = _on_host(given.strongest(rank), unit, x.ndim)
    held = {k: first.factors[k] for k in iteration.fixed}
    if first.rank < rank:
        first = first.joined(_start(x, rank - first.rank, "random", iteration.seed, 0))
    return [first, *(start.holding(held) for start in drawn[1:])]


def _on_host(given: Components, unit: float, order: int) -> Components:
    """In numpy; a weight of 0 would leave a component nothing to begin with."""
    weights = to_numpy(given.weights) / unit
    factors = [to_numpy(f) for f in given.factors]
    factors += [np.ones((1, given.rank))] * (order - len(factors))
    return Components(np.where(weights > 0, weights, 1.0), tuple(factors))


def _start(x: np.ndarray, rank: int, name: str, seed: int, restart: int) -> Components:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(restart,)))
    drawn = [rng.standard_normal((n, rank)) for n in x.shape]
    return Components.of([abs(f) for f in STARTS[name](x, rank, drawn.__getitem__).factors])
