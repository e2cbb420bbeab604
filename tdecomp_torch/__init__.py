"""Tensor adapters for torch models.

`attach` puts any method of `tdecomp.adapters` on a model and gives back an `Adapter`, which trains,
merges, saves and exports; `apply` adds a decomposed delta to a model in memory.
"""

from tdecomp_torch.apply import apply as apply
from tdecomp_torch.apply import merge as merge
from tdecomp_torch.attach import attach as attach
from tdecomp_torch.attach import load_adapter as load_adapter
from tdecomp_torch.handle import Adapter as Adapter

__all__ = ["Adapter", "apply", "attach", "load_adapter", "merge"]
