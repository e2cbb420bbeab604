"""Reports that were written as JSON, read back as the types they were."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from tdecomp.errors import FileError
from tdecomp.files.plain import is_list, is_object

__all__ = ["read_report"]

_T = TypeVar("_T")

_LARGEST = 1 << 28  # bytes of a report: a million sites


def read_report(path: Path, kind: type[_T]) -> _T:
    """The report in a JSON file.

    Raises
    ------
    FileError
        The file cannot be read, or is not such a report; the message names the first field that is
        missing or of another type.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise FileError(f"{path} is larger than any report: {path.stat().st_size:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not a report of tdecomp: it is no JSON ({error})") from error
    try:
        return cast("_T", _read(content, kind, ""))
    except _MisfitError as misfit:
        raise FileError(f"{path} is not a report of tdecomp: {misfit}") from None


class _MisfitError(Exception):
    """What does not fit, in words."""


def _read(value: Any, kind: Any, where: str) -> Any:
    """A plain value as the type that a field declares."""
    if is_dataclass(kind):
        return _read_object(value, cast("type[Any]", kind), where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _read_choice(value, arguments, where)
    if origin is tuple:
        if not is_list(value):
            raise _MisfitError(f"{where} is no list")
        return tuple(_read(v, arguments[0], f"{where}[{k}]") for k, v in enumerate(value))
    if origin is Mapping or kind is Any:
        if origin is Mapping and not is_object(value):
            raise _MisfitError(f"{where} is no object")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _MisfitError(f"{where} is {value!r:.40}, not {_NAMES.get(kind, kind)}")
    return value


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _read_choice(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    """A value of one of several types; of the only one that is not None, with its own message."""
    if value is None and types.NoneType in kinds:
        return None
    rest = [kind for kind in kinds if kind is not types.NoneType]
    for kind in rest[:-1]:
        try:
            return _read(value, kind, where)
        except _MisfitError:
            continue
    return _read(value, rest[-1], where)


def _read_object(value: Any, kind: type[Any], where: str) -> Any:
    if not is_object(value):
        raise _MisfitError(f"{where or 'it'} is no object")
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for field in fields(kind):
        inside = f"{where}.{field.name}" if where else field.name
        if field.name in value:
            found[field.name] = _read(value[field.name], hints[field.name], inside)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise _MisfitError(f"it has no {inside}")
    return kind(**found)
