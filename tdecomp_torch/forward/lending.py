"""Weights that are adapted for the time of one call of their module, and are what they were after.

The adapted weight stands in the instance of the module, before the parameter of that name, which
stays where it is: names, the ``state_dict`` and optimizers see the parameter only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from tdecomp_torch.forward.layer import Hook
from tdecomp_torch.model.kinds import Kind
from tdecomp_torch.tracing import is_traced

__all__ = ["HasHooks", "hooks_on", "lend"]


class HasHooks(Protocol):
    """What has hooks of adapters, and knows which of them act now."""

    def hooks(self) -> Iterable[Hook]:
        """All of them."""
        ...

    def acting(self) -> Iterable[Hook]:
        """Those that act."""
        ...


def lend(module: nn.Module, source: HasHooks) -> Any:
    """Give a module the adapted weights of a source in every call; a handle that ends it."""
    found = _lending_of(module)
    lending = _Lending(module) if found is None else found
    lending.sources.append(source)
    return _Loan(lending, source)


def hooks_on(module: nn.Module, kind: Kind) -> list[Hook]:
    """Hooks of adapters that adapt one weight of a module."""
    lending = _lending_of(module)
    lent = [hook for source in lending.sources for hook in source.hooks()] if lending else []
    onto = [hook for hook in module._forward_hooks.values() if isinstance(hook, Hook)]
    return [hook for hook in (*onto, *lent) if hook.kind.name == kind.name]


class _Lending:
    """Gives one module its adapted weights.

    One thread at a time is inside of the module: what is lent to one would be seen by all.
    """

    def __init__(self, module: nn.Module):
        self.sources: list[HasHooks] = []
        self.handles = (
            module.register_forward_pre_hook(self.enter),
            module.register_forward_hook(self.leave, always_call=True),
        )
        self._make_empty()

    def _make_empty(self) -> None:
        self._lock, self._inside = threading.Lock(), 0  # the thread that is inside
        self._lent: list[str] = []

    def enter(self, module: nn.Module, *_: Any) -> None:
        """Put every adapted weight before its parameter."""
        if not is_traced() and self._inside != threading.get_ident():  # or it was interrupted there
            self._lock.acquire()
            self._inside = threading.get_ident()
        self._take_back(module)
        lent: dict[str, Tensor] = {}
        for source in self.sources:
            for hook in source.acting():
                lent[hook.kind.name] = hook.formed(module, lent.get(hook.kind.name))
        self._lent = list(lent)
        module.__dict__.update(lent)

    def leave(self, module: nn.Module, *_: Any) -> None:
        """Take them away again; called also when the forward pass failed."""
        self._take_back(module)
        if not is_traced() and self._inside == threading.get_ident():
            self._inside = 0
            self._lock.release()

    def _take_back(self, module: nn.Module) -> None:
        for name in self._lent:
            module.__dict__.pop(name, None)
        self._lent = []

    def __getstate__(self) -> dict[str, Any]:
        """Without what is lent and to whom."""
        return {"sources": self.sources, "handles": self.handles}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_empty()


@dataclass(frozen=True)
class _Loan:
    """One source of a lending."""

    lending: _Lending
    source: HasHooks

    def remove(self) -> None:
        """End it."""
        if self.source in self.lending.sources:
            self.lending.sources.remove(self.source)
        if not self.lending.sources:
            for handle in self.lending.handles:
                handle.remove()


def _lending_of(module: nn.Module) -> _Lending | None:
    owners = (getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, _Lending)), None)
