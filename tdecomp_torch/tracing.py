"""Whether a program is being made of what runs, which must then not depend on this one run."""

from __future__ import annotations

import torch

__all__ = ["is_traced"]


def is_traced() -> bool:
    """Whether torch.compile, torch.export or torch.jit.trace is looking on."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
