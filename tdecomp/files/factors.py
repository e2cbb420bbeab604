"""Our own file: the factors of a decomposed model, with everything needed to use and check them.

One safetensors file. The arrays of group ``g`` are named ``"g.array"`` (``"0.core"``,
``"0.factor.out"``); the metadata key ``tdecomp`` holds a JSON document. No pickle, no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tdecomp._brief import brief, brief_count
from tdecomp.drawing import Diagram, Drawable
from tdecomp.errors import FileError
from tdecomp.files import safetensors
from tdecomp.files.plain import is_list, is_object
from tdecomp.files.storage import Location, Url, place, want
from tdecomp.formats import FORMATS, Format
from tdecomp.stack import Group

_T = TypeVar("_T")

__all__ = [
    "FACTORS",
    "Factors",
    "GroupFactors",
    "factors_path",
    "load_factors",
    "save_factors",
]

FACTORS = "factors.safetensors"
FORMAT_VERSION = 1

_LONGEST = 2**24  # of an out or in mode: a vocabulary has a million
_DENSE = 2**28  # numbers of a matrix that may come from any file: 16384 x 16384

_MISFITS = (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError),
    *(OverflowError, RecursionError),
)


@dataclass(frozen=True, kw_only=True)
class GroupFactors:
    """One group of sites, its tensor in factors, and how far that is from the delta.

    Attributes
    ----------
    group, tensor
        The sites, and what stands for their deltas.
    residual, energy
        Squared residual and squared norm of every site: of the factors as stored, against the
        delta they were made from.
    """

    group: Group
    tensor: Format
    residual: np.ndarray  # (sites,)
    energy: np.ndarray  # (sites,)


@dataclass(frozen=True, kw_only=True, repr=False)
class Factors(Drawable):
    """A decomposed model as it stands in a file.

    Attributes
    ----------
    method
        Name of the decomposition, ``"tucker2"``.
    dtype
        Storage code of the arrays, ``"F32"``, ``"BF16"``.
    parts
        One for every group of sites.
    shapes
        Stored shape of every tensor that holds a site.
    sources
        ``{"base": ..., "tuned": ...}``: path as given; name, size and sha256 of each file.
    options
        What was asked for: rank, error or budget, targets, share.
    unknown
        (tensor, reason, whether it is a site) of what could not be compared: none of the energies
        here knows of it.
    """

    method: str
    dtype: str
    parts: tuple[GroupFactors, ...]
    shapes: Mapping[str, tuple[int, ...]]
    sources: Mapping[str, Any] = field(default_factory=dict[str, Any])
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    unknown: tuple[tuple[str, str, bool], ...] = ()

    @property
    def groups(self) -> tuple[Group, ...]:
        """The group of every part."""
        return tuple(part.group for part in self.parts)

    @property
    def tensors(self) -> tuple[Format, ...]:
        """The tensor of every part."""
        return tuple(part.tensor for part in self.parts)

    @property
    def n_params(self) -> int:
        """Stored numbers."""
        return sum(part.tensor.n_params for part in self.parts)

    @property
    def delta_params(self) -> int:
        """Numbers in the covered full delta."""
        return sum(math.prod(part.group.shape) for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored arrays."""
        return safetensors.size_in_bytes(self.dtype, (self.n_params,))

    def diagram(self) -> Diagram:
        """What `td.draw` draws: one panel for each group, under its name."""
        return Diagram(
            tuple(
                replace(panel, title=f"{part.group.name}: {panel.title}")
                for part in self.parts
                for panel in part.tensor.diagram().panels
            )
        )

    def __repr__(self) -> str:
        groups, numbers = (
            brief_count(len(self.parts), "group"),
            brief_count(self.n_params, "number"),
        )
        return brief("Factors", self.method, groups, numbers)


def save_factors(path: Path, factors: Factors) -> None:
    """Write `factors` to `path` (the caller makes the write atomic)."""
    arrays = {
        f"{g}.{name}": np.asarray(a)
        for g, part in enumerate(factors.parts)
        for name, a in part.tensor.arrays.items()
    }
    safetensors.write(
        path,
        [(name, factors.dtype, a.shape) for name, a in arrays.items()],
        lambda name: safetensors.encode(arrays[name], factors.dtype),
        {"format": "tdecomp", "tdecomp": json.dumps(_document(factors))},
    )


def load_factors(path: str | Path | Url) -> Factors:
    """Read a factors file, or the one in a folder.

    Raises
    ------
    FileError
        If the file is missing, damaged, not ours, or of a newer format version.
    """
    file = factors_path(path)
    entries, metadata = safetensors.read_header(file)
    if "tdecomp" not in metadata:
        raise FileError(f"{file} is not a tdecomp factors file: its metadata has no 'tdecomp' key")
    try:
        document = json.loads(metadata["tdecomp"])
        version = document["format_version"]
        if type(version) is not int or version != FORMAT_VERSION:
            raise FileError(
                f"{file} has format version {version}, this tdecomp reads {FORMAT_VERSION}"
            )
        want(some for entry in entries.values() for some in safetensors.ahead(entry))
        return _read(document, {name: safetensors.load(e) for name, e in entries.items()})
    except _MISFITS as error:
        raise FileError(
            f"{file} is damaged: its description does not fit its arrays ({error})"
        ) from error


