"""Reading an adapter of any scheme: every tensor is a part of a pair, or listed with a reason."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tdecomp.adapters import lora_modules
from tdecomp.collections import AdapterPair
from tdecomp.errors import DataError, FileError
from tdecomp.files import safetensors
from tdecomp.files.attached import KEY
from tdecomp.files.factors import FACTORS, load_factors
from tdecomp.files.loras.adapter_file import AdapterFile, Expert3d, HeldPair, SitePair, StoredPair
from tdecomp.files.loras.base_names import WeightFinder, weights_of
from tdecomp.files.loras.kinds import KINDS, Sizes
from tdecomp.files.loras.peft_scales import PeftScales, read_scales
from tdecomp.files.loras.saved import open_saved
from tdecomp.files.loras.schemes import SCHEMES, NamingScheme, scheme_of
from tdecomp.files.peft_config import facts
from tdecomp.files.places import check_inside, is_there
from tdecomp.files.plain import is_object
from tdecomp.files.safetensors import FLOATS, Entry
from tdecomp.files.storage import local
from tdecomp.files.unfused import unfused
from tdecomp.files.weight_files import read_json

__all__ = ["CONFIG", "WEIGHTS", "adapter_weights", "read_adapter", "scheme_beside"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_OURS = "tdecomp"  # metadata key of factor files
_OF_DIFFUSERS = "lora_adapter_metadata"
_SHOWN = 6  # keys of an unknown scheme that a message lists
_LONGEST = 10_000_000  # characters of a configuration inside a file

LeftTensor = tuple[str, str]
"""A tensor, and why it is not covered."""


def read_adapter(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    base: str | os.PathLike[str] | None = None,
) -> AdapterFile:
    """Open an adapter; no pair is read before it is asked for.

    Parameters
    ----------
    path
        A PEFT folder, a ``.safetensors`` file of any row of `schemes.SCHEMES`, an adapter of any
        method that `tdecomp_torch` saved, or factors that `tdecomp decompose` wrote.
    name
        The task; default is the name of the folder or file.
    base
        The base model, which DoRA is read against; without it such modules of a LoRA are listed as
        not covered. Saved adapters whose change depends on the weights need it.

    Raises
    ------
    FileError
        A pickle, a damaged file, a scheme that is not known (its names are listed), or nothing
        that could be read as pairs.
    DataError
        An ``alpha`` that is not finite; and for any other number when its pair is read.
    """
    path = local(path, "adapters")
    file = adapter_weights(path)
    entries, metadata = safetensors.read_header(file)
    called = name or (path.name if path.is_dir() else path.stem) or str(path)
    if _OURS in metadata:
        return _factors(path, called)
    if KEY in metadata:
        return open_saved(path, entries, metadata, name=called, weights=weights_of(base))
    config_file = file.parent / CONFIG
    scheme = scheme_beside(config_file, entries)
    if scheme is None:
        raise FileError(f"{file} has tensors of no known naming scheme: {_few(list(entries))}")
    config = read_json(config_file) if scheme.in_folder and is_there(config_file) else {}
    if scheme.in_folder and not config:
        raise FileError(f"{file} has no {CONFIG} beside it, which says the scale of its pairs")
    taken = _take_apart(scheme, entries)
    scales, notes = _scales(scheme, config, metadata, config_file)
    weights_there = weights_of(base)
    stored, left = _sites(taken, scales, weights_there)
    left = sorted({*taken.unknown, *left})
    if not stored:
        why = "; ".join(f"{key}: {reason}" for key, reason in left[:_SHOWN])
        raise FileError(f"{file} has no pair that can be read: {why}")
    said = config.get("base_model_name_or_path")
    return AdapterFile(
        path=path,
        name=called,
        scheme=scheme,
        stored=stored,
        base=said if isinstance(said, str) else metadata.get("ss_base_model_version", ""),
        not_covered=tuple(left),
        beside={name: entries[name] for name, _ in taken.unknown if scheme.copies(name)},
        notes=(*notes, *_notes(stored)),
        config=config,
        metadata=metadata,
    )


# ---------------------------------------------------------------------------------- which file


def adapter_weights(path: Path) -> Path:
    """The weight file that a path stands for."""
    if not path.exists():
        raise FileError(f"{path} does not exist")
    if not path.is_dir():
        return path
    for name in (WEIGHTS, FACTORS):
        if is_there(path / name):
            check_inside(path, path / name)
            return path / name
    files = sorted(p for p in path.glob("*.safetensors") if not p.name.startswith("."))
    if len(files) == 1:
        check_inside(path, files[0])
        return files[0]
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in safetensors.PICKLE_SUFFIXES)
    if pickles and not files:
        raise FileError(
            f"{path} has only pickles ({_few(pickles)}), which can run code when read:"
            " save the adapter again with safe_serialization=True"
        )
    found = f"{len(files)} of them: name one" if files else "none"
    raise FileError(f"{path} should hold one .safetensors file of an adapter, and has {found}")


def scheme_beside(config_file: Path, names: Iterable[str]) -> NamingScheme | None:
    """The scheme of an adapter's tensors; None where none is known.

    Beside an ``adapter_config.json`` tensors that end as PEFT's do are PEFT's, whatever a wrapper
    has put in the place of its prefix: their sites are then what stands before the endings.
    """
    known = list(names)
    scheme, peft = scheme_of(known), SCHEMES[0]
    if scheme is None or scheme.in_folder or not scheme.last or not is_there(config_file):
        return scheme
    ends = any(name.endswith(tuple(peft.endings)) for name in known)
    return replace(peft, networks={"": ""}) if ends else scheme


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (
        f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
    )


# ---------------------------------------------------------------------------------- names


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """The tensors of a file by site and kind; `beside` has alphas and magnitudes."""

    parts: Mapping[str, Mapping[str, Mapping[str, Entry]]]
    beside: Mapping[str, Mapping[str, Entry]]
    unknown: tuple[LeftTensor, ...]


def _take_apart(scheme: NamingScheme, entries: Mapping[str, Entry]) -> _Taken:
    parts: dict[str, dict[str, dict[str, Entry]]] = {}
    beside: dict[str, dict[str, Entry]] = {}
    unknown: list[LeftTensor] = []
    for name, entry in entries.items():
        part = scheme.part(name)
        if part is None:
            unknown.append((name, scheme.reason(name)))
        elif entry.dtype not in FLOATS and part.part != "alpha":  # which may be a whole number
            unknown.append((name, f"stored as {entry.dtype}, not as floating numbers"))
        elif part.kind:
            parts.setdefault(part.site, {}).setdefault(part.kind, {})[part.part] = entry
        else:
            beside.setdefault(part.site, {})[part.part] = entry
    return _Taken(parts=parts, beside=beside, unknown=tuple(unknown))


# ---------------------------------------------------------------------------------- scales

ScaleOf = Callable[[str, int], float | None]
"""Site and rank -> scale, where a configuration says it."""


def _scales(
    scheme: NamingScheme,
    config: Mapping[str, Any],
    metadata: Mapping[str, str],
    file: Path,
) -> tuple[Mapping[str, PeftScales], tuple[str, ...]]:
    """Configurations by network; ``""`` is that of a folder."""
    if scheme.in_folder:
        scales, notes = read_scales(config, file)
        return {"": scales}, notes
    found: dict[str, PeftScales] = {}
    for network, inside in _of_diffusers(metadata, file).items():
        found[network], _ = read_scales(inside, file)
    return found, ()


def _of_diffusers(metadata: Mapping[str, str], file: Path) -> dict[str, dict[str, Any]]:
    """LoRA configurations that diffusers keeps in a file's metadata, by network."""
    text = metadata.get(_OF_DIFFUSERS, "")
    if not text or len(text) > _LONGEST:
        return {}
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{file}: its metadata {_OF_DIFFUSERS} is no JSON") from error
    by_network: dict[str, dict[str, Any]] = {}
    for key, value in said.items() if is_object(said) else ():
        network, _, option = key.partition(".")
        by_network.setdefault(network, {})[option] = value
    return {network: row for network, row in by_network.items() if {"r", "lora_alpha"} <= set(row)}


