"""Kinds of modules that can be adapted: what their tokens are, and where an output goes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Kind", "kind_of"]


class Kind(ABC):
    """How a module of one kind applies its weight."""

    looks_up = False
    """Its input is positions along ``in``, not vectors."""
    reads_alike = True
    """All modules of this kind make the same tokens of one input."""

    @abstractmethod
    def shape(self, module: nn.Module) -> tuple[int, int] | None:
        """(out, in) of its weight as a matrix; None where it cannot be one."""

    def matrix(self, module: nn.Module) -> Tensor:
        """Its weight as a matrix (out, in): a view."""
        return self.as_matrix(module.weight)  # pyright: ignore[reportArgumentType]

    @abstractmethod
    def as_matrix(self, stored: Tensor) -> Tensor:
        """A weight as it is stored, as a matrix (out, in): a view."""

    @abstractmethod
    def tokens(self, module: nn.Module, x: Tensor) -> Tensor:
        """The input as ``(token, in)``, or ``(token,)`` where it looks up."""

    @abstractmethod
    def rows(self, module: nn.Module, output: Tensor) -> Tensor:
        """The output as ``(token, out)``."""

    @abstractmethod
    def restored(self, module: nn.Module, rows: Tensor, output: Tensor) -> Tensor:
        """``(token, out)`` in the shape of `output`."""

    def bias(self, module: nn.Module) -> Tensor | None:
        """What is added to every output token."""
        return getattr(module, "bias", None)


class _Linear(Kind):
    """``y = x Wᵀ``."""

    def shape(self, module: nn.Module) -> tuple[int, int] | None:
        out, in_ = self.matrix(module).shape
        return out, in_

    def as_matrix(self, stored: Tensor) -> Tensor:
        return stored

    def tokens(self, module: nn.Module, x: Tensor) -> Tensor:
        del module
        return x.reshape(-1, x.shape[-1])

    def rows(self, module: nn.Module, output: Tensor) -> Tensor:
        return self.tokens(module, output)

    def restored(self, module: nn.Module, rows: Tensor, output: Tensor) -> Tensor:
        del module
        return rows.reshape(output.shape)


class _Conv1D(_Linear):
    """GPT-2's, stored (in, out)."""

    def as_matrix(self, stored: Tensor) -> Tensor:
        return stored.T


class _Embedding(_Linear):
    """Row number x of a table, stored (in, out)."""

    looks_up = True

    def as_matrix(self, stored: Tensor) -> Tensor:
        return stored.T

    def tokens(self, module: nn.Module, x: Tensor) -> Tensor:
        del module
        return x.reshape(-1)

    def rows(self, module: nn.Module, output: Tensor) -> Tensor:
        del module
        return output.reshape(-1, output.shape[-1])


class _Conv2d(Kind):
    """A convolution as a matrix over unfolded patches: in = (channel, height, width of the kernel).

    The patches are written out, which takes as many times the input as the kernel has places.
    """

    reads_alike = False  # strides, paddings and dilations may differ

    def shape(self, module: nn.Module) -> tuple[int, int] | None:
        assert isinstance(module, nn.Conv2d)
        if module.groups != 1 or module.padding_mode != "zeros" or module.padding == "same":
            return None
        out, in_ = self.matrix(module).shape
        return out, in_

    def as_matrix(self, stored: Tensor) -> Tensor:
        return stored.flatten(1)

    def tokens(self, module: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(module, nn.Conv2d)
        patches = functional.unfold(
            x if x.dim() == 4 else x[None],
            module.kernel_size,
            dilation=module.dilation,
            padding=module.padding,  # pyright: ignore[reportArgumentType] - "valid" is below
            stride=module.stride,
        )
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])

    def rows(self, module: nn.Module, output: Tensor) -> Tensor:
        del module
        return output.movedim(-3, -1).reshape(-1, output.shape[-3])

    def restored(self, module: nn.Module, rows: Tensor, output: Tensor) -> Tensor:
        del module
        moved = output.movedim(-3, -1).shape
        return rows.reshape(moved).movedim(-1, -3)


_KINDS: tuple[tuple[Callable[[Any], bool], Kind], ...] = (
    (lambda m: isinstance(m, nn.Linear), _Linear()),
    (lambda m: type(m).__name__ == "Conv1D" and hasattr(m, "nf"), _Conv1D()),
    (lambda m: isinstance(m, nn.Embedding), _Embedding()),
    (lambda m: isinstance(m, nn.Conv2d) and m.padding != "valid", _Conv2d()),
)


def kind_of(module: nn.Module) -> Kind | None:
    """Kind of a module; None where it cannot be adapted."""
    return next((kind for fits, kind in _KINDS if fits(module)), None)
