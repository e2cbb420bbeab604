"""Open a model's weights: one safetensors file, an index with its shards, or a folder."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from ..errors import FileError, SiteError
from . import safetensors
from .choosing import copies
from .dtypes import FLOATS
from .packed import Found, Packed, find_packed
from .parts import Part
from .places import check_inside, is_there
from .safetensors import Entry
from .storage import Location, Range, RangeFile, Url, place, remembering, want
from .stored import Source
from .weight_files import find_weights, read_json

__all__ = [
    "QUANTISATION_FILES",
    "Checkpoint",
    "check_unchanged",
    "open_checkpoint",
]

_AT_ONCE = 16  # requests
QUANTISATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Settings of GPTQ, AWQ and modelopt where the config has none."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Checkpoint:
    """A model's tensors by name, read lazily.

    Parameters
    ----------
    path
        What the user named.
    files
        The ``.safetensors`` files, in order.
    entries
        Every tensor by name. A packed weight has one entry, of its decoded shape; the scales and
        the like that belong to it have none.
    stored
        Every tensor as the files have it, by name.
    packed
        The entries that are decoded from several stored tensors, or from codes.
    refused
        The entries that are codes of a layout that is not read, with the reason in a sentence.
    companions
        Names of the stored tensors that belong to packed weights.
    config
        ``config.json`` beside the weights, ``{}`` if there is none.
    index_file
        The index that lists the shards, if there is one.
    notes
        What was left aside, a sentence each: other sets of weights in the folder, copies.
    """

    path: Location
    files: tuple[Location, ...]
    entries: dict[str, Entry]
    stored: dict[str, Entry]
    packed: dict[str, Packed]
    refused: dict[str, str]
    companions: frozenset[str]
    config: dict[str, Any]
    index_file: Location | None
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in file order."""
        return tuple(self.entries)

    @cached_property
    def floats(self) -> dict[str, Entry]:
        """The entries that `read` gives as floating numbers: stored as such, or decoded."""
        return {
            name: entry
            for name, entry in self.entries.items()
            if name in self.packed or (entry.dtype in FLOATS and name not in self.refused)
        }

    @property
    def folder(self) -> Location | None:
        """The model's folder; ``None`` if a single file was named."""
        if self.index_file is not None:
            return self.index_file.parent
        return self.path if self.path.is_dir() else None

    @property
    def sources(self) -> dict[Location, Source | RangeFile]:
        """The weight files, open; those without tensors have none."""
        return {e.file: e.source for e in self.stored.values() if e.source is not None}

    @cached_property
    def marks(self) -> tuple[tuple[str, str], ...]:
        """Name of every weight file with tensors, and what tells its content from another."""
        return tuple((file.name, source.mark) for file, source in self.sources.items())

    def entry(self, name: str) -> Entry:
        """Where the tensor is stored; a SiteError if there is no such tensor."""
        if name not in self.entries:
            raise SiteError(f"{self.path} has no tensor {name!r}")
        return self.entries[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.entry(name).shape

    def dtype(self, name: str) -> str:
        """How a tensor is stored: a safetensors code, or that of a layout (``"NF4"``)."""
        return self.entry(name).dtype

    def read(self, name: str, index: tuple[slice | int, ...] = ()) -> np.ndarray:
        """Read a tensor or a part of it: widened to at least float32, packed weights decoded.

        Parameters
        ----------
        name
            One of `names`.
        index
            The part to read; only that part is touched on disk, of packed weights whole rows.

        Returns
        -------
        ndarray
            A new array; float64 and integers as they are stored.

        Raises
        ------
        FileError
            If the file cannot be read, or the tensor is one of `refused`.
        """
        self._check_readable(name)
        if name in self.packed:
            want(self.ahead(name, index))
            return self.packed[name].read(index)
        return safetensors.load(self.entry(name), index)

    def part(self, name: str, index: tuple[slice | int, ...] = ()) -> Part:
        """Open what `read` reads, to be widened tile by tile.

        Packed weights are decoded here: their codes and scales do not lie in tiles.
        """
        self._check_readable(name)
        if name in self.packed:
            want(self.ahead(name, index))
            values = self.packed[name].read(index)
            return Part(values, values.dtype)
        return safetensors.part(self.entry(name), index)

    def ahead(self, name: str, index: tuple[slice | int, ...] = ()) -> Iterator[Range]:
        """What `part` will ask of a server; nothing where the files are on a disk."""
        if name not in self.packed:
            yield from safetensors.ahead(self.entry(name), index)
            return
        for own in self._stored_for(name):
            rows = index[:1] if own.shape[:1] == self.shape(name)[:1] else ()
            yield from safetensors.ahead(own, rows)

    def bytes_per_number(self, name: str) -> float:
        """What is stored for a number of a tensor, with the scales of packed ones."""
        stored = sum(entry.nbytes for entry in self._stored_for(name))
        return stored / max(1, math.prod(self.shape(name)))

    def _stored_for(self, name: str) -> list[Entry]:
        """Where everything lies that reading a tensor takes."""
        packed = self.packed.get(name)
        if packed is None:
            return [self.entry(name)]
        return [packed.stored, *(self.stored[other] for other in packed.companions)]

    def _check_readable(self, name: str) -> None:
        if name in self.refused:
            raise FileError(self.refused[name])


def open_checkpoint(path: str | os.PathLike[str] | Url, *, mmap: bool = True) -> Checkpoint:
    """Open a model's weights without reading them.

    Parameters
    ----------
    path
        A ``.safetensors`` file, a ``*.safetensors.index.json``, or a folder, of which one set of
        weights is taken (see `choosing` for the rule); on this machine or, through fsspec, on a
        server (``"s3://bucket/model"``).
    mmap
        False for files of a network mount: they are read in large pieces, several at once, as
        those of a server always are.

    Raises
    ------
    FileError
        If something is missing, contradicts itself, or is stored as a pickle.
    """
    try:
        with remembering():
            return _open(place(path), mmap)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error


def _open(path: Location, mmap: bool) -> Checkpoint:
    if not path.exists():
        raise path.missing() if isinstance(path, Url) else FileError(f"{path} does not exist")
    folder = path if path.is_dir() else path.parent
    weights = find_weights(path)
    config_file = folder / "config.json"
    if is_there(config_file):
        check_inside(folder, config_file)
    everything = _union(path, weights.files, weights.listed, mmap)
    second, told = copies(everything)
    everything = {name: entry for name, entry in everything.items() if name not in second}
    config = read_json(config_file) if is_there(config_file) else {}
    found = find_packed(everything, _with_settings(folder, config))
    return Checkpoint(
        path=path,
        files=weights.files,
        entries=found.entries,
        stored=everything,
        packed=found.packed,
        refused=found.refused,
        companions=found.companions,
        config=config,
        index_file=weights.index,
        notes=(*weights.notes, *told, *_told(found)),
    )


def _told(found: Found) -> list[str]:
    """A sentence for each layout that is not read."""
    layouts: dict[str, list[str]] = {}
    for name, reason in found.refused.items():
        layouts.setdefault(found.layouts[name], []).append(reason)
    return [
        reasons[0] + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "")
        for reasons in layouts.values()
    ]


