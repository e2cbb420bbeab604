"""The inputs of a module and the gradient of its output, seen in a backward pass.

No parameter need require a gradient, and none gets one: the gradient by a weight is the product of
what is seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Watcher"]

ShowBack = Callable[[Tensor, Tensor], None]
"""Called with the input of a module and the gradient of its output."""


class _SeenOutput(torch.autograd.Function):
    """The output of a module as it is; its gradient is shown on its way back.

    `x` is kept by `save_for_backward`, so that checkpointing frees it and computes it again. The
    anchor is what makes a graph where neither weights nor inputs require a gradient.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, anchor: Tensor, see: ShowBack) -> Tensor:
        del anchor
        ctx.save_for_backward(x)
        ctx.see = see
        ctx.mark_dirty(output)  # not a copy, and not a view, which could not be changed in place
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            ctx.see(x, gradient)
        return gradient if ctx.needs_input_grad[0] else None, None, None, None


class Watcher:
    """Hooks on the modules that are looked at.

    Parameters
    ----------
    modules
        By path.
    saw_input
        ``saw_input(path, x)``, in the forward pass; None: gradients are looked at.
    saw_gradient
        ``saw_gradient(path, x, gradient)``, in the backward pass.
    met
        ``met(path, x)``: called in every forward pass, with the tensor that the module was given.

    Attributes
    ----------
    anchor
        What the loss is derived by.
    without
        Paths of the modules that were called where no gradients are kept.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        *,
        saw_input: Callable[[str, Tensor], None] | None,
        saw_gradient: Callable[[str, Tensor, Tensor], None],
        met: Callable[[str, Tensor], None],
    ):
        self._modules, self._saw_input, self._saw_gradient = modules, saw_input, saw_gradient
        self._met = met
        self._handles: list[Any] = []
        self.without: set[str] = set()
        self.anchor = torch.zeros((), requires_grad=True)

    def __enter__(self) -> Watcher:
        for path, module in self._modules.items():
            self._handles.append(
                module.register_forward_hook(self._hook(path), with_kwargs=True, prepend=True)
            )
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, path: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Tensor) -> Any:
            del module
            x = args[0] if args else next(iter(kwargs.values()))
            if self._saw_input is not None:
                self._met(path, x)
                self._saw_input(path, x)
                return None
            if not torch.is_grad_enabled():  # checkpointing computes it again, with gradients
                self.without.add(path)
                return None
            self._met(path, x)

            def see(seen: Tensor, gradient: Tensor) -> None:
                self._saw_gradient(path, seen, gradient)

            return _SeenOutput.apply(output, x, self.anchor, see)

        return hook
