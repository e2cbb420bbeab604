"""Our own file: the factors of a decomposed model, with everything needed to use and check them.

One safetensors file. The arrays of group ``g`` are named ``"g.array"`` (``"0.core"``,
``"0.factor.out"``); the metadata key ``tdecomp`` holds a JSON document. No pickle, no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tdecomp.errors import FileError
from tdecomp.files import safetensors
from tdecomp.formats import FORMATS, Format
from tdecomp.stack import Group

_T = TypeVar("_T")

__all__ = ["FACTORS", "Factors", "factors_path", "load_factors", "save_factors"]

FACTORS = "factors.safetensors"
FORMAT_VERSION = 1

_LONGEST = 2**24  # of an out or in mode: a vocabulary has a million
_DENSE = 2**28  # numbers of a matrix that may come from any file: 16384 x 16384

_MISFITS = (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError),
    *(OverflowError, RecursionError),
)


@dataclass(frozen=True)
class Factors:
    """A decomposed model as it stands in a file.

    Attributes
    ----------
    method
        Name of the decomposition, ``"tucker2"``.
    dtype
        Storage code of the arrays, ``"F32"``, ``"BF16"``.
    groups, tensors
        The groups of sites and the format of each.
    residual, energy
        Squared residual and squared norm of every site, one array per group: of the factors as
        stored, against the delta they were made from.
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
    groups: tuple[Group, ...]
    tensors: tuple[Format, ...]
    residual: tuple[np.ndarray, ...]
    energy: tuple[np.ndarray, ...]
    shapes: Mapping[str, tuple[int, ...]]
    sources: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    unknown: tuple[tuple[str, str, bool], ...] = ()

    @property
    def n_params(self) -> int:
        """Stored numbers."""
        return sum(t.n_params for t in self.tensors)

    @property
    def delta_params(self) -> int:
        """Numbers in the covered full delta."""
        return sum(math.prod(g.shape) for g in self.groups)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored arrays."""
        return safetensors.size_in_bytes(self.dtype, (self.n_params,))


def save_factors(path: Path, factors: Factors) -> None:
    """Write `factors` to `path` (the caller makes the write atomic)."""
    arrays = {
        f"{g}.{name}": np.asarray(a)
        for g, tensor in enumerate(factors.tensors)
        for name, a in tensor.arrays.items()
    }
    safetensors.write(
        path,
        [(name, factors.dtype, a.shape) for name, a in arrays.items()],
        lambda name: safetensors.encode(arrays[name], factors.dtype),
        {"format": "tdecomp", "tdecomp": json.dumps(_document(factors))},
    )


def load_factors(path: str | Path) -> Factors:
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
        return _read(document, {name: safetensors.load(e) for name, e in entries.items()})
    except _MISFITS as error:
        raise FileError(
            f"{file} is damaged: its description does not fit its arrays ({error})"
        ) from error


def factors_path(path: str | Path) -> Path:
    """The factors file that `path` means: itself, or the one in the folder."""
    path = Path(path)
    file = path / FACTORS if path.is_dir() else path
    if not file.is_file():
        raise FileError(f"{path} holds no {FACTORS}: give a folder that tdecomp decompose wrote")
    return file


def _document(factors: Factors) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "method": factors.method,
        "dtype": factors.dtype,
        "groups": [
            group.to_json() | _format_json(tensor, residual, energy)
            for group, tensor, residual, energy in zip(
                factors.groups, factors.tensors, factors.residual, factors.energy, strict=True
            )
        ],
        "shapes": {name: list(shape) for name, shape in factors.shapes.items()},
        "sources": factors.sources,
        "options": factors.options,
        "unknown": [list(row) for row in factors.unknown],
    }


def _format_json(tensor: Format, residual: np.ndarray, energy: np.ndarray) -> dict[str, Any]:
    return {
        "format": type(tensor).__name__,
        "equation": str(tensor.equation),
        "arrays": list(tensor.arrays),
        "rank": tensor.rank if isinstance(tensor.rank, int) else list(tensor.rank),
        "layout": tensor.layout,
        "residual": residual.tolist(),
        "energy": energy.tolist(),
    }


def _read(document: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Factors:
    rows: Sequence[Mapping[str, Any]] = document["groups"]
    groups = tuple(Group.from_json(row) for row in rows)
    tensors = tuple(
        FORMATS[row["format"]].build(
            group.modes, {name: arrays[f"{g}.{name}"] for name in row["arrays"]}, row["layout"]
        )
        for g, (group, row) in enumerate(zip(groups, rows, strict=True))
    )
    for group, tensor in zip(groups, tensors, strict=True):
        if tensor.shape != group.shape:
            raise ValueError(f"{group.name} has shape {group.shape}, its factors {tensor.shape}")
    factors = Factors(
        _as(str, document["method"]),
        _as(str, document["dtype"]),
        groups,
        tensors,
        tuple(np.array(row["residual"], dtype=np.float64) for row in rows),
        tuple(np.array(row["energy"], dtype=np.float64) for row in rows),
        {name: tuple(_as(int, n) for n in shape) for name, shape in document["shapes"].items()},
        _as(dict, document["sources"]),
        _as(dict, document["options"]),
        tuple(_unknown(row) for row in document.get("unknown", ())),
    )
    _check(factors, arrays)
    return factors


def _check(factors: Factors, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse a description that reads well but that the other commands could not work with."""
    if not factors.groups or factors.dtype not in safetensors.FLOATS:
        raise ValueError(f"{len(factors.groups)} groups of {factors.dtype}")
    for name, array in arrays.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError(f"{name} has values that are not finite numbers")
    for group, tensor in zip(factors.groups, factors.tensors, strict=True):
        _check_claim(group, tensor.n_params)
    for group, squares in zip(
        factors.groups, zip(factors.residual, factors.energy, strict=True), strict=True
    ):
        for text in (group.name, group.grid, *group.modes):
            _as(str, text)
        for values in squares:
            if values.shape != (len(group.sites),) or not (values >= 0).all():
                raise ValueError(f"{group.name} has no residual and energy for every site")
            if not np.isfinite(values.sum()):
                raise ValueError(f"{group.name} claims a residual or energy that is not finite")
        for site in group.sites:
            _as(str, site.path)
            stored = np.broadcast_to(np.float32(0), factors.shapes[site.tensor])
            if site.take(stored).shape != site.shape:
                raise ValueError(f"{site.path} is not a block of {stored.shape}")
    for source in factors.sources.values():
        _as(str, source["path"])
        for row in _as(list, source["files"]):
            _as(str, row["file"])


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
