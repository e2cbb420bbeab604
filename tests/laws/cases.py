"""The table every law runs over: methods crossed with tensors."""

from __future__ import annotations

import numpy as np

import tdecomp as td

METHODS = {
    "svd": td.svd,
    "hosvd": td.hosvd,
    "tucker": td.tucker,
    "tucker2": td.tucker2,
    "tensor_train": td.tensor_train,
}

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


def full_rank(method, shape: tuple[int, ...]) -> int:
    """An int rank that cuts nothing: of the largest mode, or of the largest bond of a train."""
    if method is td.tensor_train:
        return max(min(np.prod(shape[:k]), np.prod(shape[k:])) for k in range(1, len(shape)))
    return max(shape)
