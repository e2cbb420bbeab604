"""The members of a collection, from paths: adapters of any scheme, factors, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdecomp.collections import AdapterPair, Collection, collect
from tdecomp.errors import ArgumentError, FileError, SiteError
from tdecomp.files.atomic import output_file, output_folder
from tdecomp.files.basis_folder import is_basis
from tdecomp.files.checkpoint import Update
from tdecomp.files.loras import AdapterFile, NamingScheme
from tdecomp.files.loras.adapter_file import HeldPair, held
from tdecomp.files.loras.full import FullMember, is_adapter, open_full
from tdecomp.files.loras.schemes import SCHEMES
from tdecomp.files.loras.several import AdapterSource, opened

__all__ = [
    "Members",
    "MissingPair",
    "NotAPair",
    "adapter_output",
    "adding",
    "open_members",
    "weights_for",
]


@dataclass(frozen=True, kw_only=True)
class MissingPair:
    """A member that changes nothing at a site that others change."""

    member: str
    site: str


@dataclass(frozen=True, kw_only=True)
class NotAPair:
    """A tensor of a member that no pair stands for, and why."""

    member: str
    tensor: str
    reason: str


@dataclass(frozen=True)
class Members:
    """Members side by side, and what is known of their files."""

    sources: tuple[AdapterFile | FullMember, ...]
    together: Collection

    @property
    def missing(self) -> tuple[MissingPair, ...]:
        """As a report lists them."""
        return tuple(MissingPair(member=m, site=s) for m, s in self.together.missing)

    @property
    def not_covered(self) -> tuple[NotAPair, ...]:
        """As a report lists them."""
        return tuple(
            NotAPair(member=one.name, tensor=tensor, reason=reason)
            for one in self.sources
            for tensor, reason in one.not_covered
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Of the collection, and of every member."""
        own = (f"{one.name}: {note}" for one in self.sources for note in one.notes)
        return (*self.together.notes, *own)

    @property
    def scheme(self) -> NamingScheme:
        """How an adapter made of them is written: as the first that has a scheme."""
        named = (one.scheme for one in self.sources if isinstance(one, AdapterFile))
        return next((scheme for scheme in named if scheme is not None), SCHEMES[0])

    @property
    def dtype(self) -> str:
        """Storage code of the first adapter."""
        codes = (one.dtype for one in self.sources if isinstance(one, AdapterFile))
        return next(codes, "F32")

    def first(self, site: str) -> AdapterPair:
        """A pair that is at a site: how its weight is stored."""
        return next(pair for pair in self.together.pairs(site) if pair is not None)

    def to_write(self, path: Path, stored: dict[str, HeldPair]) -> AdapterFile:
        """An adapter of these pairs, in the place of the first member."""
        base = next((one.base for one in self.sources if one.base), "")
        first = next((one for one in self.sources if isinstance(one, AdapterFile)), None)
        return AdapterFile(
            path=path,
            name=path.stem,
            scheme=self.scheme,
            stored=stored,
            base=base,
            config={} if first is None else first.config,
            metadata={} if first is None else first.metadata,
        )

    def held(self, site: str, pair: AdapterPair, dtype: str) -> HeldPair:
        """A pair that is written at a site as those of the members are."""
        for one, key in zip(self.sources, self.together.keys[site], strict=True):
            if key is not None and isinstance(one, AdapterFile):
                return held(pair, one.stored[key], dtype)
        return HeldPair(pair, dtype)


def open_members(
    sources: Sequence[AdapterSource],
    *,
    names: Sequence[str] | None = None,
    base: str | Path | None = None,
    missing: str = "zero",
) -> Members:
    """Open adapters, factors and checkpoints; a checkpoint is a member against `base`."""
    if names is not None and len(names) != len(sources):
        raise ArgumentError(f"{len(names)} names for {len(sources)} adapters: give one for each")
    for path in sources:
        if not isinstance(path, AdapterFile) and is_basis(path):
            message = f"{path} holds several adapters in common bases: export it first"
            raise FileError(message, tip=f"tdecomp export {path} --task NAME --lora DIR")
    called = names or [None] * len(sources)
    members = tuple(
        opened(one, name=name, base=base)
        if isinstance(one, AdapterFile) or base is None or is_adapter(one)
        else open_full(one, base, name=name)
        for one, name in zip(sources, called, strict=True)
    )
    return Members(members, collect(members, missing=missing))


def weights_for(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """One finite weight for every member; 1 by default."""
    chosen = (1.0,) * count if weights is None else tuple(map(float, weights))
    if len(chosen) != count:
        raise ArgumentError(f"{len(chosen)} weights for {count} adapters: give one for each")
    if not all(map(math.isfinite, chosen)):
        raise ArgumentError(f"weights {chosen}: expected finite numbers")
    return chosen


@contextmanager
def adapter_output(
    out: str | Path, scheme: NamingScheme, *, overwrite: bool, inputs: Sequence[str | Path]
) -> Generator[Path]:
    """Where an adapter of a scheme is written: a folder or a file, whole or not at all."""
    if scheme.in_folder:
        with output_folder(out, overwrite=overwrite, inputs=inputs) as folder:
            yield folder
    else:
        with output_file(out, ours=is_adapter, overwrite=overwrite, inputs=inputs) as file:
            yield file


def adding(tensor: str, delta: Callable[[], np.ndarray], transpose: bool) -> Update:
    """What adds a delta ``(out, in)`` to a weight as it is stored."""

    def add(stored: np.ndarray) -> np.ndarray:
        change = delta().T if transpose else delta()
        if change.size != stored.size or (stored.ndim == 2 and change.shape != stored.shape):
            raise SiteError(f"{tensor} is {stored.shape} in the base, its delta {change.shape}")
        return (stored.astype(np.float64) + change.reshape(stored.shape)).astype(stored.dtype)

    return add
