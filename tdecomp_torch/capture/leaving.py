"""A model that is run for a while and then is as it was: mode, flags, gradients, random numbers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["as_it_was"]


@contextmanager
def as_it_was(model: nn.Module, *, dropout: bool) -> Generator[None]:
    """Run a model in evaluation, or as it is with `dropout`; put everything back afterwards.

    Gradients that parameters have stay, none is added; buffers that a forward pass counts in (of
    batch norm, in training) are put back.
    """
    training = {module: module.training for module in model.modules()}
    buffers = {b: b.detach().clone() for b in model.buffers()} if dropout else {}
    random = _random_states()
    try:
        if not dropout:
            model.eval()
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)
        _set_random_states(random)


def _random_states() -> tuple[torch.Tensor, list[torch.Tensor]]:
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if used else []


def _set_random_states(states: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])
