"""Methods made of other methods, on their terms and factors: base rules, gates, single heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tdecomp.adapters.inits import Init
from tdecomp.adapters.terms import Factor, Operand, Term, in_order
from tdecomp.modes import Axis, flatten

__all__ = ["less_start", "less_tail", "of_single_heads", "with_gate"]

Product = tuple[tuple[Term, ...], tuple[Factor, ...]]
"""Terms, and every factor that they use."""


def less_start(terms: Sequence[Term], factors: Sequence[Factor]) -> Product:
    """Every term once more with a minus, its trainable factors frozen at their start."""
    copies = {f.name: _start_of(f) for f in factors if f.trainable}
    doubled: list[Term] = []
    for term in terms:
        start = tuple(
            replace(o, factor=copies[o.factor].name) if o.factor in copies else o
            for o in term.operands
        )
        doubled += [term, replace(term, operands=start, sign=-term.sign)]
    return tuple(doubled), in_order((*factors, *copies.values()), doubled)


def _start_of(factor: Factor) -> Factor:
    """A constant that is what the factor starts as."""
    return replace(
        factor,
        name=f"{factor.name}_0",
        trainable=False,
        freeze=None,
        init=Init.parse(f"copy({factor.name})"),
    )


def less_tail(
    terms: Sequence[Term], factors: Sequence[Factor], output: tuple[Axis, Axis]
) -> Product:
    """One more term: minus the last r singular values of the weight."""
    rows, columns = (flatten((axis,)) for axis in output)
    parts = (
        ("tail_u", ("site", *rows, "r"), "svd_u(0, short - r)"),
        ("tail_s", ("site", "r"), "svd_s(1, short - r)"),
        ("tail_vh", ("site", "r", *columns), "svd_vh(0, short - r)"),
    )
    tail = Term(tuple(Operand(name, letters) for name, letters, _ in parts), -1, scaled=False)
    constants = (Factor(n, letters, Init.parse(i), trainable=False) for n, letters, i in parts)
    return (*terms, tail), (*factors, *constants)


def with_gate(
    terms: Sequence[Term], factors: Sequence[Factor], letter: str, gate: Factor
) -> Product:
    """One more operand, `gate`, in every term that has the letter."""
    operand = Operand(gate.name, gate.modes)
    gated = tuple(
        replace(t, operands=(*t.operands, operand)) if letter in t.letters else t for t in terms
    )
    return gated, in_order((*factors, gate), gated)


def of_single_heads(terms: Sequence[Term], factors: Sequence[Factor]) -> Product:
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

    kept = tuple(replace(f, modes=renamed(f.modes)) for f in factors if f.name not in alone)
    return tuple(map(of_one_head, terms)), kept
