"""A start for networks with a factor that only scales entries, as in VeRA: its signs included."""

from __future__ import annotations

import math
from typing import NamedTuple

from tdecomp._xp import Array, double, namespace
from tdecomp.decomposition.methods.network.problem import Problem
from tdecomp.linalg import truncated_svd

__all__ = ["eigenvector_gate", "is_gate"]

_ROWS = 1024  # rows up to which the eigenvectors are computed


class _Layout(NamedTuple):
    rows: str
    batch: tuple[str, ...]
    columns: tuple[str, ...]
    rank: int


def is_gate(problem: Problem, k: int) -> bool:
    """Whether term `k` has no rank and only modes that its companions have: it scales entries."""
    inside = {n for j in problem.addend_of(k) if j != k for n in problem.terms[j]}
    return all(n in problem.output and n in inside for n in problem.terms[k])


def eigenvector_gate(problem: Problem, k: int, reference: int = 0) -> tuple[Array, Array] | None:
    """Scales of the gate `k`, and the data without them; None where a condition is missing.

    Let one other term be ``A[rows, ranks]`` and hold no more modes, so that every slice of the data
    is ``X_b = diag(g_b) A M_b``. In one slice, ``g_b`` may be counted to ``A``, whose column space
    is then that of ``X_b``. With the projector ``P`` to it, any other slice has
    ``(1 - P) diag(v) X_b = 0`` for ``v = 1/g_b``, so that ``v`` is the eigenvector of
    ``(1 - P) ∘ (X_b X_bᵀ)`` with the least eigenvalue. Exact on planted data, whatever the slice;
    `reference` counts them from that in which the last direction is the strongest.
    """
    layout = _layout(problem, k)
    if layout is None:
        return None
    xp = namespace(problem.x)
    names = (*layout.batch, layout.rows, *layout.columns)
    order = [problem.output.index(n) for n in names]
    moved = xp.permute_dims(problem.x, tuple(order))
    n_rows, n_columns = (
        math.prod(problem.sizes[n] for n in part) for part in ([layout.rows], layout.columns)
    )
    slices = double(xp.reshape(moved, (-1, n_rows, n_columns)))
    norms = xp.sqrt(xp.sum(slices * slices, axis=2, keepdims=True))
    norms = xp.where(norms > 0, norms, xp.ones_like(norms))
    units = slices / norms
    identity = xp.eye(n_rows, dtype=units.dtype, device=units.device)
    outside = identity - _projector(units, layout.rank, reference)
    weights = []
    for b in range(units.shape[0]):
        vectors = xp.linalg.eigh(outside * (units[b, ...] @ units[b, ...].T))[1]
        weights.append(vectors[:, 0])
    v = xp.stack(weights)[:, :, None]
    tiny = 1e-8 / math.sqrt(n_rows)  # a row that fits nothing: its scale is found by the sweeps
    v = xp.where(xp.abs(v) < tiny, tiny * xp.ones_like(v), v)
    own = names[: len(problem.terms[k])]
    gate = xp.reshape(norms / v, tuple(problem.sizes[n] for n in own))
    gate = xp.permute_dims(gate, tuple(own.index(n) for n in problem.terms[k]))
    plain = xp.reshape(v * units, tuple(moved.shape))
    return gate, xp.permute_dims(plain, tuple(names.index(n) for n in problem.output))


def _layout(problem: Problem, k: int) -> _Layout | None:
    """The roles of the modes: rows are those of a term with no other mode, of the least rank."""
    if problem.frozen or problem.is_tied or len(problem.addends) > 1:
        return None
    columns = tuple(n for n in problem.output if n not in problem.terms[k])
    n_columns = math.prod(problem.sizes[n] for n in columns)
    found = []
    for rows in problem.terms[k]:
        having = [t for j, t in enumerate(problem.terms) if j != k and rows in t]
        batch = tuple(n for n in problem.terms[k] if n != rows)
        if len(having) != 1 or not batch:
            continue
        (term,) = having
        ranks = [n for n in term if n not in problem.output]
        rank, n_rows = math.prod(problem.sizes[n] for n in ranks), problem.sizes[rows]
        if len(term) == len(ranks) + 1 and rank <= n_columns and rank < n_rows <= _ROWS:
            found.append(_Layout(rows, batch, columns, rank))
    return min(found, key=lambda layout: layout.rank, default=None)


def _projector(slices: Array, rank: int, reference: int) -> Array:
    """To the leading column space of a slice, counted from the one that shows it best."""
    found = [truncated_svd(slices[b, ...], rank)[:2] for b in range(slices.shape[0])]
    found.sort(key=lambda pair: -float(pair[1][-1]))
    u, _ = found[reference % len(found)]
    return u @ u.T
