"""Start factors that follow from a seed and a shape, made with numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tdecomp.adapters.start_rule import StartRule
from tdecomp.errors import ArgumentError

__all__ = ["SEEDED", "Request"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that a seeded rule may use.

    Attributes
    ----------
    shape
        Its shape.
    args
        Values of the rule's arguments.
    stream
        A random generator by name: one name gives the same numbers to every factor that asks.
    name
        Name of the factor, its own stream.
    """

    shape: tuple[int, ...]
    args: tuple[float, ...]
    stream: Callable[[str], np.random.Generator]
    name: str

    @property
    def rng(self) -> np.random.Generator:
        """The factor's own random generator."""
        return self.stream(self.name)

    def arg(self, k: int, default: float) -> float:
        """Argument number `k`."""
        return self.args[k] if k < len(self.args) else default


def _normal(ask: Request) -> np.ndarray:
    return ask.arg(0, 1.0) * ask.rng.standard_normal(ask.shape)


def _uniform(ask: Request) -> np.ndarray:
    return ask.arg(0, 1.0) * ask.rng.uniform(-1, 1, ask.shape)


def _orthogonal(ask: Request) -> np.ndarray:
    """Orthonormal columns of every (n, r) matrix, or rows where r > n."""
    x = ask.rng.standard_normal(ask.shape if len(ask.shape) > 1 else (*ask.shape, 1))
    wide = x.shape[-1] > x.shape[-2]
    q, r = np.linalg.qr(np.swapaxes(x, -1, -2) if wide else x)  # (.., long, short)
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]
    q = np.swapaxes(q, -1, -2) if wide else q
    return ask.arg(0, 1.0) * np.ascontiguousarray(q).reshape(ask.shape)


def _eye(ask: Request) -> np.ndarray:
    return np.broadcast_to(np.eye(ask.shape[-2], ask.shape[-1]), ask.shape).copy()


