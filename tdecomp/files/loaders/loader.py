"""What a program that loads adapters is: a row of facts, each with the place it was read in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tdecomp.files.loaders.adapter_names import AdapterNames, PairNames
from tdecomp.files.loaders.model_names import ModelNames
from tdecomp.files.loras.peft_scales import PeftScales

__all__ = [
    "EACH",
    "ERROR",
    "FUSED",
    "NOTHING",
    "PEFT_PREFIX",
    "WARNING",
    "Loader",
    "LoaderPlace",
    "Verdict",
    "ModelView",
]

PEFT_PREFIX = "base_model.model."
NOTHING, WARNING, ERROR = "nothing", "a warning in its log", "an error"
"""What a loader says of a tensor that it does not use."""
EACH, FUSED = "each", "fused"
"""Layouts of experts in an adapter: a pair for every one, or PEFT's for all of a module."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why something does not act.

    Attributes
    ----------
    why
        A sentence without its stop.
    told
        What the loader says of it: `NOTHING`, `WARNING` or `ERROR`.
    rule
        Where that is from.
    """

    why: str
    told: str
    rule: str


@dataclass(frozen=True, kw_only=True)
class LoaderPlace:
    """Where a loader puts a pair.

    Attributes
    ----------
    stem
        What an adapter calls it.
    sizes
        (out, in) that a pair may have; empty where that is not known.
    idle
        Why a pair does nothing here.
    """

    stem: str
    sizes: tuple[tuple[int, int], ...] = ()
    idle: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """A model as a loader sees it.

    Attributes
    ----------
    places
        By the loader's own names.
    reads
        What a loader makes of a name in an adapter; a name of `places`, if the pair arrives.
    refused
        Why no adapter acts in such a model.
    layouts
        How experts may stand in an adapter: `EACH`, `FUSED`, both, or neither.
    whole
        Of experts that stand one by one all of a layer must be there.
    lost
        What becomes of a name that arrives nowhere: from what `reads` gave.
    note
        What a user should know of the names of this model; "" nothing.
    missing
        Verdicts on pairs that arrive and need others beside them, which are not there: from the
        places that are reached.
    """

    places: Mapping[str, LoaderPlace]
    reads: Callable[[str], str]
    lost: Callable[[str], Verdict]
    refused: Verdict | None = None
    layouts: frozenset[str] = frozenset()
    whole: bool = False
    note: str = ""
    missing: Callable[[AdapterNames, Mapping[str, PairNames]], Mapping[str, Verdict]] = (
        lambda adapter, reached: {}
    )


@dataclass(frozen=True, kw_only=True)
class Loader:
    """A program that loads adapters.

    Attributes
    ----------
    name, says, source
        By which it is asked for, what it is, and where its rules are from.
    schemes
        Naming schemes that it reads, by name; the first is the one that is written for it.
    view
        How it sees a model.
    parts
        Parts of a module that it does not take -> why.
    scale
        What it multiplies a pair of some rank with, from a configuration; None: as PEFT does.
    scale_rule
        Where that is from.
    ranks
        The largest ranks that it can be started with; empty: any.
    """

    name: str
    says: str
    source: str
    schemes: tuple[str, ...]
    view: Callable[[ModelNames], ModelView]
    parts: Mapping[str, Verdict] = field(default_factory=dict[str, Verdict])
    scale: Callable[[PeftScales, int], float] | None = None
    scale_rule: str = ""
    ranks: tuple[int, ...] = ()
