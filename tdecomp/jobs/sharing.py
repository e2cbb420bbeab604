"""Adapters in common bases: made of several, added to, taken from, and one of them out again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from tdecomp._xp import to_numpy
from tdecomp.collections import AdapterPair
from tdecomp.collections.resizing import PairSpectrum, choose_ranks
from tdecomp.collections.sharing import CommonBases, away, common_bases, shared_sites
from tdecomp.errors import ArgumentError, SiteError
from tdecomp.files import safetensors
from tdecomp.files.atomic import output_folder
from tdecomp.files.basis_folder import (
    BasisFolder,
    BasisMember,
    BasisSite,
    copy_basis,
    open_basis,
    recovered,
    write_bases,
    write_member,
)
from tdecomp.files.checkpoint import check_unchanged, open_checkpoint, write_model
from tdecomp.files.dtypes import code_of
from tdecomp.files.loras import AdapterFile, write_adapter
from tdecomp.files.loras.adapter_file import held
from tdecomp.files.loras.base_names import alike
from tdecomp.files.loras.full import FullMember, tensor_of
from tdecomp.files.loras.several import AdapterSource, on_disk
from tdecomp.jobs.members import (
    Members,
    MissingPair,
    NotAPair,
    adapter_output,
    adding,
    open_members,
)
from tdecomp.jobs.reports import Report, relative_error
from tdecomp.jobs.steps import StepProgress, of_step, untold
from tdecomp.ranking.target import Target

__all__ = [
    "BasisReport",
    "SharedMember",
    "TaskReport",
    "add_to_basis",
    "apply_task",
    "basis",
    "basis_info",
    "export_task",
    "remove_from_basis",
]


@dataclass(frozen=True, kw_only=True)
class SharedMember:
    """An adapter in common bases.

    Attributes
    ----------
    name
        The task.
    numbers, core_numbers
        In its own pairs, and in its cores.
    norm
        ``‖ΔW‖`` over all weights.
    lost
        ``‖recovered − ΔW‖ / ‖ΔW‖``: its share outside the bases, and storage.
    """

    name: str
    numbers: int
    core_numbers: int
    norm: float
    lost: float


@dataclass(frozen=True, kw_only=True)
class BasisReport(Report):
    """What a basis folder holds.

    Attributes
    ----------
    out
        The folder.
    members
        By name.
    sites, groups, rank
        Weights, pairs of bases, and the largest rank of a basis.
    basis_numbers, numbers
        In the bases, and with all cores.
    separate_numbers
        In the members' own pairs.
    error
        Over all members.
    resized_error
        That of the best pairs of all members, each on its own, with as many numbers.
    sharing_wins
        Whether that is larger.
    missing, not_covered, notes
        Members without a pair at a weight, what no pair stands for, and what else to know.
    """

    out: str
    members: tuple[SharedMember, ...]
    sites: int
    groups: int
    rank: int
    basis_numbers: int
    numbers: int
    separate_numbers: int
    error: float
    resized_error: float | None = None
    sharing_wins: bool | None = None
    missing: tuple[MissingPair, ...] = ()
    not_covered: tuple[NotAPair, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskReport(Report):
    """A member that was written as an adapter, or added to its base.

    Attributes
    ----------
    out, task
        What was written, of which member.
    sites
        Weights that it changes.
    lost
        As of `SharedMember`.
    """

    out: str
    task: str
    sites: int
    lost: float


def basis(
    adapters: Sequence[AdapterSource],
    out: str | Path,
    *,
    rank: int | None = None,
    error: float | None = None,
    budget: int | None = None,
    over_layers: bool = False,
    names: Sequence[str] | None = None,
    base: str | Path | None = None,
    missing: str = "zero",
    dtype: str | None = None,
    overwrite: bool = False,
    progress: StepProgress = untold,
) -> BasisReport:
    """Write adapters in common bases: Tucker2 over (task, out, in), one core for every member.

    Parameters
    ----------
    adapters
        As of `merge`.
    out
        Folder to write.
    rank, error, budget
        Exactly one: of both bases of every weight, relative over all members, or numbers in all.
    over_layers
        Share the bases over weights whose names differ in their numbers only.
    names, base, missing
        As of `merge`.
    dtype
        Of bases and cores; by default the first adapter's.
    overwrite
        Replace an existing output of this tool.
    progress
        Called with the fraction of a step and its name.

    Raises
    ------
    ArgumentError, DataError, FileError, SiteError
        As `merge` does.
    """
    target = Target(rank, error, budget, None)
    members = open_members(adapters, names=names, base=base, missing=missing)
    code = members.dtype if dtype is None else code_of(dtype)
    given = on_disk([*adapters, base])
    with output_folder(out, overwrite=overwrite, inputs=given) as folder:
        groups = shared_sites(members.together, over_layers=over_layers)
        rounding = partial(_rounded, code)
        told = of_step(progress, "sharing")
        bases = common_bases(members.together, groups, target, rounding=rounding, progress=told)
        write_bases(folder, groups, bases, code)
        found = dict(zip((g.sites for g in groups), bases, strict=True))
        of_site = {site: one for sites, one in found.items() for site in sites}
        count = len(members.sources)
        for number in range(count):
            of_step(progress, "cores")(number / count)
            _put(folder, members, number, of_site, code)
        made = _told(open_basis(folder), out)
        beside = _resized_error(members, made.numbers)
    return _with_members(made, members, beside)


def add_to_basis(
    adapter: AdapterSource,
    folder: str | Path,
    *,
    name: str | None = None,
    base: str | Path | None = None,
    progress: StepProgress = untold,
) -> BasisReport:
    """Add a member to a basis folder: its cores in the bases that are there.

    No byte of the bases and the other members changes; what the bases do not hold of the new one is
    its `lost`.

    Raises
    ------
    ArgumentError
        There is a member of that name.
    SiteError
        A weight of another shape than in the bases.
    """
    old = open_basis(folder)
    members = open_members([adapter], names=None if name is None else [name], base=base)
    (one,) = members.sources
    if one.name in old.members:
        raise ArgumentError(f"{folder} has a member {one.name!r} already: give another name")
    told = of_step(progress, "cores")
    with output_folder(folder, overwrite=True, inputs=on_disk([adapter])) as new:
        copy_basis(old, new)
        names = _in_basis(old, members)
        groups = old.group_of
        bases = {site: old.bases(groups[known]) for site, known in names.items()}
        told(0.1)
        _put(new, members, 0, bases, old.dtype, called=names)
        made = _told(open_basis(new), folder)
    return _with_members(made, members, None)


def remove_from_basis(folder: str | Path, name: str) -> BasisReport:
    """Take a member out of a basis folder; nothing else changes."""
    old = open_basis(folder)
    old.member(name)
    with output_folder(folder, overwrite=True) as new:
        copy_basis(old, new, without=name)
        return _told(open_basis(new), folder)


def basis_info(folder: str | Path) -> BasisReport:
    """What a basis folder holds."""
    return _told(open_basis(folder), folder)


def export_task(
    folder: str | Path, task: str, out: str | Path, *, overwrite: bool = False
) -> TaskReport:
    """Write a member as an adapter, in the naming scheme it came in; the same bits everywhere."""
    opened = open_basis(folder)
    adapter = opened.adapter(task)
    assert adapter.scheme is not None
    with adapter_output(out, adapter.scheme, overwrite=overwrite, inputs=[folder]) as place:
        write_adapter(place, adapter)
    return _of_task(opened, adapter, task, out)


def apply_task(
    folder: str | Path,
    task: str,
    base: str | Path,
    model: str | Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: StepProgress = untold,
) -> TaskReport:
    """Write base + a member as a model folder."""
    opened = open_basis(folder)
    adapter, checkpoint = opened.adapter(task), open_checkpoint(base)
    find = tensor_of(checkpoint)
    pairs = {find(site): pair for site, pair in adapter.pairs.items() if pair.rank}
    updates = {
        tensor: adding(tensor, lambda pair=pair: to_numpy(pair.dense()), pair.transpose)
        for tensor, pair in pairs.items()
    }
    with output_folder(model, overwrite=overwrite, inputs=[folder, base]) as place:
        code = None if dtype is None else code_of(dtype)
        told = of_step(progress, "writing")
        write_model(checkpoint, place, updates, dtype=code, progress=told)
        check_unchanged(checkpoint)
    return _of_task(opened, adapter, task, model)


# ------------------------------------------------------------------------------------- members


def _put(
    folder: Path,
    members: Members,
    number: int,
    bases: Mapping[str, CommonBases],
    code: str,
    called: Mapping[str, str] | None = None,
) -> None:
    """Write one member: a core for every weight that there are bases of."""
    one, keys = members.sources[number], members.together.keys
    cores: dict[str, np.ndarray] = {}
    rows: dict[str, BasisSite] = {}
    numbers, energy, lost = 0, 0.0, 0.0
    for site in members.together.sites:
        key = keys[site][number]
        if key is None:
            continue
        pair = one.pairs[key]
        mine = pair.energy()
        numbers, energy = numbers + pair.rank * sum(pair.shape), energy + mine
        if site not in bases:
            lost += mine
            continue
        core = _rounded(code, bases[site].core(pair))
        lost += away(pair, recovered(bases[site], core, code))
        name = site if called is None else called[site]
        cores[name], rows[name] = core, _written_as(one, key, pair, code)
    member = BasisMember(
        name=one.name,
        base=one.base,
        scheme=one.scheme.name if isinstance(one, AdapterFile) and one.scheme else "peft",
        numbers=numbers,
        energy=energy,
        lost=lost,
        sites=rows,
    )
    write_member(folder, member, cores, code)


def _written_as(one: AdapterFile | FullMember, key: str, pair: AdapterPair, code: str) -> BasisSite:
    row = BasisSite(transpose=pair.transpose, kernel=pair.kernel, dtype=code)
    if isinstance(one, AdapterFile):
        like = held(pair, one.stored[key])
        row = replace(row, kind=like.kind, expert=like.expert)
    return row


def _in_basis(old: BasisFolder, members: Members) -> dict[str, str]:
    """Weight of a new member -> its name in the basis; weights without bases are left out."""
    known = {alike(s): (s, group.shape) for group in old.groups for s in group.sites}
    found: dict[str, str] = {}
    for site, shape in members.together.shapes.items():
        if alike(site) not in known:
            continue
        name, wanted = known[alike(site)]
        if shape != wanted:
            raise SiteError(f"{site} is {shape}, the bases in {old.path} are of {wanted}")
        found[site] = name
    if not found:
        raise SiteError(f"{old.path} has bases of none of the weights of {members.sources[0].name}")
    return found


def _rounded(code: str, array: np.ndarray) -> np.ndarray:
    return safetensors.rounded(array.astype(np.float32), code)


# ------------------------------------------------------------------------------------- reports


def _told(opened: BasisFolder, out: str | Path) -> BasisReport:
    bases, cores = opened.numbers()
    members = tuple(
        SharedMember(
            name=name,
            numbers=row.numbers,
            core_numbers=cores[name],
            norm=math.sqrt(row.energy),
            lost=relative_error([row.lost], [row.energy]),
        )
        for name, row in opened.members.items()
    )
    rows = opened.members.values()
    return BasisReport(
        out=str(out),
        members=members,
        sites=sum(len(group.sites) for group in opened.groups),
        groups=len(opened.groups),
        rank=opened.largest_rank,
        basis_numbers=bases,
        numbers=bases + sum(cores.values()),
        separate_numbers=sum(row.numbers for row in rows),
        error=relative_error((row.lost for row in rows), (row.energy for row in rows)),
    )


def _with_members(made: BasisReport, members: Members, resized_error: float | None) -> BasisReport:
    return replace(
        made,
        resized_error=resized_error,
        sharing_wins=None if resized_error is None else made.error < resized_error,
        missing=members.missing,
        not_covered=members.not_covered,
        notes=members.notes,
    )


def _resized_error(members: Members, numbers: int) -> float:
    """Error of the best pairs of all members, each on its own, in as many numbers."""
    spectra = [
        PairSpectrum(to_numpy(pair.spectrum()), pair.shape)
        for one in members.sources
        for pair in one.pairs.values()
    ]
    ranks = choose_ranks(spectra, Target(None, None, max(numbers, 1), None))
    lost = [row.lost(rank) for row, rank in zip(spectra, ranks, strict=True)]
    return relative_error(lost, [row.lost(0) for row in spectra])


def _of_task(opened: BasisFolder, adapter: AdapterFile, task: str, out: str | Path) -> TaskReport:
    member = opened.member(task)
    sites = sum(stored.read().rank > 0 for stored in adapter.stored.values())
    lost = relative_error([member.lost], [member.energy])
    return TaskReport(out=str(out), task=task, sites=sites, lost=lost)