def _one_hot(ask: Request) -> np.ndarray:
    """Row i has its 1 in column ``i m // n``: equal runs of neighbours."""
    n, m = ask.shape[-2:]
    runs = (np.arange(n)[:, None] * m // n == np.arange(m)).astype(np.float64)
    return np.broadcast_to(runs, ask.shape).copy()


def _cyclic(ask: Request) -> np.ndarray:
    """Row i has its 1 in column ``i mod m``: the identity, over and over."""
    n, m = ask.shape
    return (np.arange(n)[:, None] % m == np.arange(m)).astype(np.float64)


def _banded(ask: Request) -> np.ndarray:
    """1 where ``0 <= row - column <= width``."""
    rows, columns = np.indices(ask.shape)
    gap = rows - columns
    return ((gap >= 0) & (gap <= ask.arg(0, 1))).astype(np.float64)


def _mask(ask: Request) -> np.ndarray:
    """A share of ones (half by default), at random places."""
    n = math.prod(ask.shape)
    flat = np.zeros(n)
    flat[ask.rng.permutation(n)[: round(ask.arg(0, 0.5) * n)]] = 1.0
    return flat.reshape(ask.shape)


def _pick(ask: Request) -> np.ndarray:
    """One number at a random place of every row, each place as often as any other, or once more."""
    n, d = math.prod(ask.shape[:-1]), ask.shape[-1]
    found = np.zeros((n, d))
    found[np.arange(n), ask.rng.permutation(n) % d] = ask.arg(0, 1.0)
    return found.reshape(ask.shape)


def _circulant(ask: Request) -> np.ndarray:
    """``(z, x, y)``: 1 where ``z = (y - x) mod b``."""
    z, x, y = np.indices(ask.shape)
    return (z == (y - x) % ask.shape[0]).astype(np.float64)


def _rotation(ask: Request) -> np.ndarray:
    """``(g, b, c)``: block g rotates the pairs (i, i + c/2) by ``g / base**(2i/c)``."""
    g, n, _ = ask.shape
    half = n // 2
    if n % 2 or ask.shape[2] != n:
        raise ArgumentError(
            f"rotation needs square blocks of an even size, {ask.name!r} is {ask.shape}"
        )
    angle = np.arange(g)[:, None] / ask.arg(0, 10000.0) ** (2 * np.arange(half) / n)
    found = np.zeros(ask.shape)
    i = np.arange(half)
    found[:, i, i] = found[:, i + half, i + half] = np.cos(angle)
    found[:, i, i + half], found[:, i + half, i] = -np.sin(angle), np.sin(angle)
    return found


@dataclass(frozen=True, kw_only=True)
class _WavePlaces:
    """Places of an (n, m) grid of coefficients, drawn without repetition, along one axis.

    Attributes
    ----------
    row, column
        Where they stand.
    axis
        The axis that is meant; the array is ``(size, k)`` for axis 0 and ``(k, size)`` for axis 1.
    grid
        n and m.
    """

    row: np.ndarray
    column: np.ndarray
    axis: int
    grid: tuple[int, int]

    @property
    def size(self) -> int:
        """Length of the axis."""
        return self.grid[self.axis]

    def along(self, waves: np.ndarray) -> np.ndarray:
        """Waves ``(size, k)`` with the axes in the order that is wanted."""
        return waves.T if self.axis else waves


def _wave_places(ask: Request) -> _WavePlaces:
    """The places of a factor with the arguments n, m, axis; those of both axes are the same."""
    n, m, axis = (int(a) for a in ask.args)
    if axis not in (0, 1):
        raise ArgumentError(f"{ask.name!r} is made of waves along axis 0 or 1, not {axis}")
    size, k = ask.shape[axis], ask.shape[1 - axis]
    if size != (m if axis else n):
        raise ArgumentError(
            f"{ask.name!r} of {ask.shape} is to be made of waves over a grid of {n} x {m}: axis"
            f" {axis} of both must be equal"
        )
    if k > n * m:
        raise ArgumentError(
            f"{ask.name!r} asks for {k} frequencies, a grid of {n} x {m} has {n * m}: choose fewer"
        )
    chosen = ask.stream("frequencies").choice(n * m, size=k, replace=False)
    return _WavePlaces(row=chosen // m, column=chosen % m, axis=axis, grid=(n, m))


def _wave(ask: Request, wave: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Columns of a DFT at random frequencies."""
    at = _wave_places(ask)
    frequency = at.column if at.axis else at.row
    return at.along(
        wave(np.outer(np.arange(at.size), frequency) % at.size * (2 * math.pi / at.size))
    )


def _haar(ask: Request) -> np.ndarray:
    """Haar wavelets of one level: sums in the first half of both axes, differences in the second.

    As in the transform, the coefficients right above hold differences along axis 0, those left
    below along axis 1. The last row or column of an odd grid is cut off.
    """
    at = _wave_places(ask)
    half = [(n + 1) // 2 for n in at.grid]
    place = (at.row, at.column)[at.axis] % half[at.axis]
    other = (at.column, at.row)[at.axis] >= half[1 - at.axis]  # differences
    found = np.zeros((2 * half[at.axis], len(place)))
    k = np.arange(len(place))
    found[2 * place, k] = math.sqrt(0.5)
    found[2 * place + 1, k] = np.where(other, -math.sqrt(0.5), math.sqrt(0.5))
    return at.along(found[: at.size])


SEEDED: Mapping[str, StartRule[[Request]]] = {
    "zeros": StartRule(lambda ask: np.zeros(ask.shape)),
    "ones": StartRule(lambda ask: np.ones(ask.shape)),
    "constant": StartRule(lambda ask: np.full(ask.shape, ask.arg(0, 1.0)), arguments=(0, 1)),
    "normal": StartRule(_normal, arguments=(0, 1)),
    "uniform": StartRule(_uniform, arguments=(0, 1)),
    "orthogonal": StartRule(_orthogonal, arguments=(0, 1)),
    "eye": StartRule(_eye, axes=(2, math.inf)),
    "one_hot": StartRule(_one_hot, axes=(2, math.inf)),
    "cyclic": StartRule(_cyclic, axes=(2, 2)),
    "banded": StartRule(_banded, arguments=(0, 1), axes=(2, 2)),
    "mask": StartRule(_mask, arguments=(0, 1)),
    "pick": StartRule(_pick, arguments=(0, 1), axes=(2, math.inf)),
    "circulant": StartRule(_circulant, axes=(3, 3)),
    "rotation": StartRule(_rotation, arguments=(0, 1), axes=(3, 3)),
    "cos": StartRule(lambda ask: _wave(ask, np.cos), arguments=(3, 3), axes=(2, 2)),
    "sin": StartRule(lambda ask: _wave(ask, np.sin), arguments=(3, 3), axes=(2, 2)),
    "haar": StartRule(_haar, arguments=(3, 3), axes=(2, 2)),
}
"""Rules that need a seed and a shape. A new one is a function and a row here."""
