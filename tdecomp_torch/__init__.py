"""Tensor adapters for torch models.

`attach` puts any method of `tdecomp.adapters` on a model and gives back an `Adapter`, which trains,
merges, saves and exports; `apply` adds a decomposed delta to a model in memory; `capture` gathers
what the weights of a model see, and `gradients`, `activations` and `captured` start adapters from
it, `factors` from a decomposed delta.
"""

from tdecomp_torch.apply import apply as apply
from tdecomp_torch.apply import merge as merge
from tdecomp_torch.attach import attach as attach
from tdecomp_torch.attach import load_adapter as load_adapter
from tdecomp_torch.capture import capture as capture
from tdecomp_torch.decomposed import factors as factors
from tdecomp_torch.handle import Adapter as Adapter
from tdecomp_torch.starting import activations as activations
from tdecomp_torch.starting import captured as captured
from tdecomp_torch.starting import gradients as gradients

__all__ = [
    "Adapter",
    "activations",
    "apply",
    "attach",
    "capture",
    "captured",
    "factors",
    "gradients",
    "load_adapter",
    "merge",
]
