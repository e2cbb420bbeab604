"""Formats: small frozen objects that hold a tensor as factors and state their own einsum."""

from tdecomp.formats._base import Format as Format
from tdecomp.formats.lowrank import LowRank as LowRank
from tdecomp.formats.tucker import Tucker as Tucker
from tdecomp.formats.tucker2 import Tucker2 as Tucker2

__all__ = ["FORMATS", "Format", "LowRank", "Tucker", "Tucker2"]

FORMATS: dict[str, type[Format]] = {f.__name__: f for f in (LowRank, Tucker, Tucker2)}
"""Every format by the name that files carry."""
