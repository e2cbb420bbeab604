"""Constants that follow from a seed: a ``state_dict`` holds the seed in their place."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tdecomp.errors import ArgumentError
from tdecomp_torch.forward.pool import FactorPool
from tdecomp_torch.model.sample import some

__all__ = ["SeededPool"]


class SeededPool(FactorPool):
    """A pool with constants that are made from a seed, and are not in the ``state_dict``.

    The seed is, as a small tensor of bytes under torch's name ``_extra_state``: loading makes the
    constants of the state's seed. They are made again, too, where a model that was on ``meta``, or
    whose values were given up, is brought back (`to_empty`).
    """

    def get_extra_state(self) -> Tensor:
        """Seed and digest of the constants, as bytes: safetensors take tensors only."""
        plain = json.dumps({"seed": self.seed, "constants": self._digest()})
        return torch.tensor(list(plain.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Make the constants of the seed of a state.

        Raises
        ------
        ArgumentError
            The state is of constants of other shapes, groups or rules.
        """
        try:
            said = json.loads(bytes(state.to("cpu", torch.uint8).tolist()).decode())
            seed, digest = said["seed"], said["constants"]
            if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
                raise ValueError(f"the seed is {seed!r}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"the state of the adapter does not tell its constants ({error}): it is damaged"
            ) from error
        if digest != self._digest():
            raise ArgumentError(
                "the state is of an adapter with other constants (another method, rank or other"
                " weights): attach as for the state, and load it then"
            )
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        away = [key for key in self.derived if getattr(self, key).is_meta]
        if seed != self.seed or (away and device.type != "meta"):
            self.seed = seed
            self.make_constants(device if away else None)

    @torch.no_grad()
    def make_constants(self, device: torch.device | None = None) -> None:
        """Make the constants of the seed again, where they are or on a device."""
        for key, derived in self.derived.items():
            held = getattr(self, key)
            value = torch.as_tensor(derived.bound.seeded(derived.factor, self.seed))
            value = value.to(derived.dtype).to(held.dtype)
            if device is not None:
                self.register_buffer(key, value.to(device), persistent=False)
            elif not held.is_meta:
                held.copy_(value)

    def _digest(self) -> int:
        """Of what, besides the seed, the constants follow from."""
        told = [
            (key, derived.bound.grid.name, derived.bound.shapes[derived.factor.name])
            for key, derived in sorted(self.derived.items())
        ]
        rules = [str(derived.factor.init) for _, derived in sorted(self.derived.items())]
        return zlib.crc32(repr((told, rules)).encode())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Torch's way of every move and conversion; values that were given up are made again."""
        before = {key: getattr(self, key) for key in self.derived}
        super()._apply(fn, recurse)
        if not all(_same(value, getattr(self, key)) for key, value in before.items()):
            self.make_constants()
        return self


def _same(before: Tensor, after: Tensor) -> bool:
    """Whether a move or a conversion has kept the values, as far as a sample shows."""
    if after.is_meta:
        return True
    if before.is_meta:
        return False
    expected = some(before.detach()).to(after.dtype).cpu()
    return torch.equal(expected, some(after.detach()).cpu())
