"""Adapters beside each other: how alike what they add is, at every site and in all."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from tdecomp.collections import AdapterPair, Collection, collect
from tdecomp.collections.comparing import Alikeness, alikeness, intruders, span
from tdecomp.errors import ArgumentError, FileError
from tdecomp.files.atomic import output_file
from tdecomp.files.loras import AdapterFile
from tdecomp.files.loras.base_names import WeightFinder, weights_of
from tdecomp.files.loras.several import AdapterSource, adapters_in, on_disk, opened
from tdecomp.files.storage import local
from tdecomp.jobs.likeness import ComparedMember, ComparedPair, ComparedSite, CompareReport
from tdecomp.jobs.page.compared import compared_page
from tdecomp.jobs.reporting import is_page
from tdecomp.jobs.steps import StepProgress, of_step, untold

__all__ = ["compare"]


def compare(
    sources: Sequence[AdapterSource],
    *,
    base: str | Path | None = None,
    out: str | Path | None = None,
    missing: str = "zero",
    overwrite: bool = False,
    progress: StepProgress = untold,
) -> CompareReport:
    """Compare adapters, from their factors; no ΔW is formed unless a base is given.

    Parameters
    ----------
    sources
        Two or more adapters as `tdecomp.files.loras.read_adapter` takes them or gives them, on a
        model (``adapter.to_file()``), or folders of them.
    base
        The base model: DoRA is read against it, and intruder dimensions are counted, which takes
        one dense SVD of every weight.
    out
        HTML page to write, with heat maps.
    missing
        A site that not all have: ``"zero"``, or ``"refuse"``.
    overwrite
        Replace an existing page of this tool.
    progress
        Called with the fraction of a step and its name.

    Raises
    ------
    ArgumentError
        Fewer than two adapters.
    SiteError
        Adapters of different shapes.
    FileError
        A file that cannot be read, or a page that may not be written.
    DataError
        An adapter with numbers that are not finite, by name.
    """
    if isinstance(sources, str | os.PathLike):
        raise ArgumentError("compare takes a list of adapters, got one path")
    members = _members([one for source in sources for one in adapters_in(source)], base)
    if len(members) < 2:
        raise ArgumentError(f"{len(members)} adapter was given: two or more can be compared")
    together = collect(members, missing=missing)
    inputs = on_disk([*sources, base])
    if out is None:
        return _report(together, members, base, progress, None)
    with output_file(out, ours=is_page, overwrite=overwrite, inputs=inputs) as file:
        report = _report(together, members, base, progress, str(out))
        file.write_text(compared_page(report), encoding="utf-8")
    return report


def _members(sources: Sequence[AdapterSource], base: str | Path | None) -> list[AdapterFile]:
    """Adapters by the names of their files, or by their paths where those are the same."""
    names = Counter(_name(one) for one in sources)
    called = [_name(one) if names[_name(one)] == 1 else str(_path(one)) for one in sources]
    return [opened(one, name=name, base=base) for one, name in zip(sources, called, strict=True)]


def _path(source: AdapterSource) -> Path:
    return source.path if isinstance(source, AdapterFile) else local(source, "adapters")


def _name(source: AdapterSource) -> str:
    if isinstance(source, AdapterFile):
        return source.name
    path = local(source, "adapters")
    return path.name if path.is_dir() else path.stem


def _report(
    together: Collection,
    members: Sequence[AdapterFile],
    base: str | Path | None,
    progress: StepProgress,
    page: str | None,
) -> CompareReport:
    told = of_step(progress, "comparing")
    weights = None if base is None else weights_of(base)
    rows: list[_FiguresAt] = []
    for done, site in enumerate(together.sites):
        rows.append(_figures(together, site, weights))
        told((done + 1) / len(together.sites))
    names = together.names
    seen = [row for row in rows if row.intruders is not None]
    if base is not None and not seen:
        raise FileError(f"{base} has no weight of any site of {members[0].name}")
    return CompareReport(
        members=tuple(
            _member(members[k], k, rows, together, seen if base is not None else None)
            for k in range(len(members))
        ),
        pairs=tuple(_total(rows, names, i, j) for i, j in _twos(len(names))),
        sites=tuple(row.told(names) for row in rows),
        page=page,
        notes=tuple(_notes(together, members)),
    )


def _twos(count: int) -> Iterator[tuple[int, int]]:
    return combinations(range(count), 2)


@dataclass(frozen=True, kw_only=True)
class _FiguresAt:
    """What is known of one site."""

    site: str
    shape: tuple[int, int]
    energies: tuple[float, ...]
    ranks: tuple[int, ...]
    alike: Mapping[tuple[int, int], Alikeness]
    intruders: tuple[int, ...] | None

    def told(self, names: Sequence[str]) -> ComparedSite:
        return ComparedSite(
            site=self.site,
            shape=self.shape,
            norms=tuple(map(math.sqrt, self.energies)),
            pairs=tuple(_total([self], names, i, j) for i, j in self.alike),
            intruders=self.intruders,
        )


def _figures(together: Collection, site: str, weights: WeightFinder | None) -> _FiguresAt:
    pairs, shape = together.pairs(site), together.shapes[site]
    spans = [span(pair, shape) for pair in pairs]
    return _FiguresAt(
        site=site,
        shape=shape,
        energies=tuple(one.energy for one in spans),
        ranks=tuple(0 if pair is None else pair.rank for pair in pairs),
        alike={(i, j): alikeness(spans[i], spans[j]) for i, j in _twos(len(spans))},
        intruders=None if weights is None else _intruders(site, shape, pairs, weights),
    )


def _intruders(
    site: str,
    shape: tuple[int, int],
    pairs: Sequence[AdapterPair | None],
    weights: WeightFinder,
) -> tuple[int, ...] | None:
    """Intruder dimensions by member; None where the base has no such weight."""
    read = weights(site)
    if read is None:
        return None
    stored = read()
    weight = stored.reshape(len(stored), -1)
    turned = any(pair is not None and pair.transpose for pair in pairs)
    weight = weight.T if turned else weight
    if weight.shape != shape:
        raise FileError(f"{site} is {shape} in the adapters and {weight.shape} in the base")
    return tuple(intruders(weight, pairs))


def _total(rows: Sequence[_FiguresAt], names: Sequence[str], i: int, j: int) -> ComparedPair:
    """Two members over sites: energies add up, angles are means over the sites of both."""
    both = [(row, row.alike[i, j]) for row in rows]
    one, two = (math.fsum(row.energies[k] for row in rows) for k in (i, j))
    shared = [alike for _, alike in both if alike.out_cosines.size]
    return ComparedPair(
        one=names[i],
        two=names[j],
        cosine=_share(math.fsum(a.inner for _, a in both), math.sqrt(one * two)),
        one_in_two=_share(math.fsum(a.first_in_second for _, a in both), one),
        two_in_one=_share(math.fsum(a.second_in_first for _, a in both), two),
        out_overlap=_mean([float(np.mean(a.out_cosines**2)) for a in shared]),
        in_overlap=_mean([float(np.mean(a.in_cosines**2)) for a in shared]),
        out_angles=_angles([a.out_cosines for a in shared]),
        in_angles=_angles([a.in_cosines for a in shared]),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _angles(cosines: Sequence[np.ndarray]) -> tuple[float, float]:
    """Smallest and largest in degrees; right angles where nothing is shared."""
    if not cosines:
        return 90.0, 90.0
    degrees = [np.degrees(np.arccos(c[[0, -1]])) for c in cosines]
    return _mean([float(d[0]) for d in degrees]), _mean([float(d[1]) for d in degrees])


def _member(
    member: AdapterFile,
    k: int,
    rows: Sequence[_FiguresAt],
    together: Collection,
    seen: Sequence[_FiguresAt] | None,
) -> ComparedMember:
    return ComparedMember(
        name=member.name,
        path=str(member.path),
        base=member.base,
        sites=len(member.stored),
        missing=sum(keys[k] is None for keys in together.keys.values()),
        rank=max(row.ranks[k] for row in rows),
        norm=math.sqrt(math.fsum(row.energies[k] for row in rows)),
        intruders=None if seen is None else sum((row.intruders or ())[k] for row in seen),
    )


def _notes(together: Collection, members: Sequence[AdapterFile]) -> Iterator[str]:
    yield from together.notes
    for i, j in _twos(len(members)):
        if not any(keys[i] and keys[j] for keys in together.keys.values()):
            one, two = members[i], members[j]
            yield (
                f"{one.name} and {two.name} have no site in common: {next(iter(one.stored))} is a"
                f" name of the one, {next(iter(two.stored))} of the other"
            )
    for member in members:
        yield from (f"{member.name}: {note}" for note in member.notes)
        if member.not_covered:
            tensor, reason = member.not_covered[0]
            more = f", and {len(member.not_covered) - 1} more" if member.not_covered[1:] else ""
            yield f"{member.name}: not compared is {tensor} ({reason}){more}"