def factors_path(path: str | Path | Url) -> Location:
    """The factors file that `path` means: itself, or the one in the folder."""
    path = place(path)
    file = path / FACTORS if path.is_dir() else path
    if (path / "bases.safetensors").is_file():
        raise FileError(f"{path} holds several adapters in common bases", tip="add task=NAME")
    if not file.is_file():
        raise FileError(f"{path} holds no {FACTORS}: give a folder that tdecomp decompose wrote")
    return file


def _document(factors: Factors) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "method": factors.method,
        "dtype": factors.dtype,
        "groups": [part.group.to_json() | _format_json(part) for part in factors.parts],
        "shapes": {name: list(shape) for name, shape in factors.shapes.items()},
        "sources": factors.sources,
        "options": factors.options,
        "unknown": [list(row) for row in factors.unknown],
    }


def _format_json(part: GroupFactors) -> dict[str, Any]:
    tensor = part.tensor
    return {
        "format": type(tensor).__name__,
        "equation": str(tensor.equation),
        "arrays": list(tensor.arrays),
        "rank": tensor.rank if isinstance(tensor.rank, int) else list(tensor.rank),
        "layout": tensor.layout,
        "residual": part.residual.tolist(),
        "energy": part.energy.tolist(),
    }


def _read(document: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Factors:
    rows: Sequence[Mapping[str, Any]] = document["groups"]
    factors = Factors(
        method=_as(str, document["method"]),
        dtype=_as(str, document["dtype"]),
        parts=tuple(_read_part(g, row, arrays) for g, row in enumerate(rows)),
        shapes={
            name: tuple(_as(int, n) for n in shape) for name, shape in document["shapes"].items()
        },
        sources=_object(document["sources"]),
        options=_object(document["options"]),
        unknown=tuple(_unknown(row) for row in document.get("unknown", ())),
    )
    _check(factors, arrays)
    return factors


def _read_part(
    number: int, row: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> GroupFactors:
    group = Group.from_json(row)
    own = {name: arrays[f"{number}.{name}"] for name in row["arrays"]}
    kind: Any = FORMATS[row["format"]]
    tensor = kind.build(group.modes, own, row["layout"])
    if tensor.shape != group.shape:
        raise ValueError(f"{group.name} has shape {group.shape}, its factors {tensor.shape}")
    return GroupFactors(
        group=group,
        tensor=tensor,
        residual=np.array(row["residual"], dtype=np.float64),
        energy=np.array(row["energy"], dtype=np.float64),
    )


def _check(factors: Factors, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse a description that reads well but that the other commands could not work with."""
    if not factors.parts or factors.dtype not in safetensors.FLOATS:
        raise ValueError(f"{len(factors.parts)} groups of {factors.dtype}")
    for name, array in arrays.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError(f"{name} has values that are not finite numbers")
    for part in factors.parts:
        _check_claim(part.group, part.tensor.n_params)
    for part in factors.parts:
        _check_part(part, factors.shapes)
    for source in factors.sources.values():
        _as(str, source["path"])
        for row in _list(source["files"]):
            _as(str, row["file"])


def _check_part(part: GroupFactors, shapes: Mapping[str, tuple[int, ...]]) -> None:
    group = part.group
    for text in (group.name, group.grid, *group.modes):
        _as(str, text)
    for values in (part.residual, part.energy):
        if values.shape != (len(group.sites),) or not (values >= 0).all():
            raise ValueError(f"{group.name} has no residual and energy for every site")
        if not np.isfinite(values.sum()):
            raise ValueError(f"{group.name} claims a residual or energy that is not finite")
    for site in group.sites:
        _as(str, site.path)
        stored = np.broadcast_to(np.float32(0), shapes[site.tensor])
        if site.take(stored).shape != site.shape:
            raise ValueError(f"{site.path} is not a block of {stored.shape}")


def _check_claim(group: Group, stored: int) -> None:
    """Refuse matrices that no such file can stand for, before a command makes room for them.

    Factors of rank 1 of an ``(out, in)`` matrix are ``out + in`` numbers, so no low rank is
    refused; only rank 0 and products of split modes hold less.
    """
    sides = group.shape[-2:]
    if max(sides) > _LONGEST or (stored and math.prod(sides) > max(stored**2, _DENSE)):
        raise ValueError(f"{group.name} claims matrices of {sides} from {stored} numbers")


def _unknown(row: Sequence[object]) -> tuple[str, str, bool]:
    tensor, reason, site = row
    if not isinstance(site, bool):
        raise TypeError(f"{site!r} is not of type bool")
    return _as(str, tensor), _as(str, reason), site


def _as(kind: type[_T], value: object) -> _T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value


def _object(value: object) -> dict[str, Any]:
    if not is_object(value):
        raise TypeError(f"{value!r} is not a JSON object")
    return value


def _list(value: object) -> list[Any]:
    if not is_list(value):
        raise TypeError(f"{value!r} is not a JSON list")
    return value
