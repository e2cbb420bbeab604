"""Which kind a module is of: by its class, and by what its forward does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tdecomp_torch.model.forwards import factors_of, is_plain
from tdecomp_torch.model.kinds import Conv1D, Conv2d, Embedding, Kind, Linear, Quantised, tensors_of

__all__ = ["kind_by_class", "kind_of"]


def kind_of(module: nn.Module) -> Kind | None:
    """Kind of a module; None where it cannot be adapted."""
    kind = kind_by_class(module)
    if kind is None or kind.packed or is_plain(module, kind.plain()) or kind.shape(module) is None:
        return kind
    factors = factors_of(module, kind)
    if factors is None:
        return None
    return Embedding(factors) if kind.looks_up else kind


def kind_by_class(module: nn.Module) -> Kind | None:
    """Kind of a module by its class alone, whatever its forward does."""
    return next((kind for fits, kind in _KINDS if fits(module)), None)


def _is_packed(module: Any) -> bool:
    """Whether this is a linear map by its sizes that holds codes in the place of a matrix."""
    shape = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if not all(isinstance(size, int) and size > 0 for size in shape):
        return False
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return any(map(_is_code, tensors_of(module)))
    return _is_code(weight) or type(weight).dequantize is not Tensor.dequantize


def _is_code(x: Tensor) -> bool:
    """Whether these are whole numbers, or floating ones of 8 bits, which need a scale."""
    return not x.is_floating_point() or x.element_size() == 1


_KINDS: tuple[tuple[Callable[[Any], bool], Kind], ...] = (
    (_is_packed, Quantised()),
    (lambda m: isinstance(m, nn.Linear), Linear()),
    (lambda m: type(m).__name__ == "Conv1D" and hasattr(m, "nf"), Conv1D()),
    (lambda m: isinstance(m, nn.Embedding), Embedding()),
    (lambda m: isinstance(m, nn.Conv2d) and m.padding != "valid", Conv2d()),
)
