"""Formats as jax pytrees: the arrays are leaves, everything else is static."""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from threading import Lock
from typing import Any

__all__ = ["register"]

_registered: set[type] = set()
_lock = Lock()


def register(cls: type, names: tuple[str, ...]) -> None:
    """Make a format a jax pytree if jax is loaded, once; jax is never imported here.

    Parameters
    ----------
    cls
        A frozen dataclass.
    names
        Its fields that hold arrays; the others are hashable.
    """
    if cls in _registered or "jax" not in sys.modules:
        return
    add = getattr(sys.modules.get("jax.tree_util"), "register_pytree_with_keys", None)
    if add is None:  # jax is only half imported
        return
    with _lock:
        if cls not in _registered:
            static = tuple(f.name for f in dataclasses.fields(cls) if f.name not in names)
            add(cls, partial(_flatten, names, static), partial(_unflatten, cls, names, static))
            _registered.add(cls)


def _flatten(
    names: tuple[str, ...], static: tuple[str, ...], fmt: Any
) -> tuple[list[tuple[Any, Any]], tuple]:
    key = sys.modules["jax.tree_util"].GetAttrKey
    leaves = [(key(name), getattr(fmt, name)) for name in names]
    return leaves, tuple(getattr(fmt, name) for name in static)


def _unflatten(
    cls: type, names: tuple[str, ...], static: tuple[str, ...], values: tuple, leaves: Any
) -> Any:
    """Rebuilt without any check: jax also puts placeholders where the arrays are."""
    fmt = object.__new__(cls)
    for name, value in (*zip(static, values, strict=True), *zip(names, leaves, strict=True)):
        object.__setattr__(fmt, name, value)
    return fmt
