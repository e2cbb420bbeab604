"""Start factors made of the base weights: singular vectors, QR, LDU, skeletons, trains."""
# pyright: standard

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tdecomp.adapters.start_rule import StartRule
from tdecomp.decomposition import mpo
from tdecomp.errors import ArgumentError
from tdecomp.linalg import Triplets, is_cheap, random_matrix, svd_auto, svd_gram

__all__ = ["FROM_WEIGHTS", "WeightRequest", "leading_triplets"]


@dataclass(frozen=True, kw_only=True)
class WeightRequest:
    """One array to make of one weight.

    Attributes
    ----------
    name
        Name of the factor.
    modes
        Names of its axes, without site modes.
    sides
        The letters of the two sides of the weight.
    sizes
        Size of every letter.
    args
        Values of the rule's arguments.
    memo
        What other pieces of the same weight found out.
    """

    name: str
    modes: tuple[str, ...]
    sides: tuple[tuple[str, ...], tuple[str, ...]]
    sizes: Mapping[str, int]
    args: tuple[float, ...]
    memo: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.sizes[n] for n in self.modes)

    def arg(self, k: int, default: float) -> float:
        """Argument number `k`."""
        return self.args[k] if k < len(self.args) else default

    @property
    def ranks(self) -> tuple[str, ...]:
        """Its letters that are not weight modes."""
        return tuple(n for n in self.modes if n not in (*self.sides[0], *self.sides[1]))

    @property
    def rank(self) -> int:
        """Product of the sizes of its ranks."""
        return math.prod(self.sizes[n] for n in self.ranks)

    def arranged(self, x: np.ndarray, letters: tuple[str, ...]) -> np.ndarray:
        """`x`, whose axes are `letters` joined in any way, with the axes of the factor."""
        if set(letters) != set(self.modes):
            raise ArgumentError(
                f"the factor {self.name!r} ({' '.join(self.modes)}) cannot start this way: that"
                f" gives the axes {' '.join(letters)}"
            )
        sizes = tuple(self.sizes[n] for n in letters)
        if x.size != math.prod(sizes):
            raise ArgumentError(
                f"the factor {self.name!r} ({' '.join(letters)}) is {sizes}, made of the weights is"
                f" an array of {x.shape}: choose a smaller rank, or give the factor the site modes"
                " along which the weights differ"
            )
        opened = x.reshape(sizes)
        return opened.transpose([letters.index(n) for n in self.modes]).copy()


_FEW = 4  # a quarter of the singular vectors, and more, come from a full decomposition
_OVERSAMPLES = 10


def leading_triplets(w: np.ndarray, rank: int) -> Triplets:
    """`tdecomp.linalg.svd_auto` of a weight; a sketch is made in float32 where that holds it.

    >>> s = leading_triplets(np.diag([3.0, 2.0, 1.0]), 2)[1]
    >>> s.tolist(), str(s.dtype)
    ([3.0, 2.0], 'float64')
    """
    if not is_cheap(w.shape, rank + _OVERSAMPLES):
        with np.errstate(over="ignore"):
            narrow = w.astype(np.float32)
        if np.array_equal(narrow, w):
            return svd_auto(narrow, rank)
    return svd_auto(w, rank)


def _once(ask: WeightRequest, name: str, compute: Callable[[], Any]) -> Any:
    if name not in ask.memo:
        ask.memo[name] = compute()
    return ask.memo[name]


def _triplets(
    w: np.ndarray, ask: WeightRequest
) -> tuple[np.ndarray, np.ndarray, np.ndarray, slice]:
    """Singular vectors and values, and which of them are asked for.

    A few leading ones of a large weight are sketched.
    """
    most, start = min(w.shape), int(ask.arg(1, 0))
    which = slice(start, start + ask.rank)
    if start < 0 or which.stop > most:
        raise ArgumentError(
            f"the factor {ask.name!r} needs {ask.rank} singular vectors from number {start} on,"
            f" a weight of {w.shape} has {most}: choose a smaller rank"
        )
    found = ask.memo.get("svd")
    if found is None or len(found[1]) < which.stop:
        few = which.stop <= most // _FEW
        found = leading_triplets(w, which.stop) if few else np.linalg.svd(w, full_matrices=False)
        ask.memo["svd"] = found
    u, s, vh = map(np.asarray, found)
    return u, s, vh, which


