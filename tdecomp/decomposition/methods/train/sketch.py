"""Rounding of a tensor train by a random train: no QR of its full bonds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tdecomp._xp import Array, adjoint, namespace
from tdecomp.decomposition.methods.train.bonds import Bonds, usable_bonds
from tdecomp.decomposition.methods.train.sweeps import (
    bonds_of,
    fixed_bonds,
    flipped,
    left_orthonormal,
    reshape,
    train_source,
)

__all__ = ["sketched"]


def sketched(
    cores: Sequence[Array], bonds: Bonds, n_oversamples: int, rng: np.random.Generator
) -> list[Array]:
    """A train of the given bonds near a train of larger ones.

    Algorithm "randomize-then-orthogonalize" of [aldaas2023]: the train is contracted with a
    Gaussian train of bonds ``l = bonds + n_oversamples`` from the right; going left to right, the
    product of each core with its contraction spans the basis that is kept. The train of bonds
    ``l`` is then truncated by exact SVDs.

    Parameters
    ----------
    cores
        ``(r, n, s)``.
    bonds
        Of the result, each at most that of the train.
    n_oversamples
        Extra columns of the sketch.
    rng
        Draws the random train in numpy, core by core from the left.

    Notes
    -----
    ``O(d n R l (R + l))`` flops, where the deterministic sweep takes ``O(d n R³)`` for bonds ``R``.
    """
    xp, like = namespace(cores[0]), cores[0]
    sizes = [int(c.shape[1]) for c in cores]
    present = usable_bonds(bonds_of(cores), sizes)
    wide = [min(b + n_oversamples, most) for b, most in zip(bonds, present, strict=True)]
    full = (1, *usable_bonds(tuple(wide), sizes), 1)
    drawn = [
        rng.standard_normal(shape) / np.sqrt(shape[1] * shape[2])
        for shape in zip(full, sizes, full[1:], strict=False)
    ]
    tests = [xp.asarray(d, dtype=like.dtype, device=like.device) for d in drawn]
    sketches = _contracted(cores, tests)
    done, core = [], cores[0]
    for after, sketch in zip(cores[1:], sketches, strict=True):
        r, n, s = core.shape
        matrix = reshape(core, (r * n, s))
        q = xp.linalg.qr(matrix @ sketch, mode="reduced")[0]  # (r n, l)
        done.append(reshape(q, (r, n, q.shape[1])))
        carry = adjoint(q) @ matrix  # (l, s)
        core = reshape(carry @ reshape(after, (s, -1)), (q.shape[1], *after.shape[1:]))
    small = train_source(flipped([*done, core]))
    return left_orthonormal(flipped(fixed_bonds(small, bonds[::-1], None)[0]))


def _contracted(cores: Sequence[Array], tests: Sequence[Array]) -> list[Array]:
    """At every bond the cores behind it times those of the random train, ``(R, l)``."""
    xp = namespace(cores[0])
    found, right = [], xp.ones((1, 1), dtype=cores[0].dtype, device=cores[0].device)
    for core, test in zip(reversed(cores[1:]), reversed(tests[1:]), strict=True):
        r, n, s = core.shape
        part = reshape(reshape(core, (r * n, s)) @ right, (r, n * right.shape[1]))
        right = part @ adjoint(reshape(test, (test.shape[0], -1)))  # (r, l)
        right = right / xp.max(xp.abs(right)) if bool(xp.any(right != 0)) else right
        found.append(right)
    return found[::-1]
