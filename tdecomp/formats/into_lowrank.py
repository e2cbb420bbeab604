"""To independent SVDs of every matrix."""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import device

from tdecomp._xp import Array, adjoint, namespace, tol
from tdecomp.errors import ArgumentError
from tdecomp.formats.base import Format
from tdecomp.formats.lowrank import LowRank
from tdecomp.tensor import promoted

__all__ = ["to_lowrank"]


def to_lowrank(fmt: Format, *, ranks: int | Sequence[int] | None = None) -> LowRank:
    """Any format of two or more modes as the SVD of every matrix, exactly.

    ``left, right = pair(site)``; QR of both, then the SVD of the small product of the triangles.

    Parameters
    ----------
    fmt
        Any format; the last two modes are the matrices.
    ranks
        How many singular values to keep: one number per site, or a single number, then fewer where
        `pair` has fewer. By default those above rounding: then the result is exact to
        ``tol(dtype, 1)`` times the site's norm. Under ``jax.jit`` they must be given, since sizes
        cannot depend on values.

    Returns
    -------
    LowRank
        Within each site `u` has orthonormal columns, `vh` orthonormal rows, and `s` falls. A split
        axis is one mode of the same name, ``"(o1 o2)"``.

    Raises
    ------
    ArgumentError
        For a single mode, or a rank given for a site that is above that of its `pair`.

    Examples
    --------
    >>> import numpy as np
    >>> from tdecomp.formats import CP
    >>> layers, ones = np.arange(3.0)[:, None], np.ones((4, 1))
    >>> cp = CP(("layer", "out", "in"), np.ones(1), (layers, ones, ones))
    >>> to_lowrank(cp).ranks, to_lowrank(cp).s.round(12).tolist()
    ((0, 1, 1), [4.0, 8.0])
    """
    pairs = [promoted(fmt.pair(site)) for site in range(fmt.n_sites)]
    if isinstance(ranks, int):
        ranks = [min(ranks, *left.shape, right.shape[1]) for left, right in pairs]
    asked = [None] * len(pairs) if ranks is None else list(ranks)
    if len(asked) != len(pairs):
        raise ArgumentError(f"{len(asked)} ranks for {len(pairs)} sites: give one for each")
    parts = [_svd(left, right, rank) for (left, right), rank in zip(pairs, asked, strict=True)]
    us, ss, vhs = (promoted(side) for side in zip(*parts, strict=True))
    xp = namespace(*us)
    return LowRank(
        fmt.modes,
        tuple(fmt.shape[:-2]),
        tuple(s.shape[0] for s in ss),
        xp.concat(us, axis=1),
        xp.concat(ss, axis=0),
        xp.concat(vhs, axis=0),
    )


def _svd(left: Array, right: Array, rank: int | None) -> tuple[Array, Array, Array]:
    """SVD of ``left @ right``, cut to `rank` or to what stands above rounding."""
    xp = namespace(left)
    if left.shape[1] == 0:
        s = xp.zeros((0,), dtype=xp.abs(left).dtype, device=device(left))
        return left, s[: _checked(rank, 0)], right
    q, a = xp.linalg.qr(left, mode="reduced")
    p, b = xp.linalg.qr(adjoint(right), mode="reduced")
    u, s, vh = xp.linalg.svd(a @ adjoint(b), full_matrices=False)
    if rank is None:
        rank = int(xp.sum(xp.astype(s > tol(s.dtype, 1) * s[0], xp.int64)))
    kept = _checked(rank, s.shape[0])
    return q @ u[:, :kept], s[:kept], vh[:kept, :] @ adjoint(p)


def _checked(rank: int | None, width: int) -> int:
    rank = width if rank is None else rank
    if not 0 <= rank <= width:
        raise ArgumentError(f"no rank {rank}: a site of this tensor has at most {width}")
    return rank
