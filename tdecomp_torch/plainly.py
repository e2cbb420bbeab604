"""Work that is the same whatever context it is called in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from tdecomp._xp import autocast_devices

__all__ = ["plainly"]


@contextmanager
def plainly() -> Iterator[None]:
    """Neither autocast, which rounds products, nor inference mode, whose tensors cannot train.

    A context, and a decorator: ``@plainly()``.
    """
    with ExitStack() as stack:
        grad = torch.is_grad_enabled()
        stack.enter_context(torch.inference_mode(False))  # which also switches gradients on
        stack.enter_context(torch.set_grad_enabled(grad))
        for kind in autocast_devices():
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
