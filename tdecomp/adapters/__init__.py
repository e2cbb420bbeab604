"""Adapters as data, and what a decomposed delta becomes when it is attached to a model."""

from tdecomp.adapters.bound import Bound as Bound
from tdecomp.adapters.catalogue import CATALOGUE as CATALOGUE
from tdecomp.adapters.catalogue import method as method
from tdecomp.adapters.grid import Grid as Grid
from tdecomp.adapters.lora import LoRAModule as LoRAModule
from tdecomp.adapters.lora import lora_modules as lora_modules
from tdecomp.adapters.principal import principal_directions as principal_directions
from tdecomp.adapters.sizing import bind as bind
from tdecomp.adapters.spec import Spec as Spec
from tdecomp.adapters.terms import Factor as Factor
from tdecomp.adapters.terms import Operand as Operand
from tdecomp.adapters.terms import Term as Term

__all__ = [
    "CATALOGUE",
    "Bound",
    "Factor",
    "Grid",
    "LoRAModule",
    "Operand",
    "Spec",
    "Term",
    "bind",
    "lora_modules",
    "method",
    "principal_directions",
]
