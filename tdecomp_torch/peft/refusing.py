"""What PEFT does with LoRA only, refused with what to do instead."""

from __future__ import annotations

from functools import wraps
from typing import Any

from peft.utils import hotswap

from tdecomp.errors import ArgumentError
from tdecomp_torch.peft.names import METHOD

__all__ = ["name_the_export"]

_DONE = "names_the_export"


def name_the_export() -> None:
    """Let PEFT's hot swapping say, of a tensor adapter, how to write it as a LoRA.

    The check that it makes of two configurations is called for any method; that of others is as it
    was. Again does nothing.
    """
    check: Any = hotswap.check_hotswap_configs_compatible
    if getattr(check, _DONE, False):
        return

    @wraps(check)
    def checked(config0: Any, config1: Any) -> None:
        if METHOD in (config0.peft_type, config1.peft_type):
            raise ArgumentError(
                "PEFT swaps LoRA only: write tensor adapters as LoRA with"
                " adapter_of(model).save_lora(folder) and swap those, or load both under names of"
                " their own and choose with set_adapter"
            )
        check(config0, config1)

    setattr(checked, _DONE, True)
    hotswap.check_hotswap_configs_compatible = checked
