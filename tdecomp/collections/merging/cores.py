"""Products in bases that they have in common: small cores, and nothing of size ``out × in``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tdecomp.collections.pair import AdapterPair

__all__ = ["CommonCores", "cores_of"]


@dataclass(frozen=True, eq=False)
class CommonCores:
    """``ΔW_t = left · stack[t] · right``.

    Attributes
    ----------
    left, right
        ``(out, p)`` with orthonormal columns, ``(q, in)`` with orthonormal rows.
    stack
        ``(task, p, q)``.
    """

    left: np.ndarray
    right: np.ndarray
    stack: np.ndarray

    def gram(self) -> np.ndarray:
        """``⟨ΔW_s, ΔW_t⟩``, ``(task, task)``."""
        flat = self.stack.reshape(len(self.stack), -1)
        return flat @ flat.T


def cores_of(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> CommonCores:
    """Deltas in the reference bases of core-space merging.

    The bases are the singular vectors of all ``B_t`` side by side and of all ``A_t`` on top of each
    other, of balanced pairs, so that they do not depend on how a delta is written as a product.

    Notes
    -----
    [panariello2025], section 3; there the pairs are as they were trained. Two QRs of ``Σ r_t``
    columns and small SVDs.

    >>> import numpy as np
    >>> b, a = np.eye(6)[:, :2], np.ones((2, 5))
    >>> found = cores_of([(b, a), (3 * b, a)])
    >>> found.stack.shape, bool(np.allclose(found.left @ found.stack[1] @ found.right, 3 * b @ a))
    ((2, 1, 1), True)
    """
    pairs = [_balanced(b, a) for b, a in pairs]
    left = _span(np.concatenate([b for b, _ in pairs], axis=1))  # (out, p)
    right = _span(np.concatenate([a.T for _, a in pairs], axis=1)).T  # (q, in)
    return CommonCores(left, right, np.stack([(left.T @ b) @ (a @ right.T) for b, a in pairs]))


def _balanced(b: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same product as ``U √S`` and ``√S Vh``, of its own rank."""
    svd = AdapterPair(b=b, a=a).svd()
    left, right = svd.pair(_rank(np.asarray(svd.s), max(b.shape[0], a.shape[1])))
    return np.asarray(left), np.asarray(right)


def _span(columns: np.ndarray) -> np.ndarray:
    """Left singular vectors of the values that are more than rounding."""
    q, upper = np.linalg.qr(columns)
    u, s, _ = np.linalg.svd(upper, full_matrices=False)
    return q @ u[:, : _rank(s, len(columns))]


def _rank(values: np.ndarray, size: int) -> int:
    largest = values[0] if len(values) else 0.0
    return int((values > largest * size * np.finfo(values.dtype).eps).sum())
