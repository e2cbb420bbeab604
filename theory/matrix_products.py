"""The tensor of matrix multiplication, and Strassen's seven products."""

from __future__ import annotations

import numpy as np

import tdecomp as td

__all__ = ["KNOWN_RANKS", "matrix_product", "rate", "strassen"]

KNOWN_RANKS = {1: 1, 2: 7, 3: 23}
"""Products that are known to do for ``n x n`` matrices; for 1 and 2 no fewer do.

Source: Strassen [strassen1969] for 7, Winograd [winograd1971] for its being the least; Laderman
[laderman1976] for 23.
"""


def matrix_product(m: int, n: int, p: int) -> np.ndarray:
    """``⟨m, n, p⟩``: the coefficients of ``trace(A B C)``, ``(m n, n p, p m)``.

    A is ``(m, n)`` and so on, each laid out row by row. A CP decomposition of R components is a way
    to multiply A and B with R products of numbers.

    >>> matrix_product(2, 3, 4).shape, int(matrix_product(2, 3, 4).sum())
    ((6, 12, 8), 24)
    """
    a, b, c = (np.eye(k, dtype=int) for k in (m, n, p))
    return np.einsum("iI,jJ,kK->ijJkKI", a, b, c).reshape(m * n, n * p, p * m)


def strassen() -> list[np.ndarray]:
    """Seven components of ``⟨2, 2, 2⟩`` in whole numbers: factors ``(4, 7)``.

    Source: Strassen [strassen1969].
    """
    left = [
        [1, 0, 1, 0, 1, -1, 0],
        [0, 0, 0, 0, 1, 0, 1],
        [0, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 1, 0, 0, -1],
    ]
    right = [
        [1, 1, 0, -1, 0, 1, 0],
        [0, 0, 1, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0, 1],
        [1, 0, -1, 0, 1, 0, 1],
    ]
    # rows by entries of C, which is the transposed product: c11, c12 = (AB)21, c21 = (AB)12, c22
    product = [
        [1, 0, 0, 1, -1, 0, 1],
        [0, 1, 0, 1, 0, 0, 0],
        [0, 0, 1, 0, 1, 0, 0],
        [1, -1, 1, 0, 0, 1, 0],
    ]
    return [np.array(rows) for rows in (left, right, product)]


def rate(starts: int = 20, sweeps: int = 2000) -> tuple[int, int]:
    """How many of some seeded starts `td.cp` ends at an exact rank 7 from, and how many there are.

    ``python -m theory.matrix_products`` prints it.
    """
    target = matrix_product(2, 2, 2).astype(float)
    return sum(found(target, seed, sweeps) for seed in range(starts)), starts


def found(target: np.ndarray, seed: int, sweeps: int) -> bool:
    """Whether one start ends within 1e-6 of the tensor."""
    fit = td.cp(target, rank=7, init="random", random_state=seed, n_iter_max=sweeps, tol=1e-9)
    return fit.error < 1e-6


if __name__ == "__main__":
    print("{} of {} starts".format(*rate()))
