"""The description inside an adapter file: every line is checked before anything is built of it.

A file may come from anywhere. Reading it costs no more time, memory and depth than its own size and
that of the model account for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tdecomp.adapters import Grid, Spec
from tdecomp.adapters.settings import Settings
from tdecomp.adapters.site_grids import SiteGrid
from tdecomp.errors import ArgumentError, TdecompError
from tdecomp.files.attached.schema import (
    each,
    either,
    fields,
    flag,
    mapping,
    number,
    one_of,
    row,
    text,
    whole,
)
from tdecomp.files.plain import is_object
from tdecomp.stack import Site

__all__ = [
    "BESIDES",
    "KEY",
    "READABLE",
    "START",
    "VERSION",
    "AdapterDescription",
    "read_description",
]

KEY = "tdecomp.adapter"
"""Of the metadata, under which the description stands."""
BESIDES, START = "also_train/", "start__"
"""Before the name of a parameter that was trained besides; and before the key of a factor: its
start, kept where it was folded into the weights."""

VERSION = 2
READABLE = (1, VERSION)

_LONGEST = 1 << 25
_DIGITS = 1300
_MOST_SITES = 1 << 18
_MOST_GRIDS = 1 << 14
_MOST_WORK = 1 << 20
_DTYPES = ("float16", "bfloat16", "float32", "float64")

_nothing = one_of(None)
_label = either(whole(), text())
_SITE = fields(
    {
        "tensor": text(),
        "index": each(either(whole(), row(whole(), whole(1))), 4),
        "transpose": flag,
        "labels": each(row(text(), _label), 16),
        "shape": row(whole(1), whole(1)),
        "role": text(),
    },
    {"prefix": text(), "part": text(), "heads": whole()},
)
_GRID = fields(
    {
        "name": text(),
        "shape": row(whole(1), whole(1)),
        "modes": each(row(text(), each(_label, _MOST_SITES)), 16),
        "places": each(each(whole(), 16), _MOST_SITES),
        "heads": whole(),
        "heads_in": flag,
        "sites": each(_SITE, _MOST_SITES, least=1),
    }
)
_SETTINGS = fields(
    {
        "rank": either(_nothing, mapping(whole(1), 64), whole()),
        "alpha": either(_nothing, number()),
        "sides": each(one_of("in", "out"), 2),
        "dropout": number(0, 1),
        "shared_dropout": flag,
        "rank_dropout": number(0, 1),
        "seed": whole(0, 1 << 4096),
        "tokens": whole(1),
        "fold": flag,
    },
    {"tasks": each(text(), 1 << 12), "ranks": each(whole(1), _MOST_GRIDS)},
)
_formulas = mapping(either(number(), text()), 64)
_SPEC = fields(
    {
        "name": text(),
        "equation": text(8000),
        "init": either(text(), each(text(), 512), mapping(text(), 512)),
    },
    {
        "where": _formulas,
        "modes": mapping(text(), 512),
        "freeze": _formulas,
        "across": each(text(), 512),
        "clusters": _formulas,
        "unit": mapping(text(), 512),
        "scale": either(number(), text()),
        "alpha": either(number(), text()),
        "base": text(),
        "wrap": text(),
        "crop": each(text(), 4),
        "fast": text(),
        "source": text(),
    },
)
_DOCUMENT = fields(
    {
        "version": whole(),
        "spec": _SPEC,
        "settings": _SETTINGS,
        "dtype": one_of(None, *_DTYPES),
        "step": number(),
        "grids": each(_GRID, _MOST_GRIDS, least=1),
    },
    {
        "base": text(4096),
        "base_hash": text(),
        "base_samples": mapping(either(_nothing, text(64)), _MOST_SITES),
        "shapes": mapping(each(whole(1), 8, least=2), _MOST_SITES),
    },
)


@dataclass(frozen=True, kw_only=True)
class AdapterDescription:
    """What an adapter file says besides its tensors.

    Attributes
    ----------
    spec, settings, grids
        What is put where.
    step
        How many steps it was trained.
    dtype
        Name of that of the constants that are made again: ``"bfloat16"``; None: of several.
    model
        Name of the base model; "" where nothing says it.
    base
        Digests of base weights by module path; of format version 1 one of all bytes.
    shapes
        Of modules that are not one site each and no more: (out, in), of convolutions (out, channel,
        height, width).
    """

    spec: Spec
    settings: Settings
    grids: tuple[SiteGrid, ...]
    step: float
    dtype: str | None
    model: str
    base: str | Mapping[str, str | None]
    shapes: Mapping[str, tuple[int, ...]]


def read_description(plain: str) -> AdapterDescription:
    """Read and check what `tdecomp_torch` wrote.

    Raises
    ------
    ArgumentError
        Naming the field.
    """
    document = _parsed(plain)
    _DOCUMENT(document, "the description")
    try:
        spec = Spec.from_json(document["spec"])
        grids = tuple(map(_grid, document["grids"]))
    except TdecompError as error:
        raise ArgumentError(f"the description cannot be read ({error})") from error
    plainly: dict[str, Any] = document["settings"]
    ours: dict[str, Any] = {
        "sides": frozenset(plainly["sides"]),
        "tasks": tuple(plainly.get("tasks", ())),
        "ranks": tuple(plainly.get("ranks", ())),
    }
    settings = Settings(**(plainly | ours))
    _check_grids(grids)
    if len(settings.ranks) not in (0, len(grids)):
        raise ArgumentError(f"{len(settings.ranks)} ranks are said of {len(grids)} groups")
    _check_tasks(grids, settings.tasks)
    _check_work(spec, grids)
    base = document.get("base_hash" if document["version"] == 1 else "base_samples", {})
    return AdapterDescription(
        spec=spec,
        settings=settings,
        grids=grids,
        step=float(document["step"]),
        dtype=document["dtype"],
        model=document.get("base", ""),
        base=base,
        shapes={name: tuple(shape) for name, shape in document.get("shapes", {}).items()},
    )


def _parsed(plain: str) -> Any:
    if len(plain) > _LONGEST:
        raise ArgumentError(f"the description has {len(plain)} characters: too many")
    try:
        document: object = json.loads(
            plain, parse_constant=_no_number, parse_int=_short, object_pairs_hook=_once
        )
    except RecursionError:
        raise ArgumentError("the description is nested too deeply") from None
    except ValueError as error:
        raise ArgumentError(f"the description is not JSON ({error})") from None
    if not is_object(document):
        raise ArgumentError(f"its description is a {type(document).__name__}")
    version = document.get("version")
    if isinstance(version, bool) or version not in READABLE:
        shown = ascii(version)[:20]
        raise ArgumentError(f"it has format version {shown}, this tdecomp reads {VERSION}")
    return document


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _short(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {ascii(twice)[:60]} is there twice")
    return found


def _check_grids(grids: Sequence[SiteGrid]) -> None:
    for sites in grids:
        wrong = [site.path for site in sites.sites if site.shape != sites.grid.shape]
        if wrong or len(sites.sites) != sites.grid.n_sites:
            raise ArgumentError(
                f"the group {sites.grid.name} of {sites.grid.n_sites} weights of"
                f" {sites.grid.shape} does not fit {', '.join(wrong[:4]) or 'its modules'}"
            )


def _check_tasks(grids: Sequence[SiteGrid], tasks: Sequence[str]) -> None:
    """Refuse weights that are not one site for every task, and rows that belong to two."""
    found: dict[str, list[Any]] = {}
    rows: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for sites in grids:
        for site in sites.sites:
            task = dict(site.labels).get("task") if tasks else None
            found.setdefault(site.path, []).append(task)
            end = site.first_row + site.shape[0]
            where = (site.module, site.positions, task)
            rows.setdefault(where, []).append((site.first_row, end))
    wanted = {*tasks} or {None}
    for path, own in found.items():
        if len(own) != len(wanted) or {*own} != wanted:
            raise ArgumentError(
                f"{path} is not one site for each of {', '.join(tasks[:4]) or 'no tasks'}"
            )
    for (module, *_), spans in rows.items():
        spans.sort()
        if any(after[0] < before[1] for before, after in zip(spans, spans[1:], strict=False)):
            raise ArgumentError(f"two sites of {module} have rows in common")


def _check_work(spec: Spec, grids: Sequence[SiteGrid]) -> None:
    """Refuse more products than any model has a use for."""
    terms = spec.expanded.terms
    operands = sum(len(term.operands) for term in terms)
    if max(len(term.operands) for term in terms) > 24 or len(terms) > 128:
        raise ArgumentError(f"the method has {len(terms)} terms of {operands} factors: too many")
    work = operands * sum(sites.grid.n_sites for sites in grids)
    if work > _MOST_WORK:
        raise ArgumentError(f"{work} factors of all sites are more than {_MOST_WORK}")


def _grid(plain: Mapping[str, Any]) -> SiteGrid:
    grid = Grid(
        name=plain["name"],
        shape=tuple(plain["shape"]),
        modes=tuple((mode, tuple(labels)) for mode, labels in plain["modes"]),
        places=tuple(map(tuple, plain["places"])),
        heads=plain["heads"],
        heads_in=plain["heads_in"],
    )
    return SiteGrid(grid, tuple(map(Site.from_json, plain["sites"])))
