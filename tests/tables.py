"""Tables of rows that take milliseconds: one test runs over all and names the one that it is at.

pytest and xdist need longer for a test than many a row does. Rows that write files, patch anything
or are skipped stay tests of their own (`pytest.mark.parametrize`).
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

__all__ = ["BACKENDS", "each", "in_every_library"]

BACKENDS = ("numpy", "torch", "array_api_strict")

_Row = type(pytest.param())


def each(names: str | Sequence[str], rows: Iterable[Any]) -> Callable[[Callable[..., None]], Any]:
    """Run a test over all rows, in the place of ``pytest.mark.parametrize(names, rows)``."""
    keys = [key.strip() for key in names.split(",")] if isinstance(names, str) else [*names]
    table = [dict(zip(keys, _values(row, len(keys)), strict=True)) for row in rows]
    assert table, "a law over nothing"

    def over(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            for number, row in enumerate(table):
                try:
                    test(**fixtures, **row)
                except Exception as error:
                    error.add_note(f"in row {number} of {len(table)}: {_told(row)}")
                    raise

        signature = inspect.signature(test)
        assert set(keys) <= set(signature.parameters), keys
        own = [p for name, p in signature.parameters.items() if name not in keys]
        run.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
        return run

    return over


def in_every_library(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with every array library as its `xp`, one after the other."""
    return each("xp", map(importlib.import_module, BACKENDS))(test)


def _values(row: Any, count: int) -> Sequence[Any]:
    if isinstance(row, _Row):
        assert not row.marks, "a row with marks is a test of its own"
        return row.values
    return (row,) if count == 1 else row


def _told(row: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r:.200}" for name, value in row.items())