def _configured(scales: Mapping[str, PeftScales], site: str) -> tuple[PeftScales, str] | None:
    """The configuration that speaks of a site, and what it calls it."""
    network, _, module = site.partition(".")
    if network in scales:
        return scales[network], module
    return (scales[""], site) if "" in scales else None


# ---------------------------------------------------------------------------------- sites


def _sites(
    taken: _Taken,
    scales: Mapping[str, PeftScales],
    weights: WeightFinder,
) -> tuple[dict[str, SitePair], list[LeftTensor]]:
    stored: dict[str, SitePair] = {}
    left: list[LeftTensor] = []
    for site, kinds in taken.parts.items():
        beside = taken.beside.get(site, {})
        found, why = _pairs_of(site, kinds, beside, scales, weights)
        stored |= found
        if why:
            named = [e for parts in kinds.values() for e in parts.values()] + [*beside.values()]
            left += [(entry.name, why) for entry in named]
    lone = {site: row for site, row in taken.beside.items() if site not in taken.parts}
    left += [(e.name, "belongs to no pair") for row in lone.values() for e in row.values()]
    return stored, left


def _pairs_of(
    site: str,
    kinds: Mapping[str, Mapping[str, Entry]],
    beside: Mapping[str, Entry],
    scales: Mapping[str, PeftScales],
    weights: WeightFinder,
) -> tuple[dict[str, SitePair], str]:
    """The pairs at one site, or why there are none."""
    if len(kinds) > 1:
        return {}, f"pairs of {' and '.join(kinds)} at one module"
    ((kind, entries),) = kinds.items()
    row = KINDS[kind]
    if not row.complete(frozenset(entries)):
        return {}, f"an incomplete pair: there are only {', '.join(sorted(entries))}"
    if empty := next((e for e in entries.values() if 0 in e.shape), None):
        return {}, f"a pair without numbers: one part is {empty.shape}"
    try:
        sizes = row.sizes({part: entry.shape for part, entry in entries.items()})
    except ValueError as error:
        return {}, str(error)
    said = _configured(scales, site)
    known = StoredPair(
        kind=kind,
        entries=entries,
        sizes=sizes,
        scale=1.0,
        transpose=row.transpose or (said is not None and said[0].turned),
    )
    if "magnitude" in beside:
        weight = weights(site)
        if weight is None:
            return {}, "DoRA, whose change depends on the base: name the base, which has the weight"
        known = replace(known, magnitude=beside["magnitude"], weight=weight)
    if "alpha" in beside:
        return {site: replace(known, scale=_alpha_scale(beside["alpha"], sizes))}, ""
    if said is None:
        return {site: known}, ""
    return _as_configured(site, known, *said)


