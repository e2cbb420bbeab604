"""Kinds of modules that can be adapted: what their tokens are, and where an output goes."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tdecomp_torch.forwards import factors_of, is_plain
from tdecomp_torch.kept import direction
from tdecomp_torch.offload import offloaded

__all__ = ["Kind", "kind_by_class", "kind_of"]


class Kind(ABC):
    """How a module of one kind applies its weight."""

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

    def plain(self) -> type[nn.Module] | None:
        """The class whose forward does what is said here."""
        return None

    def factor(self, dtype: torch.dtype) -> float:
        """What the module multiplies its product with, where its weight has a dtype."""
        del dtype
        return 1.0

    def probes(self, module: nn.Module) -> tuple[tuple[int, ...], ...]:
        """Shapes of small inputs that tell one forward from another."""
        raise NotImplementedError

    @abstractmethod
    def shape(self, module: nn.Module) -> tuple[int, int] | None:
        """(out, in) of its weight as a matrix; None where it cannot be one."""

    def stored(self, module: nn.Module) -> Tensor:
        """Its weight in the layout that it is stored in."""
        return _present(module, module.weight, "weight")

    def content(self, module: nn.Module) -> list[Tensor]:
        """The tensors that make up its weight."""
        return [self.stored(module)]

    def probe(self, module: nn.Module) -> Tensor:
        """Its weight times a fixed vector, ``(out,)``: what tells whether the weight was changed.

        One pass over the weight. A change too small to be seen in it is below the rounding of what
        the module gives.
        """
        w = self.matrix(module)
        return w @ direction(w.shape[1]).to(w)

    def matrix(self, module: nn.Module) -> Tensor:
        """Its weight as a matrix (out, in), to be read."""
        return self.as_matrix(self.stored(module))

    @abstractmethod
    def as_matrix(self, stored: Tensor) -> Tensor:
        """A weight as it is stored, as a matrix (out, in); a view where its layout allows that."""

    def as_stored(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The other way: a matrix (out, in) in the shape, layout and dtype of a stored weight."""
        turned = matrix.T if self.turned else matrix
        return torch.empty_like(like).copy_(turned.reshape(like.shape))

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
        bias = getattr(module, "bias", None)
        return None if bias is None else _present(module, bias, "bias")


class _Linear(Kind):
    """``y = x Wᵀ``."""

    is_matrix = True

    def plain(self) -> type[nn.Module] | None:
        return nn.Linear

    def probes(self, module: nn.Module) -> tuple[tuple[int, ...], ...]:
        n_in = self.matrix(module).shape[1]
        return (3, n_in), (2, 3, n_in)

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


class _Packed(_Linear):
    """A linear map that stores its weight in a form of its own: quantised, by whatever library.

    Its weight is what it does to the identity, so that no format need be known. Reading it costs a
    forward pass over as many tokens as it has inputs.
    """

    packed = True

    def shape(self, module: nn.Module) -> tuple[int, int] | None:
        return module.out_features, module.in_features  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def stored(self, module: nn.Module) -> Tensor:
        bias, like = self.bias(module), self._like(module)
        rows = torch.eye(int(module.in_features)).to(like)  # pyright: ignore
        # `forward` itself: no hook of an adapter, and no batch shape that a library could not read
        of_rows = module.forward(rows)
        return (of_rows if bias is None else of_rows - bias).T.contiguous()

    def probe(self, module: nn.Module) -> Tensor:
        like = self._like(module)
        return module.forward(direction(int(module.in_features)).to(like)[None])[0]  # pyright: ignore

    def _like(self, module: nn.Module) -> Tensor:
        """A tensor of the dtype and on the device of its tokens."""
        bias = self.bias(module)
        device = next(_tensors(module)).device
        return torch.empty(0, dtype=torch.float32 if bias is None else bias.dtype, device=device)

    def content(self, module: nn.Module) -> list[Tensor]:
        return [value for value in module.state_dict().values() if isinstance(value, Tensor)]


def _present(module: nn.Module, own: Any, name: str) -> Tensor:
    """A parameter, from where it is kept if it is offloaded."""
    held = offloaded(module, name) if own.is_meta else None
    return own if held is None else held


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a module itself."""
    return chain(module.parameters(recurse=False), module.buffers(recurse=False))


class _Conv1D(_Linear):
    """GPT-2's, stored (in, out)."""

    turned = True

    def plain(self) -> type[nn.Module] | None:
        return getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)

    def as_matrix(self, stored: Tensor) -> Tensor:
        return stored.T


class _Embedding(_Linear):
    """Row number x of a table, stored (in, out)."""

    is_matrix = False
    looks_up = True
    turned = True

    def __init__(self, factors: Mapping[torch.dtype, float] | None = None):
        self.factors = factors or {}

    def plain(self) -> type[nn.Module] | None:
        return nn.Embedding

    def factor(self, dtype: torch.dtype) -> float:
        return self.factors.get(dtype, 1.0)

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

    def plain(self) -> type[nn.Module] | None:
        return nn.Conv2d

    def probes(self, module: nn.Module) -> tuple[tuple[int, ...], ...]:
        assert isinstance(module, nn.Conv2d)
        width = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        n_in = module.in_channels
        return (2, n_in, width[0] + 6, width[1] + 7), (n_in, width[0] + 5, width[1] + 5)

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


def _is_packed(module: Any) -> bool:
    """Whether this is a linear map by its sizes that holds codes in the place of a matrix."""
    shape = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if not all(isinstance(size, int) and size > 0 for size in shape):
        return False
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return any(map(_is_code, _tensors(module)))
    return _is_code(weight) or type(weight).dequantize is not Tensor.dequantize


def _is_code(x: Tensor) -> bool:
    """Whether these are whole numbers, or floating ones of 8 bits, which need a scale."""
    return not x.is_floating_point() or x.element_size() == 1


_KINDS: tuple[tuple[Callable[[Any], bool], Kind], ...] = (
    (_is_packed, _Packed()),
    (lambda m: isinstance(m, nn.Linear), _Linear()),
    (lambda m: type(m).__name__ == "Conv1D" and hasattr(m, "nf"), _Conv1D()),
    (lambda m: isinstance(m, nn.Embedding), _Embedding()),
    (lambda m: isinstance(m, nn.Conv2d) and m.padding != "valid", _Conv2d()),
)


def kind_of(module: nn.Module) -> Kind | None:
    """Kind of a module; None where it cannot be adapted."""
    kind = kind_by_class(module)
    if kind is None or kind.packed or is_plain(module, kind.plain()) or kind.shape(module) is None:
        return kind
    factors = factors_of(module, kind)
    if factors is None:
        return None
    return _Embedding(factors) if kind.looks_up else kind


def kind_by_class(module: nn.Module) -> Kind | None:
    """Kind of a module by its class alone, whatever its forward does."""
    return next((kind for fits, kind in _KINDS if fits(module)), None)
