"""How the factors of an adapter start: one row per rule, made with numpy.

A rule is written ``kind(arg, ..)``; the arguments are formulas over the sizes of the adapter.
*Seeded* rules need nothing but a seed and are not stored in files when frozen; *data* rules are
made of the weights (or given) and are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tdecomp.adapters.expressions import Expression, nearest
from tdecomp.adapters.from_weights import FROM_WEIGHTS
from tdecomp.errors import ArgumentError

__all__ = ["INITS", "Init", "Request"]

_CALL = re.compile(r"\s*(?P<kind>[A-Za-z]\w*)\s*(?:\((?P<args>.*)\))?\s*")


@dataclass(frozen=True, repr=False)
class Init:
    """A rule and its arguments: ``normal(0.02)``.

    Attributes
    ----------
    kind
        A key of `INITS` or of `FROM_WEIGHTS`, ``"copy"`` or ``"given"``.
    args
        Formulas.
    """

    kind: str
    args: tuple[Expression, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Init:
        """Read ``"kind"`` or ``"kind(arg, ..)"``.

        >>> str(Init.parse("uniform( 1/sqrt(in) )"))
        'uniform(1/sqrt(in))'
        """
        found = _CALL.fullmatch(str(text))
        known = (*INITS, *FROM_WEIGHTS, "copy", "given")
        if found is None or found["kind"] not in known:
            near = nearest(found["kind"] if found else str(text), known)
            raise ArgumentError(f"init {text!r}{near}: expected one of {', '.join(known)}")
        args = _split(found["args"]) if found["args"] else []
        least, most = _ARGUMENTS.get(found["kind"], (0, 0))
        if not least <= len(args) <= most:
            wanted = f"{most}" if least == most else f"{least} to {most}"
            raise ArgumentError(f"init {text!r}: {found['kind']} takes {wanted} arguments")
        return cls(found["kind"], tuple(Expression(arg.strip()) for arg in args))

    def __repr__(self) -> str:
        return f"Init({self})"

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(map(str, self.args))})" if self.args else self.kind

    def check(self, name: str, modes: tuple[str, ...]) -> None:
        """Refuse a factor that has too few or too many axes for the rule."""
        least, most = _AXES.get(self.kind, (0, math.inf))
        if not least <= len(modes) <= most:
            wanted = f"{least} axes" if least == most else f"{least} axes or more"
            raise ArgumentError(
                f"the factor {name!r} ({' '.join(modes)}) cannot start as {self}: that takes"
                f" {wanted}"
            )

    @property
    def from_seed(self) -> bool:
        """Whether the array follows from a seed and its shape alone."""
        return self.kind in INITS


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    pieces, depth = [""], 0
    for c in text:
        depth += (c == "(") - (c == ")")
        if c == "," and not depth:
            pieces.append("")
        else:
            pieces[-1] += c
    return pieces


@dataclass(frozen=True)
class Request:
    """What is known where an array is made.

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


def _orthogonal(ask: Request) -> np.ndarray:
    """Orthonormal columns of every (n, r) matrix, or rows where r > n."""
    x = ask.rng.standard_normal(ask.shape if len(ask.shape) > 1 else (*ask.shape, 1))
    wide = x.shape[-1] > x.shape[-2]
    q, r = np.linalg.qr(np.swapaxes(x, -1, -2) if wide else x)
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


def _wave(ask: Request, wave: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Columns of a DFT at frequencies drawn without repetition from the (n, m) grid.

    Arguments: n, m, and the axis whose frequency is meant; the array is ``(size, k)`` for axis 0
    and ``(k, size)`` for axis 1.
    """
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
    frequency = chosen // m if axis == 0 else chosen % m
    grid = np.outer(np.arange(size), frequency) % size * (2 * math.pi / size)
    return wave(grid if axis == 0 else grid.T)


INITS: Mapping[str, Callable[[Request], np.ndarray]] = {
    "zeros": lambda ask: np.zeros(ask.shape),
    "ones": lambda ask: np.ones(ask.shape),
    "constant": lambda ask: np.full(ask.shape, ask.arg(0, 1.0)),
    "normal": lambda ask: ask.arg(0, 1.0) * ask.rng.standard_normal(ask.shape),
    "uniform": lambda ask: ask.arg(0, 1.0) * ask.rng.uniform(-1, 1, ask.shape),
    "orthogonal": _orthogonal,
    "eye": _eye,
    "one_hot": _one_hot,
    "cyclic": _cyclic,
    "banded": _banded,
    "mask": _mask,
    "circulant": _circulant,
    "rotation": _rotation,
    "cos": lambda ask: _wave(ask, np.cos),
    "sin": lambda ask: _wave(ask, np.sin),
}
"""Rules that need a seed and a shape."""

_ARGUMENTS = {
    "constant": (0, 1),
    "normal": (0, 1),
    "uniform": (0, 1),
    "orthogonal": (0, 1),
    "banded": (0, 1),
    "mask": (0, 1),
    "rotation": (0, 1),
    "cos": (3, 3),
    "sin": (3, 3),
    "svd_u": (0, 2),
    "svd_s": (0, 2),
    "svd_vh": (0, 2),
    "mpo": (1, 1),
    "copy": (1, 1),
}
"""Fewest and most arguments of a rule; the others take none."""

_AXES = {
    "eye": (2, math.inf),
    "one_hot": (2, math.inf),
    "cyclic": (2, 2),
    "banded": (2, 2),
    "circulant": (3, 3),
    "rotation": (3, 3),
    "cos": (2, 2),
    "sin": (2, 2),
}
"""Fewest and most axes of a factor that starts by a rule; the others fit any."""
