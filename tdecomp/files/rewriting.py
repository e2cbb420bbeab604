"""Write a model folder like another one, with some tensors changed or all cast."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..errors import ArgumentError, DataError, FileError, SiteError
from ..progress import Progress, silent
from . import safetensors
from .coming import Coming
from .dtypes import NAMES
from .opening import QUANTISATION_FILES, Checkpoint
from .places import check_inside, is_there
from .plain import is_object
from .safetensors import FLOATS, PICKLE_SUFFIXES, Entry
from .storage import Location, Url
from .tally import Tally
from .weight_files import read_json

__all__ = ["write_model"]

Update = Callable[[np.ndarray], np.ndarray]

# Smallest number that rounds to infinity.
_OVERFLOW = {"F64": np.inf, "F32": 2.0**128 - 2.0**103, "F16": 65520.0, "BF16": 2.0**128 - 2.0**119}
_QUANTISATION = ("quantization_config", "compression_config", "quantization")
_WEIGHT_SUFFIXES = PICKLE_SUFFIXES | {".safetensors", ".h5", ".msgpack", ".onnx", ".gguf", ".ot"}


def write_model(
    base: Checkpoint,
    folder: Path,
    update: Mapping[str, Update],
    *,
    dtype: str | None = None,
    progress: Progress = silent,
) -> None:
    """Write ``base`` into ``folder`` with some tensors changed; one tensor in memory at a time.

    Same files, names, order and dtypes. Tensors that do not change are copied as raw bytes. The
    index is rewritten, all other files are copied, except hidden files and weights that are not
    part of the checkpoint (modules that a sentence-transformers ``modules.json`` lists are part of
    the model). A single file is written alone.

    Parameters
    ----------
    base
        The model to follow.
    folder
        An existing empty folder (see `atomic.output_folder`).
    update
        Tensor name to a function from the read tensor (at least float32) to the new one, of the
        same shape.
    dtype
        Cast all floating tensors to this code (``"BF16"``, ``"F16"``, ``"F32"``, ``"F64"``).
        Packed weights are then decoded, and their scales and settings dropped.
    progress
        Called with the fraction of the tensors that were begun.

    Raises
    ------
    SiteError
        If ``update`` names a tensor that is not there.
    FileError
        If a packed weight would have to be packed again, or is in a layout that is not read.
    DataError
        If a new tensor has another shape, is not finite, or does not fit its dtype.
    OSError
        If the disk refuses; `atomic` turns it into a FileError.
    """
    _check(base, update, dtype)
    root = base.folder or base.path.parent
    written: dict[str, tuple[str, int]] = {}  # tensor -> file, bytes
    tally = Tally(progress, len(base.entries))
    for file in base.files:
        if dtype is not None and not any(e.file == file for e in base.entries.values()):
            continue  # nothing but scales
        place = _from(root, file)
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        for name, nbytes in _write_file(base, file, folder / place, update, dtype, tally):
            written[name] = place.as_posix(), nbytes
    if base.folder is not None:
        _copy_others(base, base.folder, folder, decoded=dtype is not None and bool(base.packed))
        if base.index_file is not None:
            _write_index(base.index_file, folder, written)
        if dtype is not None and base.config:
            _write_config(base, folder, dtype)


def _check(base: Checkpoint, update: Mapping[str, Update], dtype: str | None) -> None:
    if dtype is not None and dtype not in NAMES:
        raise ArgumentError(f"cannot write a model as {dtype!r}: choose {', '.join(NAMES)}")
    for name in update:
        if name not in base.entries:
            raise SiteError(f"{base.path} has no tensor {name!r} to update")
        if name in base.refused:
            raise FileError(base.refused[name])
        if base.dtype(name) not in FLOATS and name not in base.packed:
            raise FileError(
                f"{base.path}: tensor {name!r} is stored as {base.dtype(name)}, which takes no "
                "delta: name the model that the delta was made from"
            )
        if dtype is None and name in base.packed:
            raise FileError(
                f"{base.path}: tensor {name!r} is stored as {base.dtype(name)} "
                f"({base.packed[name].layout}) and would have to be rounded to it again",
                tip="add dtype='bfloat16', or another, for the whole model",
            )
    if dtype is not None and base.refused:
        raise FileError(f"cannot write {base.path} as {dtype}: {next(iter(base.refused.values()))}")


def _write_file(
    base: Checkpoint,
    file: Location,
    target: Path,
    update: Mapping[str, Update],
    dtype: str | None,
    tally: Tally,
) -> Iterator[tuple[str, int]]:
    """Write one shard; return the name and size of every tensor in it."""
    _, metadata = safetensors.read_header(file)
    # Not a stale copy that the index passes over.
    known = base.stored if dtype is None else base.entries
    entries = {name: entry for name, entry in known.items() if entry.file == file}
    rows: list[tuple[str, str, tuple[int, ...]]] = []
    for name, entry in entries.items():
        cast = dtype is not None and name in base.floats
        rows.append((name, str(dtype) if cast else entry.dtype, entry.shape))
    codes = {name: code for name, code, _ in rows}
    coming = Coming(
        tuple(entries), base.ahead if dtype else lambda n: safetensors.ahead(entries[n])
    )

    def data(name: str) -> np.ndarray | Iterator[np.ndarray]:
        coming.tell(name)
        if name in base.entries:
            tally.add(1)
        if name not in update and codes[name] == entries[name].dtype:
            return safetensors.chunks(entries[name])
        return _encoded(base, entries[name], update.get(name), codes[name])

    safetensors.write(target, rows, data, metadata)
    return ((name, safetensors.size_in_bytes(code, shape)) for name, code, shape in rows)


def _encoded(base: Checkpoint, entry: Entry, change: Update | None, code: str) -> np.ndarray:
    """Return the stored bytes of one tensor after its update and cast."""
    values = base.read(entry.name)
    if change is not None:
        values = np.asarray(change(values))
        if values.shape != entry.shape:
            raise DataError(f"new {entry.name!r} has shape {values.shape}, not {entry.shape}")
    if code in FLOATS:
        largest = float(np.abs(values).max(initial=0))
        if change is not None and not np.isfinite(largest):
            raise DataError(f"new {entry.name!r} has NaN or infinite values")
        if _OVERFLOW[code] <= largest < np.inf:
            raise DataError(
                f"{entry.name!r} reaches {largest:.4g}, which {NAMES[code]} cannot hold: "
                "write it as bfloat16 or float32"
            )
    return safetensors.encode(values, code)


# ----------------------------------------------------------------------------- the other files


def _from(root: Location, file: Location) -> PurePath:
    """Path of a file of a model from its folder."""
    if isinstance(root, Url):
        assert isinstance(file, Url)
        return file.relative_to(root)
    assert not isinstance(file, Url)
    return file.relative_to(root)


def _files(root: Location) -> Iterator[Location]:
    """Every file below a folder that is not hidden, and links."""
    if isinstance(root, Url):
        for part, file in root.below():
            if not any(folder.startswith(".") for folder in part.parts[:-1]):
                yield file
        return
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*names, *(name for name in folders if Path(place, name).is_symlink())):
            yield Path(place, name)


def _copy_others(base: Checkpoint, root: Location, folder: Path, *, decoded: bool) -> None:
    modules, shards = _modules(root), set(base.files)
    dropped = {root / name for name in QUANTISATION_FILES if decoded}
    for source in _files(root):
        part = _from(root, source)
        in_module = not modules.isdisjoint(map(Path, part.parents))
        if source in dropped:
            continue
        if source not in shards and (in_module or not _is_weights(source.name)):
            _copy(root, source, folder / part)


def _copy(root: Location, source: Location, target: Path) -> None:
    """Copy what belongs to the model: regular files, through links that stay inside."""
    if isinstance(source, Url):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        return
    if source.is_dir():
        raise FileError(f"{source} is a link to a folder, which is not followed: remove it")
    if is_there(source):
        check_inside(root, source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _is_weights(name: str) -> bool:
    """Whether a file is hidden, or holds or lists weights."""
    hidden = name.startswith(".")
    return hidden or Path(name).suffix in _WEIGHT_SUFFIXES or name.endswith(".index.json")


def _modules(root: Location) -> set[Path]:
    """Sub-folders of a sentence-transformers model that hold weights of their own."""
    if not is_there(root / "modules.json"):
        return set()
    check_inside(root, root / "modules.json")
    try:
        rows = json.loads((root / "modules.json").read_bytes().decode("utf-8"))
        return {Path(row["path"]) for row in rows if row["path"]}
    except (ValueError, TypeError, KeyError, RecursionError):
        return set()


def _write_index(
    index_file: Location, folder: Path, written: Mapping[str, tuple[str, int]]
) -> None:
    index = read_json(index_file)
    order = [name for name in index["weight_map"] if name in written]
    order += [name for name in written if name not in index["weight_map"]]
    metadata = index.get("metadata")
    index["metadata"] = {
        **(metadata if isinstance(metadata, dict) else {}),
        "total_size": sum(nbytes for _, nbytes in written.values()),
    }
    index["weight_map"] = {name: written[name][0] for name in order}
    _write_json(folder / index_file.name, index)


def _write_config(base: Checkpoint, folder: Path, dtype: str) -> None:
    """Copy config.json with the new dtype, in the sections of composite models as well."""
    decoded = bool(base.packed)

    def changed(section: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in section.items():
            if key in _QUANTISATION:
                out |= {} if decoded else {key: value}
            elif key in ("dtype", "torch_dtype"):
                out[key] = NAMES[dtype]
            else:
                out[key] = changed(value) if is_object(value) else value
        return out

    _write_json(folder / "config.json", changed(base.config))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # Halves of surrogate pairs are the one thing without UTF-8: JSON spells them as Python does.
    path.write_bytes(text.encode("utf-8", errors="backslashreplace"))
