"""All decompositions: the one table that `decompose`, `explore`, the command line and laws read.

A new one is a room in `methods`, a row here (its name in ``__all__`` makes it public), and a
paragraph in the guide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tdecomp.decomposition.exploration.candidate import Candidate
from tdecomp.decomposition.exploration.candidates import (
    Boxes,
    CPCandidate,
    IndependentSvds,
    OfCore,
    Trains,
    one_sided,
)
from tdecomp.decomposition.exploration.look import Look
from tdecomp.decomposition.fit import Fit
from tdecomp.decomposition.method import Method
from tdecomp.decomposition.methods.cp.cp import CPMethod, cp
from tdecomp.decomposition.methods.interpolative import InterpolativeMethod, interpolative
from tdecomp.decomposition.methods.network.als import NetworkMethod, als
from tdecomp.decomposition.methods.svd import SvdMethod, svd
from tdecomp.decomposition.methods.train.tt import MpoMethod, TrainMethod, mpo, tensor_train
from tdecomp.decomposition.methods.tucker.tucker import HosvdMethod, TuckerMethod, hosvd, tucker
from tdecomp.decomposition.methods.tucker.tucker2 import Tucker2Method, tucker2

__all__ = [
    "METHODS",
    "Decomposition",
    "als",
    "cp",
    "hosvd",
    "interpolative",
    "mpo",
    "svd",
    "tensor_train",
    "tucker",
    "tucker2",
]


@dataclass(frozen=True)
class Decomposition:
    """A decomposition by name.

    Attributes
    ----------
    function
        As in `tdecomp`: `td.svd`.
    method
        What the driver sees; its fields are the options of the function.
    candidates
        ``looks -> candidates`` of `explore`; None: it does not compare this one.
    by_default
        Whether `explore` compares it when no formats are named.
    needs_nothing_else
        Whether a rank, an error or a budget is all that it has to be told about any stack, so that
        a job or the command line can run it by its name.
    """

    function: Callable[..., Fit]
    method: type[Method[Any]]
    candidates: Callable[[Sequence[Look]], list[Candidate]] | None = None
    by_default: bool = field(default=True, kw_only=True)
    needs_nothing_else: bool = field(default=True, kw_only=True)

    @property
    def name(self) -> str:
        """Of the function."""
        return self.function.__name__

    @property
    def sentence(self) -> str:
        """What it makes, in one line without a full stop."""
        return (self.method.__doc__ or "").split("\n", 1)[0].rstrip(".")

    @property
    def options(self) -> frozenset[str]:
        """Names of its options beside the target."""
        return frozenset(f.name for f in fields(self.method))

    @property
    def by_modes(self) -> bool:
        """Whether the option ``modes`` says which modes are compressed."""
        return self.method.by_modes


def _always(candidate: Candidate) -> Callable[[Sequence[Look]], list[Candidate]]:
    return lambda looks: [candidate]


def _tucker(looks: Sequence[Look]) -> list[Candidate]:
    """With it, the bases of one side."""
    return [*one_sided(looks), Boxes(name="tucker", fit=tucker)]


_TUCKER2 = Boxes(name="tucker2", fit=tucker2, n_kept=2)
_INTERPOLATIVE = OfCore(name="interpolative", fit=interpolative, view=InterpolativeMethod())

_ROWS = (
    Decomposition(svd, SvdMethod, _always(IndependentSvds(name="svd"))),
    Decomposition(tucker2, Tucker2Method, _always(_TUCKER2)),
    Decomposition(tucker, TuckerMethod, _tucker),
    Decomposition(hosvd, HosvdMethod),
    Decomposition(tensor_train, TrainMethod, _always(Trains(name="tensor_train"))),
    Decomposition(mpo, MpoMethod, needs_nothing_else=False),
    Decomposition(cp, CPMethod, _always(CPCandidate(name="cp")), by_default=False),
    Decomposition(interpolative, InterpolativeMethod, _always(_INTERPOLATIVE), by_default=False),
    Decomposition(als, NetworkMethod, needs_nothing_else=False),
)

METHODS: Mapping[str, Decomposition] = {row.name: row for row in _ROWS}
