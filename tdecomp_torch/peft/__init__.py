"""One method of PEFT for every adapter of the language: importing this module registers it.

`TensorAdapterConfig` takes a row of the catalogue or a `Spec`; everything after `get_peft_model` is
PEFT's: saving, loading, several adapters, merging. `adapter_of` gives the handle to the rest.
"""

from tdecomp_torch.peft.config import TensorAdapterConfig as TensorAdapterConfig
from tdecomp_torch.peft.model import TensorAdapterModel as TensorAdapterModel
from tdecomp_torch.peft.model import adapter_of as adapter_of
from tdecomp_torch.peft.registering import register

__all__ = ["TensorAdapterConfig", "TensorAdapterModel", "adapter_of"]

register()
