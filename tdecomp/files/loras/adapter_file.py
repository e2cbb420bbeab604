"""An adapter as it stands in files: what is at every site, read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tdecomp._brief import brief
from tdecomp.collections import AdapterPair
from tdecomp.errors import DataError, FileError
from tdecomp.files import safetensors
from tdecomp.files.loras.kinds import KINDS, Sizes
from tdecomp.files.loras.schemes import NamingScheme
from tdecomp.files.safetensors import FP8, Entry

__all__ = [
    "AdapterFile",
    "Expert3d",
    "HeldPair",
    "MadePair",
    "SitePair",
    "StoredPair",
    "finite",
    "held",
]


@dataclass(frozen=True)
class Expert3d:
    """One of the experts whose pairs PEFT stores together.

    Attributes
    ----------
    module
        The module of all.
    number, count
        Which of how many.
    """

    module: str
    number: int
    count: int


@dataclass(frozen=True, kw_only=True)
class StoredPair:
    """A pair in a file.

    Attributes
    ----------
    kind, entries, sizes
        A key of `kinds.KINDS`, its parts, and what their shapes say.
    scale, transpose
        As of `AdapterPair`.
    expert
        Of pairs that are stored together.
    magnitude, weight
        DoRA's lengths, and what reads the weight of the base as it is stored.
    """

    kind: str
    entries: Mapping[str, Entry]
    sizes: Sizes
    scale: float
    transpose: bool = False
    expert: Expert3d | None = None
    magnitude: Entry | None = None
    weight: Callable[[], np.ndarray] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.sizes.shape

    @property
    def dtype(self) -> str:
        """Storage code of the parts; of parts that are multiplied that of float32.

        Eight bits can be read and not written: bfloat16 holds the same numbers.
        """
        codes = {"BF16" if e.dtype in FP8 else e.dtype for e in self.entries.values()}
        plain = set(self.entries) == {"a", "b"} and self.magnitude is None and len(codes) == 1
        return codes.pop() if plain else "F32"

    def read(self) -> AdapterPair:
        """The pair, from the file."""
        parts = {part: finite(entry) for part, entry in self.entries.items()}
        if set(parts) != {"a", "b"}:  # products are taken in float64
            parts = {part: array.astype(np.float64) for part, array in parts.items()}
        if self.expert is not None:
            parts = _of_expert(parts, self.expert)
        b, a = KINDS[self.kind].make(parts)
        kernel = self.sizes.kernel
        pair = AdapterPair(b=b, a=a, scale=self.scale, transpose=self.transpose, kernel=kernel)
        if self.magnitude is None or self.weight is None:
            return pair
        return _normalised(pair, self.weight(), finite(self.magnitude))


@dataclass(frozen=True)
class HeldPair:
    """A pair that is in memory, as it is to be written.

    Attributes
    ----------
    pair, dtype
        The pair, and the storage code of its factors.
    kind, expert
        As of `StoredPair`: ``"lora"``, or ``"embedding"``.
    """

    pair: AdapterPair
    dtype: str = "F32"
    kind: str = "lora"
    expert: Expert3d | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.pair.shape

    def read(self) -> AdapterPair:
        """The pair."""
        return self.pair


@dataclass(frozen=True)
class MadePair:
    """A pair that is made of other factors when it is asked for.

    Attributes
    ----------
    shape, dtype
        (out, in), and the storage code of what it is made of.
    make
        Makes it.
    kind
        As of `HeldPair`.
    """

    shape: tuple[int, int]
    dtype: str
    make: Callable[[], AdapterPair]
    kind: str = "lora"
    expert: Expert3d | None = None

    def read(self) -> AdapterPair:
        """The pair, made now."""
        return self.make()


SitePair = StoredPair | HeldPair | MadePair


def held(pair: AdapterPair, like: SitePair, dtype: str | None = None) -> HeldPair:
    """Another pair in the place of one: of the same kind and, unless one is given, dtype."""
    kind = "embedding" if like.kind == "embedding" else "lora"
    return HeldPair(pair, dtype or like.dtype, kind, like.expert)


@dataclass(frozen=True, repr=False, kw_only=True)
class AdapterFile:
    """An adapter; its pairs are read one at a time, whenever they are asked for.

    Attributes
    ----------
    path, name
        What was named, and the task.
    scheme
        How its tensors are named; None for our own factor files.
    stored
        What is at every site, in the order of the file.
    base
        ``base_model_name_or_path``; "" where nothing says it.
    not_covered
        (tensor, reason) of everything that no pair stands for.
    beside
        Those of them that stay true whatever becomes of the pairs: modules saved whole, biases.
    notes
        Sentences on what a user should know.
    config, metadata
        ``adapter_config.json`` and the metadata of the file, as they are.
    """

    path: Path
    name: str
    scheme: NamingScheme | None
    stored: Mapping[str, SitePair]
    base: str = ""
    not_covered: tuple[tuple[str, str], ...] = ()
    beside: Mapping[str, Entry] = field(default_factory=dict[str, Entry])
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    def __repr__(self) -> str:
        known = self.scheme.name if self.scheme else "factors"
        return brief(type(self), self.name, known, f"{len(self.stored)} sites")

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """(out, in) of every site; nothing is read."""
        return {site: pair.shape for site, pair in self.stored.items()}

    @property
    def pairs(self) -> Mapping[str, AdapterPair]:
        """The pair of every site, read on every look-up.

        A look-up raises a DataError that names the tensor if a number is not finite.
        """
        return _LazyPairs(self.stored)

    @cached_property
    def dtype(self) -> str:
        """Storage code of most pairs: ``"BF16"``."""
        codes = [pair.dtype for pair in self.stored.values()]
        return max(dict.fromkeys(codes), key=codes.count, default="F32")


class _LazyPairs(Mapping[str, AdapterPair]):
    """Sites as pairs that are read when they are looked up."""

    def __init__(self, stored: Mapping[str, SitePair]) -> None:
        self._stored = stored

    def __getitem__(self, site: str) -> AdapterPair:
        return self._stored[site].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def finite(entry: Entry) -> np.ndarray:
    """A stored array; a DataError names the tensor if a number is not finite."""
    array = safetensors.load(entry)
    if not np.isfinite(array).all():
        what = "NaN" if np.isnan(array).any() else "infinity"
        raise DataError(f"{entry.name!r} of {entry.file} holds {what}: the adapter is broken")
    return array


def _of_expert(parts: Mapping[str, np.ndarray], expert: Expert3d) -> dict[str, np.ndarray]:
    """The rows and columns of one expert: A lies expert by expert, B rank by rank."""
    a, b = parts["a"], parts["b"]
    rank = len(a) // expert.count
    start = expert.number * rank
    mine = b.reshape(len(b), rank, expert.count)[:, :, expert.number]
    return {"a": a[start : start + rank], "b": np.ascontiguousarray(mine)}


def _normalised(pair: AdapterPair, stored: np.ndarray, magnitude: np.ndarray) -> AdapterPair:
    """DoRA's ``m (W + ΔW) / ‖W + ΔW‖ - W``, which is as wide as a matrix: it and an identity.

    The lengths are of the rows (out), or of the columns where the magnitudes are a row.
    """
    weight = stored.reshape(len(stored), -1).astype(np.float64)
    weight = weight.T if pair.transpose else weight  # (out, in)
    if weight.shape != pair.shape:
        raise FileError(f"the base has a weight of {weight.shape} where the pair is {pair.shape}")
    moved = weight + pair.dense()
    by_column = magnitude.ndim > 1 and magnitude.shape[0] == 1 and pair.shape[0] != 1
    lengths = np.linalg.norm(moved, axis=0 if by_column else 1)
    lengths = np.where(lengths > 0, lengths, 1.0)
    wanted = magnitude.reshape(-1).astype(np.float64)
    if wanted.size != lengths.size:
        raise FileError(f"{wanted.size} magnitudes for {lengths.size} rows")
    ratio = wanted / lengths
    delta = moved * (ratio[None, :] if by_column else ratio[:, None]) - weight
    out, in_ = delta.shape
    b, a = (delta, np.eye(in_)) if in_ <= out else (np.eye(out), delta)
    return AdapterPair(b=b, a=a, transpose=pair.transpose, kernel=pair.kernel)
