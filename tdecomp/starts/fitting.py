"""The factors of an adapter that come closest to given changes of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tdecomp._brief import brief
from tdecomp.adapters import Bound, Spec
from tdecomp.decomposition import als
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format, Network, Tucker, mode_product
from tdecomp.modes import Equation
from tdecomp.starts.stacks import compressed, letters_of, opened, projected
from tdecomp.statistics import Gradient

__all__ = ["FittedRow", "check_can_be_fitted", "fit_row", "is_pair"]

_SWEEPS = 50
_TOL = 1e-5


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FittedRow:
    """Factors of an adapter on one group of weights.

    Attributes
    ----------
    factors
        By name, as `Bound.shapes` has them; their sum of terms, not scaled, is what was fitted.
        Every factor of a term has the same Frobenius norm.
    error
        Relative Frobenius error over all weights of the group.
    """

    factors: Mapping[str, np.ndarray] = field(default_factory=dict)
    error: float

    def __repr__(self) -> str:
        return brief(type(self), f"{len(self.factors)} factors", f"error {self.error:.4g}")


def check_can_be_fitted(spec: Spec) -> None:
    """Refuse an adapter whose factors are not those of one plain tensor network.

    Raises
    ------
    ArgumentError
        It has several terms, one factor twice, or constants that are the weight itself.
    """
    why = ""
    if len(spec.terms) != 1:
        why = f"is a sum of {len(spec.terms)} terms"
    elif len({o.factor for o in spec.terms[0].operands}) != len(spec.terms[0].operands):
        why = "uses one factor twice"
    elif any(f.init.kind in ("weight", "mask", "one_hot", "banded") for f in spec.factors):
        why = "has a constant that its other factors are multiplied with"
    elif any(f.unit for f in spec.factors):
        why = "has a factor whose norm is 1"
    elif spec.crop:
        why = "cuts its factors off"
    elif spec.fast:
        why = "is not computed as an einsum"
    if why:
        raise ArgumentError(
            f"{spec.name!r} {why}: a start from gradients or from a decomposition is for adapters"
            " that are one product of factors, such as lora, lotr, lorta, tt_lora or"
            " tenslora_qkv_depth"
        )


def fit_row(
    bound: Bound,
    matrices: Sequence[Gradient],
    *,
    frozen: Mapping[str, np.ndarray] | None = None,
) -> FittedRow:
    """Fit the adapter to one matrix for every weight, in the least squares sense.

    An adapter of two factors for every weight gets truncated SVDs, every other `td.als`, in as many
    directions of a mode as its factor can use: the network's closed form if it has one, then
    sweeps.

    Parameters
    ----------
    bound
        The adapter on a group of weights.
    matrices
        One ``(out, in)`` for every weight, in the order of the grid.
    frozen
        Factors that stay as they are.

    Raises
    ------
    ArgumentError
        See `check_can_be_fitted`; or the weights do not fill the grid.
    """
    check_can_be_fitted(bound.spec)
    if is_pair(bound.spec) and not frozen:
        return _pairs(bound, matrices)
    return _network(bound, matrices, frozen or {})


def is_pair(spec: Spec) -> bool:
    """Whether every weight has two factors of its own, joined by one rank."""
    operands = spec.terms[0].operands
    return (
        len(operands) == 2
        and all("site" in o.letters and len(o.letters) == 3 for o in operands)
        and len(set(operands[0].letters) & set(operands[1].letters)) == 2
        and spec.output == ("out", "in")
    )


def _pairs(bound: Bound, matrices: Sequence[Gradient]) -> FittedRow:
    """Truncated SVDs, the singular values shared out evenly."""
    (rank,) = bound.ranks.values()
    term = bound.spec.terms[0]
    found = {o.factor: np.zeros(bound.shapes[o.factor]) for o in term.operands}
    missed = total = 0.0
    for k, matrix in enumerate(matrices):
        kept = min(rank, matrix.rank)
        u, s, vh = matrix.svd(matrix.rank)
        missed, total = missed + float((s[kept:] ** 2).sum()), total + float((s**2).sum())
        root = np.sqrt(s[:kept])
        for o in term.operands:
            letters = bound.letters(o)
            on_out = "out" in letters
            part = u[:, :kept] * root if on_out else (root[:, None] * vh[:kept]).T  # (side, r)
            into = found[o.factor][k]
            into = into if letters[0] in ("out", "in") else into.T
            into[:, :kept] = part
    error = math.sqrt(missed / total) if total else 0.0
    return FittedRow(factors=found, error=error)


def _network(
    bound: Bound, matrices: Sequence[Gradient], frozen: Mapping[str, np.ndarray]
) -> FittedRow:
    term, letters = bound.spec.terms[0], letters_of(bound)
    energy = math.fsum(matrix.norm() ** 2 for matrix in matrices)
    between = None if frozen else projected(bound, matrices)
    x = opened(bound, matrices) if between is None else between
    if energy == 0:
        return FittedRow(factors={n: np.zeros(s) for n, s in _shapes(bound).items()}, error=0.0)
    equation = Equation(tuple(o.letters for o in term.operands), letters)
    sizes = {n: bound.sizes[n] for o in term.operands for n in o.letters if n not in letters}
    held = {
        k: frozen[o.factor][_part(bound, o.factor, o.letters)]
        for k, o in enumerate(term.operands)
        if o.factor in frozen
    }
    fit = als(
        x if held or isinstance(x, Tucker) else compressed(bound, x),
        equation,
        rank=sizes,
        frozen=held,
        n_iter_max=_SWEEPS,
        tol=_TOL,
    )
    assert isinstance(fit.tensor, Network)
    arrays = [np.asarray(a, dtype=np.float64) for a in fit.tensor.tensors]
    found = {}
    arrays = _balanced(arrays, set(held))
    for o, array in zip(term.operands, arrays, strict=True):
        whole = np.zeros(bound.shapes[o.factor])
        whole[_part(bound, o.factor, o.letters)] = array
        found[o.factor] = whole
    return FittedRow(factors=found, error=math.sqrt(_missed(x, fit.tensor, energy) / energy))


def _missed(x: np.ndarray | Tucker, fit: Format, energy: float) -> float:
    """Squared distance of a fit; of a stack between bases, with what lies outside of these."""
    if isinstance(x, Tucker):
        core = np.asarray(x.core)
        inside = float(np.linalg.norm(core - _between(x, fit))) ** 2
        return inside + max(energy - float(np.linalg.norm(core)) ** 2, 0.0)
    return float(np.linalg.norm(x - np.asarray(fit.to_dense()))) ** 2


def _between(x: Tucker, fit: Format) -> np.ndarray:
    """A fit in the bases of a stack, in which it lies."""
    for k, basis in enumerate(x.factors):
        if basis is not None:
            fit = mode_product(fit, np.asarray(basis).T, k)
    return np.asarray(fit.to_dense())


def _shapes(bound: Bound) -> dict[str, tuple[int, ...]]:
    return {o.factor: tuple(bound.shapes[o.factor]) for o in bound.spec.terms[0].operands}


def _part(bound: Bound, name: str, letters: Sequence[str]) -> tuple[slice, ...]:
    """Where this group's part of a factor is: all of it, but where groups share the factor."""
    return tuple(
        slice(0, bound.sizes.get(n, size))
        for n, size in zip(letters, bound.shapes[name], strict=True)
    )


def _balanced(arrays: list[np.ndarray], held: set[int]) -> list[np.ndarray]:
    """The same product, the factors that are not held all of one norm."""
    free = [k for k in range(len(arrays)) if k not in held]
    norms = [float(np.linalg.norm(arrays[k])) for k in free]
    if not free or not all(norms):
        return arrays
    mean = math.exp(sum(map(math.log, norms)) / len(norms))
    scales = {k: mean / n for k, n in zip(free, norms, strict=True)}
    return [a * scales.get(k, 1.0) for k, a in enumerate(arrays)]
