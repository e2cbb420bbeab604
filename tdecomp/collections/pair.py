"""One site's pair, ``ΔW = scale · B A``, and what is known of the product without forming it."""

from __future__ import annotations

from dataclasses import dataclass

from tdecomp._brief import brief, brief_array
from tdecomp._xp import Array, double, namespace, sum_of_squares
from tdecomp.errors import DataError
from tdecomp.linalg import orthonormal

__all__ = ["AdapterPair", "PairSvd"]


@dataclass(frozen=True, kw_only=True)
class PairSvd:
    """Singular value decomposition of a product: ``U diag(s) Vh``, thin, in float64.

    Attributes
    ----------
    s
        ``(k,)`` largest first, with k the smallest of rank, out and in.
    bases
        Orthonormal columns that ΔW lies between, ``(out, q)`` and ``(in, p)``.
    small
        Singular vectors of what lies there, ``(q, k)`` and ``(k, p)``.
    """

    s: Array
    bases: tuple[Array, Array]
    small: tuple[Array, Array]

    @property
    def u(self) -> Array:
        """Left singular vectors, ``(out, k)``."""
        return self.bases[0] @ self.small[0]

    @property
    def vh(self) -> Array:
        """Right singular vectors, ``(k, in)``."""
        return self.small[1] @ self.bases[1].T

    @property
    def core(self) -> Array:
        """ΔW between the bases, ``(q, p)``."""
        return (self.small[0] * self.s[None, :]) @ self.small[1]

    def pair(self, rank: int) -> tuple[Array, Array]:
        """The best pair of a rank, balanced: ``(out, rank)`` and ``(rank, in)``."""
        root = namespace(self.s).sqrt(self.s[:rank])
        b = self.bases[0] @ (self.small[0][:, :rank] * root[None, :])
        return b, (root[:, None] * self.small[1][:rank, :]) @ self.bases[1].T


@dataclass(frozen=True, repr=False, kw_only=True)
class AdapterPair:
    """What an adapter adds to one weight: ``ΔW = scale · B A``, (out, in).

    Attributes
    ----------
    b, a
        ``(out, r)`` and ``(r, in)``.
    scale
        Factor in front, ``alpha / r`` of most files.
    transpose
        The weight is stored (in, out), as GPT-2's Conv1D and embeddings are.
    kernel
        Of a convolution, its sizes: ``in`` is then ``channels · prod(kernel)``.

    Examples
    --------
    >>> import numpy as np
    >>> pair = AdapterPair(b=np.ones((3, 2)), a=np.ones((2, 5)), scale=0.5)
    >>> pair.shape, pair.rank, float(pair.dense()[0, 0])
    ((3, 5), 2, 1.0)
    >>> b, a = pair.balanced()
    >>> b.shape, np.allclose(b.T @ b, a @ a.T), np.allclose(b @ a, pair.dense())
    ((3, 2), True, True)
    """

    b: Array
    a: Array
    scale: float = 1.0
    transpose: bool = False
    kernel: tuple[int, ...] = ()

    def __post_init__(self):
        b, a = tuple(self.b.shape), tuple(self.a.shape)
        if len(b) != 2 or len(a) != 2 or b[1] != a[0]:
            raise DataError(f"b {b} and a {a} are no pair: give (out, r) and (r, in)")

    def __repr__(self) -> str:
        pair = f"b {brief_array(self.b)}, a {brief_array(self.a)}"
        return brief(type(self), pair, f"scale {self.scale:g}")

    @property
    def rank(self) -> int:
        """Width of the pair; the rank of ΔW is at most this."""
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of ΔW."""
        return int(self.b.shape[0]), int(self.a.shape[1])

    def folded(self) -> tuple[Array, Array]:
        """``(out, r)`` and ``(r, in)`` in float64 with the scale in the first."""
        return double(self.b) * self.scale, double(self.a)

    def dense(self) -> Array:
        """ΔW multiplied out, (out, in) in float64."""
        b, a = self.folded()
        return b @ a

    def core(self) -> Array:
        """A small matrix with the singular values of ΔW, from the triangles of two QRs."""
        b, a = self.folded()
        xp = namespace(b)
        rb = xp.linalg.qr(b, mode="reduced")[1]  # (q, r)
        ra = xp.linalg.qr(a.T, mode="reduced")[1]  # (p, r)
        return rb @ ra.T

    def energy(self) -> float:
        """‖ΔW‖²."""
        return sum_of_squares(self.core()) if self.rank else 0.0

    def spectrum(self) -> Array:
        """Singular values of ΔW, largest first: ``(min(out, r, in),)``."""
        core = self.core()
        return namespace(core).linalg.svdvals(core)

    def svd(self) -> PairSvd:
        """Singular value decomposition of ΔW: two orthonormal bases and an SVD of rank by rank."""
        b, a = self.folded()
        xp = namespace(b)
        out, in_ = _basis(b), _basis(a.T)  # (out, q), (in, p)
        u, s, vh = xp.linalg.svd((out.T @ b) @ (a @ in_), full_matrices=False)  # of (q, p)
        return PairSvd(s=s, bases=(out, in_), small=(u, vh))

    def balanced(self, rank: int | None = None) -> tuple[Array, Array]:
        """``B = U √S`` and ``A = √S Vh`` with ``B A = ΔW``: of all pairs of ΔW the balanced one.

        A rule that acts on B and A separately means something for balanced pairs only, as any
        ``B G``, ``G⁻¹ A`` is the same ΔW. With a `rank` the best of that rank.
        """
        svd = self.svd()
        return svd.pair(int(svd.s.shape[0]) if rank is None else rank)


def _basis(columns: Array) -> Array:
    """Orthonormal columns of the same span; of none, none."""
    return orthonormal(columns) if columns.shape[1] else columns
