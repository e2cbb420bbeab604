"""Singular values of every matrix that a format holds, from its factors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tdecomp._xp import Array, to_numpy, working
from tdecomp.formats.base import Format

__all__ = ["site_spectra"]


def site_spectra(fmt: Format) -> Iterator[np.ndarray]:
    """Singular values of every matrix, sites in C order: at most as many as the site's rank.

    QR of both factors of a matrix ``u v`` (``(out, r)``, ``(r, in)``) leaves those of the product
    of the two triangles; no matrix is formed. Float64.
    """
    for site in range(fmt.n_sites):
        left, right = (_wide(x) for x in fmt.pair(site))  # (out, r), (r, in)
        a = np.asarray(np.linalg.qr(left, mode="r"))
        b = np.asarray(np.linalg.qr(right.conj().T, mode="r"))
        yield np.linalg.svd(a @ b.conj().T, compute_uv=False)


def _wide(x: Array) -> np.ndarray:
    """An array on the host, in float64 or complex128."""
    host = to_numpy(working(x))
    return host.astype(np.result_type(host.dtype, np.float64))
