"""Adapters made of other adapters, on their terms and factors: gates, single heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tdecomp.adapters.terms import Factor, Operand, Term, TermsAndFactors, in_order

__all__ = ["of_single_heads", "with_gate"]


def with_gate(
    terms: Sequence[Term], factors: Sequence[Factor], letter: str, gate: Factor
) -> TermsAndFactors:
    """One more operand, `gate`, in every term that has the letter."""
    operand = Operand(gate.name, gate.modes)
    gated = tuple(
        replace(t, operands=(*t.operands, operand)) if letter in t.letters else t for t in terms
    )
    return gated, in_order((*factors, gate), gated)


def of_single_heads(terms: Sequence[Term], factors: Sequence[Factor]) -> TermsAndFactors:
    """`hd` becomes ``out``, `head` stands for `proj` too, and a factor of `proj` alone goes."""
    axes = {f.name: tuple(n for n in f.modes if n != "proj") for f in factors}
    alone = {f.name for f in factors if "proj" in f.modes and len(axes[f.name]) < 2}
    elsewhere = Counter(n for name in axes.keys() - alone for n in set(axes[name]))
    gone = {"proj"} | {n for name in alone for n in axes[name] if elsewhere[n] < 2}

    def renamed(letters: tuple[str, ...]) -> tuple[str, ...]:
        return tuple("out" if n == "hd" else n for n in letters if n not in gone)

    def of_one_head(term: Term) -> Term:
        kept = [o for o in term.operands if o.factor not in alone]
        return replace(term, operands=tuple(replace(o, letters=renamed(o.letters)) for o in kept))

    kept = tuple(
        replace(f, modes=renamed(f.modes), unit=renamed(f.unit))
        for f in factors
        if f.name not in alone
    )
    return tuple(map(of_one_head, terms)), kept
