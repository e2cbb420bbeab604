"""Tensor adapters and merge operators for torch models.

So far: `merge`, which adds a decomposed delta to a model in memory.
"""

from tdecomp_torch.merge import merge as merge

__all__ = ["merge"]
