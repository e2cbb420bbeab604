"""Ranks of whole-number matrices modulo a prime, and Jacobians of networks there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tdecomp.modes import Equation, flatten

__all__ = ["PRIME", "jacobian", "rank_modulo"]

PRIME = 8_388_593
"""Below 2²³, so that 2¹⁷ products of two remainders add up without overflow in 64 bits."""


def rank_modulo(matrix: np.ndarray, prime: int = PRIME) -> int:
    """Rank over the integers modulo a prime, by elimination; exact.

    Never above the rank over the rationals. At a random point it is below it with a probability of
    at most the degree of the entries, times the rank, over the prime.

    Source: Schwartz [schwartz1980].

    >>> rank_modulo(np.array([[1, 2], [2, 4]])), rank_modulo(np.array([[1, 2], [3, 4]]))
    (1, 2)
    """
    rest = np.array(matrix, dtype=np.int64) % prime
    rank = 0
    for column in range(rest.shape[1]):
        (pivots,) = np.nonzero(rest[rank:, column])
        if not len(pivots):
            continue
        rest[[rank, rank + pivots[0]]] = rest[[rank + pivots[0], rank]]
        inverse = pow(int(rest[rank, column]), -1, prime)
        rest[rank] = rest[rank] * inverse % prime
        below = rest[rank + 1 :]
        below -= below[:, column, None] * rest[rank] % prime
        below %= prime
        rank += 1
        if rank == len(rest):
            break
    return rank


def jacobian(equation: Equation, arrays: Sequence[np.ndarray], prime: int = PRIME) -> np.ndarray:
    """Derivatives of all entries of a network by all numbers in its factors, modulo a prime.

    The network is linear in each factor: the derivative by one of its numbers is the network with a
    unit array in its place. One row for each number, one column for each entry.
    """
    rows = []
    for k, term in enumerate(equation.terms):
        shape = arrays[k].shape
        units = np.eye(arrays[k].size, dtype=np.int64).reshape(-1, *shape)
        terms = [("number", *flatten(term)), *(flatten(t) for t in _but(equation.terms, k))]
        output = ("number", *flatten(equation.output))
        rows.append(_contracted(terms, [units, *_but(arrays, k)], output, prime))
    return np.concatenate([part.reshape(len(part), -1) for part in rows])


def _but(items: Sequence, k: int) -> list:
    return [item for i, item in enumerate(items) if i != k]


def _contracted(
    terms: Sequence[tuple[str, ...]],
    arrays: Sequence[np.ndarray],
    output: tuple[str, ...],
    prime: int,
) -> np.ndarray:
    """A contraction modulo a prime, one factor after the other."""
    letters, found = terms[0], arrays[0] % prime
    for k in range(1, len(terms)):
        needed = {*output, *(n for term in terms[k + 1 :] for n in term)}
        kept = tuple(n for n in dict.fromkeys((*letters, *terms[k])) if n in needed)
        pair = Equation((letters, terms[k]), kept)
        found = np.einsum(pair.symbols, found, arrays[k] % prime) % prime
        letters = kept
    return np.einsum(Equation((letters,), output).symbols, found) % prime
