"""Adapters: what a decomposed delta becomes when it is attached to a model."""

from tdecomp.adapters.lora import LoRAModule as LoRAModule
from tdecomp.adapters.lora import lora_modules as lora_modules

__all__ = ["LoRAModule", "lora_modules"]
