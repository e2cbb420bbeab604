"""Seeing in a forward pass which adapted weights the model uses without calling their modules."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tdecomp_torch.model.uses import ABOUT
from tdecomp_torch.tracing import is_traced

__all__ = ["BypassWatch"]


class BypassWatch:
    """Watches the first forward pass in training, and the first in evaluation.

    For the time of such a pass the modules answer reads of their weight through a dictionary that
    takes notice. A weight that is asked only what it is like (its dtype, its device) is not used.

    Attributes
    ----------
    passes
        Of which kinds a pass was seen: training or not.
    called
        Paths of the modules that were called in one of them.
    bypassed
        Paths of those whose weight was used besides.
    """

    def __init__(self, modules: Mapping[str, nn.Module], tell: Callable[[Iterable[str]], None]):
        self.modules, self.tell = dict(modules), tell
        self.passes: set[bool] = set()
        self.called: set[str] = set()
        self.bypassed: set[str] = set()
        self._now: tuple[int, _WatchedPass] | None = None
        self._running: set[int] = set()

    def begin(self, model: nn.Module, *_: Any) -> None:
        """Start watching; called before the forward pass of the whole model."""
        if is_traced():
            return
        thread = threading.get_ident()
        alone = not self._running - {thread}  # a module that another thread is in looks unentered
        self._running.add(thread)
        if alone and model.training not in self.passes and not _is_compiled(model):
            self._stop()
            self._now = (thread, _WatchedPass(self.modules))

    def end(self, model: nn.Module, args: Any = None, output: Any = None) -> None:
        """Stop, and tell what was seen; called after it, also when it failed."""
        if is_traced():
            return
        thread = threading.get_ident()
        self._running.discard(thread)
        if self._now is None or self._now[0] != thread:
            return
        seen = self._now[1]
        self._stop()
        if output is None:  # it failed, and calls are missing
            return
        self.passes.add(model.training)
        self.called |= seen.called
        new = (seen.used | (seen.read - seen.called)) - self.bypassed
        self.bypassed |= new
        if new:
            self.tell(sorted(new))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_now": None, "_running": set()}

    def _stop(self) -> None:
        if self._now is not None:
            self._now[1].stop()
        self._now = None


class _WatchedPass:
    """One forward pass that is watched."""

    def __init__(self, modules: Mapping[str, nn.Module]):
        self.called: set[str] = set()
        self.read: set[str] = set()
        self.used: set[str] = set()
        self._inside: set[tuple[int, str]] = set()
        self._handles: list[Any] = []
        self._own: list[tuple[nn.Module, dict[str, Any], _Parameters]] = []
        for path, module in modules.items():
            own = module._parameters
            if type(own).__module__ in ("builtins", "collections"):  # others have duties of theirs
                watched = _Parameters(own, lambda value, path=path: self._asked(path, value))
                module.__dict__["_parameters"] = watched
                self._own.append((module, own, watched))
                self._handles += self._hooks(path, module)

    def _hooks(self, path: str, module: nn.Module) -> tuple[Any, Any]:
        def enter(*_: Any) -> None:
            self.called.add(path)
            self._inside.add((threading.get_ident(), path))

        def leave(*_: Any) -> None:
            self._inside.discard((threading.get_ident(), path))

        return (
            module.register_forward_pre_hook(enter, prepend=True),
            module.register_forward_hook(leave, always_call=True),
        )

    def _asked(self, path: str, value: Any) -> Any:
        """The weight, read inside its module; elsewhere a stand-in that tells when it is used."""
        if (threading.get_ident(), path) in self._inside or type(value) is not nn.Parameter:
            return value
        self.read.add(path)
        lent = value.as_subclass(_Lent)
        lent.used = lambda: self.used.add(path)
        return lent

    def stop(self) -> None:
        """Give the modules back what they had, with what was written to it meanwhile."""
        for handle in self._handles:
            handle.remove()
        for module, own, watched in self._own:
            own.clear()
            own.update(watched)
            module.__dict__["_parameters"] = own


class _Parameters(dict):
    """Parameters of a module; reading its weight is noticed."""

    def __init__(self, content: Mapping[str, Any], asked: Callable[[Any], Any]):
        super().__init__(content)
        self._asked = asked

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return self._asked(value) if key == "weight" else value


class _Lent(Tensor):
    """A weight that tells when it is used; results are tensors as ever."""

    used: Callable[[], Any]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        about = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        with torch._C.DisableTorchFunctionSubclass():
            if about not in ABOUT:
                for lent in _lent((args, kwargs)):
                    lent.used()
            return func(*args, **(kwargs or {}))


def _lent(values: Any) -> list[_Lent]:
    if isinstance(values, _Lent):
        return [values]
    inner = values.values() if isinstance(values, dict) else values
    if not isinstance(values, dict | list | tuple):
        return []
    return [found for value in inner for found in _lent(value)]


def _is_compiled(model: nn.Module) -> bool:
    """Whether a part of the model is compiled by itself, which must not see other dictionaries."""
    return any(
        module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule"
        for module in model.modules()
    )
