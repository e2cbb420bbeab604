"""CP with non-negative factors, by TensorLy."""

from __future__ import annotations

import numpy as np

from tdecomp._xp import Array, double, namespace, to_numpy
from tdecomp.decomposition.fit import Trace
from tdecomp.decomposition.methods.cp.solve import CPIteration
from tdecomp.decomposition.methods.cp.starts import STARTS
from tdecomp.decomposition.methods.cp.sweeps import Components, residual_of
from tdecomp.errors import ArgumentError
from tdecomp.progress import Progress
from tdecomp.ranking.rounding import first_least

__all__ = ["solve_nonnegative"]


def solve_nonnegative(
    x: Array, rank: int, iteration: CPIteration, progress: Progress
) -> tuple[Components, Trace]:
    """Hierarchical alternating least squares with non-negative factors ([cichocki2009]).

    Computed in numpy on the host, float64. The starts are ours, in absolute value: TensorLy's own
    hold zeros, which stay zero, and warn where the rank is above the size of a mode. The first is
    the one that `iteration.init` names, the others are random, and the best one wins.
    """
    try:
        import tensorly
        from tensorly.decomposition import non_negative_parafac_hals
    except ImportError:
        raise ArgumentError("nonnegative=True needs TensorLy: pip install tensorly") from None
    xp, data = namespace(x), to_numpy(x).astype(np.float64)
    largest = float(np.max(np.abs(data), initial=0.0)) or 1.0
    scaled = data / largest
    if data.ndim == 1:
        scaled = scaled[:, None]  # TensorLy starts at matrices
    found = []
    for i in range(iteration.n_restarts):
        start = _start(scaled, rank, iteration.init if i == 0 else "random", iteration.seed, i)
        with tensorly.backend_context("numpy", local_threadsafe=True):  # type: ignore[attr-defined]
            tensor, errors = non_negative_parafac_hals(
                scaled,
                rank,
                n_iter_max=iteration.n_iter_max,
                init=tensorly.cp_tensor.CPTensor((np.ones(rank), start)),  # type: ignore[arg-type]
                tol=iteration.tol,
                return_errors=True,
            )
        # rounding may leave a negative zero
        factors = [np.clip(np.asarray(f), 0.0, None) for f in tensor.factors]
        c = Components.of(factors, np.asarray(tensor.weights, dtype=np.float64) * largest)
        if data.ndim == 1:
            c = Components(c.weights * c.factors[1][0], c.factors[:1])
        done = len(errors) < iteration.n_iter_max
        reason = "error changed by less than tol" if done else f"stopped after {len(errors)} sweeps"
        trace = Trace(tuple(float(e) for e in errors), done, f"{reason} (start {i + 1}, TensorLy)")
        found.append((_left(data, c), c, trace))
        progress((i + 1) / iteration.n_restarts)
    _, c, trace = found[first_least([result[0] for result in found])]
    made = {"dtype": xp.float64, "device": x.device}
    factors = tuple(double(xp.asarray(f, **made)) for f in c.factors)
    return Components(xp.asarray(c.weights, **made), factors), trace


def _start(x: np.ndarray, rank: int, name: str, seed: int, restart: int) -> list[np.ndarray]:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(restart,)))
    drawn = [rng.standard_normal((n, rank)) for n in x.shape]
    return [abs(f) for f in STARTS[name](x, rank, drawn.__getitem__).factors]


def _left(x: np.ndarray, c: Components) -> float:
    if x.ndim == 1:
        return float(np.sum((x - c.factors[0] @ c.weights) ** 2))
    return residual_of(x, c)
