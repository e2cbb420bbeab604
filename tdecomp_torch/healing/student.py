"""What learns from the tuned model: the factors of an adapter, or decomposed factors themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tdecomp.errors import ArgumentError
from tdecomp_torch.handle import Adapter

__all__ = ["AdapterStudent", "Student"]


class Student(ABC):
    """A model with a few numbers that are trained.

    Attributes
    ----------
    model
        The base model.
    """

    model: nn.Module

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """What is trained."""

    @abstractmethod
    @contextmanager
    def acting(self) -> Iterator[None]:
        """A context in which the model computes with them as they are now."""

    def snapshot(self) -> list[Tensor]:
        """Copies of what is trained."""
        return [p.detach().clone() for p in self.parameters()]

    @torch.no_grad()
    def restore(self, kept: list[Tensor]) -> None:
        """Put copies back."""
        for parameter, value in zip(self.parameters(), kept, strict=True):
            parameter.copy_(value)


@dataclass(frozen=True)
class AdapterStudent(Student):
    """The factors of an adapter on the base model."""

    model: nn.Module
    adapter: Adapter

    def parameters(self) -> list[Tensor]:
        """All factors."""
        return list(self.adapter.factors().values())

    @contextmanager
    def acting(self) -> Iterator[None]:
        """As the model is; refuses an adapter that does not act."""
        if self.adapter.is_merged or not self.adapter.attached.handles:
            raise ArgumentError(
                f"the adapter {self.adapter.name!r} is merged or detached: heal one that acts"
            )
        yield


@contextmanager
def exchanged(model: nn.Module, new: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Other tensors in the place of some parameters, wherever a module holds one of them."""
    places = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter in new
    ]
    try:
        for module, name, parameter in places:
            module._parameters[name] = new[parameter]  # pyright: ignore[reportArgumentType]
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter
