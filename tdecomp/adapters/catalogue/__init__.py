"""Published adapters, one row each: an adapter is data, see `tdecomp.adapters.Spec`."""
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tdecomp._nearest import among, nearest
from tdecomp.adapters.catalogue.multiplied import MULTIPLIED
from tdecomp.adapters.catalogue.pairs import PAIRS
from tdecomp.adapters.catalogue.spectral import SPECTRAL
from tdecomp.adapters.catalogue.structured import STRUCTURED
from tdecomp.adapters.catalogue.tensors import TENSORS
from tdecomp.adapters.catalogue.wrapped import WRAPPED
from tdecomp.adapters.spec import Spec
from tdecomp.errors import ArgumentError

__all__ = ["CATALOGUE", "method"]

CATALOGUE: Mapping[str, Spec] = MappingProxyType(
    {
        spec.name: spec
        for table in (PAIRS, TENSORS, SPECTRAL, STRUCTURED, MULTIPLIED, WRAPPED)
        for spec in table
    }
)
"""Every row by its name."""


def method(name: str) -> Spec:
    """Look up a row of the catalogue; `ArgumentError` suggests the nearest name.

    >>> print(method("lotr"))
    lotr: left: out r, core: site r s, right: s in -> out in
    """
    if not isinstance(name, str):
        raise ArgumentError(f"an adapter row is looked up by its name, got {name!r}")
    found = CATALOGUE.get(name.lower().replace("-", "_"))
    if found is None:
        raise ArgumentError(
            f"no adapter row {name!r}{nearest(name, CATALOGUE)}: there are"
            f" {among(name, CATALOGUE)}, see tdecomp.adapters.CATALOGUE"
        )
    return found
