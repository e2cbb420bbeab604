"""Which SVD runs: the one that was asked for, or the cheap enough exact one; and its record."""

from __future__ import annotations

import math
from functools import partial

from tdecomp._xp import Array
from tdecomp.errors import ArgumentError
from tdecomp.linalg import Svd, is_cheap, left_basis, svd_settled, truncated_svd
from tdecomp.tensor import unfold

__all__ = ["Which"]

_OVERSAMPLES = 10


class Which:
    """Singular vectors by `svd`; None: exact ones where that is cheap, or always.

    `names` says what was used.
    """

    def __init__(self, svd: Svd | None, *, always_exact: bool = False):
        if svd is not None and not callable(svd):
            raise ArgumentError(f"svd={svd!r} must be a function, such as linalg.svd_randomized")
        self._svd, self._exact = svd, always_exact
        self._used: set[str] = set()

    def used(self, name: str) -> None:
        """Note what was used beside the functions called here."""
        self._used.add(name)

    @property
    def names(self) -> str:
        """Functions used so far, ``"exact"`` if none."""
        return ", ".join(sorted(self._used)) or "exact"

    def triplets(
        self, matrix: Array, rank: int, energy: float | None = None
    ) -> tuple[Array, Array, Array]:
        """``u, s, vh`` of a matrix, whose squared norm may be known."""
        svd = self._chosen(tuple(matrix.shape), rank, energy, many=True)
        return truncated_svd(matrix, rank) if svd is None else svd(matrix, rank)

    def basis(self, x: Array, mode: int, rank: int) -> tuple[Array, Array]:
        """Left singular vectors, `rank` of them or more, and singular values of an unfolding."""
        n = x.shape[mode]
        rows = n, math.prod(x.shape) // n
        svd = self._chosen(rows, min(rank, *rows))
        if svd is None:
            return left_basis(x, mode)
        u, s, _ = svd(unfold(x, mode), min(rank, *rows))
        return u, s

    def _chosen(
        self,
        shape: tuple[int, ...],
        rank: int,
        energy: float | None = None,
        *,
        many: bool = False,
    ) -> Svd | None:
        """The function to call; None for an exact SVD of our choice."""
        svd, width = self._svd, rank + _OVERSAMPLES
        if svd is None and not self._exact and not is_cheap(shape, width, many=many):
            svd = partial(svd_settled, n_oversamples=_OVERSAMPLES, energy=energy)
        self._used.add("exact" if svd is None else _name(svd))
        return svd


def _name(svd: Svd) -> str:
    function = svd.func if isinstance(svd, partial) else svd
    return getattr(function, "__name__", repr(function))
