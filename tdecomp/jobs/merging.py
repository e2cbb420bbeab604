"""Several adapters or fine-tuned models into one: a LoRA, or a model folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tdecomp.collections.merging import MergeMethod, merge_method
from tdecomp.errors import ArgumentError
from tdecomp.files.atomic import output_folder
from tdecomp.files.checkpoint import Update, check_unchanged, open_checkpoint, write_model
from tdecomp.files.dtypes import code_of
from tdecomp.files.loras import write_adapter
from tdecomp.files.loras.full import tensor_of
from tdecomp.files.loras.several import AdapterSource, on_disk
from tdecomp.files.statistics_file import load_statistics
from tdecomp.jobs.members import (
    MissingPair,
    NotAPair,
    adapter_output,
    adding,
    open_members,
    weights_for,
)
from tdecomp.jobs.merged_sites import Merging, WrittenPairs, ranks_of
from tdecomp.jobs.reports import OPTIONAL, Report
from tdecomp.jobs.steps import StepProgress, of_step, untold
from tdecomp.ranking.target import Target
from tdecomp.statistics import Statistics

__all__ = ["MergedMember", "MergeReport", "merge"]


@dataclass(frozen=True, kw_only=True)
class MergedMember:
    """A member, and what the merged delta has of it.

    Attributes
    ----------
    name, path, weight
        As given.
    norm
        ``‖ΔW‖`` over all sites.
    cosine
        Between its delta and the merged one.
    departure
        ``‖merged − ΔW‖ / ‖ΔW‖``.
    lost
        Of methods that keep a part of every member: ``‖kept − ΔW‖ / ‖ΔW‖``.
    """

    name: str
    path: str
    weight: float
    norm: float
    cosine: float
    departure: float
    lost: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class MergeReport(Report):
    """What `merge` wrote.

    Attributes
    ----------
    out, method, where
        The output, the row of the table, and what it works on: factors, cores or dense deltas.
    members
        In the order given.
    sites
        Number of weights that are changed.
    norm
        ``‖ΔW‖`` of the merged delta.
    rank, numbers
        Largest rank of a pair and numbers in all of them; None for a model.
    error
        ``‖written − merged‖ / ‖merged‖``, ranks and rounding together; None for a model.
    missing, not_covered
        Members without a pair at a site, and tensors that no pair stands for.
    notes
        Sentences on what a user should know.
    """

    out: str
    method: str
    where: str
    members: tuple[MergedMember, ...]
    sites: int
    norm: float
    rank: int | None
    numbers: int | None
    error: float | None
    missing: tuple[MissingPair, ...]
    not_covered: tuple[NotAPair, ...]
    notes: tuple[str, ...]


def merge(
    adapters: Sequence[AdapterSource],
    out: str | Path,
    *,
    method: str = "mean",
    options: Mapping[str, float] | None = None,
    weights: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    base: str | Path | None = None,
    model: bool = False,
    rank: int | None = None,
    error: float | None = None,
    budget: int | None = None,
    missing: str = "zero",
    statistics: Sequence[str | Path] = (),
    seed: int = 0,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: StepProgress = untold,
) -> MergeReport:
    """Merge adapters, factors or fine-tuned models, one weight at a time.

    Parameters
    ----------
    adapters
        Adapters of any scheme and rank, factors that `decompose` wrote, adapters of any method that
        `tdecomp_torch` saved or that are on a model (``adapter.to_file()``) and, against `base`,
        fine-tuned models.
    out
        The adapter to write, a folder or a file as the first one is; with `model` a model folder.
    method, options
        A row of `tdecomp.collections.merging.MERGES`, and options of its rule.
    weights
        One for every adapter; 1 by default.
    names
        Of the adapters; by default their folders' or files'.
    base
        The base model, for `model`, DoRA and fine-tuned models.
    model
        Write ``base + merged`` as a model folder, exactly.
    rank, error, budget
        Of an adapter, at most one: the largest rank, or the relative error or the numbers of all
        sites, by ranks that win most energy per number. Without any it is exact, which methods on
        dense deltas cannot be.
    missing
        ``"zero"``: an adapter without a pair at a site changes nothing there; or ``"refuse"``.
    statistics
        For `fisher` and `regmean`: a file of ``tdecomp capture`` for every adapter.
    seed
        Of methods that draw.
    dtype
        ``"float32"``, ``"bfloat16"`` or ``"float16"``; by default the first adapter's.
    overwrite
        Replace an existing output of this tool.
    progress
        Called with the fraction of a step and its name.

    Raises
    ------
    ArgumentError
        A method, option or number of weights that does not fit.
    FileError
        A file that cannot be read, or an output that may not be written.
    SiteError
        Adapters of different models, or of other sites where that is refused.
    DataError
        Numbers that are not finite.
    """
    row = merge_method(method)
    rule = row.with_options(**(options or {}))
    _check_how_small(row, model=model, base=base, rank=rank, error=error, budget=budget)
    chosen = weights_for(weights, len(adapters))
    members = open_members(adapters, names=names, base=base, missing=missing)
    seen = tuple(load_statistics(path) for path in statistics)
    _check_statistics(row, seen, len(adapters))
    work = Merging(row, rule, members, chosen, seed, seen)
    given = on_disk([*adapters, *statistics, base])
    told = of_step(progress, "merging")
    if model:
        assert base is not None
        with output_folder(out, overwrite=overwrite, inputs=given) as folder:
            checkpoint = open_checkpoint(base)
            updates = _updates(work, tensor_of(checkpoint))
            code = None if dtype is None else code_of(dtype)
            write_model(checkpoint, folder, updates, dtype=code, progress=told)
            check_unchanged(checkpoint)
        return _report(work, out, None)
    with adapter_output(out, members.scheme, overwrite=overwrite, inputs=given) as place:
        code = members.dtype if dtype is None else code_of(dtype)
        written = WrittenPairs(code)
        sites = members.together.sites
        ranks = ranks_of(work, rank, error, budget)
        for done, (site, r) in enumerate(zip(sites, ranks, strict=True)):
            told(done / len(sites))
            written.add(members, site, work.merged(site), r)
        if not any(pair.pair.rank for pair in written.stored.values()):
            raise ArgumentError("the merged delta is zero at every site: there is nothing to write")
        write_adapter(place, members.to_write(Path(out), written.stored), scheme=members.scheme)
    return _report(work, out, written)


def _check_how_small(row: MergeMethod, *, model: bool, base: object, **small: Any) -> None:
    given = [name for name, value in small.items() if value is not None]
    if len(given) > 1:
        raise ArgumentError(f"give one of {' and '.join(given)}, not both")
    if model and given:
        raise ArgumentError(f"a model holds the merged delta itself: {given[0]} is of adapters")
    if model and base is None:
        raise ArgumentError("a model needs the base that deltas are added to", tip="add base=BASE")
    if row.where == "dense" and not model and not given:
        raise ArgumentError(
            f"{row.name} gives dense deltas, which are no pairs of low rank",
            tip="add rank=32, or error=0.1, or write a model",
        )
    if given:
        Target(**small)


def _check_statistics(row: MergeMethod, seen: Sequence[Statistics], count: int) -> None:
    if row.needs and len(seen) != count:
        raise ArgumentError(
            f"{row.name} needs statistics of every adapter, got {len(seen)} for {count}",
            tip="make them with tdecomp capture",
        )
    if seen and not row.needs:
        raise ArgumentError(f"{row.name} uses no statistics")


def _report(work: Merging, out: str | Path, written: WrittenPairs | None) -> MergeReport:
    """What was done, once all sites are merged."""
    figures, sums = work.figures, work.members
    norms, norm = np.sqrt(figures.energies), math.sqrt(figures.merged)
    away = np.sqrt(np.maximum(figures.merged - 2 * figures.inner + figures.energies, 0.0))
    rows = tuple(
        MergedMember(
            name=one.name,
            path=str(one.path),
            weight=work.weights[t],
            norm=float(norms[t]),
            cosine=_share(figures.inner[t], norms[t] * norm),
            departure=_share(away[t], norms[t]),
            lost=None if work.row.losses is None else _share(figures.lost[t] ** 0.5, norms[t]),
        )
        for t, one in enumerate(sums.sources)
    )
    silent = [f"{row.name} changes nothing" for row in rows if row.norm == 0]
    return MergeReport(
        out=str(out),
        method=work.row.name,
        where=work.row.where,
        members=rows,
        sites=figures.sites,
        norm=norm,
        rank=None if written is None else written.largest_rank,
        numbers=None if written is None else written.numbers,
        error=None if written is None else _share(written.lost**0.5, norm),
        missing=sums.missing,
        not_covered=sums.not_covered,
        notes=(*sums.notes, *silent),
    )


def _share(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else 0.0


def _updates(work: Merging, tensor: Callable[[str], str]) -> dict[str, Update]:
    """Tensor of the base -> the function that adds the merged delta to it."""
    found: dict[str, Update] = {}
    for site in work.members.together.sites:
        delta = lambda site=site: work.merged(site).dense()
        found[tensor(site)] = adding(tensor(site), delta, work.members.first(site).transpose)
    return found