def _svd_u(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    u, s, _, which = _triplets(w, ask)
    return ask.arranged(u[:, which] * s[which] ** ask.arg(0, 0), (*ask.sides[0], *ask.ranks))


def _svd_s(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    _, s, _, which = _triplets(w, ask)
    return ask.arranged(s[which] ** ask.arg(0, 1), ask.ranks)


def _svd_vh(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    _, s, vh, which = _triplets(w, ask)
    rows = s[which, None] ** ask.arg(0, 0) * vh[which]  # (r, in)
    return ask.arranged(rows, (*ask.ranks, *ask.sides[1]))


def _leading_q(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    """The first columns of Q, which the first columns of the weight decide alone."""
    return np.linalg.qr(w[:, : ask.rank])[0]  # (out, r)


def _qr_q(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    return ask.arranged(_leading_q(w, ask), (*ask.sides[0], *ask.ranks))


def _qr_r(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    return ask.arranged(_leading_q(w, ask).T @ w, (*ask.ranks, *ask.sides[1]))


def _ldu(w: np.ndarray, ask: WeightRequest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``W = (P L) diag(d) U`` with unit triangular L and U."""

    def compute() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        from scipy.linalg import lu

        *_, left, upper = lu(w, permute_l=True)
        d = np.diagonal(upper).copy()
        if not d.all():
            raise ArgumentError(f"{ask.name!r}: the weight is singular, it has no LDU")
        return left, d, upper / d[:, None]

    return _once(ask, "ldu", compute)


def _ldu_l(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    return ask.arranged(_ldu(w, ask)[0][:, : ask.rank], (*ask.sides[0], *ask.ranks))


def _ldu_d(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    return ask.arranged(_ldu(w, ask)[1][: ask.rank], ask.ranks)


def _ldu_u(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    return ask.arranged(_ldu(w, ask)[2][: ask.rank], (*ask.ranks, *ask.sides[1]))


def _pivots(w: np.ndarray, n: int) -> np.ndarray:
    """The first n columns that QR with pivoting takes, in ascending order.

    Where few are wanted, those of a random sketch of the rows.
    """
    from scipy.linalg import qr

    rows = n + _OVERSAMPLES
    if rows <= len(w) // _FEW:
        w = random_matrix(np.random.default_rng(0), (rows, len(w)), w) @ w  # (rows, in)
    *_, order = qr(w, mode="r", pivoting=True)
    return np.sort(order[:n])


def _cur_columns(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    chosen = _pivots(w, ask.rank)
    return ask.arranged(w[:, chosen], (*ask.sides[0], *ask.ranks))


def _cur_rows(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    chosen = _pivots(w.T, ask.rank)
    return ask.arranged(w[chosen], (*ask.ranks, *ask.sides[1]))


def _least(norms: np.ndarray, n: int) -> np.ndarray:
    """The n smallest, in ascending order of where they are."""
    return np.sort(np.argsort(norms, kind="stable")[:n])


def _least_columns(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    chosen = _least((w * w).sum(0), ask.rank)
    return ask.arranged(w[:, chosen], (*ask.sides[0], *ask.ranks))


def _least_rows(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    chosen = _least((w * w).sum(1), ask.rank)
    return ask.arranged(w[chosen], (*ask.ranks, *ask.sides[1]))


def _weight(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    return ask.arranged(w, (*ask.sides[0], *ask.sides[1]))


def _norm(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    """Norm of each row, each column or the whole, by the modes of the factor."""
    kept = [axis for axis, side in enumerate(ask.sides) if set(side) <= {*ask.modes}]
    gone = tuple({0, 1} - {*kept})
    letters = tuple(n for axis in kept for n in ask.sides[axis])
    return ask.arranged(np.sqrt((w * w).sum(axis=gone)), letters)


def _mpo(w: np.ndarray, ask: WeightRequest) -> np.ndarray:
    """Core number ``arg 0`` (from 1) of the matrix product operator; zeros beyond its bonds."""
    out, inp = (tuple(ask.sizes[n] for n in side) for side in ask.sides)
    if len(out) != len(inp) or not 1 <= ask.args[0] <= len(out) or len(out) < 2:
        raise ArgumentError(
            f"the factor {ask.name!r} cannot be core {ask.args[0]:g} of an MPO: split out and in"
            f" into as many parts each, two or more; here they have {len(out)} and {len(inp)}"
        )
    both = [a * b for a, b in zip(out, inp, strict=True)]
    bound = max(min(math.prod(both[:k]), math.prod(both[k:])) for k in range(1, len(both)))
    asked = max(ask.sizes[n] for n in ask.ranks)
    # TT-SVD as it is: what its cores do not hold stays in the residual base to the last digit
    options: dict[str, Any] = {"rank": min(asked, bound), "n_iter_max": 0, "svd": svd_gram}
    fit = _once(ask, "mpo", lambda: mpo(w, out=out, inp=inp, **options))
    k, last = int(ask.args[0]) - 1, len(both) - 1
    core = fit.tensor.cores[k]
    core = core[0] if k == 0 else core[..., 0] if k == last else core
    found = np.zeros(ask.shape)
    if core.ndim != len(ask.shape) or any(
        a > b for a, b in zip(core.shape, found.shape, strict=True)
    ):
        raise ArgumentError(
            f"core {k + 1} of the MPO is {core.shape}, the factor {ask.name!r} has the axes"
            f" {' '.join(ask.modes)} of sizes {ask.shape}: write 'o1 i1 a', 'a o2 i2 b', ..."
        )
    found[tuple(map(slice, core.shape))] = core
    return found


FROM_WEIGHTS: Mapping[str, StartRule[[np.ndarray, WeightRequest]]] = {
    "svd_u": StartRule(_svd_u, arguments=(0, 2)),
    "svd_s": StartRule(_svd_s, arguments=(0, 2)),
    "svd_vh": StartRule(_svd_vh, arguments=(0, 2)),
    "qr_q": StartRule(_qr_q),
    "qr_r": StartRule(_qr_r),
    "ldu_l": StartRule(_ldu_l),
    "ldu_d": StartRule(_ldu_d),
    "ldu_u": StartRule(_ldu_u),
    "cur_columns": StartRule(_cur_columns),
    "cur_rows": StartRule(_cur_rows),
    "least_columns": StartRule(_least_columns),
    "least_rows": StartRule(_least_rows),
    "weight": StartRule(_weight),
    "norm": StartRule(_norm),
    "mpo": StartRule(_mpo, arguments=(1, 1)),
}
"""Rules that read the weight of a site, ``(out, in)``, or all weights of a group side by side.

A new one is a function and a row here.

``svd_u(p, k)``: left singular vectors from number k on, times ``s**p``; ``svd_s``, ``svd_vh``
likewise. A factor without site modes is made of all weights of the group at once: those beside one
another for the ``out`` side, below one another for ``in``.
"""
