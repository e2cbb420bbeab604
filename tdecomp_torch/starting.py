"""Starts of an adapter from data, as `attach` takes them: gradients, activations, statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tdecomp.adapters import Spec
from tdecomp.errors import ArgumentError
from tdecomp.progress import Progress, part
from tdecomp.stack import Site
from tdecomp.starts import RULES, DataRule, GroupData, rule_of
from tdecomp.statistics import Statistics
from tdecomp_torch.capture.batches import BatchLoss, TokenMask, kept_batches, mask_of
from tdecomp_torch.capture.capture import Wanted, capture_sites
from tdecomp_torch.making.filling import BaseWeights
from tdecomp_torch.making.plan import AdapterPlan
from tdecomp_torch.model.inventory import Inventory
from tdecomp_torch.model.sample import sample

__all__ = [
    "DataStart",
    "activations",
    "captured",
    "check_weights",
    "gradients",
    "looked_at",
    "start_of",
    "starts_of",
]

_CAPTURE = 0.7
"""Share of the progress that running batches takes."""


@dataclass(frozen=True, kw_only=True)
class DataStart:
    """A start rule, and where its data come from; made by `gradients`, `activations`, `captured`.

    Attributes
    ----------
    name
        Of the rule.
    statistics
        What was captured before; None: `batches` are run.
    batches
        Kept on the CPU.
    wanted
        How they are looked at.
    metric, size, gamma
        As in `gradients`.
    """

    name: str
    statistics: Statistics | None = None
    batches: tuple[Any, ...] = ()
    wanted: Wanted | None = None
    metric: Literal["inputs"] | None = None
    size: float = 1e-3
    gamma: float | None = None

    def __repr__(self) -> str:
        source = repr(self.statistics) if self.statistics else f"{len(self.batches)} batches"
        return f"{type(self).__name__}({self.name}; {source})"

    @property
    def rule(self) -> DataRule:
        """The rule."""
        return rule_of(self.name)

    def adapted(self, spec: Spec) -> Spec:
        """The adapter with the base rule of the start; refuses one that the rule is not for."""
        self.rule.check(self.name, spec)
        return self.rule.adapted(spec)


def gradients(
    batches: Iterable[Any],
    loss: BatchLoss | None = None,
    *,
    rule: str = "zero",
    steps: int | None = 8,
    passes: int = 4,
    metric: Literal["inputs"] | None = None,
    size: float = 1e-3,
    gamma: float | None = None,
    labels: Literal["given", "model"] = "given",
    dropout: bool = False,
    checkpoint: bool = False,
    seed: int = 0,
) -> DataStart:
    """Start from the mean gradient over a few batches: ``attach(model, "lotr", start=...)``.

    Parameters
    ----------
    batches, loss, labels, dropout, checkpoint, seed
        As in `capture`.
    rule
        A row of `tdecomp.starts.RULES`: ``"zero"``, ``"step"`` and ``"offset"`` are for every
        adapter that is one product of factors, ``"lora_ga"``, ``"lora_one"``, ``"gora"`` for LoRA
        and its kin, ``"lora_sb"`` for a core between two factors.
    steps
        Batches at most; None: all.
    passes
        Over the batches, for sketches; rules that need whole gradients take one.
    metric
        ``"inputs"``: the fitted gradients are those whose outputs are nearest, ``‖(G - Ĝ) A^½‖``
        with the second moments A of the inputs, for rules that fit.
    size
        Root mean square entry of ΔW at the start, for rules whose step has no size of its own.
    gamma
        Constant of the rules that have one; default that of the paper.

    Raises
    ------
    ArgumentError
        An unknown rule, or one that is not made of gradients; no batches.
    """
    _check_rule(rule, "gradients")
    _check_size(size)
    found = rule_of(rule)
    _check_metric(rule, metric)
    wanted = Wanted(
        inputs=None if metric is None else "auto",
        gradients="whole" if found.whole else 1,
        passes=passes,
        loss=loss,
        labels=labels,
        dropout=dropout,
        checkpoint=checkpoint,
        seed=seed,
    )
    kept = tuple(kept_batches(batches, steps))
    return DataStart(name=rule, batches=kept, wanted=wanted, metric=metric, size=size, gamma=gamma)


def activations(
    batches: Iterable[Any],
    *,
    rule: str = "eva",
    steps: int | None = 8,
    inputs: Literal["whole", "auto"] | int = "auto",
    mask: TokenMask = mask_of,
    dropout: bool = False,
) -> DataStart:
    """Start from the inputs of the weights on a few batches: ``"eva"`` or ``"corda"``.

    Parameters
    ----------
    batches, inputs, mask, dropout
        As in `capture`; no loss is needed.
    rule
        A row of `tdecomp.starts.RULES`.
    steps
        Batches at most; None: all.

    Raises
    ------
    ArgumentError
        An unknown rule, or one that is not made of inputs; no batches.
    """
    _check_rule(rule, "inputs")
    wanted = Wanted(inputs=inputs, mask=mask, dropout=dropout)
    return DataStart(name=rule, batches=tuple(kept_batches(batches, steps)), wanted=wanted)


def captured(
    statistics: Statistics,
    rule: str,
    *,
    metric: Literal["inputs"] | None = None,
    size: float = 1e-3,
    gamma: float | None = None,
) -> DataStart:
    """Start from statistics that were captured before: capture once, start several.

    Raises
    ------
    ArgumentError
        An unknown rule; when it is used, statistics of another model or without what it needs.
    """
    rule_of(rule)
    _check_size(size)
    _check_metric(rule, metric)
    return DataStart(name=rule, statistics=statistics, metric=metric, size=size, gamma=gamma)


def start_of(given: Any) -> DataStart:
    """What `attach` was given as a start: one of these, or the name of a rule for weights alone.

    Raises
    ------
    ArgumentError
        It is neither; says what to give.
    """
    if isinstance(given, DataStart):
        return given
    if not isinstance(given, str):
        raise ArgumentError(
            f"start={given!r} must be gradients(batches, loss), activations(batches),"
            " captured(statistics, rule), factors(folder), or the name of a rule such as 'pissa'"
        )
    if needs := rule_of(given).needs - {"weights"}:
        made = "activations(batches" if "inputs" in needs else "gradients(batches, loss"
        raise ArgumentError(
            f"the start {given!r} is made of {', '.join(needs)}: give start={made}, rule={given!r})"
        )
    return DataStart(name=given)


def starts_of(
    start: DataStart, plan: AdapterPlan, *, seed: int, progress: Progress
) -> list[dict[str, np.ndarray]]:
    """The factors of every group of a plan.

    Parameters
    ----------
    plan
        Of the adapter without the base rule of the start.

    Raises
    ------
    ArgumentError
        What `start` has does not fit the adapter or the model.
    """
    sites = [site for grid in plan.grids for site in grid.sites]
    if start.statistics is None and start.wanted is not None:
        rank = max(max(bound.ranks.values(), default=1) for bound in plan.bounds)
        start = looked_at(start, plan.spec, plan.inventory, sites, rank, progress=progress)
    statistics = start.statistics or Statistics(sites={})
    if start.statistics is not None:
        check_weights(statistics, plan.inventory, sites)
    settled: dict[str, np.ndarray] = {}
    found: dict[int, dict[str, np.ndarray]] = {}
    order = sorted(range(len(plan.grids)), key=lambda k: -len(plan.grids[k].sites))
    for done, k in enumerate(order):
        keys = {h.factor.name: h.key for h in plan.held[k]}
        shared = {n: settled[key] for n, key in keys.items() if key in settled}
        found[k] = start.rule.make(_data(start, plan, k, statistics, shared, seed))
        settled |= {keys[n]: array for n, array in found[k].items() if n in keys}
        progress(_CAPTURE + (1 - _CAPTURE) * (done + 1) / len(order))
    return [found[k] for k in range(len(order))]


def looked_at(
    start: DataStart,
    spec: Spec,
    inventory: Inventory,
    sites: Sequence[Site],
    rank: int,
    *,
    inputs: bool = False,
    whole: bool = False,
    progress: Progress,
) -> DataStart:
    """The start with the statistics of some sites, as its rule needs them up to a rank.

    Parameters
    ----------
    inputs, whole
        Whether moments of inputs, or gradients that are not sketched, are needed for more than the
        rule of the start.
    """
    wanted = start.wanted
    assert wanted is not None
    if wanted.gradients is not None:
        sketch = start.rule.rank_seen(spec, rank, metric=start.metric is not None)
        kept = "whole" if whole or wanted.gradients == "whole" else sketch
        wanted = replace(wanted, gradients=kept)
    if inputs and wanted.inputs is None:
        wanted = replace(wanted, inputs="auto")
    told = part(progress, 0, _CAPTURE)
    found = capture_sites(inventory, sites, start.batches, wanted, progress=told)
    return replace(start, statistics=found)


def _data(
    start: DataStart,
    plan: AdapterPlan,
    k: int,
    statistics: Statistics,
    settled: Mapping[str, np.ndarray],
    seed: int,
) -> GroupData:
    names, needs = [site.path for site in plan.grids[k].sites], start.rule.needs
    gradients, inputs = "gradients" in needs, "inputs" in needs or start.metric is not None
    return GroupData(
        bound=plan.bounds[k],
        names=names,
        gradients=[statistics.gradient_of(n) for n in names] if gradients else (),
        inputs=[statistics.inputs_of(n) for n in names] if inputs else (),
        weights=BaseWeights(plan.grids[k], plan.inventory).numpy,
        settled=settled,
        metric=start.metric is not None,
        size=start.size,
        gamma=start.gamma,
        seed=seed,
    )


def check_weights(statistics: Statistics, inventory: Inventory, sites: Iterable[Site]) -> None:
    """Refuse statistics of other weights."""
    for site in sites:
        seen, matrix = statistics.of(site.path), inventory.matrices[site.module]
        now = sample(matrix.kind.content(matrix.module))
        if tuple(seen.shape) != tuple(site.shape) or (now and seen.weight not in ("", now)):
            raise ArgumentError(
                f"the statistics are of another model: the weight {site.path} has changed"
                " since they were captured"
            )


def _check_rule(name: str, what: str) -> None:
    if what not in rule_of(name).needs:
        fit = ", ".join(n for n, rule in RULES.items() if what in rule.needs)
        raise ArgumentError(f"the start {name!r} is not made of {what}: those are {fit}")


def _check_metric(name: str, metric: Any) -> None:
    if metric is None:
        return
    if metric != "inputs":
        raise ArgumentError(f"metric={metric!r} must be 'inputs' or None")
    if not rule_of(name).fitted:
        fit = ", ".join(n for n, rule in RULES.items() if rule.fitted)
        raise ArgumentError(f"metric={metric!r} is for starts that fit: {fit}; {name!r} does not")


def _check_size(size: float) -> None:
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < math.inf:
        raise ArgumentError(f"size={size!r} must be a positive number")
