"""The entrywise product of two formats."""

from __future__ import annotations

from tdecomp.formats import _pairs
from tdecomp.formats._base import Format
from tdecomp.formats.network import Network

__all__ = ["hadamard"]


def hadamard(a: Format, b: Format) -> Network:
    """Entrywise product ``X[i, j, ...] = a[i, j, ...] · b[i, j, ...]`` of any two formats, exactly.

    Returns
    -------
    Network
        The factors of both over the modes of `a`: it stores the sum of both counts of numbers,
        where a product within one format would store the product of the ranks.

    Notes
    -----
    No arithmetic happens here; the arrays are only shared, and cast where the dtypes differ. A
    split axis meets a plain one of the same size; all other modes must agree by name.

    Examples
    --------
    >>> import numpy as np
    >>> from tdecomp.formats import CP
    >>> t = CP(("out", "in"), np.ones(2), (np.ones((3, 2)), np.ones((4, 2))))
    >>> str(hadamard(t, t).equation)
    'out r, in r, r, out r_, in r_, r_ -> out in'
    """
    left, right = a.to_network(), b.to_network()
    equation, arrays = _pairs.elementwise(
        (left.equation, left.tensors), (right.equation, right.tensors)
    )
    return Network(equation, tuple(arrays))
