"""Whose component is whose: the terms of one CP tensor beside those of another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import mul

import numpy as np
from array_api_compat import device

from tdecomp._equality import ByValue
from tdecomp._xp import Array, namespace, to_numpy, working
from tdecomp.errors import ArgumentError
from tdecomp.formats.cp import CP
from tdecomp.formats.slices import take

__all__ = ["FactorMatch", "match_factors"]


@dataclass(frozen=True, eq=False)
class FactorMatch(ByValue):
    """The terms of a CP tensor that come nearest to those of another.

    Attributes
    ----------
    score
        Mean of `congruence`: 1 where all terms agree.
    congruence
        ``(R,)`` for each term of the first tensor: the product over the modes of the cosines,
        without sign, between its columns and those of its partner.
    permutation
        Term of the second tensor that belongs to each of the first.
    tensor
        The second tensor, its terms in this order and its columns turned towards those of the
        first; what all turns but the last come to is in the last mode, so that it is the same.
    """

    score: float
    congruence: np.ndarray
    permutation: tuple[int, ...]
    tensor: CP


def match_factors(a: CP, b: CP, *, weighted: bool = False) -> FactorMatch:
    """Best assignment of the terms of `b` to those of `a`, whatever their order, signs and scale.

    Parameters
    ----------
    a, b
        CP tensors of the same modes, sizes and rank.
    weighted
        Whether terms must agree in size too: every congruence is multiplied by
        ``1 - |p - q| / max(p, q)`` of the two norms of the terms.

    Raises
    ------
    ArgumentError
        If these are not two CP tensors of the same modes and rank.

    Notes
    -----
    The score is the mean congruence (Tucker's coefficient, by mode; TensorLy's
    ``congruence_coefficient``), weighted the factor match score of [acar2011]. The assignment of
    the largest score is exact. A column of zeros agrees with nothing.

    Examples
    --------
    >>> a = CP("out in", None, (np.eye(3, 2), np.eye(4, 2)))
    >>> b = CP("out in", None, (-5 * np.eye(3, 2)[:, ::-1], np.eye(4, 2)[:, ::-1]))
    >>> found = match_factors(a, b)
    >>> found.score, found.permutation, found.tensor.factors[0].tolist()
    (1.0, (1, 0), [[5.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
    """
    from scipy.optimize import linear_sum_assignment

    if not (isinstance(a, CP) and isinstance(b, CP)):
        raise ArgumentError(f"expected two CP, got {type(a).__name__} and {type(b).__name__}")
    if (a.modes, a.shape, a.rank) != (b.modes, b.shape, b.rank):
        raise ArgumentError(f"{a} and {b} must have the same modes, sizes and rank")
    cosines = [_cosines(f, g) for f, g in zip(a.factors, b.factors, strict=True)]
    agreement = reduce(mul, map(np.abs, cosines))  # (R, R)
    if weighted:
        p, q = _sizes(a)[:, None], _sizes(b)[None, :]
        largest = np.maximum(p, q)
        agreement = agreement * (1 - np.abs(p - q) / np.where(largest > 0, largest, 1.0))
    rows, columns = linear_sum_assignment(agreement, maximize=True)
    congruence = agreement[rows, columns]
    turns = [_turns(c[rows, columns]) for c in cosines]
    turns[-1] = np.conj(reduce(mul, turns[:-1], np.ones(a.rank)))
    permutation = tuple(map(int, columns))
    return FactorMatch(
        float(np.mean(congruence)), congruence, permutation, _turned(b, permutation, turns)
    )


def _cosines(f: Array, g: Array) -> np.ndarray:
    """``<g_j, f_i>`` of unit columns: ``(R, R)``."""
    return _unit_columns(_wide(f)).T @ _unit_columns(_wide(g)).conj()


def _wide(x: Array) -> np.ndarray:
    host = to_numpy(working(x))
    return host.astype(np.complex128 if np.iscomplexobj(host) else np.float64)


def _unit_columns(factor: np.ndarray) -> np.ndarray:
    largest = np.abs(factor).max(axis=0, initial=0.0)
    factor = factor / np.where(largest > 0, largest, 1.0)  # its squares fit
    norms = np.linalg.norm(factor, axis=0)
    return factor / np.where(norms > 0, norms, 1.0)


def _sizes(cp: CP) -> np.ndarray:
    norms = [np.linalg.norm(_wide(f), axis=0) for f in cp.factors]
    return reduce(mul, norms, np.abs(_wide(cp.weights)))


def _turns(cosines: np.ndarray) -> np.ndarray:
    """Sign (phase) that turns the second column towards the first."""
    size = np.abs(cosines)
    return np.where(size > 0, cosines / np.where(size > 0, size, 1.0), 1.0)


def _turned(cp: CP, permutation: tuple[int, ...], turns: list[np.ndarray]) -> CP:
    factors = []
    for factor, turn in zip(cp.factors, turns, strict=True):
        xp = namespace(factor)
        if not np.iscomplexobj(turn) or xp.isdtype(factor.dtype, "complex floating"):
            turn = xp.asarray(turn, dtype=factor.dtype, device=device(factor))
        else:
            turn = xp.asarray(turn, device=device(factor))
        factors.append(take(factor, 1, permutation) * turn[None, :])
    return CP(cp.modes, take(cp.weights, 0, permutation), tuple(factors))
