"""The other libraries: each call as they document it, on the same array, and its dense result.

TensorLy runs on torch tensors that share the array's memory. Peers that are not installed are left
out with a line that says so.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tests.bench.tables import installed

__all__ = ["Job", "full_svds", "parafac_to", "peers_of_train", "peers_of_tucker", "relative_error"]

PARAFAC_SWEEPS = 100  # at most
_SAME = 1.001  # of an error: what counts as reached


@dataclass(frozen=True)
class Job:
    """One row: what is timed, and how its result becomes an array.

    Attributes
    ----------
    what
        Library and function.
    work
        Timed.
    dense
        From what `work` returned to an array of the shape of the data; not timed.
    note
        From the same, a word for the table.
    paused
        Seconds of the last call of `work` that do not count.
    """

    what: str
    work: Callable[[], Any]
    dense: Callable[[Any], np.ndarray]
    note: Callable[[Any], str] = lambda result: ""
    paused: Callable[[], float] = lambda: 0.0


def relative_error(x: np.ndarray, dense: np.ndarray) -> float:
    """``‖X − X̂‖ / ‖X‖``, summed in float64, one matrix at a time."""
    residual = energy = 0.0
    pairs = (a.reshape(-1, *x.shape[-2:]) for a in (x, dense))
    for matrix, found in zip(*pairs, strict=True):
        residual += float(np.linalg.norm(matrix.astype(np.float64) - found)) ** 2
        energy += float(np.linalg.norm(matrix.astype(np.float64))) ** 2
    return (residual / energy) ** 0.5


def full_svds(x: np.ndarray, rank: int) -> Job:
    """One full SVD per matrix, truncated afterwards, as extraction tools do it."""

    def work() -> list[np.ndarray]:
        kept = []
        for matrix in x.reshape(-1, *x.shape[-2:]):
            u, s, vh = np.linalg.svd(matrix, full_matrices=False)
            kept.append((u[:, :rank] * s[:rank]) @ vh[:rank])
        return kept

    return Job("numpy full SVD per matrix", work, lambda kept: np.stack(kept).reshape(x.shape))


def peers_of_tucker(x: np.ndarray, rank: Sequence[int]) -> Iterator[Job]:
    """TensorLy's HOOI with five sweeps, pyttb's HOSVD."""
    import tensorly.decomposition

    # tol=0 is its "no stopping rule": five sweeps are done.
    tucker = partial(tensorly.decomposition.tucker, rank=list(rank), n_iter_max=5, tol=0)
    yield _tensorly("tensorly tucker, 5 sweeps", x, tucker, "tucker_to_tensor")
    if installed("pyttb"):
        import pyttb

        tensor = pyttb.tensor(x)  # a copy in Fortran order, not timed
        ranks = np.array(rank)
        yield Job(
            "pyttb hosvd",
            lambda: pyttb.hosvd(tensor, tol=1e-4, verbosity=0, ranks=ranks),
            lambda found: found.full().data,
        )


def peers_of_train(x: np.ndarray, rank: int) -> Iterator[Job]:
    """TensorLy's and torchTT's TT-SVD."""
    import tensorly.decomposition

    bonds = [1, *([rank] * (x.ndim - 1)), 1]
    train = partial(tensorly.decomposition.tensor_train, rank=bonds)
    yield _tensorly("tensorly tensor_train", x, train, "tt_to_tensor")
    if installed("torchtt"):
        import torch
        import torchtt

        yield Job(
            "torchTT TT",
            lambda: torchtt.TT(torch.from_numpy(x), eps=1e-10, rmax=bonds),  # pyright: ignore
            lambda found: found.full().numpy(),
        )


def parafac_to(x: np.ndarray, rank: int, error: float) -> Job:
    """TensorLy's ALS from its default start, stopped as soon as it reaches an error.

    The error that it sees in float32 can be a percent below the true one, so when that looks good
    enough the true one decides, formed with the clock stopped.
    """
    import tensorly
    import tensorly.decomposition

    sweeps, paused = [0], [0.0]

    def stop(found: Any, seen: Any) -> bool:
        sweeps[0] += 1
        if seen > _SAME * error:
            return False
        start = time.perf_counter()
        reached = relative_error(x, tensorly.cp_to_tensor(found).numpy()) <= _SAME * error
        paused[0] += time.perf_counter() - start
        return reached

    def work(tensor: Any) -> Any:
        sweeps[0], paused[0] = -1, 0.0  # the first call of `stop` comes before the first sweep
        # Without return_errors or a tolerance its callback is not given the error, but fails.
        found, _ = tensorly.decomposition.parafac(
            tensor, rank, PARAFAC_SWEEPS, tol=0, return_errors=True, callback=stop
        )
        return found

    def note(_: Any) -> str:
        return f"{sweeps[0]} sweeps" + ", not reached" * (sweeps[0] == PARAFAC_SWEEPS)

    job = _tensorly("tensorly parafac to that error", x, work, "cp_to_tensor")
    return Job(job.what, job.work, job.dense, note, lambda: paused[0])


def _tensorly(what: str, x: np.ndarray, decompose: Callable[[Any], Any], dense: str) -> Job:
    import tensorly
    import torch
    from tensorly.backend import backend_context  # pyright: ignore

    def within(function: Callable[[Any], Any], argument: Any) -> Any:
        with backend_context("pytorch"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on ranks above a size
            return function(argument)

    return Job(
        f"{what} (torch)",
        lambda: within(decompose, torch.from_numpy(x)),
        lambda found: within(getattr(tensorly, dense), found).numpy(),
    )
