"""Formats: small frozen objects that hold a tensor as factors and state their own einsum.

Methods: `Format.to_dense`, `pair`, `inner`, `norm`, `select`, `entries`, `permute`, `astype`,
``+ - * [] ==``; of the classes `random`, `zeros`, `ones`. Functions: `mode_product`, `hadamard`,
`regroup` (the modes of a train), `match_factors` (of two CP); the conversions `to_tucker`,
`to_tucker2`, `to_tt`, `to_mpo`, `to_lowrank`, `to_cp`, `to_tensorly`, `from_tensorly`; the normal
forms `to_tucker`, `to_lowrank`, `canonical`, `normalised`.
"""

from tdecomp.formats import pytrees
from tdecomp.formats.along import mode_product as mode_product
from tdecomp.formats.base import FORMATS as FORMATS
from tdecomp.formats.base import Format as Format
from tdecomp.formats.convert import to_tt as to_tt
from tdecomp.formats.convert import to_tucker as to_tucker
from tdecomp.formats.convert import to_tucker2 as to_tucker2
from tdecomp.formats.cp import CP as CP
from tdecomp.formats.entrywise import hadamard as hadamard
from tdecomp.formats.interop_tensorly import from_tensorly as from_tensorly
from tdecomp.formats.interop_tensorly import to_tensorly as to_tensorly
from tdecomp.formats.into_cp import to_cp as to_cp
from tdecomp.formats.into_lowrank import to_lowrank as to_lowrank
from tdecomp.formats.into_mpo import to_mpo as to_mpo
from tdecomp.formats.lowrank import LowRank as LowRank
from tdecomp.formats.match import FactorMatch as FactorMatch
from tdecomp.formats.match import match_factors as match_factors
from tdecomp.formats.network import Network as Network
from tdecomp.formats.normal_forms import canonical as canonical
from tdecomp.formats.normal_forms import normalised as normalised
from tdecomp.formats.regroup import regroup as regroup
from tdecomp.formats.sum import Sum as Sum
from tdecomp.formats.tt import TT as TT
from tdecomp.formats.tucker import Tucker as Tucker
from tdecomp.formats.tucker2 import Tucker2 as Tucker2

__all__ = [
    "CP",
    "FactorMatch",
    "FORMATS",
    "TT",
    "Format",
    "LowRank",
    "Network",
    "Sum",
    "Tucker",
    "Tucker2",
    "canonical",
    "from_tensorly",
    "hadamard",
    "match_factors",
    "mode_product",
    "normalised",
    "register_pytrees",
    "regroup",
    "to_cp",
    "to_lowrank",
    "to_mpo",
    "to_tensorly",
    "to_tt",
    "to_tucker",
    "to_tucker2",
]


def register_pytrees() -> None:
    """Make all formats jax pytrees now, if jax is loaded.

    Needed only for formats that were made before jax was imported: making one afterwards does it.
    """
    for cls in FORMATS.values():
        pytrees.register(cls, cls._leaves)
