"""How the factors of an adapter start: the text of a rule, and the table of all of them.

A rule is written ``kind(arg, ..)``; the arguments are formulas over the sizes of the adapter.
*Seeded* rules need nothing but a seed and are not stored in files when frozen; *data* rules are
made of the weights (or given) and are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tdecomp._nearest import among, nearest
from tdecomp.adapters.expressions import Expression
from tdecomp.adapters.from_weights import FROM_WEIGHTS
from tdecomp.adapters.seeded import SEEDED
from tdecomp.adapters.start_rule import StartRule
from tdecomp.errors import ArgumentError

__all__ = ["INITS", "Init"]

INITS: Mapping[str, StartRule[...]] = {
    **SEEDED,
    **FROM_WEIGHTS,
    "copy": StartRule(np.array, arguments=(1, 1)),  # the start of another factor
    "given": StartRule(np.asarray),  # an array from the user
}
"""Every rule by name."""

_CALL = re.compile(r"\s*(?P<kind>[A-Za-z]\w*)\s*(?:\((?P<args>.*)\))?\s*")


@dataclass(frozen=True, repr=False)
class Init:
    """A rule and its arguments: ``normal(0.02)``.

    Attributes
    ----------
    kind
        A key of `INITS`.
    args
        Formulas.
    """

    kind: str
    args: tuple[Expression, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Init:
        """Read ``"kind"`` or ``"kind(arg, ..)"``.

        >>> str(Init.parse("uniform( 1/sqrt(in) )"))
        'uniform(1/sqrt(in))'
        """
        found = _CALL.fullmatch(str(text))
        args = _split(found["args"]) if found and found["args"] else []
        kind = found["kind"] if found else str(text)
        return cls(kind, tuple(Expression(arg.strip()) for arg in args))

    def __post_init__(self):
        if self.kind not in INITS:
            near = nearest(self.kind, INITS)
            raise ArgumentError(
                f"init {self.kind!r}{near}: expected one of {among(self.kind, INITS)}"
            )
        least, most = INITS[self.kind].arguments
        if not least <= len(self.args) <= most:
            wanted = f"{most}" if least == most else f"{least} to {most}"
            raise ArgumentError(f"init '{self}': {self.kind} takes {wanted} arguments")

    def __repr__(self) -> str:
        return f"Init({self})"

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(map(str, self.args))})" if self.args else self.kind

    def check(self, name: str, modes: tuple[str, ...]) -> None:
        """Refuse a factor that has too few or too many axes for the rule."""
        least, most = INITS[self.kind].axes
        if not least <= len(modes) <= most:
            wanted = f"{least} axes" if least == most else f"{least} axes or more"
            raise ArgumentError(
                f"the factor {name!r} ({' '.join(modes)}) cannot start as {self}: that takes"
                f" {wanted}"
            )

    @property
    def from_seed(self) -> bool:
        """Whether the array follows from a seed and its shape alone."""
        return self.kind in SEEDED


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    pieces, depth = [""], 0
    for c in text:
        depth += (c == "(") - (c == ")")
        if c == "," and not depth:
            pieces.append("")
        else:
            pieces[-1] += c
    return pieces
