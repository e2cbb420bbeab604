"""Equality and hash of frozen objects that hold arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import array_api_compat

from tdecomp._backends import backend_of

__all__ = ["ByValue"]


class ByValue:
    """Base of frozen dataclasses that are equal where they hold the same numbers.

    ``a == b`` is True for two objects of one class whose fields are equal: arrays of one library,
    device, dtype and shape with the same number everywhere (NaN is the same as NaN), all others by
    their own ``==``. ``hash`` reads names and shapes and no number. The dataclasses are made with
    ``eq=False``, or Python would compare tuples of arrays.
    """

    def __eq__(self, other: object) -> bool:
        """Whether `other` is of the same class and has the same fields, number by number."""
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(a, b) for a, b in zip(_values(self), _values(other), strict=True))

    def __hash__(self) -> int:
        """The same for equal objects; from names, dtypes and shapes."""
        return hash((type(self), *map(_outline, _values(self))))


def _values(x: Any) -> list[Any]:
    return [getattr(x, f.name) for f in dataclasses.fields(x) if f.compare]


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if _is_array(a) or _is_array(b):
        return _is_array(a) and _is_array(b) and _same_numbers(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(x, b[key]) for key, x in a.items())
    if isinstance(a, tuple | list) and type(a) is type(b):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (a != a and b != b)
    return bool(a == b)


def _is_array(x: Any) -> bool:
    return array_api_compat.is_array_api_obj(x)


def _same_numbers(a: Any, b: Any) -> bool:
    """Of meta tensors, which have no numbers, only one and the same is equal."""
    backend = backend_of(a)
    if backend is not backend_of(b) or (a.dtype, tuple(a.shape)) != (b.dtype, tuple(b.shape)):
        return False
    if backend.has_no_numbers(a) or backend.has_no_numbers(b):
        return False
    if array_api_compat.device(a) != array_api_compat.device(b):
        return False
    xp = array_api_compat.array_namespace(a, b)
    return bool(xp.all((a == b) | ((a != a) & (b != b))))


def _outline(x: Any) -> Hashable:
    """What equal values have in common, without reading a number."""
    if _is_array(x):
        return tuple(x.shape), str(x.dtype)
    if isinstance(x, Mapping):
        return frozenset(x)
    if isinstance(x, tuple | list):
        return tuple(map(_outline, x))
    return x if isinstance(x, Hashable) and not isinstance(x, float) else type(x).__name__
