"""What plain values read from a file must look like: small checks that are put together."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from tdecomp.errors import ArgumentError
from tdecomp.files.plain import is_list, is_object

__all__ = [
    "Check",
    "each",
    "either",
    "fields",
    "flag",
    "mapping",
    "number",
    "one_of",
    "row",
    "text",
    "whole",
]

Check = Callable[[Any, str], None]
"""Raises an `ArgumentError` that names the field if a value is not as it has to be."""

_LARGEST = 1 << 53


def _refuse(value: Any, field: str, expected: str) -> NoReturn:
    shown = reprlib.repr(value).encode("ascii", "backslashreplace").decode()
    raise ArgumentError(f"{field} is {shown}: expected {expected}")


def whole(least: int = 0, most: int = _LARGEST) -> Check:
    """A whole number in a range."""

    def check(value: Any, field: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            _refuse(value, field, f"a whole number from {least} to {most}")

    return check


def number(least: float = -math.inf, below: float = math.inf) -> Check:
    """A finite number in a range."""

    def check(value: Any, field: str) -> None:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if not fits or not abs(value) < 1e300 or not least <= value < below:
            bounds = "" if below == math.inf else f", {least} or more and below {below}"
            _refuse(value, field, f"a number{bounds}")

    return check


def text(most: int = 1000) -> Check:
    """Printable text of at most so many characters."""

    def check(value: Any, field: str) -> None:
        if not isinstance(value, str) or len(value) > most or not value.isprintable():
            _refuse(value, field, f"printable text of at most {most} characters")

    return check


def flag(value: Any, field: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        _refuse(value, field, "true or false")


def one_of(*known: Any) -> Check:
    """One of some values."""

    def check(value: Any, field: str) -> None:
        if not any(value == one and type(value) is type(one) for one in known):
            _refuse(value, field, f"one of {', '.join(map(repr, known))}")

    return check


def either(*checks: Check) -> Check:
    """What passes one of several checks; the last one says what is wrong."""

    def check(value: Any, field: str) -> None:
        for one in checks[:-1]:
            try:
                return one(value, field)
            except ArgumentError:
                continue
        return checks[-1](value, field)

    return check


def each(inner: Check, most: int, least: int = 0) -> Check:
    """A list whose items all pass a check."""

    def check(value: Any, field: str) -> None:
        if not is_list(value) or not least <= len(value) <= most:
            _refuse(value, field, f"a list of {least} to {most} items")
        for k, item in enumerate(value):
            inner(item, f"{field}[{k}]")

    return check


def row(*inner: Check) -> Check:
    """A list of as many items as there are checks."""

    def check(value: Any, field: str) -> None:
        if not is_list(value) or len(value) != len(inner):
            _refuse(value, field, f"a list of {len(inner)} items")
        for k, (item, one) in enumerate(zip(value, inner, strict=True)):
            one(item, f"{field}[{k}]")

    return check


def mapping(inner: Check, most: int) -> Check:
    """Values by name that all pass a check."""

    def check(value: Any, field: str) -> None:
        if not is_object(value) or len(value) > most:
            _refuse(value, field, f"values by name, {most} at most")
        for name, item in value.items():
            text()(name, f"a name in {field}")
            inner(item, f"{field}.{name}")

    return check


def fields(needed: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Values by name of which each has a check of its own, and no others."""
    known = {**needed, **(optional or {})}

    def check(value: Any, field: str) -> None:
        if not is_object(value):
            _refuse(value, field, f"the fields {', '.join(needed)}")
        if missing := [name for name in needed if name not in value]:
            raise ArgumentError(f"{field} has no field {missing[0]!r}")
        for name, item in value.items():
            if name not in known:
                raise ArgumentError(f"{field} has a field {ascii(name)[:60]} that is not known")
            known[name](item, f"{field}.{name}")

    return check
