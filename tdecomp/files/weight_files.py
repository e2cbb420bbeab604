"""The weight files that a path stands for: one, those of an index, or one set of a folder's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NoReturn

from ..errors import FileError
from . import safetensors
from .choosing import INDEX_SUFFIX, WeightSet, choose
from .places import check_inside, is_there
from .plain import is_object
from .storage import Location, Url

__all__ = ["Weights", "find_weights", "read_json"]

_MAX_JSON = 100_000_000  # bytes, as of the header of a weight file
_OTHER_FORMATS = (".gguf", ".onnx", ".h5", ".msgpack")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Files of weights, checked for being there.

    Parameters
    ----------
    files
        The ``.safetensors`` files, in order.
    listed
        File of every tensor that the index lists; ``{}`` without an index.
    index
        The index, if there is one.
    notes
        What else is in the folder, a sentence each.
    """

    files: tuple[Location, ...]
    listed: Mapping[str, Location]
    index: Location | None
    notes: tuple[str, ...]


def find_weights(path: Location) -> Weights:
    """Find the files that a path stands for.

    Parameters
    ----------
    path
        A weight file, an index or a folder, which is there.

    Raises
    ------
    FileError
        If something is missing, is not a file, lies outside the folder, or several sets of weights
        leave it open which is meant.
    """
    folder = path if path.is_dir() else path.parent
    chosen, notes = _chosen(path)
    if chosen.index is None:
        files, listed = chosen.files, {}
    else:
        shards = _weight_map(chosen.index)
        listed = {name: folder / shard for name, shard in shards.items()}
        files = tuple(folder / shard for shard in sorted(set(shards.values())))
        _check_shards(chosen.index, files)
    if chosen.index is not None or path.is_dir():
        for file in files:
            if is_there(file):
                check_inside(folder, file)
    return Weights(files=files, listed=listed, index=chosen.index, notes=notes)


def _chosen(path: Location) -> tuple[WeightSet, tuple[str, ...]]:
    """The weights that a path stands for, and what is left aside."""
    if path.name.endswith(".index.json"):
        return WeightSet(path.name, (), path), ()
    if not path.is_dir():
        return WeightSet(path.name, (path,)), ()
    is_there(path / f"model{INDEX_SUFFIX}")  # refuses a folder of that name
    indexes = _visible(path, f"*{INDEX_SUFFIX}")
    files = _visible(path, "*.safetensors")
    if not files and not indexes:
        _refuse_empty(path)
    chosen, notes = choose(path, files, {index: _names_in(index) for index in indexes})
    if chosen.index is not None:
        check_inside(path, chosen.index)
    return chosen, notes


def _names_in(index: Location) -> tuple[str, ...]:
    """Names of the files that an index lists; none where it is damaged and may not be needed."""
    try:
        check_inside(index.parent, index)
        return tuple({PurePosixPath(shard).name for shard in _weight_map(index).values()})
    except FileError:
        return ()


def read_json(path: Location) -> dict[str, Any]:
    """Read a JSON object; FileError if it cannot be read or is something else."""
    try:
        if not is_there(path):
            raise FileError(f"{path} does not exist")
        size = path.size() if isinstance(path, Url) else path.stat().st_size
        if size > _MAX_JSON:
            raise FileError(f"{path} has {size} bytes, at most {_MAX_JSON} of JSON are read")
        content = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not valid JSON: {error}") from error
    if not is_object(content):
        raise FileError(f"{path} is not a JSON object")
    return content


def _visible(folder: Location, pattern: str) -> list[Location]:
    """Files of a folder, sorted; folders of such a name are passed over."""
    found = sorted(p for p in folder.glob(pattern) if not p.name.startswith("."))
    return [p for p in found if not p.is_dir() and is_there(p)]


def _listing(files: Sequence[Location], limit: int = 4) -> str:
    names = ", ".join(file.name for file in files[:limit])
    return names + (", ..." if len(files) > limit else "")


def _refuse_empty(folder: Location) -> NoReturn:
    pickles = sorted(p for p in folder.iterdir() if p.suffix in safetensors.PICKLE_SUFFIXES)
    if pickles:
        raise FileError(
            f"{folder} has no .safetensors files, only pickles ({_listing(pickles)}), which can "
            f"run code when read: {safetensors.CONVERT}"
        )
    others = [p for p in _visible(folder, "*") if p.suffix in _OTHER_FORMATS]
    if others:
        raise FileError(
            f"{folder} has no .safetensors files, only {_listing(others)}: convert them first, "
            "e.g. with transformers, and save them in bfloat16"
        )
    below = sorted(
        p for p in folder.iterdir() if p.is_dir() and next(p.glob("*.safetensors"), None)
    )
    example = f", e.g. {below[0]}" if below else ""
    raise FileError(
        f"{folder} has no .safetensors files: name the folder that holds the weights{example}"
    )


def _weight_map(index_file: Location) -> dict[str, str]:
    listed = read_json(index_file).get("weight_map")
    if not is_object(listed) or not all(isinstance(s, str) for s in listed.values()):
        raise FileError(f"{index_file} has no weight_map from tensor names to file names")
    for shard in set(listed.values()):
        place = PurePosixPath(shard)
        if place.is_absolute() or ".." in place.parts or set(shard) & set("\\:\0") or not shard:
            raise FileError(f"{index_file} names {shard!r}, which lies outside its folder: refused")
    if not listed:
        raise FileError(f"{index_file} lists no tensors")
    return listed


def _check_shards(index_file: Location, files: Sequence[Location]) -> None:
    missing = [file for file in files if not is_there(file)]
    if missing:
        raise FileError(
            f"{index_file} names {len(missing)} of {len(files)} files that are not there: "
            f"{_listing(missing)}; download them"
        )
