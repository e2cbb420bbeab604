"""What the method and its parts are called inside of PEFT."""

from __future__ import annotations

__all__ = ["POOLS", "METHOD", "PREFIX", "ROOM"]

METHOD = "TDECOMP_TORCH_PEFT"
"""Its type, as files have it: a PEFT that does not know it names what to import."""

PREFIX = "tdecomp_"
"""Of what belongs to an adapter in the names of parameters."""

ROOM = "tdecomp"
"""The submodule of the model that holds the factors of all adapters."""

POOLS = f"{PREFIX}factors"
"""In it: factors by the name of the adapter."""
