"""Exact export of a decomposed delta to LoRA pairs: ``ΔW = B A`` for every module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tdecomp._brief import brief, brief_array
from tdecomp._xp import Array, double, namespace, sum_of_squares
from tdecomp.errors import DataError
from tdecomp.formats import Format
from tdecomp.stack import Group, Site

__all__ = ["LoRAModule", "lora_modules"]


@dataclass(frozen=True, repr=False, kw_only=True)
class LoRAModule:
    """One module's LoRA pair at scale 1.

    Attributes
    ----------
    module
        Module path, as in the checkpoint.
    a, b
        ``(r, in)`` and ``(out, r)``.
    transpose
        The weight is stored (in, out), as GPT-2's Conv1D does.
    departure, energy
        ``‖ΔW − B A‖²`` and ``‖ΔW‖²`` of the decoded ΔW.
    needed
        Rank at which the export is exact; a narrower pair was truncated.
    """

    module: str
    a: Array
    b: Array
    transpose: bool
    departure: float
    energy: float
    needed: int = 0

    def __repr__(self) -> str:
        pair = f"b {brief_array(self.b)}, a {brief_array(self.a)}"
        return brief(type(self), self.module, pair)

    @property
    def rank(self) -> int:
        """Width of the pair."""
        return self.a.shape[0]


SitePosition = tuple[int, Site]
"""A site's position in its group, and the site."""


def lora_modules(
    groups: Sequence[Group],
    tensors: Sequence[Format],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    max_rank: int | None = None,
    rounding: Callable[[Array], Array] | None = None,
) -> tuple[list[LoRAModule], list[str]]:
    """LoRA pairs of every module that the groups touch.

    A Tucker or Tucker2 site has rank ``min(r_out, r_in)`` exactly, an independent SVD its own rank.
    A module made of several sites (fused projections, heads) gets their pairs side by side with a
    block-diagonal B, or one shared A where the sites have their ``in`` basis in common and that is
    narrower. Only a pair wider than `max_rank` or than its matrix is recompressed, by SVD of the
    small product of its QR factors, and its departure is recorded.

    Parameters
    ----------
    groups, tensors
        The groups of a model and the format of each.
    shapes
        Stored shape of every tensor that holds sites.
    max_rank
        Widest pair allowed; None for no limit.
    rounding
        Applied to both factors before the departure is measured (storage precision).

    Returns
    -------
    modules, left_out
        Pairs in checkpoint order, and the names of tensors that no LoRA module can express (3-D
        expert parameters, and what is not the ``weight`` of a module).

    Raises
    ------
    DataError
        If a pair is not finite, as finite factors were multiplied.
    """
    parts: dict[str, dict[int, list[SitePosition]]] = {}
    for g, group in enumerate(groups):
        for i, site in enumerate(group.sites):
            parts.setdefault(site.tensor, {}).setdefault(g, []).append((i, site))
    left_out = [n for n in parts if len(shapes[n]) != 2 or not n.endswith(".weight")]
    modules = [
        _module(name, by_group, tensors, shapes[name], max_rank, rounding)
        for name, by_group in parts.items()
        if name not in left_out
    ]
    return modules, left_out


def _module(
    name: str,
    by_group: Mapping[int, list[SitePosition]],
    tensors: Sequence[Format],
    stored: tuple[int, ...],
    max_rank: int | None,
    rounding: Callable[[Array], Array] | None,
) -> LoRAModule:
    site = next(iter(by_group.values()))[0][1]
    out = stored[1] if site.transpose else stored[0]
    blocks = [_narrowest(tensors[g], parts, out) for g, parts in by_group.items()]
    xp = namespace(blocks[0][0])
    b = xp.concat([left for left, _ in blocks], axis=1)  # (out, Σ r)
    a = xp.concat([right for _, right in blocks], axis=0)  # (Σ r, in)
    if not all(bool(xp.all(xp.isfinite(array))) for array in (a, b)):
        raise DataError(
            f"the delta of {site.module} is beyond the largest {b.dtype}: its factors multiply to"
            " infinity and cannot be written as LoRA"
        )
    needed = min(a.shape[0], *stored)
    rank = needed if max_rank is None else min(needed, max_rank)
    left, right = _recompress(b, a, rank) if rank < a.shape[0] else (b, a)
    if rounding is not None:
        left, right = rounding(left), rounding(right)
    energy = _squared_norm(b, a)
    departure = (
        0.0
        if left is b and right is a
        else _squared_norm(xp.concat([b, -left], axis=1), xp.concat([a, right], axis=0))
    )
    return LoRAModule(
        module=site.module,
        a=right,
        b=left,
        transpose=site.transpose,
        departure=departure,
        energy=energy,
        needed=needed,
    )


def _narrowest(tensor: Format, parts: Sequence[SitePosition], out: int) -> tuple[Array, Array]:
    """``(out, r)`` and ``(r, in)`` of the sites of one group in one module, the narrower way."""
    pairs = [tensor.pair(i) for i, _ in parts]
    apart = sum(right.shape[0] for _, right in pairs)
    if tensor.shares_in and len(parts) > 1:
        shared = [tensor.pair(i, shared_in=True) for i, _ in parts]
        if shared[0][1].shape[0] < apart:
            lefts = [
                _place(left, site, out) for (left, _), (_, site) in zip(shared, parts, strict=True)
            ]
            return sum(lefts[1:], lefts[0]), shared[0][1]
    xp = namespace(pairs[0][0])
    lefts = [_place(left, site, out) for (left, _), (_, site) in zip(pairs, parts, strict=True)]
    return xp.concat(lefts, axis=1), xp.concat([right for _, right in pairs], axis=0)


def _place(left: Array, site: Site, out: int) -> Array:
    """`left` among the rows of its module, zeros elsewhere: ``(out, r)``."""
    start = site.first_row
    if left.shape[0] == out:
        return left
    xp = namespace(left)

    def zeros(n: int) -> Array:
        return xp.zeros((n, left.shape[1]), dtype=left.dtype, device=left.device)

    return xp.concat([zeros(start), left, zeros(out - start - left.shape[0])], axis=0)


def _squared_norm(b: Array, a: Array) -> float:
    """``‖b @ a‖²`` from the QR factors of both, without the product."""
    if not a.shape[0]:
        return 0.0
    xp = namespace(b)
    rb = xp.linalg.qr(double(b), mode="reduced")[1]  # (q, r)
    ra = xp.linalg.qr(double(a).T, mode="reduced")[1]  # (p, r)
    return sum_of_squares(rb @ ra.T)


def _recompress(b: Array, a: Array, rank: int) -> tuple[Array, Array]:
    """Best rank-`rank` pair for ``b @ a``, balanced."""
    xp = namespace(b)
    qb, rb = xp.linalg.qr(double(b), mode="reduced")  # (out, q), (q, r)
    qa, ra = xp.linalg.qr(double(a).T, mode="reduced")  # (in, p), (p, r)
    u, s, vh = xp.linalg.svd(rb @ ra.T, full_matrices=False)  # of (q, p)
    root = xp.sqrt(s[:rank])
    left = (qb @ u[:, :rank]) * root[None, :]  # (out, rank)
    right = root[:, None] * (vh[:rank, :] @ qa.T)  # (rank, in)
    return xp.astype(left, b.dtype), xp.astype(right, a.dtype)
