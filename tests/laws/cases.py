"""The table every law runs over: methods crossed with tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import tdecomp as td
from tdecomp.decomposition.table import METHODS as TABLE


@dataclass(frozen=True)
class Case:
    """A decomposition of the table, with what it has to be told about a tensor of some shape."""

    name: str
    function: Callable[..., td.Fit]
    options: Callable[[tuple[int, ...]], dict[str, Any]]

    def __call__(self, x: Any, **target: Any) -> td.Fit:
        """The fit of one tensor."""
        return self.function(x, **self.options(tuple(x.shape)), **target)

    def least(self, x: Any) -> int:
        """Numbers that rank 1 stores: no budget can be smaller."""
        return self(x, rank=1).n_params

    def model(self, xs: Sequence[Any], **target: Any) -> td.Fits:
        """The fits of several, under one target."""
        return td.decompose(xs, self.function, **self.options(tuple(xs[0].shape)), **target)


def _nothing(shape: tuple[int, ...]) -> dict[str, Any]:
    del shape
    return {}


def _splits(shape: tuple[int, ...]) -> dict[str, Any]:
    """Two factors of both sides, the first as small as can be."""
    if len(shape) < 2 or 0 in shape:  # refused, whatever the factors
        return {}
    first = [next((k for k in range(2, n) if n % k == 0), 1) for n in shape[-2:]]
    out, inp = ((k, n // k) for k, n in zip(first, shape[-2:], strict=True))
    return {"out": out, "inp": inp}


def _shared_basis(shape: tuple[int, ...]) -> dict[str, Any]:
    """One basis of the last mode for all others: a tree with one letter to choose."""
    modes = " ".join(f"m{k}" for k in range(max(2, len(shape))))
    *others, last = modes.split()
    return {"equation": f"{' '.join(others)} r, r {last} -> {modes}"}


_OPTIONS = {"mpo": _splits, "als": _shared_basis}

METHODS = {
    name: Case(name, row.function, _OPTIONS.get(name, _nothing)) for name, row in TABLE.items()
}


def every_method(**but: str):
    """Run a law over all decompositions but those named, each with the reason."""
    assert set(but) <= set(METHODS)
    cases = [case for name, case in METHODS.items() if name not in but]
    return pytest.mark.parametrize("method", cases, ids=lambda case: case.name)


SHAPES = [
    (7, 5),
    (1, 6),
    (6, 1),
    (2, 1),
    (3, 7, 5),
    (1, 4, 6),
    (2, 3, 6, 4),
    (2, 1, 1, 5),
    (4, 2, 3, 5, 6),
]


def planted(shape: tuple[int, ...], seed: int = 0, decay: float = 0.5) -> np.ndarray:
    """Dense tensor whose unfoldings have a decaying spectrum in every mode."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    for mode, n in enumerate(shape):
        basis = np.linalg.qr(rng.standard_normal((n, n)))[0] * decay ** np.arange(n)
        x = np.moveaxis(np.tensordot(basis, x, axes=(1, mode)), 0, mode)
    return x / np.abs(x).max()


def full_rank(method: Case, shape: tuple[int, ...]) -> int:
    """An int rank that cuts nothing: of the largest mode, or of the largest bond of a train."""
    if method.name not in ("tensor_train", "mpo"):
        return max(shape)
    chain = shape
    if method.name == "mpo":
        splits = _splits(shape)
        chain = (*shape[:-2], *(o * i for o, i in zip(splits["out"], splits["inp"], strict=True)))
    return max(min(np.prod(chain[:k]), np.prod(chain[k:])) for k in range(1, len(chain)))
