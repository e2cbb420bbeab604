"""All public names of `tdecomp_torch`; loaded when the first of them is asked for."""

from tdecomp_torch.allocating import allocate as allocate
from tdecomp_torch.apply import apply as apply
from tdecomp_torch.attach import attach as attach
from tdecomp_torch.attach import load_adapter as load_adapter
from tdecomp_torch.capture import capture as capture
from tdecomp_torch.decomposed import factors as factors
from tdecomp_torch.handle import Adapter as Adapter
from tdecomp_torch.healing import heal as heal
from tdecomp_torch.starting import activations as activations
from tdecomp_torch.starting import captured as captured
from tdecomp_torch.starting import gradients as gradients
from tdecomp_torch.together import MergedAdapters as MergedAdapters
from tdecomp_torch.together import merge as merge

__all__ = [
    "Adapter",
    "MergedAdapters",
    "activations",
    "allocate",
    "apply",
    "attach",
    "capture",
    "captured",
    "factors",
    "gradients",
    "heal",
    "load_adapter",
    "merge",
]
