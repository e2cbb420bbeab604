"""What an adapter is made of: factors, where they stand in a product, and products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tdecomp.adapters.expressions import Expression
from tdecomp.adapters.inits import Init

__all__ = [
    "SIDES",
    "SITE_MODES",
    "TAKEN",
    "Factor",
    "Operand",
    "TermsAndFactors",
    "Term",
    "in_order",
    "write_term",
]

SIDES = (("out", "in"), ("long", "short"), ("short", "long"))
"""What the two axes of a weight can be called, those of a square one in this order."""

SITE_MODES = ("site", "layer", "proj", "attn", "stack", "expert", "task", "head")
"""Letters that are site modes wherever they are not parts of a weight mode."""

TAKEN = ("alpha", "step", "out", "in", "long", "short")
"""Numbers that every formula can use."""


@dataclass(frozen=True, repr=False, kw_only=True)
class Factor:
    """One stored array of an adapter.

    Attributes
    ----------
    name
        Its name in the equation and in files.
    modes
        The names of its axes.
    init
        How it starts.
    trainable
        Whether it is trained; the others are constants.
    freeze
        Share of its columns (last axis) that no longer train, a formula in ``step``; None: all
        train.
    across
        Held once for all groups of a model, as large as the largest needs; the others take the
        leading part.
    clusters
        Of a constant that assigns rows to labels (``one_hot``): how many labels (last axis) are in
        use, a formula in ``step``. The two whose trained factors are closest become one until no
        more are left. None: the assignment stays.
    unit
        Its axes along which it has norm 1 wherever it stands in a product: what is stored is
        divided by its norm (`unit_along`).
    """

    name: str
    modes: tuple[str, ...]
    init: Init
    trainable: bool = True
    freeze: Expression | None = None
    across: bool = False
    clusters: Expression | None = None
    unit: tuple[str, ...] = ()

    def __repr__(self) -> str:
        star = "" if self.trainable else "*"
        return f"Factor({star}{self.name}: {' '.join(self.modes)}; {self.init})"


@dataclass(frozen=True)
class Operand:
    """A factor where it stands in a term, with the letters of its axes there.

    An axis whose letter is smaller than the factor's own takes the leading part of it.
    """

    factor: str
    letters: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Term:
    """A product of operands; `sign` is 1 or -1, `scaled` says whether the scale applies."""

    operands: tuple[Operand, ...]
    sign: int = 1
    scaled: bool = True

    def __repr__(self) -> str:
        return f"Term({'-' if self.sign < 0 else ''}{write_term(self)})"

    @property
    def letters(self) -> tuple[str, ...]:
        """Every letter, in order of appearance."""
        return tuple(dict.fromkeys(n for o in self.operands for n in o.letters))


TermsAndFactors = tuple[tuple[Term, ...], tuple[Factor, ...]]
"""Terms, and every factor that they use."""


def in_order(factors: Iterable[Factor], terms: Sequence[Term]) -> tuple[Factor, ...]:
    """Factors in the order of their first use."""
    order = [o.factor for term in terms for o in term.operands]
    return tuple(sorted(factors, key=lambda f: order.index(f.name)))


def write_term(term: Term, frozen: Sequence[str] | set[str] = ()) -> str:
    """A term as it is written in an equation, with a star on the frozen factors."""
    return ", ".join(
        f"{'*' if o.factor in frozen else ''}{o.factor}: {' '.join(o.letters)}"
        for o in term.operands
    )
