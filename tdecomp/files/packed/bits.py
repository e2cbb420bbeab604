"""Numbers of a few bits, taken out of the words that they were packed into."""

from __future__ import annotations

import numpy as np

__all__ = ["FP4", "nibbles", "unpack"]

# Sign, two bits of exponent, one of mantissa (OCP's E2M1).
_POSITIVE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP4 = np.concatenate([_POSITIVE, -_POSITIVE])
"""Value of each of the 16 codes of a 4-bit float."""


def nibbles(stored: np.ndarray) -> np.ndarray:
    """Codes of 4 bits, two a byte, the lower half first: ``(..., n)`` to ``(..., 2 n)`` uint8.

    Examples
    --------
    >>> nibbles(np.array([0x21, 0x43], np.uint8)).tolist()
    [1, 2, 3, 4]
    """
    pairs = stored.view(np.uint8)
    out = np.empty((*pairs.shape, 2), np.uint8)
    np.bitwise_and(pairs, 15, out=out[..., 0])
    np.right_shift(pairs, 4, out=out[..., 1])
    return out.reshape(*pairs.shape[:-1], 2 * pairs.shape[-1])


def unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Numbers of ``bits`` bits out of a stream of 32-bit words along the last mode.

    Number ``i`` begins at bit ``i * bits``, counted from the lowest bit of the first word, and may
    go on in the next one (3 bits, 6 bits).

    Parameters
    ----------
    words
        ``(..., n)`` 32-bit integers.
    bits
        1 to 8.
    count
        How many numbers, at most ``32 n / bits``.

    Returns
    -------
    ndarray
        ``(..., count)`` uint8.

    Examples
    --------
    >>> unpack(np.array([0x76543210], np.uint32), 4, 8).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    words = np.ascontiguousarray(words).view(np.uint32)
    begin = np.arange(count) * bits
    word, shift = begin // 32, (begin % 32).astype(np.uint32)
    out = words[..., word] >> shift
    over = np.flatnonzero(shift + bits > 32)
    if over.size:
        out[..., over] |= words[..., word[over] + 1] << (32 - shift[over])
    return (out & np.uint32((1 << bits) - 1)).astype(np.uint8)