def _with_settings(folder: Location, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config, with the quantisation settings that some tools write into a file beside it."""
    beside = [folder / name for name in QUANTISATION_FILES]
    file = next((file for file in beside if is_there(file)), None)
    if file is None or any(key in config for key in ("quantization_config", "quantization")):
        return config
    check_inside(folder, file)
    return {**config, "quantization_config": read_json(file)}


def _headers(
    files: Sequence[Location], mmap: bool
) -> list[tuple[dict[str, Entry], dict[str, str]]]:
    """Headers of all files; servers are asked for several at once."""
    read = partial(safetensors.read_header, mmap=mmap)
    if not any(isinstance(file, Url) for file in files):
        return [read(file) for file in files]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(read, files))


def _union(
    path: Location, files: Sequence[Location], listed: Mapping[str, Location], mmap: bool
) -> dict[str, Entry]:
    """All tensors of all files; where a name is stored twice the index decides."""
    union: dict[str, Entry] = {}
    for file, (entries, _) in zip(files, _headers(files, mmap), strict=True):
        for name, entry in entries.items():
            if listed.get(name, file) != file:
                continue
            if name in union:
                raise FileError(
                    f"{path}: tensor {name!r} is both in {union[name].file.name} and in "
                    f"{file.name}: name one of the files, or an index"
                )
            union[name] = entry
    for name, file in listed.items():
        if name not in union:
            raise FileError(f"{path}: the index says that {name!r} is in {file.name}; it is not")
    return union


def check_unchanged(checkpoint: Checkpoint) -> None:
    """Raise a FileError if a weight file was written to since it was opened."""
    for source in checkpoint.sources.values():
        source.check()
