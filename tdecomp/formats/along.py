"""Acting along one mode of a format: on the arrays whose terms carry it, whatever the format."""

from __future__ import annotations

from tdecomp._xp import Array, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats.base import Factored, Format
from tdecomp.formats.network import as_network
from tdecomp.formats.sum import Sum
from tdecomp.modes import positions
from tdecomp.tensor import mode_product as multiply_array

__all__ = ["mode_product"]


def mode_product(fmt: Format, operand: Array, mode: str | int) -> Format:
    """Product of a format with a matrix or a vector along one mode, without densifying.

    ``y[.., r, ..] = Σ_n operand[r, n] x[.., n, ..]``; a vector sums the mode away.

    Parameters
    ----------
    fmt
        Any format.
    operand
        ``(r, n)`` or ``(n,)`` with ``n`` the size of the mode.
    mode
        Name or 0-based position.

    Returns
    -------
    Format
        As `fmt` where one array carries the mode (always for Tucker, Tucker2, CP and TT); a
        `Network` with one more term for a split axis, for a site mode of `LowRank` and where
        several terms of a `Network` carry the mode; a `Sum` of the products of its parts.

    Examples
    --------
    >>> import numpy as np
    >>> from tdecomp.formats import CP
    >>> t = CP(("layer", "out", "in"), np.ones(2), (np.ones((5, 2)), np.eye(3, 2), np.eye(4, 2)))
    >>> mode_product(t, np.ones((6, 3)), "out").shape, mode_product(t, np.ones(5), "layer").shape
    ((5, 6, 4), (3, 4))
    """
    (k,) = positions(fmt.modes, [mode])
    xp = namespace(operand)
    if operand.ndim not in (1, 2) or operand.shape[-1] != fmt.shape[k]:
        raise ArgumentError(
            f"the mode {fmt.modes[k]!r} has size {fmt.shape[k]}: expected an operand"
            f" (r, {fmt.shape[k]}) or ({fmt.shape[k]},), got {tuple(operand.shape)}"
        )
    matrix = operand if operand.ndim == 2 else xp.reshape(operand, (1, -1))
    products = [_multiplied(part, matrix, k) for part in fmt._summands()]
    product = Sum(tuple(products)) if isinstance(fmt, Sum) else products[0]
    return product if operand.ndim == 2 else product._squeeze(k)


def _multiplied(fmt: Factored, matrix: Array, position: int) -> Format:
    """The product with ``matrix (r, n)`` along the mode at `position`."""
    name, arrays = fmt.modes[position], fmt.arrays
    carriers = [
        (key, term.index(name))
        for key, term in zip(arrays, fmt.equation.terms, strict=True)
        if name in term
    ]
    if len(carriers) != 1:
        return as_network(fmt).extended(matrix, position)
    ((key, axis),) = carriers
    return fmt.with_arrays(arrays | {key: multiply_array(arrays[key], matrix, axis)})
