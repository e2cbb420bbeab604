"""Base rules: what stands beside ΔW in the adapted weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tdecomp._xp import ArrayKind
from tdecomp.adapters.inits import Init
from tdecomp.adapters.terms import Factor, Operand, Term, TermsAndFactors, in_order
from tdecomp.modes import Axis, flatten

__all__ = ["BASES", "PLAIN", "Base"]

PLAIN = "add"
"""The rule under which terms and factors are already all there is."""

Expand = Callable[[Sequence[Term], Sequence[Factor], tuple[Axis, Axis]], TermsAndFactors]


@dataclass(frozen=True, kw_only=True)
class Base:
    """One rule.

    Attributes
    ----------
    says
        The rule in words.
    keeps
        Whether W is in the adapted weight, ``W' = W + ΔW``; else ``W' = ΔW``.
    expand
        ``expand(terms, factors, output)``: the adapter with the rule written out as terms, which
        then has a rule without `expand`. None: nothing is added.
    folds
        Whether what `expand` adds can be subtracted from W itself instead, once and for all.
    """

    says: str
    keeps: bool = True
    expand: Expand | None = None
    folds: bool = False

    def weight(self, w: ArrayKind, delta: ArrayKind) -> ArrayKind:
        """The adapted weight, ``(out, in)``."""
        return w + delta if self.keeps else delta


def _less_start(
    terms: Sequence[Term], factors: Sequence[Factor], output: tuple[Axis, Axis]
) -> TermsAndFactors:
    """Every term once more with a minus, its trainable factors frozen at their start.

    It stands right after the term itself, so that both cancel to the bit at the start.
    """
    del output
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


def _less_tail(
    terms: Sequence[Term], factors: Sequence[Factor], output: tuple[Axis, Axis]
) -> TermsAndFactors:
    """One more term: minus the last r singular values of the weight."""
    rows, columns = (flatten((axis,)) for axis in output)
    parts = (
        ("tail_u", ("site", *rows, "r"), "svd_u(0, short - r)"),
        ("tail_s", ("site", "r"), "svd_s(1, short - r)"),
        ("tail_vh", ("site", "r", *columns), "svd_vh(0, short - r)"),
    )
    tail = Term(tuple(Operand(name, letters) for name, letters, _ in parts), -1, scaled=False)
    constants = (
        Factor(name=n, modes=letters, init=Init.parse(i), trainable=False)
        for n, letters, i in parts
    )
    return (*terms, tail), (*factors, *constants)


BASES: Mapping[str, Base] = {
    PLAIN: Base(says="W + ΔW"),
    "residual": Base(
        says="W + ΔW less ΔW of the start factors: nothing changes at the start",
        expand=_less_start,
        folds=True,
    ),
    "truncate": Base(says="ΔW is added to W without its last r singular values", expand=_less_tail),
    "replace": Base(says="ΔW stands in for W", keeps=False),
}
"""By the name that a row gives."""
