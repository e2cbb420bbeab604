"""One format in a file of its own: its arrays, and what it takes to rebuild it.

A safetensors file that any safetensors reader opens. The arrays have the names they have in the
format (``"core"``, ``"factor.out"``, ``"0.u"``); the metadata key ``tdecomp.format`` holds a JSON
document: version, name of the format, modes, shape, layout, and the caller's own metadata. No
pickle, no torch.

safetensors has no complex128: such an array is stored as float64 with a last axis of size 2, real
and imaginary part, and its name is listed under ``complex128``. Files with one have version 2, all
others version 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tdecomp._xp import Array, to_numpy, working
from tdecomp.errors import ArgumentError, FileError
from tdecomp.files import safetensors
from tdecomp.files.atomic import output_file
from tdecomp.files.ours import has_metadata
from tdecomp.files.plain import is_object
from tdecomp.formats import FORMATS, Format

__all__ = ["load", "load_metadata", "save"]

FORMAT_FILE_VERSION = 2
_KEY = "tdecomp.format"
_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "complex64": "C64",
    "complex128": "F64",  # as pairs
}
_WIDE = "complex128"
_MISFITS = (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError),
    *(OverflowError, RecursionError),
)


def save(
    fmt: Format,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a format to a file, whole or not at all.

    Parameters
    ----------
    fmt
        Any format, its arrays of any library: float64, float32, float16, bfloat16, complex64 or
        complex128, each array in its own dtype.
    path
        The file, by custom ``*.safetensors``.
    overwrite
        Whether an existing file may be replaced, if `save` wrote it.
    metadata
        Plain JSON values to keep beside it, see `load_metadata`.

    Raises
    ------
    ArgumentError
        If these are not a format and a path.
    FileError
        If the file exists, cannot be written, or no format has such numbers (integers).

    Examples
    --------
    >>> import tempfile
    >>> from tdecomp.formats import CP
    >>> cp = CP(("out", "in"), np.ones(2), (np.eye(3, 2), np.eye(4, 2)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(cp, folder + "/cp.safetensors", metadata={"made": "by hand"})
    ...     again = load(folder + "/cp.safetensors")
    >>> again.modes, again.rank, again.weights.tolist()
    (('out', 'in'), 2, [1.0, 1.0])
    """
    if not isinstance(fmt, Format):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(
            f"save takes a format and then a path, got a {type(fmt).__name__} first"
        )
    path = _path(path)
    codes = {name: _code(name, array) for name, array in fmt.arrays.items()}
    arrays = {name: _on_host(array, codes[name]) for name, array in fmt.arrays.items()}
    wide = [name for name, array in fmt.arrays.items() if _kind(array) == _WIDE]
    document = {
        "version": FORMAT_FILE_VERSION if wide else 1,
        "format": type(fmt).__name__,
        "modes": list(fmt.modes),
        "shape": list(fmt.shape),
        "layout": fmt.layout,
        "metadata": dict(metadata or {}),
    }
    if wide:
        document[_WIDE] = wide
    try:
        text = json.dumps(document)
    except (TypeError, ValueError) as error:
        raise FileError(f"the metadata must be plain JSON values: {error}") from error
    ours = partial(has_metadata, key=_KEY)
    with output_file(path, ours=ours, overwrite=overwrite) as temporary:
        safetensors.write(
            temporary,
            [(name, codes[name], a.shape) for name, a in arrays.items()],
            lambda name: safetensors.encode(arrays[name], codes[name]),
            {"format": "tdecomp", _KEY: text},
        )


def load(path: str | os.PathLike[str]) -> Format:
    """Read a format that `save` wrote.

    Returns
    -------
    Format
        With numpy arrays: as saved, float16 and bfloat16 widened to float32.

    Raises
    ------
    FileError
        If the file is missing, damaged, not one of these, or of a newer version.
    """
    path = _path(path)
    entries, document = _read(path)
    try:
        arrays = {name: safetensors.load(entry) for name, entry in entries.items()}
        for name in _wide(document):
            arrays[name] = _of_parts(arrays[name])
        modes = tuple(document["modes"])
        kind: Any = FORMATS[document["format"]]
        fmt: Format = kind.build(modes, arrays, document["layout"])
        if (fmt.modes, list(fmt.shape)) != (modes, document["shape"]):
            raise ValueError(f"its arrays have the shape {fmt.shape} over {fmt.modes}")
        if set(fmt.arrays) != set(arrays):
            raise ValueError(f"it holds the arrays {sorted(arrays)}")
    except _MISFITS as error:
        raise FileError(
            f"{path} is damaged: its description does not fit its arrays ({error})"
        ) from error
    return fmt


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The `metadata` that `save` was given; no array is read."""
    _, document = _read(Path(path))
    metadata = document.get("metadata")
    if not is_object(metadata):
        raise FileError(f"{path} is damaged: its metadata is not a JSON object")
    return metadata


def _read(path: Path) -> tuple[dict[str, safetensors.Entry], dict[str, Any]]:
    entries, strings = safetensors.read_header(path)
    if _KEY not in strings:
        raise FileError(
            f"{path} holds no single tdecomp format: its metadata has no {_KEY!r}"
            " (tdecomp.files.factors reads what tdecomp decompose wrote)"
        )
    try:
        document = json.loads(strings[_KEY])
        version = document["version"]
    except _MISFITS as error:
        raise FileError(f"{path} is damaged: its description is not readable ({error})") from error
    if type(version) is not int or not 1 <= version <= FORMAT_FILE_VERSION:
        raise FileError(
            f"{path} has format version {version}, this tdecomp reads 1 to {FORMAT_FILE_VERSION}"
        )
    return entries, document


def _code(name: str, array: Array) -> str:
    kind = _kind(array)
    if kind not in _CODES:
        raise FileError(
            f"the array {name!r} is {kind}, which safetensors cannot hold or no format computes"
            f" with: cast it to one of {', '.join(_CODES)}"
        )
    return _CODES[kind]


def _kind(array: Array) -> str:
    """Name of the dtype, the same in every library: ``torch.float32`` is ``float32``."""
    return str(array.dtype).rsplit(".", 1)[-1].removesuffix("'>")


def _on_host(array: Array, code: str) -> np.ndarray:
    if _kind(array) == _WIDE:
        return _parts(to_numpy(array))
    return to_numpy(working(array) if code == "BF16" else array)  # numpy has no bfloat16


def _parts(array: np.ndarray) -> np.ndarray:
    """Complex numbers as pairs of float64, ``(.., 2)``."""
    return np.ascontiguousarray(array).view(np.float64).reshape(*array.shape, 2)


def _of_parts(pairs: np.ndarray) -> np.ndarray:
    if pairs.dtype != np.float64 or pairs.shape[-1:] != (2,):
        raise ValueError(f"an array of {pairs.dtype} {pairs.shape} holds no complex numbers")
    return np.ascontiguousarray(pairs).view(np.complex128).reshape(pairs.shape[:-1])


def _wide(document: dict[str, Any]) -> list[str]:
    """Names of the arrays that are stored as pairs."""
    names: list[str] = list(document.get(_WIDE, []))
    if len(set(names)) != len(names):
        raise ValueError(f"{_WIDE} names an array twice")
    return names


def _path(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path)
    except TypeError:
        raise ArgumentError(f"a path is needed, got a {type(path).__name__}") from None
