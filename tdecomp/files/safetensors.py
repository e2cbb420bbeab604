"""The safetensors format: tensors read one at a time (or in part), written as a stream.

A file is 8 bytes of header length (little endian), a JSON header, then the tensors' bytes without
holes. Source: the format section of https://github.com/huggingface/safetensors. We parse it
ourselves so that numpy can read bfloat16 and fp8, and so that only the part asked for is read.
"""

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeGuard

import numpy as np

from ..errors import DataError, FileError
from .dtypes import DTYPES, FLOATS, FP8, NAMES, DType
from .parts import Part
from .plain import is_list, is_object
from .storage import Location, Range, RangeFile, Url, place
from .stored import Bytes, Source, Stored, open_source

__all__ = [
    "DTYPES",
    "FLOATS",
    "FP8",
    "CONVERT",
    "PICKLE_SUFFIXES",
    "DType",
    "Entry",
    "ahead",
    "chunks",
    "encode",
    "load",
    "part",
    "raw",
    "read_header",
    "rounded",
    "size_in_bytes",
    "write",
]

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
CONVERT = "convert it first, e.g. with model.save_pretrained(folder, safe_serialization=True)"
_MAX_HEADER = 100_000_000  # bytes, the limit of the reference implementation
_MAX_MODES = 64 if int(np.__version__.split(".")[0]) > 1 else 32  # more than that numpy cannot
_MAX_NUMBER = 2**63  # of sizes and offsets, as in the reference implementation
_CHUNK = 1 << 20  # bytes copied at a time


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of one file: what it is and where its bytes lie.

    Parameters
    ----------
    name, dtype, shape
        As in the header; ``dtype`` is the safetensors code (``"BF16"``, ``"F8_E4M3"``, ...).
    file
        The file that holds it.
    start, stop
        Byte range, counted from the beginning of the file.
    source
        The file, open; None: it is opened by its name.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Location
    start: int
    stop: int
    source: Source | RangeFile | None = field(default=None, compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        """Number of stored bytes."""
        return self.stop - self.start

    def opened(self) -> Bytes:
        """The file, to be read; a FileError if it has changed since its header was read."""
        try:
            return (self.source or open_source(self.file)).opened()
        except OSError as error:
            raise FileError(f"cannot read {self.file}: {error.strerror}") from error


def size_in_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes that ``shape`` takes when stored as ``dtype``.

    Raises
    ------
    FileError
        If the code is unknown, or the numbers do not fill whole bytes.
    """
    if dtype not in DTYPES:
        raise FileError(f"unknown safetensors dtype {dtype!r}: known are {', '.join(DTYPES)}")
    bits = math.prod(shape) * DTYPES[dtype].bits
    if bits % 8:
        raise FileError(f"shape {tuple(shape)} of {dtype} does not fill whole bytes")
    return bits // 8


# ------------------------------------------------------------------------------------- header


def read_header(
    path: str | os.PathLike[str] | Url, *, mmap: bool = True
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors and metadata of one file, checked against its size; no tensor is read.

    Parameters
    ----------
    path
        A ``.safetensors`` file, here or on a server.
    mmap
        As for `stored.open_source`.

    Returns
    -------
    entries : dict
        By name, in the order in which the bytes lie in the file.
    metadata : dict
        The ``__metadata__`` strings.

    Raises
    ------
    FileError
        If the file is missing, in another format (pickles are never opened), cut short, or if its
        header contradicts itself.
    """
    path = place(path)
    text, start, source = _header_text(path, mmap)
    header = _parse(path, text)
    found = header.pop("__metadata__", None)
    metadata: object = {} if found is None else found  # null stands for none
    if not _is_string_map(metadata):
        _corrupt(path, "__metadata__ is not a map from strings to strings")
    entries = [_entry(path, name, row, start, source) for name, row in header.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    _check_no_holes(path, entries, start, source.size)
    return {entry.name: entry for entry in entries}, metadata


def _header_text(path: Location, mmap: bool) -> tuple[bytes, int, Source | RangeFile]:
    """Return the header's bytes, where the data start, and the file."""
    try:
        _check_kind(path)
        source = open_source(path, mmap=mmap)
        head = source.first(9)
        length = int.from_bytes(head[:8], "little")
        # Pickle and zip marks are also possible lengths, so the "{" is looked at first.
        if len(head) < 9 or head[8:] != b"{":
            _refuse_format(path, head)
        if not 2 <= length <= min(_MAX_HEADER, source.size - 8):
            most = f", at most {_MAX_HEADER} are read" if length > _MAX_HEADER else ""
            _corrupt(path, f"its header claims {length} bytes, the file has {source.size}{most}")
        return source.first(8 + length)[8:], 8 + length, source
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error


def _check_kind(path: Location) -> None:
    """Refuse what can be told before a file is opened."""
    if not isinstance(path, Url) and not path.exists():
        raise FileError(f"{path} does not exist")
    if path.suffix in PICKLE_SUFFIXES:
        raise FileError(f"{path} may hold a pickle, which can run code when read: {CONVERT}")
    if not isinstance(path, Url) and not stat.S_ISREG(path.stat().st_mode):
        raise FileError(f"{path} is not a regular file: name a .safetensors file")


def _refuse_format(path: Location, head: bytes) -> NoReturn:
    if head.startswith((b"PK\x03\x04", b"\x80")):
        raise FileError(f"{path} is a pickle or zip file, not safetensors: {CONVERT}")
    if head.startswith(b"version "):
        raise FileError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull`")
    raise FileError(f"{path} is not a safetensors file (it must begin with a JSON header)")


def _corrupt(path: Location, what: str) -> NoReturn:
    raise FileError(f"{path} is damaged: {what}; download or write it again")


def _parse(path: Location, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            _corrupt(path, f"its header has {twice!r} twice")
        return table

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not a safetensors file: its header is not JSON") from error
    if not is_object(header):
        raise FileError(f"{path} is not a safetensors file: its header is not a JSON object")
    return header


def _is_string_map(value: object) -> TypeGuard[dict[str, str]]:
    return is_object(value) and all(
        isinstance(text, str) and _is_text(name) and _is_text(text) for name, text in value.items()
    )


def _is_text(text: str) -> bool:
    """Whether a string can be written: JSON can spell halves of surrogate pairs."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _is_size_list(value: object) -> TypeGuard[list[int]]:
    return is_list(value) and all(type(item) is int and 0 <= item < _MAX_NUMBER for item in value)


def _entry(path: Location, name: str, row: object, start: int, source: Source | RangeFile) -> Entry:
    """Check one header row; ``start`` is where the data begin."""
    if not _is_text(name):
        _corrupt(path, f"the name {name!r} is not valid text")
    if not is_object(row) or not {"dtype", "shape", "data_offsets"} <= row.keys():
        _corrupt(path, f"{name!r} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str):
        _corrupt(path, f"the dtype of {name!r} is not a string")
    if is_list(shape) and len(shape) > _MAX_MODES:
        _corrupt(path, f"{name!r} has {len(shape)} modes, at most {_MAX_MODES} can be read")
    # The second condition keeps numpy's own size arithmetic from overflowing.
    if not _is_size_list(shape) or math.prod(n or 1 for n in shape) >= 2**56:
        _corrupt(path, f"the shape of {name!r} is not a list of sizes")
    if not _is_size_list(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _corrupt(path, f"the data_offsets of {name!r} are not [begin, end]")
    begin, end = offsets
    if start + end > source.size:
        reach = f"{name!r} ends at byte {start + end}"
        _corrupt(path, f"{reach}, the file has {source.size}: cut short")
    if dtype in DTYPES and (end - begin) * 8 != math.prod(shape) * DTYPES[dtype].bits:
        _corrupt(path, f"{name!r} has {end - begin} bytes, {dtype} {shape} does not take that many")
    return Entry(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        file=path,
        start=start + begin,
        stop=start + end,
        source=source,
    )


def _check_no_holes(path: Location, entries: Sequence[Entry], start: int, size: int) -> None:
    for entry in entries:
        if entry.start != start:
            fault = "overlaps the tensor before it" if entry.start < start else "follows a hole"
            _corrupt(path, f"{entry.name!r} {fault}")
        start = entry.stop
    if start != size:
        _corrupt(path, f"{size - start} bytes after the last tensor belong to none")


# --------------------------------------------------------------------------- reading and writing


def raw(entry: Entry) -> np.ndarray:
    """Exactly the tensor's stored bytes, ``(nbytes,)`` uint8, read-only."""
    out, file = np.empty(entry.nbytes, np.uint8), entry.opened()
    file.soon(entry.start, entry.stop)
    file.read_into(entry.start, out)
    out.flags.writeable = False
    return out


def chunks(entry: Entry) -> Iterator[np.ndarray]:
    """The tensor's stored bytes in pieces, each valid until the next: for copying."""
    file, memory = entry.opened(), np.empty(_CHUNK, np.uint8)
    file.soon(entry.start, entry.stop)
    for start in range(entry.start, entry.stop, _CHUNK):
        piece = memory[: entry.stop - start]
        file.read_into(start, piece)
        yield piece


def part(entry: Entry, index: tuple[slice | int, ...] = ()) -> Part:
    """Open a tensor, or the part of it that ``index`` selects, to be widened tile by tile.

    Raises
    ------
    FileError
        If the file cannot be read, is not the one whose header was read, or the dtype cannot be
        decoded.
    """
    stored, row = _map(entry), DTYPES[entry.dtype]
    assert row.wide is not None
    return Part(stored.narrowed(index) if index else stored, row.wide, row.fill)


def ahead(entry: Entry, index: tuple[slice | int, ...] = ()) -> Iterator[Range]:
    """What reading a part of a tensor will ask of a server; nothing of a disk."""
    row = DTYPES.get(entry.dtype)
    if not isinstance(entry.source, RangeFile) or row is None or row.storage is None:
        return
    stored = Stored(entry.source, entry.start, np.dtype(row.storage), entry.shape)
    reach = (stored.narrowed(index) if index else stored).reach()
    if reach is not None:
        yield Range(entry.source, *reach)


def _map(entry: Entry) -> Stored:
    """The tensor in its file."""
    row = DTYPES.get(entry.dtype)
    if row is None or row.storage is None:
        raise FileError(f"{entry.file}: cannot decode {entry.name!r}, its dtype is {entry.dtype}")
    file = entry.opened()
    return Stored(file, entry.start, np.dtype(row.storage), entry.shape)


def load(entry: Entry, index: tuple[slice | int, ...] = ()) -> np.ndarray:
    """Read a tensor, or the part of it that ``index`` selects, and widen it.

    F16, BF16 and fp8 become float32; all other dtypes stay. Only the selected part is read.

    Parameters
    ----------
    entry
        From `read_header`.
    index
        Applied to the stored array before widening.

    Returns
    -------
    ndarray
        A new C-contiguous array, never a view on the file.

    Raises
    ------
    FileError
        If the file cannot be read or the dtype cannot be decoded.
    """
    return part(entry, index).whole()


def encode(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return the stored bytes of ``array`` as ``dtype``, C order.

    Rounds to nearest, ties to even. NaN stays NaN; what is too large becomes infinity.

    Parameters
    ----------
    array
        Any shape; floats for the float codes.
    dtype
        safetensors code; fp8 is refused, since it needs scales.

    Returns
    -------
    ndarray
        ``(nbytes,)`` uint8; may share memory with ``array``.

    Raises
    ------
    FileError
        If the code is unknown or cannot be encoded, or would turn floats into integers.

    Examples
    --------
    >>> encode(np.array([1.0, -2.0]), "BF16").tobytes().hex()
    '803f00c0'
    """
    row = DTYPES.get(dtype)
    if row is None or row.narrow is None or row.accepts is None:
        raise FileError(f"cannot write numbers as {dtype}: choose F32, BF16, F16 or F64")
    array = np.asarray(array)
    if not np.can_cast(array.dtype, row.accepts, "same_kind"):
        raise FileError(f"cannot write {array.dtype} numbers as {dtype} without changing them")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored = np.ascontiguousarray(row.narrow(array))
    return stored.reshape(-1).view(np.uint8)


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return the values that ``array`` will have once stored as ``dtype`` and read again.

    Raises
    ------
    DataError
        If a finite value is too large for the dtype.
    """
    stored = encode(array, dtype)  # refuses what has no storage
    row = DTYPES[dtype]
    out = np.empty(np.shape(array), row.wide)
    row.fill(stored.view(str(row.storage)).reshape(out.shape), out)
    if np.isinf(out).sum() > np.isinf(array).sum():
        largest = np.abs(array, where=np.isfinite(array), out=np.zeros(np.shape(array))).max()
        raise DataError(
            f"a number reaches {largest:.4g}, which {NAMES.get(dtype, dtype)} cannot hold: "
            "use bfloat16 or float32"
        )
    return out


def write(
    path: str | os.PathLike[str],
    entries: Sequence[tuple[str, str, Sequence[int]]],
    data: Callable[[str], np.ndarray | Iterator[np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a file as a stream: the header, then ``data(name)`` for one tensor at a time.

    Parameters
    ----------
    path
        Written directly; an existing file is replaced (`atomic` makes it all or nothing).
    entries
        ``(name, dtype code, shape)`` of every tensor, in file order.
    data
        Called once per name, in that order; returns the stored bytes, uint8 (see `encode`), at
        once or in pieces (see `chunks`).
    metadata
        Strings for ``__metadata__``.

    Raises
    ------
    FileError
        If a name comes twice, a code is unknown, or ``data`` returns another number of bytes.
    OSError
        If the disk refuses; `atomic` turns it into a FileError that names the output.
    """
    path = Path(path)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in entries:
        if name in header or name == "__metadata__":
            raise FileError(f"cannot write {path}: the tensor name {name!r} is taken")
        stop = position + size_in_bytes(dtype, shape)
        sizes = [int(n) for n in shape]
        header[name] = {"dtype": dtype, "shape": sizes, "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, dtype, shape in entries:
            _write_blocks(file, path, (name, dtype, shape), data(name))
        file.flush()
        os.fsync(file.fileno())


def _write_blocks(
    file: BinaryIO,
    path: Path,
    row: tuple[str, str, Sequence[int]],
    given: np.ndarray | Iterator[np.ndarray],
) -> None:
    """Write one tensor, which comes at once or in pieces."""
    name, dtype, shape = row
    nbytes, written = size_in_bytes(dtype, shape), 0

    def check(fits: bool, kind: object) -> None:
        if not fits:
            raise FileError(
                f"cannot write {path}: {name!r} came as {written} bytes of {kind}, "
                f"{dtype} {tuple(shape)} takes {nbytes} of uint8"
            )

    for block in (given,) if isinstance(given, np.ndarray) else given:
        written += block.nbytes
        check(block.dtype == np.uint8 and written <= nbytes, block.dtype)
        file.write(np.ascontiguousarray(block).data)
    check(written == nbytes, "uint8")
