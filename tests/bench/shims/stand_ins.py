"""A function of ours in the place of a peer's, and who was called how often.

A stand-in gets the arguments as the peer names them. What the peer offers and we do not is left to
the peer: the stand-in raises `LeftToPeer`, and the report says so.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

__all__ = ["LEFT", "OURS", "LeftToPeer", "ours", "put_everywhere", "put_in_class", "stand_in"]

OURS: Counter[str] = Counter()
LEFT: Counter[str] = Counter()
_running: list[str] = []


class LeftToPeer(Exception):  # noqa: N818 - it carries a reason, nothing went wrong
    """An option that only the peer has."""


def ours(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a function of ours gives, counted."""
    OURS[function.__name__] += 1
    _running.append(function.__name__)
    try:
        return function(*args, **options)
    finally:
        _running.pop()


def stand_in(
    original: Callable[..., Any], replacement: Callable[[SimpleNamespace], Any]
) -> Callable[..., Any]:
    """The replacement under the name and signature of the original, which ours itself may call."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def call(*args: Any, **options: Any) -> Any:
        if _running:
            return original(*args, **options)
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        try:
            return replacement(SimpleNamespace(**bound.arguments))
        except LeftToPeer as left:
            LEFT[f"{original.__name__}: {left}"] += 1
            return original(*args, **options)

    call.__dict__["__signature__"] = signature
    return call


def put_everywhere(
    peer: str,
    original: Callable[..., Any],
    replacement: Callable[[SimpleNamespace], Any],
    *,
    but: Sequence[str] = (),
) -> None:
    """Put a stand-in in every module of the peer that holds the original, but for some."""
    call = stand_in(original, replacement)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == peer and name not in but:
            held = [key for key, value in vars(module).items() if value is original]
            for key in held:
                setattr(module, key, call)


def put_in_class(cls: type, replacements: dict[str, Callable[[SimpleNamespace], Any]]) -> None:
    """Put stand-ins for methods of a class."""
    for name, replacement in replacements.items():
        setattr(cls, name, stand_in(getattr(cls, name), replacement))
