"""Fine-tuned checkpoints as members of a collection, and the modules of a base by their names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdecomp._brief import brief
from tdecomp.collections import AdapterPair
from tdecomp.errors import DataError, FileError, SiteError
from tdecomp.files import safetensors
from tdecomp.files.checkpoint import Checkpoint
from tdecomp.files.delta import Delta, open_delta
from tdecomp.files.factors import FACTORS
from tdecomp.files.loras.base_names import sites_of, tensors_by_site
from tdecomp.files.loras.reading import WEIGHTS
from tdecomp.files.loras.schemes import scheme_of
from tdecomp.files.places import is_there
from tdecomp.files.storage import local

__all__ = ["FullMember", "is_adapter", "open_full", "tensor_of"]


@dataclass(frozen=True, kw_only=True, repr=False)
class FullMember:
    """What a fine-tuned checkpoint adds to its base, as a member of a collection.

    Attributes
    ----------
    path, name, base
        As of `AdapterFile`.
    shapes
        (out, in) of every site.
    pairs
        The delta of every site as a product with an identity; read on every look-up.
    not_covered
        (tensor, reason) of what is no matrix of a module.
    notes
        Sentences on what a user should know.
    """

    path: Path
    name: str
    base: str
    shapes: Mapping[str, tuple[int, int]]
    pairs: Mapping[str, AdapterPair]
    not_covered: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return brief(type(self), self.name, f"{len(self.shapes)} sites")


def is_adapter(path: str | os.PathLike[str]) -> bool:
    """Whether a folder or file holds pairs or factors, by names alone."""
    path = local(path, "adapters and members")
    if path.is_dir() and any(is_there(path / name) for name in (WEIGHTS, FACTORS)):
        return True
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1 or files[0].suffix != ".safetensors" or not files[0].is_file():
        return False
    entries, metadata = safetensors.read_header(files[0])
    return scheme_of(entries) is not None or any(key.startswith("tdecomp") for key in metadata)


def open_full(
    path: str | Path,
    base: str | Path | None,
    *,
    name: str | None = None,
) -> FullMember:
    """Open a checkpoint against its base; headers are read alone.

    Raises
    ------
    FileError
        No base, or a checkpoint that cannot be read.
    SiteError
        Sites that only one of the two has.
    """
    path = local(path, "adapters and members")
    if base is None:
        raise FileError(
            f"{path} is no adapter; a fine-tuned model is a member against its base",
            tip="say which it is with base=",
        )
    delta = open_delta(base, path)
    turned = {site.tensor: site.transpose for group in delta.groups for site in group.sites}
    known = {t: s for t, s in delta.shapes.items() if len(s) == 2 and t.endswith(".weight")}
    names = sites_of(known, delta.pair.base)
    shapes = {site: _turned(known[t], turned[t]) for site, t in names.items()}
    others = [t for t in delta.shapes if t not in known]
    left = [*delta.left_out.items(), *((t, "not the weight of a linear module") for t in others)]
    return FullMember(
        path=path,
        name=name or path.name or str(path),
        base=str(base),
        shapes=shapes,
        pairs=_Deltas(delta, names, turned),
        not_covered=tuple(left),
    )


def _turned(stored: tuple[int, ...], turned: bool) -> tuple[int, int]:
    first, second = stored
    return (second, first) if turned else (first, second)


@dataclass(frozen=True)
class _Deltas(Mapping[str, AdapterPair]):
    """Sites of a checkpoint as pairs that are read when they are looked up."""

    delta: Delta
    names: Mapping[str, str]
    turned: Mapping[str, bool]

    def __getitem__(self, site: str) -> AdapterPair:
        tensor = self.names[site]
        stored = np.asarray(self.delta.pair.delta(tensor)).astype(np.float64)
        if not np.isfinite(stored).all():
            raise DataError(f"{tensor!r} has values that are not finite: the model is broken")
        matrix = stored.T if self.turned[tensor] else stored
        out, in_ = matrix.shape
        b, a = (matrix, np.eye(in_)) if in_ <= out else (np.eye(out), matrix)
        return AdapterPair(b=b, a=a, transpose=self.turned[tensor])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def tensor_of(base: Checkpoint) -> Callable[[str], str]:
    """Site of an adapter -> name of the weight in a checkpoint.

    The function raises a SiteError where the checkpoint has no such module.
    """
    tensors = tensors_by_site(base)

    def find(site: str) -> str:
        tensor = tensors(site)
        if tensor is None:
            raise SiteError(f"{base.path} has no module {site}, which the adapters change")
        return tensor

    return find
