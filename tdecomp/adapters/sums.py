"""The weighted sum of adapters as one adapter of the same method: ranks add up, in blocks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from tdecomp.adapters.spec import Spec

__all__ = ["direct_sum", "why_not_summed"]


def why_not_summed(spec: Spec, ranks: Collection[str]) -> str:
    """Why no adapter of a method is the sum of two others of it; empty where one is.

    One is where ΔW is one product of trained factors, each there once, that hang together by
    ranks: with blocks along the diagonal of every factor, products of blocks of two adapters
    are zero.

    Parameters
    ----------
    spec
        The method.
    ranks
        Its letters that are ranks.

    Examples
    --------
    >>> from tdecomp.adapters import method
    >>> why_not_summed(method("lotr"), ["r", "s"])
    ''
    >>> why_not_summed(method("vera"), ["r"])
    'its factors are not all trained'
    """
    if not spec.adds or spec.expanded is not spec:
        return "it changes or replaces the base weight"
    if not all(factor.trainable for factor in spec.factors):
        return "its factors are not all trained"
    if len(spec.terms) != 1:
        return "it is a sum of several products"
    operands = spec.terms[0].operands
    if len({operand.factor for operand in operands}) < len(operands):
        return "a factor stands in it twice"
    if any(factor.unit for factor in spec.factors):
        return "a factor of it has a norm of 1"
    own = [{*operand.letters} & {*ranks} for operand in operands]
    if not all(own):
        return "it has a factor without a rank"
    together = set(own[0])
    for _ in own:
        together |= {n for letters in own if letters & together for n in letters}
    return "" if together >= set().union(*own) else "its factors do not hang together by ranks"


def direct_sum(
    spec: Spec,
    ranks: Collection[str],
    arrays: Sequence[Mapping[str, np.ndarray]],
    weights: Sequence[float],
) -> dict[str, np.ndarray]:
    """Factors of ``Σ_k w_k ΔW_k``, without scale: blocks along the diagonal of every rank.

    Parameters
    ----------
    spec, ranks
        As in `why_not_summed`, which must be empty.
    arrays
        Factors of every adapter, by name.
    weights
        One for each adapter; in the first factor.

    Examples
    --------
    >>> from tdecomp.adapters import Spec
    >>> lora = Spec.parse("lora", "b: out r, a: r in", ["zeros", "normal(1)"])
    >>> one, two = (
    ...     {"b": np.full((2, r), 1.0), "a": np.full((r, 3), 1.0)} for r in (1, 2)
    ... )
    >>> found = direct_sum(lora, ["r"], [one, two], [0.5, -1.0])
    >>> found["b"] @ found["a"]
    array([[-1.5, -1.5, -1.5],
           [-1.5, -1.5, -1.5]])
    """
    found: dict[str, np.ndarray] = {}
    for operand in spec.terms[0].operands:
        along = [k for k, n in enumerate(operand.letters) if n in ranks]
        blocks = [own[operand.factor] for own in arrays]
        if not found:
            blocks = [w * block for w, block in zip(weights, blocks, strict=True)]
        shape = list(blocks[0].shape)
        for k in along:
            shape[k] = sum(block.shape[k] for block in blocks)
        whole, at = np.zeros(shape), dict.fromkeys(along, 0)
        for block in blocks:
            where = tuple(
                slice(at[k], at[k] + n) if k in at else slice(None)
                for k, n in enumerate(block.shape)
            )
            whole[where] = block
            at = {k: start + block.shape[k] for k, start in at.items()}
        found[operand.factor] = whole
    return found
