"""Published starts of LoRA's two factors, matrix by matrix, and of a core between two factors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tdecomp._threads import side_by_side, workers
from tdecomp.adapters.from_weights import leading_triplets
from tdecomp.starts.data_rule import Arrays, GroupData
from tdecomp.starts.metric import damped

__all__ = ["corda", "eva", "gora", "lora_ga", "lora_one", "lora_sb", "olora", "pissa"]


def lora_ga(data: GroupData) -> Arrays:
    """``A = c V₁..ᵣ``, ``B = c Uᵣ₊₁..₂ᵣ`` with ``c = out^¼ / √γ``; taken off the weight again."""
    r, (n_out, _) = data.rank, data.bound.grid.shape
    size = n_out**0.25 / math.sqrt(16.0 if data.gamma is None else data.gamma)

    def pair(k: int) -> tuple[np.ndarray, np.ndarray]:
        u, _, vh = data.gradients[k].svd(2 * r)
        return size * u[:, r:], size * vh[:r]

    return _pairs(data, pair)


def lora_one(data: GroupData) -> Arrays:
    """``B A = -U (S / s₁) Vᵀ / γ``, the leading singular triplets of the gradient."""
    r, gamma = data.rank, 128.0 if data.gamma is None else data.gamma

    def pair(k: int) -> tuple[np.ndarray, np.ndarray]:
        u, s, vh = data.gradients[k].svd(r)
        root = np.sqrt(s / (s[0] or 1.0) / gamma)  # (r,)
        return -u * root, root[:, None] * vh

    return _pairs(data, pair)


def gora(data: GroupData) -> Arrays:
    """A at random as LoRA's, ``B = -ξ G Aᵀ (A Aᵀ)⁻¹``, the nearest to ``-ξ G``."""
    start = data.own_start[data.on("in")]

    def pair(k: int) -> tuple[np.ndarray, np.ndarray]:
        a = start[k]  # (r, in)
        g = data.gradients[k].whole()
        b = -np.linalg.solve(a @ a.T, a @ g.T).T  # (out, r)
        now = float(np.sqrt(np.mean((data.bound.scale() * b @ a) ** 2)))
        return b * (data.size / now if now else 0.0), a

    return _pairs(data, pair)


def eva(data: GroupData) -> Arrays:
    """Rows of A are the leading principal directions of the inputs, B is zero."""

    def pair(k: int) -> tuple[np.ndarray, np.ndarray]:
        _, directions = data.inputs[k].principal(data.rank)
        return np.zeros((data.bound.grid.shape[0], data.rank)), directions

    return _pairs(data, pair)


def corda(data: GroupData) -> Arrays:
    """``U S Vᵀ = W C`` with the inputs' second moment C: ``B = U √S``, ``A = √S Vᵀ C⁻¹``."""
    scale = data.bound.scale()

    def pair(k: int) -> tuple[np.ndarray, np.ndarray]:
        c = damped(data.inputs[k].second_moment())
        u, s, vh = np.linalg.svd(data.weight(k) @ c, full_matrices=False)
        r = data.rank
        root = np.sqrt(s[:r] / scale)
        return u[:, :r] * root, root[:, None] * np.linalg.solve(c, vh[:r].T).T

    return _pairs(data, pair)


def pissa(data: GroupData) -> Arrays:
    """``B = U √(S / s)``, ``A = √(S / s) Vᵀ`` of the weight, with the adapter's scale s."""
    scale = data.bound.scale()

    def pair(k: int) -> tuple[np.ndarray, np.ndarray]:
        u, s, vh = leading_triplets(data.weight(k), data.rank)
        root = np.sqrt(s / scale)
        return u * root, root[:, None] * vh

    return _pairs(data, pair)


def olora(data: GroupData) -> Arrays:
    """The first columns of Q and rows of R of the weight."""

    def pair(k: int) -> tuple[np.ndarray, np.ndarray]:
        w = data.weight(k)
        q = np.linalg.qr(w[:, : data.rank])[0]  # which the first columns decide alone
        return q, q.T @ w

    return _pairs(data, pair)


def lora_sb(data: GroupData) -> Arrays:
    """Outer factors are singular vectors of ``-η sign(G)``, the core its singular values."""
    operands = data.bound.spec.terms[0].operands
    (left, core, right), r = (o.factor for o in operands), data.rank
    found = {name: np.zeros(data.bound.shapes[name]) for name in (left, core, right)}
    for k, gradient in enumerate(data.gradients):
        u, s, vh = np.linalg.svd(-np.sign(gradient.whole()), full_matrices=False)
        found[left][k], found[right][k] = u[:, :r], vh[:r]
        found[core][k] = np.diag(s[:r]) * data.size / data.bound.scale()
    return found


def _pairs(data: GroupData, pair: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> Arrays:
    """The factors of all weights: ``pair(k)`` gives ``B (out, r)`` and ``A (r, in)`` of one."""
    b, a = data.on("out"), data.on("in")
    found = {name: np.zeros(data.bound.shapes[name]) for name in (b, a)}
    sites = range(len(data.names))
    with side_by_side(pair, sites, workers(len(sites))) as pairs:
        for k, (left, right) in enumerate(pairs):
            found[b][k], found[a][k] = left, right
    return found
