"""Multiplication in a group algebra as a tensor, and how many products it takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import sympy
from sympy import Matrix, Rational

from theory.matrix_products import KNOWN_RANKS, strassen

__all__ = [
    "alder_strassen",
    "cyclic",
    "cyclic_irreps",
    "fourier_components",
    "fourier_count",
    "group_tensor",
    "symmetric",
    "symmetric_irreps",
    "z3_over_reals",
]

Permutation = tuple[int, ...]
Irrep = Sequence[Matrix]
"""A matrix for each element of the group, in its order."""


def cyclic(n: int) -> list[Permutation]:
    """The cyclic group ℤ_n as rotations of n points."""
    return [tuple((k + shift) % n for k in range(n)) for shift in range(n)]


def symmetric(n: int) -> list[Permutation]:
    """All permutations of n points."""
    return list(permutations(range(n)))


def product(g: Permutation, h: Permutation) -> Permutation:
    """``(g h)(k) = g(h(k))``."""
    return tuple(g[k] for k in h)


def group_tensor(group: Sequence[Permutation]) -> np.ndarray:
    """``T[g, h, k] = 1`` where ``g h = k``, else 0: the products of the group algebra.

    What a network learns that multiplies words in a group.
    """
    where = {g: k for k, g in enumerate(group)}
    tensor = np.zeros([len(group)] * 3, dtype=int)
    for i, g in enumerate(group):
        for j, h in enumerate(group):
            tensor[i, j, where[product(g, h)]] = 1
    return tensor


def fourier_count(dimensions: Sequence[int]) -> int:
    """Components by way of the irreducible representations over ℂ: ``Σ R⟨d_i, d_i, d_i⟩``.

    An upper bound of the rank over ℂ; for abelian groups, ``|G|``, and for S₃, 1 + 1 + 7, it is the
    rank (`alder_strassen` is equal).

    Source: Bürgisser, Clausen and Shokrollahi [burgisser1997], chapters 13 and 17.

    >>> fourier_count([1, 1, 2])
    9
    """
    return sum(KNOWN_RANKS[d] for d in dimensions)


def alder_strassen(dimension: int, n_ideals: int) -> int:
    """Least rank that an algebra can have: ``2 dim - (number of its maximal two-sided ideals)``.

    The ideals of a group algebra are as many as the irreducible representations over its field:
    3 of ℤ₃ over ℂ, 2 over ℝ.

    Source: Alder and Strassen [alder1981].

    >>> alder_strassen(6, 3), alder_strassen(3, 3), alder_strassen(3, 2)
    (9, 3, 4)
    """
    return 2 * dimension - n_ideals


def cyclic_irreps(n: int) -> list[Irrep]:
    """The n characters of ℤ_n over ℂ: powers of a root of unity."""
    root = sympy.exp(2 * sympy.pi * sympy.I / n)
    return [
        [Matrix([[sympy.expand_complex(root ** (k * shift % n))]]) for shift in range(n)]
        for k in range(n)
    ]


def symmetric_irreps() -> list[Irrep]:
    """The three irreducible representations of S₃, in whole numbers: trivial, sign, plane.

    The plane is that of the differences ``e₀ - e₁`` and ``e₁ - e₂``.
    """
    basis = Matrix([[1, 0], [-1, 1], [0, -1]])
    back = (basis.T * basis).inv() * basis.T
    moves = [Matrix(3, 3, lambda i, j, g=g: int(g[j] == i)) for g in symmetric(3)]
    return [
        [Matrix([[1]])] * 6,
        [Matrix([[move.det()]]) for move in moves],
        [back * move * basis for move in moves],
    ]


def fourier_components(group: Sequence[Permutation], irreps: Sequence[Irrep]) -> list[np.ndarray]:
    """The components of `fourier_count`, exact: factors ``(|G|, R)``.

    ``[g h = k] = Σ_i d_i / |G| · trace(ρ_i(g) ρ_i(h) ρ_i(k⁻¹))``, and the trace of three matrices
    is the tensor of matrix multiplication.
    """
    where = {g: k for k, g in enumerate(group)}
    identity = tuple(range(len(group[0])))
    inverse = [where[h] for g in group for h in group if product(g, h) == identity]
    parts: list[list[np.ndarray]] = []
    for irrep in irreps:
        d = irrep[0].rows
        ways = {1: [np.eye(1, dtype=int)] * 3, 2: strassen()}[d]
        flat = np.array([matrix.flat() for matrix in irrep], dtype=object)  # (|G|, d²)
        share = Rational(d, len(group))
        maps = [flat, flat, flat[inverse] * share]
        parts.append([m @ way for m, way in zip(maps, ways, strict=True)])
    return [np.concatenate(columns, axis=1) for columns in zip(*parts, strict=True)]


def z3_over_reals() -> list[np.ndarray]:
    """Four components of ℤ₃ over ℝ, in rational numbers: factors ``(3, 4)``.

    Polynomials modulo ``t³ - 1 = (t - 1)(t² + t + 1)``: one product for the first factor, three
    (Karatsuba's) for the second. `alder_strassen` says that three in all are too few; over ℂ they
    do, by `cyclic_irreps`.
    """
    reduced = Matrix([[1, 1, 1], [1, 0, -1], [0, 1, -1]])  # values modulo t - 1 and t² + t + 1
    products = Matrix([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]])
    gathered = Matrix([[1, 0, 0, 0], [0, 1, -1, 0], [0, -1, -2, 1]])
    into = (products * reduced).T
    out = reduced.inv() * gathered
    return [np.array(m.tolist(), dtype=object) for m in (into, into, out)]
