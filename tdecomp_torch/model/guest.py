"""The submodule that an adapter adds to a model, as everything that reads models knows it."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["Guest"]


class Guest(nn.Module):
    """A submodule that does not belong to the model that it is in.

    Attributes
    ----------
    flags
        Whether the model's own parameters were trained before it came, by name.
    trained
        Names of the model's own parameters that are trained with it.
    """

    def __init__(self):
        super().__init__()
        self.flags: dict[str, bool] = {}
        self.trained: tuple[str, ...] = ()

    def forward(self, *args: Any) -> Any:
        """Identity, so that a container that calls every child still works with it inside."""
        return args[0] if len(args) == 1 else args
