"""Whether the code of a model reads the weight of a module besides calling it.

An adapter acts where its module is called. What is told here is read off the source of the class
that holds the module; `tdecomp_torch.watch` sees what a forward pass does.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType
from typing import Any

from torch import nn

from tdecomp_torch.model.names import modules_of

__all__ = ["ABOUT", "readers_of_weights"]

_ABOUT = """
dtype device shape size dim ndim numel nelement element_size is_cuda is_meta is_quantized
is_floating_point requires_grad stride layout names
"""
ABOUT = frozenset(_ABOUT.split())
"""Attributes of a weight that tell about it and not what numbers are in it."""


def readers_of_weights(model: nn.Module) -> dict[str, str]:
    """Paths of modules whose weight the module around them may read, and the class of that one.

    Branches that the settings of an instance rule out do not count.
    """
    found = {}
    for path, parent in modules_of(model).items():
        children = dict(parent.named_children())
        for name in sorted(_read_by(parent) & children.keys()):
            found[f"{path}.{name}" if path else name] = type(parent).__name__
    return found


def _read_by(parent: nn.Module) -> set[str]:
    """Names of what `parent` reads as ``self.NAME.weight`` on the way of a forward pass."""
    methods, found = _methods(type(parent)), set()
    left, seen = ["forward"], set()
    while left and methods:
        name = left.pop()
        if name in methods and name not in seen:
            seen.add(name)
            for node, of in _walk(_tree(methods[name]), parent):
                if _is_weight(node) and not _is_about(node, of):
                    found.add(node.value.attr)
                elif isinstance(node, ast.Attribute) and _is_self(node.value):
                    left.append(node.attr)
    return found


@cache
def _methods(cls: type[nn.Module]) -> dict[str, CodeType]:
    """What a forward pass may run of a class, by name; empty if none of them names a weight."""
    known: dict[str, CodeType] = {}
    for base in cls.__mro__:
        if base.__module__.split(".")[0] not in ("torch", "builtins", "abc"):
            for name, value in vars(base).items():
                method = inspect.unwrap(value) if callable(value) else None
                if inspect.isfunction(method):
                    known.setdefault(name, method.__code__)
    left, found = ["forward"], {}
    while left:
        name = left.pop()
        if name in known and name not in found:
            found[name] = known[name]
            left += _names(known[name])
    return found if any("weight" in _names(code) for code in found.values()) else {}


def _names(code: CodeType) -> list[str]:
    """Attributes and globals that a code names, and those inside it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return [*code.co_names, *(name for own in inner for name in _names(own))]


@cache
def _tree(code: CodeType) -> ast.AST:
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    try:
        return ast.parse(textwrap.dedent("".join(inspect.getblock(lines))))
    except (SyntaxError, IndentationError, IndexError):  # made in a session, or by a program
        return ast.Module([], [])


def _walk(node: ast.AST, parent: nn.Module, of: Any = None) -> Iterator[tuple[Any, Any]]:
    """Every node that can be reached, and its parent; a settled test leaves one branch."""
    yield node, of
    if isinstance(node, ast.If | ast.IfExp):
        answer = _answer(node.test, parent)
        branches = [node.test]
        for branch, taken in ((node.body, True), (node.orelse, False)):
            if answer is None or bool(answer.value) == taken:
                branches += branch if isinstance(branch, list) else [branch]
    else:
        branches = list(ast.iter_child_nodes(node))
    for branch in branches:
        yield from _walk(branch, parent, node)


class _Answer:
    """What an expression is, as far as settings of the module tell."""

    def __init__(self, value: Any):
        self.value = value


_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Is: lambda a, b: a is b,
    ast.IsNot: lambda a, b: a is not b,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_PLAIN = (bool, int, float, str, tuple, list, type(None))


def _answer(test: ast.expr, parent: nn.Module) -> _Answer | None:
    """Value of a test over constants and settings (``self.config.x``); None where more is in it."""
    if isinstance(test, ast.Constant):
        return _Answer(test.value)
    if isinstance(test, ast.Attribute):
        owner = _setting(test.value, parent)
        value = getattr(owner, test.attr, owner) if owner is not None else owner
        settled = owner is not None and value is not owner and test.attr != "training"
        return _Answer(value) if settled and isinstance(value, _PLAIN) else None
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _answer(test.operand, parent)
        return inner and _Answer(not inner.value)
    if isinstance(test, ast.BoolOp):
        return _joined(test, parent)
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        a, b = _answer(test.left, parent), _answer(test.comparators[0], parent)
        compare = _COMPARE.get(type(test.ops[0]))
        try:
            return a and b and compare and _Answer(compare(a.value, b.value))
        except TypeError:
            return None
    if isinstance(test, ast.Call) and getattr(test.func, "id", "") == "hasattr":
        owner, name = _setting(test.args[0], parent), test.args[1]
        known = owner is not None and isinstance(name, ast.Constant)
        return _Answer(hasattr(owner, str(name.value))) if known else None  # pyright: ignore
    return None


def _joined(test: ast.BoolOp, parent: nn.Module) -> _Answer | None:
    """``and`` and ``or``: one part can settle it."""
    settles = isinstance(test.op, ast.Or)
    answers = [_answer(value, parent) for value in test.values]
    if any(a is not None and bool(a.value) is settles for a in answers):
        return _Answer(settles)
    return None if None in answers else _Answer(not settles)


def _setting(node: ast.expr, parent: nn.Module) -> Any:
    """``self``, or what hangs on it by names."""
    if _is_self(node):
        return parent
    if isinstance(node, ast.Attribute):
        owner = _setting(node.value, parent)
        return None if owner is None else getattr(owner, node.attr, None)
    return None


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _is_weight(node: ast.AST) -> Any:
    """``self.NAME.weight`` being read."""
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "weight"
        and isinstance(node.ctx, ast.Load)
        and isinstance(node.value, ast.Attribute)
        and _is_self(node.value.value)
    )


def _is_about(node: ast.AST, of: ast.AST | None) -> bool:
    """Whether a weight is only asked what it is like."""
    if isinstance(of, ast.Call) and node in of.args:
        return getattr(of.func, "id", "") in ("isinstance", "type", "hasattr", "getattr", "len")
    return isinstance(of, ast.Attribute) and (of.attr in ABOUT or of.attr.startswith("_"))
