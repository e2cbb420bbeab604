"""Methods made of other methods: base rules written out, gates, single heads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tdecomp.adapters.expressions import nearest
from tdecomp.adapters.inits import Init
from tdecomp.adapters.terms import SITE_MODES, TAKEN, Factor, Operand, Term, in_order
from tdecomp.errors import ArgumentError
from tdecomp.modes import flatten

if TYPE_CHECKING:
    from tdecomp.adapters.spec import Spec

__all__ = ["gated", "less_start", "less_tail", "over_heads"]


def less_start(spec: Spec) -> Spec:
    """Every term once more with a minus, its trainable factors frozen at their start."""
    copies = {
        f.name: replace(
            f,
            name=f"{f.name}_0",
            trainable=False,
            freeze=None,
            init=Init.parse(f"copy({f.name})"),
        )
        for f in spec.factors
        if f.trainable
    }
    start = tuple(
        Term(
            tuple(
                replace(o, factor=copies[o.factor].name) if o.factor in copies else o
                for o in term.operands
            ),
            -term.sign,
            term.scaled,
        )
        for term in spec.terms
    )
    terms = tuple(t for pair in zip(spec.terms, start, strict=True) for t in pair)
    factors = in_order((*spec.factors, *copies.values()), terms)
    return replace(spec, terms=terms, factors=factors, base="add")


def less_tail(spec: Spec) -> Spec:
    """One more term: minus the last r singular values of the weight."""
    rows, columns = (flatten((axis,)) for axis in spec.output)
    parts = (
        ("tail_u", ("site", *rows, "r"), "svd_u(0, short - r)"),
        ("tail_s", ("site", "r"), "svd_s(1, short - r)"),
        ("tail_vh", ("site", "r", *columns), "svd_vh(0, short - r)"),
    )
    tail = Term(tuple(Operand(name, letters) for name, letters, _ in parts), -1, scaled=False)
    factors = tuple(Factor(n, letters, Init.parse(i), False) for n, letters, i in parts)
    return replace(spec, terms=(*spec.terms, tail), factors=(*spec.factors, *factors), base="add")


def gated(spec: Spec, letter: str, init: str = "ones", *, trainable: bool = True) -> Spec:
    """See `Spec.gated`."""
    if letter not in spec.letters or letter in (*spec.weight_modes, *SITE_MODES, *TAKEN):
        raise ArgumentError(
            f"no rank {letter!r} in '{spec.equation}'{nearest(letter, spec.letters)}"
        )
    gate = Operand(f"gate_{letter}", ("site", letter))
    terms = tuple(
        replace(t, operands=(*t.operands, gate)) if letter in t.letters else t for t in spec.terms
    )
    factor = Factor(gate.factor, gate.letters, Init.parse(init), trainable)
    return replace(spec, terms=terms, factors=in_order((*spec.factors, factor), terms))


def over_heads(spec: Spec) -> Spec:
    """See `Spec.over_heads`."""
    if spec.output[0] != ("head", "hd"):
        raise ArgumentError(
            f"{spec.name!r} does not split heads, '(head hd)': it cannot be put on single heads"
        )
    axes = {f.name: [n for n in f.modes if n != "proj"] for f in spec.factors}
    alone = {f.name for f in spec.factors if "proj" in f.modes and len(axes[f.name]) < 2}
    kept = {name: letters for name, letters in axes.items() if name not in alone}
    gone = {n for name in alone for n in axes[name]}
    gone = {n for n in gone if sum(n in letters for letters in kept.values()) < 2} | {"proj"}
    names = lambda letters: tuple("out" if n == "hd" else n for n in letters if n not in gone)
    terms = tuple(
        replace(
            term,
            operands=tuple(
                replace(o, letters=names(o.letters)) for o in term.operands if o.factor not in alone
            ),
        )
        for term in spec.terms
    )
    factors = tuple(replace(f, modes=names(f.modes)) for f in spec.factors if f.name in kept)
    return replace(spec, terms=terms, factors=factors, output=("out", "in"))
