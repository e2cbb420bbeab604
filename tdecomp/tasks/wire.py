"""Values as bytes and back: what is sent to another process, or left for it in a file.

Numbers, texts, arrays of numpy and what is made of them, and of our own classes and functions
those that are marked `sendable`. Reading bytes calls nothing else, whoever wrote them.
"""

from __future__ import annotations

import importlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from tdecomp.errors import ArgumentError, FileError

__all__ = ["Divided", "OfSlices", "packed", "sendable", "unpacked"]

Marked = TypeVar("Marked", bound=Callable[..., Any])
Each = TypeVar("Each")

_OURS = ("tdecomp", "tdecomp_torch")
_ALIGNED = 64  # bytes: where arrays begin
_MARKED: set[Any] = set()
_FORGED = ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError
"""What reading bytes that `packed` did not make can end in."""


def sendable(marked: Marked) -> Marked:
    """Mark a function of a module, or a dataclass of which all fields can be sent."""
    _MARKED.add(marked)
    return marked


class Divided(ABC):
    """What holds something for each slice of a stack, so that a task is sent a part of it."""

    @abstractmethod
    def only(self, slices: Collection[int]) -> Any:
        """What is needed for some slices."""


@sendable
@dataclass(frozen=True)
class OfSlices(Divided, Generic[Each]):
    """A value for each slice of a stack.

    >>> OfSlices({0: "a", 1: "b"}).only([1]).values
    {1: 'b'}
    """

    values: Mapping[int, Each]

    def __getitem__(self, i: int) -> Each:
        return self.values[i]

    def only(self, slices: Collection[int]) -> OfSlices[Each]:
        """Those of some slices."""
        return OfSlices({i: self.values[i] for i in slices})


def packed(value: Any) -> bytes:
    """A value as bytes; an ArgumentError where it holds something that cannot be sent."""
    arrays = _SentArrays()
    plain = _plain(value, arrays)
    head = json.dumps([plain, arrays.rows]).encode()
    parts, size = [len(head).to_bytes(8, "little"), head], 8 + len(head)
    for array in arrays.found:
        gap = -size % _ALIGNED
        parts += [bytes(gap), array.data.cast("B") if array.size else b""]
        size += gap + array.nbytes
    return b"".join(parts)


def unpacked(data: bytes) -> Any:
    """The value again; its arrays are new ones, laid out as they were.

    Raises
    ------
    FileError
        Bytes that `packed` did not make.
    """
    try:
        size = 8 + int.from_bytes(data[:8], "little")
        plain, rows = json.loads(data[8:size])
        arrays = []
        for code, shape, turned in rows:
            start = size + -size % _ALIGNED
            dtype, count = np.dtype(code), int(np.prod(shape, dtype=np.int64))
            flat = np.frombuffer(data, dtype, count, start if count else 0).copy()
            size = start + flat.nbytes
            arrays.append(flat.reshape(shape[::-1]).T if turned else flat.reshape(shape))
        return _value(plain, arrays)
    except _FORGED as error:
        raise FileError(f"these {len(data)} bytes are no task: {error}") from error


class _SentArrays:
    """Arrays of one value, each of them once."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, list[int], bool]] = []
        self.found: list[np.ndarray] = []
        self._places: dict[int, tuple[int, np.ndarray]] = {}

    def place(self, array: np.ndarray) -> int:
        """Where an array is; products depend on its layout to the last bit, so that is kept."""
        if id(array) not in self._places:
            turned = array.ndim > 1 and abs(array.strides[0]) < abs(array.strides[-1])
            self.rows.append((array.dtype.str, list(array.shape), bool(turned)))
            self.found.append(np.ascontiguousarray(array.T if turned else array).reshape(-1))
            self._places[id(array)] = len(self.found) - 1, array
        return self._places[id(array)][0]


def _plain(value: Any, arrays: _SentArrays) -> Any:
    """What JSON holds of a value."""
    if value is None or isinstance(value, bool | str) or type(value) in (int, float):
        return value
    if isinstance(value, np.ndarray | np.generic):
        kind = "array" if isinstance(value, np.ndarray) else "number"
        return {kind: arrays.place(np.asarray(value))}
    if isinstance(value, bytes):
        return {"bytes": arrays.place(np.frombuffer(value, np.uint8))}
    if isinstance(value, list):
        return [_plain(one, arrays) for one in value]
    if type(value) is tuple:
        return {"tuple": [_plain(one, arrays) for one in value]}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if isinstance(value, Mapping):
        return {"dict": [[_plain(k, arrays), _plain(v, arrays)] for k, v in value.items()]}
    if isinstance(value, np.dtype):
        return {"dtype": value.str}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, partial):
        if value.keywords:
            raise ArgumentError("a task gives its arguments in order, not by name")
        return {"partial": [_plain(one, arrays) for one in (value.func, *value.args)]}
    if value in _MARKED if callable(value) else False:
        return {"ours": _name(value)}
    if is_dataclass(value) and type(value) in _MARKED:
        names = [field.name for field in fields(value) if field.init]
        given = {name: _plain(getattr(value, name), arrays) for name in names}
        return {"made": [_name(type(value)), given]}
    raise ArgumentError(
        f"a {type(value).__qualname__} cannot be sent to another process: this work is done here,"
        " without executor="
    )


def _name(marked: Any) -> str:
    return f"{marked.__module__}:{marked.__qualname__}"


def _value(plain: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(plain, list):
        return [_value(one, arrays) for one in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, held),) = plain.items()
    match kind:
        case "array":
            return arrays[held]
        case "number":
            return arrays[held][()]
        case "bytes":
            return arrays[held].tobytes()
        case "tuple":
            return tuple(_value(one, arrays) for one in held)
        case "slice":
            return slice(*held)
        case "dict":
            return {_value(k, arrays): _value(v, arrays) for k, v in held}
        case "dtype":
            return np.dtype(held)
        case "path":
            return Path(held)
        case "partial":
            function, *rest = (_value(one, arrays) for one in held)
            return partial(function, *rest)
        case "ours":
            return _marked(held)
        case "made":
            name, given = held
            return _marked(name)(**{k: _value(v, arrays) for k, v in given.items()})
        case _:
            raise FileError(f"a task of an unknown kind: {kind!r}")


def _marked(name: str) -> Any:
    """Our own class or function of a name, if it is marked."""
    module, _, inside = name.partition(":")
    if module.partition(".")[0] in _OURS:
        if module not in sys.modules:
            importlib.import_module(module)
        found = getattr(sys.modules[module], inside, None)
        if found is not None and found in _MARKED:
            return found
    raise FileError(f"a task asks for {name!r}, which no task may")
