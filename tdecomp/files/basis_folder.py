"""A folder of adapters in common bases: the bases in one file, every member in one of its own.

``bases.safetensors`` has ``K.left (out, p)`` and ``K.right (q, in)`` for every group K of weights;
``members/NAME.safetensors`` the core ``(p, q)`` of every weight, by its name. What else there is to
know stands as JSON in the metadata of each. A member is added or removed without a byte of the
others being written anew.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from tdecomp._brief import brief
from tdecomp._xp import to_numpy
from tdecomp.collections import AdapterPair
from tdecomp.collections.sharing import CommonBases, SharedSites
from tdecomp.errors import ArgumentError, DataError, FileError
from tdecomp.files import safetensors
from tdecomp.files.dtypes import FLOATS
from tdecomp.files.loras.adapter_file import AdapterFile, Expert3d, HeldPair
from tdecomp.files.loras.schemes import SCHEMES
from tdecomp.files.plain import is_list, is_object
from tdecomp.files.storage import local

__all__ = [
    "BasisFolder",
    "BasisMember",
    "BasisSite",
    "copy_basis",
    "is_basis",
    "open_basis",
    "recovered",
    "write_bases",
    "write_member",
]

BASES, MEMBERS = "bases.safetensors", "members"
_KEY, _MEMBER_KEY = "tdecomp.basis", "tdecomp.basis.member"
_VERSION = 1
_MISFITS = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
"""What any JSON may raise that was written by others."""


@dataclass(frozen=True, kw_only=True)
class BasisSite:
    """How a member's pair is written at a weight.

    Attributes
    ----------
    transpose, kernel
        As of `AdapterPair`.
    kind, expert, dtype
        As of `HeldPair`.
    """

    transpose: bool = False
    kernel: tuple[int, ...] = ()
    kind: str = "lora"
    expert: Expert3d | None = None
    dtype: str = "F32"

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        expert = self.expert and [self.expert.module, self.expert.number, self.expert.count]
        return {
            "transpose": self.transpose,
            "kernel": list(self.kernel),
            "kind": self.kind,
            "expert": expert,
            "dtype": self.dtype,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> BasisSite:
        """Read what `to_json` wrote."""
        expert = plain["expert"]
        dtype, kind = str(plain["dtype"]), str(plain["kind"])
        kernel = tuple(int(n) for n in plain["kernel"])
        if dtype not in FLOATS or kind not in ("lora", "embedding") or min(kernel, default=1) < 1:
            raise ValueError(plain)
        return cls(
            transpose=bool(plain["transpose"]),
            kernel=kernel,
            kind=kind,
            expert=expert and Expert3d(str(expert[0]), int(expert[1]), int(expert[2])),
            dtype=dtype,
        )


@dataclass(frozen=True, kw_only=True)
class BasisMember:
    """One adapter in a basis folder.

    Attributes
    ----------
    name, base, scheme
        The task, the base model as the adapter named it, and the naming scheme it came in.
    numbers
        In its own pairs.
    energy, lost
        ``‖ΔW‖²``, and the squared error of what is recovered.
    sites
        How it is written, by weight.
    """

    name: str
    base: str
    scheme: str
    numbers: int
    energy: float
    lost: float
    sites: Mapping[str, BasisSite]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        plain = {key: getattr(self, key) for key in _PLAIN}
        return plain | {"sites": {site: row.to_json() for site, row in self.sites.items()}}


_PLAIN = ("name", "base", "scheme", "numbers", "energy", "lost")


@dataclass(frozen=True, repr=False)
class BasisFolder:
    """Adapters in common bases, on disk; headers are read, and arrays when they are asked for.

    Attributes
    ----------
    path
        The folder.
    groups
        Weights that share their bases.
    members
        By name.
    dtype
        Storage code of bases and cores.
    """

    path: Path
    groups: tuple[SharedSites, ...]
    members: Mapping[str, BasisMember]
    dtype: str

    def __repr__(self) -> str:
        return brief(type(self), str(self.path), f"{len(self.members)} members")

    @property
    def group_of(self) -> dict[str, int]:
        """Weight -> number of its group."""
        return {site: k for k, group in enumerate(self.groups) for site in group.sites}

    def bases(self, group: int) -> CommonBases:
        """The two bases of a group."""
        entries, _ = safetensors.read_header(self.path / BASES)
        (out, in_), (left, right) = self.groups[group].shape, _pair(entries, group)
        if left.shape[0] != out or right.shape[1:] != (in_,):
            raise FileError(f"{self.path / BASES}: the bases of group {group} are no {out}×{in_}")
        return CommonBases(_finite(left), _finite(right))

    def cores(self, name: str) -> Mapping[str, np.ndarray]:
        """The core of every weight of a member."""
        entries, _ = safetensors.read_header(self._file(name))
        return {site: _finite(entries[site]) for site in self.member(name).sites}

    def member(self, name: str) -> BasisMember:
        """A member by name; an ArgumentError lists them."""
        if name not in self.members:
            known = ", ".join(map(repr, self.members))
            raise ArgumentError(f"{self.path} has no member {name!r}: it has {known or 'none'}")
        return self.members[name]

    def adapter(self, name: str) -> AdapterFile:
        """A member as an adapter again; the same bits on every machine."""
        member, groups, cores = self.member(name), self.group_of, self.cores(name)
        stored: dict[str, HeldPair] = {}
        bases = {k: self.bases(k) for k in {groups[site] for site in member.sites}}
        for site, row in member.sites.items():
            common = bases[groups[site]]
            if cores[site].shape != common.shape:
                raise FileError(f"{self._file(name)}: the core of {site} does not fit its bases")
            pair = recovered(common, cores[site], row.dtype)
            if pair.shape[1] % math.prod(row.kernel):
                raise FileError(f"{self._file(name)}: {site} has no kernel of {row.kernel}")
            turned = replace(pair, transpose=row.transpose, kernel=row.kernel)
            stored[site] = HeldPair(turned, row.dtype, row.kind, row.expert)
        scheme = next((one for one in SCHEMES if one.name == member.scheme), SCHEMES[0])
        return AdapterFile(
            path=self.path, name=name, scheme=scheme, stored=stored, base=member.base
        )

    def directions(self) -> dict[str, dict[str, np.ndarray]]:
        """The bases of every weight, as `tdecomp.adapters.principal_directions` gives its own.

        To be passed on as ``given=`` with ``rank={"k": ..., "r": ...}`` for the row ``eigenlorax``:
        a new adapter made of what the collection has in common.

        Raises
        ------
        ArgumentError
            The bases are of several ranks; ``basis --rank`` makes them of one.
        """
        by_site = {site: self.bases(k) for site, k in self.group_of.items()}
        ranks = {rank for bases in by_site.values() for rank in bases.shape}
        if len(ranks) != 1:
            told = ", ".join(map(str, sorted(ranks)))
            raise ArgumentError(f"{self.path} has bases of the ranks {told}, one is needed")
        return {
            "directions_out": {site: bases.left for site, bases in by_site.items()},
            "directions_in": {site: bases.right for site, bases in by_site.items()},
        }

    def numbers(self) -> tuple[int, dict[str, int]]:
        """In the bases, and in the cores of every member."""
        cores = {name: _numbers(self._file(name)) for name in self.members}
        return _numbers(self.path / BASES), cores

    @property
    def largest_rank(self) -> int:
        """Of all bases."""
        entries, _ = safetensors.read_header(self.path / BASES)
        return max((min(entry.shape) for entry in entries.values()), default=0)

    def _file(self, name: str) -> Path:
        return self.path / MEMBERS / _file_name(name)


def recovered(bases: CommonBases, core: np.ndarray, dtype: str) -> AdapterPair:
    """The delta of a core as a pair, as it is stored."""
    pair = bases.pair(core)
    b, a = (safetensors.rounded(to_numpy(x).astype(np.float32), dtype) for x in (pair.b, pair.a))
    return AdapterPair(b=b, a=a)


def is_basis(path: str | Path) -> bool:
    """Whether a folder is one of these, by its names."""
    return (local(path, "common bases") / BASES).is_file()


def open_basis(path: str | Path) -> BasisFolder:
    """Open a basis folder.

    Raises
    ------
    FileError
        It is none, or a file of it is damaged.
    """
    path = local(path, "common bases")
    if not is_basis(path):
        raise FileError(f"{path} is no folder that 'tdecomp basis' wrote: it has no {BASES}")
    plain = _document(path / BASES, _KEY)
    members: dict[str, BasisMember] = {}
    try:
        if plain["version"] != _VERSION:
            raise FileError(f"{path / BASES} has version {plain['version']}, {_VERSION} is known")
        groups = tuple(_group(row) for row in plain["groups"])
        known = {site for group in groups for site in group.sites}
        for file in sorted((path / MEMBERS).glob("*.safetensors")):
            member = _member(_document(file, _MEMBER_KEY))
            entries, _ = safetensors.read_header(file)
            if _file_name(member.name) != file.name or not {*member.sites} <= known & {*entries}:
                raise FileError(f"{file} does not belong to {path / BASES}")
            members[member.name] = member
        if plain["dtype"] not in FLOATS:
            raise ValueError(plain["dtype"])
        return BasisFolder(path, groups, members, plain["dtype"])
    except _MISFITS as error:
        raise FileError(f"{path} holds no readable list of its groups and members") from error


def write_bases(
    folder: Path, groups: Sequence[SharedSites], bases: Sequence[CommonBases], dtype: str
) -> None:
    """Write the bases into an existing empty folder."""
    arrays = {
        f"{k}.{side}": array
        for k, one in enumerate(bases)
        for side, array in (("left", one.left), ("right", one.right))
    }
    rows = [{"sites": list(group.sites), "shape": list(group.shape)} for group in groups]
    document = {"version": _VERSION, "dtype": dtype, "groups": rows}
    _write(folder / BASES, arrays, dtype, {_KEY: json.dumps(document)})
    (folder / MEMBERS).mkdir()


def write_member(
    folder: Path, member: BasisMember, cores: Mapping[str, np.ndarray], dtype: str
) -> None:
    """Write one member beside the others."""
    file = folder / MEMBERS / _file_name(member.name)
    _write(file, cores, dtype, {_MEMBER_KEY: json.dumps(member.to_json())})


def copy_basis(basis: BasisFolder, folder: Path, *, without: str | None = None) -> None:
    """The files of a basis, byte by byte, but for one member."""
    (folder / MEMBERS).mkdir()
    shutil.copyfile(basis.path / BASES, folder / BASES)
    for name in basis.members:
        if name != without:
            file = Path(MEMBERS) / _file_name(name)
            shutil.copyfile(basis.path / file, folder / file)


def _write(
    path: Path, arrays: Mapping[str, np.ndarray], dtype: str, metadata: Mapping[str, str]
) -> None:
    rows = [(name, dtype, array.shape) for name, array in arrays.items()]
    safetensors.write(
        path,
        rows,
        lambda name: safetensors.encode(arrays[name].astype(np.float32), dtype),
        {"format": "pt", **metadata},
    )


def _document(file: Path, key: str) -> dict[str, Any]:
    _, metadata = safetensors.read_header(file)
    try:
        plain = json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError):
        plain = None
    if not is_object(plain):
        raise FileError(f"{file} was not written by 'tdecomp basis'")
    return plain


def _group(plain: object) -> SharedSites:
    if not is_object(plain) or not is_list(plain["sites"]):
        raise ValueError(plain)
    out, in_ = (int(n) for n in plain["shape"])
    return SharedSites(tuple(str(site) for site in plain["sites"]), (out, in_))


def _member(plain: Mapping[str, Any]) -> BasisMember:
    energy, lost = float(plain["energy"]), float(plain["lost"])
    if not (0 <= energy < math.inf and 0 <= lost < math.inf):
        raise ValueError(plain)
    return BasisMember(
        name=str(plain["name"]),
        base=str(plain["base"]),
        scheme=str(plain["scheme"]),
        numbers=int(plain["numbers"]),
        energy=energy,
        lost=lost,
        sites={str(s): BasisSite.from_json(row) for s, row in plain["sites"].items()},
    )


def _pair(entries: Mapping[str, safetensors.Entry], group: int):
    try:
        left, right = entries[f"{group}.left"], entries[f"{group}.right"]
    except KeyError as error:
        raise FileError(f"the bases of group {group} are not in the file") from error
    if len(left.shape) != 2 or len(right.shape) != 2:
        raise FileError(f"the bases of group {group} are no matrices")
    return left, right


def _finite(entry: safetensors.Entry) -> np.ndarray:
    array = safetensors.load(entry)
    if not np.isfinite(array).all():
        raise DataError(f"{entry.name!r} of {entry.file} is not finite: the file is damaged")
    return array


def _numbers(file: Path) -> int:
    entries, _ = safetensors.read_header(file)
    return sum(math.prod(entry.shape) for entry in entries.values())


def _file_name(name: str) -> str:
    return f"{quote(name, safe=' ')}.safetensors"
