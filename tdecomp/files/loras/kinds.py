"""How the stored parts of a site become one pair, as rows of one table.

Every kind is exact. Where the parts multiply to a pair that is wider than the matrix itself, as a
Hadamard product of two long pairs may be, the pair is the matrix and an identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["KINDS", "PairKind", "Sizes"]

PairParts = Mapping[str, np.ndarray]
PartShapes = Mapping[str, Sequence[int]]
Matrices = tuple[np.ndarray, np.ndarray]
"""``(out, r)`` and ``(r, in)``."""


@dataclass(frozen=True)
class Sizes:
    """What the shapes of the parts say.

    Attributes
    ----------
    shape
        (out, in) of ΔW; of convolutions ``in`` is channels times kernel.
    rank
        That ``alpha`` is divided by; None: there is no scale.
    kernel
        Of a convolution.
    """

    shape: tuple[int, int]
    rank: int | None
    kernel: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PairKind:
    """One kind of pair.

    Attributes
    ----------
    says, source
        The formula, and where it is published.
    complete
        Whether the parts of these names are all that is needed, and no more.
    sizes
        From the shapes of the parts; a ValueError where they do not fit each other.
    make
        The pair at scale 1.
    transpose
        The weight is stored (in, out).
    """

    says: str
    source: str
    complete: Callable[[frozenset[str]], bool]
    sizes: Callable[[PartShapes], Sizes]
    make: Callable[[PairParts], Matrices]
    transpose: bool = False


def _flat(array: np.ndarray) -> np.ndarray:
    """The first axis against all others."""
    return array.reshape(array.shape[0], -1)


def _narrow(b: np.ndarray, a: np.ndarray) -> Matrices:
    """The pair, or the matrix and an identity where those are smaller."""
    out, in_ = b.shape[0], a.shape[1]
    if b.shape[1] <= min(out, in_):
        return b, a
    dense = b @ a
    return (
        (dense, np.eye(in_, dtype=a.dtype)) if in_ <= out else (np.eye(out, dtype=b.dtype), dense)
    )


def _fit(fits: bool, shapes: PartShapes) -> None:
    if not fits:
        said = ", ".join(f"{part} {shape}" for part, shape in sorted(shapes.items()))
        raise ValueError(f"the shapes do not fit each other: {said}")


# ------------------------------------------------------------------------------------------- LoRA


def _lora_sizes(shapes: PartShapes) -> Sizes:
    a, b, mid = shapes["a"], shapes["b"], shapes.get("mid")
    _fit(len(a) >= 2 and len(b) >= 2 and math.prod(b[2:]) == 1, shapes)
    kernel = tuple(a[2:] if mid is None else mid[2:])
    if mid is None:
        _fit(a[0] == b[1], shapes)
    else:
        _fit(len(mid) > 2 and (mid[0], mid[1]) == (b[1], a[0]) and math.prod(a[2:]) == 1, shapes)
    return Sizes((b[0], a[1] * math.prod(kernel)), a[0], kernel)


def _lora(parts: PairParts) -> Matrices:
    a, b, mid = parts["a"], _flat(parts["b"]), parts.get("mid")
    if mid is None:
        return b, _flat(a)
    joined = np.einsum("ij...,jp->ip...", mid, _flat(a))  # (r, in, kernel)
    return b, _flat(joined)


# ------------------------------------------------------------------------------------------- LoHa


def _loha_sizes(shapes: PartShapes) -> Sizes:
    one, two = (_rebuilt(shapes, f"w{k}_a", f"w{k}_b", f"t{k}") for k in (1, 2))
    _fit(one == two, shapes)
    return Sizes(one[0], shapes["w1_b"][0], one[1])


def _loha(parts: PairParts) -> Matrices:
    (b1, a1), (b2, a2) = (_rebuild(parts, f"w{k}_a", f"w{k}_b", f"t{k}") for k in (1, 2))
    b = (b1[:, :, None] * b2[:, None, :]).reshape(b1.shape[0], -1)  # (out, r1 r2)
    a = (a1[:, None, :] * a2[None, :, :]).reshape(-1, a1.shape[1])  # (r1 r2, in)
    return _narrow(b, a)


def _rebuilt(
    shapes: PartShapes, left: str, right: str, middle: str
) -> tuple[tuple[int, int], tuple[int, ...]]:
    """(out, in · kernel) and kernel of a product of two or three parts."""
    a, b, t = shapes[left], shapes[right], shapes.get(middle)
    _fit(len(a) == len(b) == 2, shapes)
    if t is None:
        _fit(a[1] == b[0], shapes)
        return (a[0], b[1]), ()
    _fit(len(t) > 2 and (t[0], t[1]) == (a[0], b[0]), shapes)
    return (a[1], b[1] * math.prod(t[2:])), tuple(t[2:])


def _rebuild(parts: PairParts, left: str, right: str, middle: str) -> Matrices:
    a, b, t = parts[left], parts[right], parts.get(middle)
    if t is None:
        return a, b
    return a.T, _flat(np.einsum("ij...,jp->ip...", t, b))  # of a tensor the left is (r, out)


# ------------------------------------------------------------------------------------------- LoKr


_MOST = 2**31  # numbers of a pair as wide as its matrix: 32768 × 32768
_LEFT = frozenset({"w1", "w1_a", "w1_b"})
_LEFTS = (frozenset({"w1"}), frozenset({"w1_a", "w1_b"}))
_RIGHTS = (
    frozenset({"w2"}),
    frozenset({"w2_a", "w2_b"}),
    frozenset({"w2_a", "w2_b", "t2"}),
)


def _lokr_complete(names: frozenset[str]) -> bool:
    one, two = names & _LEFT, names - _LEFT
    return one in _LEFTS and two in _RIGHTS


def _lokr_sizes(shapes: PartShapes) -> Sizes:
    one, _ = _factor_sizes(shapes, 1)
    two, kernel = _factor_sizes(shapes, 2)
    out, in_ = one[0] * two[0], one[1] * two[1]
    if min(out, in_) * (out + in_) > _MOST:  # a Kronecker product is far larger than what is stored
        raise ValueError(f"a Kronecker product of {out} × {in_} is larger than what is read here")
    ranks = (shapes[part][0] for part in ("w1_b", "w2_b") if part in shapes)
    return Sizes((out, in_), next(ranks, None), kernel)


def _factor_sizes(shapes: PartShapes, k: int) -> tuple[tuple[int, int], tuple[int, ...]]:
    if f"w{k}" not in shapes:
        return _rebuilt(shapes, f"w{k}_a", f"w{k}_b", f"t{k}")
    whole = shapes[f"w{k}"]
    _fit(len(whole) >= 2, shapes)
    return (whole[0], math.prod(whole[1:])), tuple(whole[2:])


def _lokr(parts: PairParts) -> Matrices:
    (b1, a1), (b2, a2) = (_factor(parts, k) for k in (1, 2))
    return _narrow(np.kron(b1, b2), np.kron(a1, a2))


def _factor(parts: PairParts, k: int) -> Matrices:
    """A factor of a Kronecker product as a pair; whole ones with an identity."""
    if f"w{k}" not in parts:
        return _rebuild(parts, f"w{k}_a", f"w{k}_b", f"t{k}")
    whole = _flat(parts[f"w{k}"])
    out, in_ = whole.shape
    eye = np.eye(min(out, in_), dtype=whole.dtype)
    return (whole, eye) if in_ <= out else (eye, whole)


def _exactly(*needed: str, may: tuple[str, ...] = ()) -> Callable[[frozenset[str]], bool]:
    return lambda names: set(needed) <= names <= {*needed, *may}


def _loha_complete(names: frozenset[str]) -> bool:
    return _exactly("w1_a", "w1_b", "w2_a", "w2_b")(names - {"t1", "t2"}) and (
        ("t1" in names) == ("t2" in names)
    )


KINDS: Mapping[str, PairKind] = {
    "lora": PairKind(
        says="B A; with a middle part of the kernel of a convolution, B M A",
        source="arXiv:2106.09685, LyCORIS (LoCon)",
        complete=_exactly("a", "b", may=("mid",)),
        sizes=_lora_sizes,
        make=_lora,
    ),
    "embedding": PairKind(
        says="(B A)ᵀ of an embedding, which is stored (in, out)",
        source="peft.tuners.lora.layer.Embedding",
        complete=_exactly("a", "b"),
        sizes=_lora_sizes,
        make=_lora,
        transpose=True,
    ),
    "loha": PairKind(
        says="(W1a W1b) ∘ (W2a W2b): rank r1 · r2",
        source="arXiv:2108.06098, LyCORIS (LoHa)",
        complete=_loha_complete,
        sizes=_loha_sizes,
        make=_loha,
    ),
    "lokr": PairKind(
        says="W1 ⊗ W2, either factor being a product",
        source="arXiv:2309.14859, LyCORIS (LoKr)",
        complete=_lokr_complete,
        sizes=_lokr_sizes,
        make=_lokr,
    ),
}
"""Every kind of pair by name."""
