"""Kinds of modules that can be adapted: how they store a weight, and what they do with it."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tdecomp.stack import Site
from tdecomp_torch.model.offload import offloaded

__all__ = [
    "Conv1D",
    "Conv2d",
    "Embedding",
    "Kind",
    "Linear",
    "Quantised",
    "direction",
    "tensors_of",
]


class Kind(ABC):
    """How a module of one kind applies its weight.

    Attributes
    ----------
    factors
        What it multiplies its product with, by the dtype of its weight, where that is not 1.
    """

    is_matrix = False
    """It multiplies its input with a matrix, and stores that."""
    looks_up = False
    """Its input is positions along ``in``, not vectors."""
    reads_alike = True
    """All modules of this kind make the same tokens of one input."""
    turned = False
    """Its weight is stored (in, out)."""
    packed = False
    """Its weight can be read, but not be written: it is quantised."""
    by_weight = False
    """The adapted weight itself is formed for every call, as its module does more than multiply."""
    name = "weight"
    """Of the tensor in the module that is its weight."""

    def __init__(self, factors: Mapping[torch.dtype, float] | None = None):
        self.factors = factors or {}

    # -- its weight --------------------------------------------------------------------------

    @abstractmethod
    def shape(self, module: nn.Module) -> tuple[int, int] | None:
        """(out, in) of its weight as a matrix; None where it cannot be one."""

    @abstractmethod
    def stored(self, module: nn.Module) -> Tensor:
        """Its weight in the layout that it is stored in."""

    @abstractmethod
    def content(self, module: nn.Module) -> list[Tensor]:
        """The tensors that make up its weight."""

    @abstractmethod
    def probe(self, module: nn.Module) -> Tensor:
        """Its weight times a fixed vector, ``(out,)``: what tells whether the weight was changed.

        One pass over the weight. A change too small to be seen in it is below the rounding of what
        the module gives.
        """

    @abstractmethod
    def as_matrix(self, stored: Tensor) -> Tensor:
        """A weight as it is stored, as a matrix (out, in); a view where its layout allows that."""

    def matrix(self, module: nn.Module) -> Tensor:
        """Its weight as a matrix (out, in), to be read."""
        return self.as_matrix(self.stored(module))

    def first_row(self, site: Site, module: nn.Module) -> int:
        """Row of that matrix that a site starts at."""
        del module  # where there is one matrix alone
        return site.first_row

    def as_stored(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The other way: a matrix (out, in) in the shape, layout and dtype of a stored weight."""
        return torch.empty_like(like).copy_(self.laid(matrix, like))

    def laid(self, matrix: Tensor, like: Tensor) -> Tensor:
        """A matrix (out, in) in the shape of a stored weight; a view where it can be one."""
        return (matrix.T if self.turned else matrix).reshape(like.shape)

    def bias(self, module: nn.Module) -> Tensor | None:
        """What is added to every output token, ``(out,)``."""
        bias = getattr(module, "bias", None)
        return None if bias is None else _present(module, bias, "bias")

    # -- its input and output ------------------------------------------------------------------

    @abstractmethod
    def tokens(self, module: nn.Module, x: Tensor) -> Tensor:
        """The input as ``(token, in)``, or ``(token,)`` where it looks up."""

    @abstractmethod
    def rows(self, module: nn.Module, output: Tensor) -> Tensor:
        """The output as ``(token, out)``."""

    @abstractmethod
    def restored(self, module: nn.Module, rows: Tensor, output: Tensor) -> Tensor:
        """``(token, out)`` in the shape of `output`."""

    def factor(self, dtype: torch.dtype) -> float:
        """What the module multiplies its product with, where its weight has a dtype."""
        return self.factors.get(dtype, 1.0)

    # -- what tells whether a module is one ------------------------------------------------------

    @abstractmethod
    def plain(self) -> type[nn.Module] | None:
        """The class whose forward does what is said here."""

    @abstractmethod
    def probes(self, module: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        """Small inputs that tell one forward from another."""


class _OneTensor(Kind):
    """Its weight is one tensor."""

    def stored(self, module: nn.Module) -> Tensor:
        return _present(module, getattr(module, self.name), self.name)

    def content(self, module: nn.Module) -> list[Tensor]:
        return [self.stored(module)]

    def probe(self, module: nn.Module) -> Tensor:
        w = self.matrix(module)  # (out, in)
        return w @ direction(w.shape[1]).to(w)  # (out,)


class _StoredMatrix(_OneTensor):
    """Its weight is one tensor, a matrix."""

    def shape(self, module: nn.Module) -> tuple[int, int] | None:
        out, in_ = self.matrix(module).shape
        return out, in_

    def as_matrix(self, stored: Tensor) -> Tensor:
        return stored.T if self.turned else stored


class _LastAxis(Kind):
    """A token of the output is what lies along its last axis."""

    def rows(self, module: nn.Module, output: Tensor) -> Tensor:
        del module
        return output.reshape(-1, output.shape[-1])  # (token, out)

    def restored(self, module: nn.Module, rows: Tensor, output: Tensor) -> Tensor:
        del module
        return rows.reshape(output.shape)


class _Vectors(_LastAxis):
    """A token of the input, too, is what lies along its last axis."""

    is_matrix = True

    def tokens(self, module: nn.Module, x: Tensor) -> Tensor:
        del module
        return x.reshape(-1, x.shape[-1])  # (token, in)

    def probes(self, module: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        n_in = self.matrix(module).shape[1]
        return [_random(3, n_in, dtype=dtype), _random(2, 3, n_in, dtype=dtype)]


class Linear(_StoredMatrix, _Vectors):
    """``y = x Wᵀ``."""

    def plain(self) -> type[nn.Module] | None:
        return nn.Linear


class Conv1D(_StoredMatrix, _Vectors):
    """GPT-2's, stored (in, out)."""

    turned = True

    def plain(self) -> type[nn.Module] | None:
        return getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)


class Quantised(_Vectors):
    """A linear map that stores its weight in a form of its own: quantised, by whatever library.

    Its weight is what it does to the identity, so that no format need be known. Reading it costs a
    forward pass over as many tokens as it has inputs.
    """

    packed = True

    def plain(self) -> type[nn.Module] | None:
        return None

    def shape(self, module: nn.Module) -> tuple[int, int] | None:
        return module.out_features, module.in_features  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def stored(self, module: nn.Module) -> Tensor:
        bias, like = self.bias(module), self._like(module)
        rows = torch.eye(int(module.in_features)).to(like)  # pyright: ignore
        # `forward` itself: no hook of an adapter, and no batch shape that a library could not read
        of_rows = module.forward(rows)  # (in, out)
        return (of_rows if bias is None else of_rows - bias).T.contiguous()

    def content(self, module: nn.Module) -> list[Tensor]:
        return [value for value in module.state_dict().values() if isinstance(value, Tensor)]

    def probe(self, module: nn.Module) -> Tensor:
        like = self._like(module)
        return module.forward(direction(int(module.in_features)).to(like)[None])[0]  # pyright: ignore

    def as_matrix(self, stored: Tensor) -> Tensor:
        return stored

    def _like(self, module: nn.Module) -> Tensor:
        """A tensor of the dtype and on the device of its tokens."""
        bias = self.bias(module)
        device = next(tensors_of(module)).device
        return torch.empty(0, dtype=torch.float32 if bias is None else bias.dtype, device=device)


class Embedding(_StoredMatrix, _LastAxis):
    """Row number x of a table, stored (in, out)."""

    looks_up = True
    turned = True

    def plain(self) -> type[nn.Module] | None:
        return nn.Embedding

    def tokens(self, module: nn.Module, x: Tensor) -> Tensor:
        del module
        return x.reshape(-1)  # (token,)

    def probes(self, module: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        del module, dtype
        return [torch.tensor([[0, 3, 1], [3, 2, 0]]), torch.tensor([1, 1, 0, 4])]


class Conv2d(_OneTensor):
    """A convolution as a matrix over unfolded patches: in = (channel, height, width of the kernel).

    The patches are written out, which takes as many times the input as the kernel has places.
    """

    reads_alike = False  # strides, paddings and dilations may differ

    def plain(self) -> type[nn.Module] | None:
        return nn.Conv2d

    def shape(self, module: nn.Module) -> tuple[int, int] | None:
        assert isinstance(module, nn.Conv2d)
        if module.groups != 1 or module.padding_mode != "zeros" or module.padding == "same":
            return None
        out, in_ = self.matrix(module).shape
        return out, in_

    def as_matrix(self, stored: Tensor) -> Tensor:
        return stored.flatten(1)  # (out, channel height width)

    def tokens(self, module: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(module, nn.Conv2d)
        patches = functional.unfold(
            x if x.dim() == 4 else x[None],
            module.kernel_size,
            dilation=module.dilation,
            padding=module.padding,  # pyright: ignore[reportArgumentType] - "valid" is not a kind
            stride=module.stride,
        )  # (image, in, place)
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])  # (image place, in)

    def rows(self, module: nn.Module, output: Tensor) -> Tensor:
        del module
        return output.movedim(-3, -1).reshape(-1, output.shape[-3])  # (image place, out)

    def restored(self, module: nn.Module, rows: Tensor, output: Tensor) -> Tensor:
        del module
        moved = output.movedim(-3, -1).shape  # (image, height, width, out)
        return rows.reshape(moved).movedim(-1, -3)  # (image, out, height, width)

    def probes(self, module: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        assert isinstance(module, nn.Conv2d)
        width = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        n_in = module.in_channels
        shapes = ((2, n_in, width[0] + 6, width[1] + 7), (n_in, width[0] + 5, width[1] + 5))
        return [_random(*shape, dtype=dtype) for shape in shapes]


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a module itself."""
    return chain(module.parameters(recurse=False), module.buffers(recurse=False))


def _present(module: nn.Module, own: Any, name: str) -> Tensor:
    """A parameter, from where it is kept if it is offloaded."""
    held = offloaded(module, name) if own.is_meta else None
    return own if held is None else held


def _random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def direction(n: int) -> Tensor:
    """A fixed vector of length n without a pattern: products with it tell matrices apart."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal(n))
