"""What a forward pass without gradient may reuse from the pass before, if nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tdecomp_torch.tracing import is_traced

__all__ = ["KeptResults"]


@dataclass(frozen=True)
class _KeptResult:
    """One result, and copies of all that it was computed from."""

    state: Any
    inputs: tuple[Tensor, ...]
    result: Tensor


class KeptResults:
    """Results by key, each given again only while its inputs are the same number by number.

    Inputs are compared with copies of themselves. Addresses and version counters would be cheaper,
    but fused optimizers, optimizers of libraries and writes through ``.data`` raise no counter.
    Nothing is kept with gradient, while a program is traced, or of tensors without numbers.
    """

    def __init__(self):
        self._entries: dict[Hashable, _KeptResult] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def get(
        self,
        key: Hashable,
        state: Any,
        inputs: Sequence[Tensor],
        compute: Callable[[], Tensor],
    ) -> Tensor:
        """What `compute` gives, which must depend on the inputs and `state` alone.

        Safe in several threads: an entry is put in its place whole.
        """
        if torch.is_grad_enabled() or is_traced() or not all(map(_has_numbers, inputs)):
            return compute()
        entry = self._entries.get(key)
        if entry is not None and entry.state == state and _equal(entry.inputs, inputs):
            return entry.result
        copies, result = tuple(x.clone() for x in inputs), compute()
        self._entries[key] = _KeptResult(state, copies, result)
        return result


def _has_numbers(x: Tensor) -> bool:
    """Whether this is a plain tensor with values: not a wrapper, and not on meta."""
    plain = type(x) in (Tensor, nn.Parameter)
    wrapped: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return plain and not x.is_meta and not wrapped.is_functorch_wrapped_tensor(x)


def _equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.device == y.device and torch.equal(x, y)
        for x, y in zip(a, b, strict=True)
    )