def _alpha_scale(entry: Entry, sizes: Sizes) -> float:
    """``alpha / r``; 1 for a Kronecker product of two whole factors, whatever alpha says."""
    values = safetensors.load(entry).reshape(-1)
    if values.size != 1 or not math.isfinite(float(values[0])):
        said = "nothing" if not values.size else f"{float(values[0])}"
        raise DataError(
            f"{entry.name!r} of {entry.file} is {said}: alpha must be one finite number"
        )
    return 1.0 if sizes.rank is None else float(values[0]) / sizes.rank


def _as_configured(
    site: str, known: StoredPair, scales: PeftScales, module: str
) -> tuple[dict[str, SitePair], str]:
    """The pair with the scale of a configuration; several of a parameter that holds experts."""
    width = known.sizes.rank or 1
    names = scales.names_inside(module)
    ranks = {scales.rank_of(name) for name in names}
    if scales.rank_of(module) == width or width in ranks:
        return {site: replace(known, scale=scales.scale_of(names[0], width))}, ""
    told = {(scales.rank_of(n), scales.scale_of(n, scales.rank_of(n))) for n in names[1:]}
    fitting = [(rank, scale) for rank, scale in told if width % rank == 0]
    if len(names) == 1 or len(fitting) != 1:
        return {}, f"its rank is {width}, the configuration says {sorted(ranks)}"
    ((rank, scale),) = fitting
    count = width // rank
    sizes = replace(known.sizes, rank=rank)
    return {
        f"{site}.{k}": replace(known, scale=scale, sizes=sizes, expert=Expert3d(site, k, count))
        for k in range(count)
    }, ""


def _notes(stored: Mapping[str, SitePair]) -> list[str]:
    silent = [
        site for site, pair in stored.items() if isinstance(pair, StoredPair) and pair.scale == 0
    ]
    if not silent:
        return []
    more = f" and {len(silent) - 1} more" if silent[1:] else ""
    return [f"alpha is 0 at {silent[0]}{more}: the adapter changes nothing there"]


# ---------------------------------------------------------------------------------- our own


def _factors(path: Path, name: str) -> AdapterFile:
    """Factors of `tdecomp decompose` as pairs, exact."""
    factors = load_factors(path)
    source = factors.sources.get("base", {})
    groups, shapes = unfused(factors.groups, factors.shapes, facts(source.get("model")))
    modules, left_out = lora_modules(groups, factors.tensors, shapes)
    held = {
        m.module: HeldPair(
            AdapterPair(b=np.asarray(m.b), a=np.asarray(m.a), transpose=m.transpose), factors.dtype
        )
        for m in modules
    }
    if not held:
        raise FileError(f"{path} has no module that is a pair: {_few(left_out)}")
    left = [(tensor, "not the weight of a linear module") for tensor in left_out]
    unknown = [(tensor, reason) for tensor, reason, _ in factors.unknown]
    base = source.get("path", "")
    return AdapterFile(
        path=path,
        name=name,
        scheme=None,
        stored=held,
        base=base if isinstance(base, str) else "",
        not_covered=(*left, *unknown),
    )
