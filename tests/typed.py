# pyright: reportUnnecessaryTypeIgnoreComment=true
"""Read by pyright only: arrays of every library are an `Array`, and nothing else is."""

from __future__ import annotations

import jax
import numpy as np
import torch

from tdecomp._xp import Array

Matrix = np.ndarray[tuple[int, int], np.dtype[np.complex64]]


def arrays(x: np.ndarray, y: Matrix, z: torch.Tensor, w: jax.Array) -> list[Array]:
    return [x, y, z, w, torch.nn.Parameter(z), np.zeros(3), jax.numpy.zeros(3)]


def numbers(x: list[float]) -> Array:
    return x  # pyright: ignore[reportReturnType]


def optional(x: Array | None) -> Array:
    return x  # pyright: ignore[reportReturnType]
