"""Members side by side: at every site one tensor with a mode ``task``, in factors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tdecomp._brief import brief
from tdecomp._xp import Array, double, namespace
from tdecomp.collections.pair import AdapterPair
from tdecomp.errors import ArgumentError, SiteError
from tdecomp.formats import LowRank

__all__ = ["Collection", "CollectionMember", "collect"]

MISSING = ("zero", "refuse")


class CollectionMember(Protocol):
    """One adapter: a name, the model it was trained for, and a pair for every site."""

    @property
    def name(self) -> str:
        """The task."""
        ...

    @property
    def base(self) -> str:
        """The base model, as the adapter says; "" where it does not."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """(out, in) of every site, known without reading a pair."""
        ...

    @property
    def pairs(self) -> Mapping[str, AdapterPair]:
        """The pair of every site; may read it when asked."""
        ...


@dataclass(frozen=True, repr=False, kw_only=True)
class Collection:
    """Adapters of one model, side by side.

    Attributes
    ----------
    members
        In the order given.
    shapes
        (out, in) of every site of any member, in the order of the first that has it.
    keys
        For every site, what each member calls it; None where the member has no pair there.
    notes
        Sentences on what a user should know.
    """

    members: tuple[CollectionMember, ...]
    shapes: Mapping[str, tuple[int, int]]
    keys: Mapping[str, tuple[str | None, ...]]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return brief(type(self), f"{len(self.members)} members", f"{len(self.shapes)} sites")

    @property
    def names(self) -> tuple[str, ...]:
        """The labels of the mode ``task``."""
        return tuple(member.name for member in self.members)

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites."""
        return tuple(self.shapes)

    @property
    def missing(self) -> tuple[tuple[str, str], ...]:
        """(member, site) of every pair that is not there: those slices are zero."""
        return tuple(
            (name, site)
            for site, keys in self.keys.items()
            for name, key in zip(self.names, keys, strict=True)
            if key is None
        )

    def pairs(self, site: str) -> tuple[AdapterPair | None, ...]:
        """The pair of every member at a site, read now; None where there is none."""
        keys = zip(self.members, self.keys[site], strict=True)
        return tuple(None if key is None else member.pairs[key] for member, key in keys)

    def at(self, site: str) -> LowRank:
        """ΔW of all members at a site: (task, out, in), slices being products that are not formed.

        Decompositions take it as it is, and work on its factors: ``td.tucker2(together.at(site))``.
        """
        return self._tensor((site,), ("task", "out", "in"), (len(self.members),))

    def over(self, sites: Sequence[str], mode: str = "site") -> LowRank:
        """ΔW of all members at sites of one shape: (task, site, out, in)."""
        if len(shapes := {self.shapes[site] for site in sites}) != 1:
            raise ArgumentError(
                f"{len(sites)} sites have the shapes {sorted(shapes)}: one is needed"
            )
        names = ("task", mode, "out", "in")
        return self._tensor(tuple(sites), names, (len(self.members), len(sites)))

    def _tensor(
        self, sites: Sequence[str], modes: tuple[str, ...], sizes: tuple[int, ...]
    ) -> LowRank:
        by_site = [self.pairs(site) for site in sites]
        pairs = [row[k] for k in range(len(self.members)) for row in by_site]  # task, then site
        kept = [pair.folded() for pair in pairs if pair is not None]
        if not kept:
            raise SiteError(f"no member has a pair at {sites[0]}")
        xp = namespace(kept[0][0])
        u: Array = xp.concat([b for b, _ in kept], axis=1)  # (out, Σ r)
        vh: Array = xp.concat([a for _, a in kept], axis=0)  # (Σ r, in)
        s = double(xp.ones_like(u[0, :]))
        ranks = tuple(0 if pair is None else pair.rank for pair in pairs)
        return LowRank(modes, sizes, ranks, u, s, vh)


def collect(members: Sequence[CollectionMember], *, missing: str = "zero") -> Collection:
    """Put adapters side by side; no pair is read.

    Sites are matched by their names, where ``.`` and ``_`` are one: some files write only one of
    them.

    Parameters
    ----------
    members
        As `tdecomp.files.loras.read_adapter` gives them.
    missing
        What a member without a pair at a site of another stands for: ``"zero"``, or ``"refuse"``.

    Raises
    ------
    ArgumentError
        No members, or two of one name.
    SiteError
        Members that differ in the shape of a site or, if that is refused, in their sites.
    """
    if missing not in MISSING:
        raise ArgumentError(f"missing={missing!r} is not known: {' or '.join(MISSING)}")
    _check_names([member.name for member in members])
    shapes: dict[str, tuple[int, int]] = {}
    keys: dict[str, list[str | None]] = {}
    known: dict[str, str] = {}
    for k, member in enumerate(members):
        for key, shape in member.shapes.items():
            site = known.setdefault(_alike(key), key)
            keys.setdefault(site, [None] * len(members))[k] = key
            if shapes.setdefault(site, shape) != shape:
                first = next(m.name for m, had in zip(members, keys[site], strict=True) if had)
                raise SiteError(
                    f"{site} is {shapes[site]} in {first!r} and {shape} in {member.name!r}: these"
                    " adapters are of different base models"
                )
    together = Collection(
        members=tuple(members),
        shapes=shapes,
        keys={site: tuple(row) for site, row in keys.items()},
        notes=tuple(_notes(members)),
    )
    if missing == "refuse" and together.missing:
        name, site = together.missing[0]
        more = f", and {len(together.missing) - 1} more" if together.missing[1:] else ""
        raise SiteError(f"{name!r} has no pair at {site}{more}", tip="use missing='zero'")
    return together


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise ArgumentError("no adapters were given")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ArgumentError(f"{count} adapters are named {name!r}: give every one its own name")


def _alike(key: str) -> str:
    return key.replace(".", "_")


def _notes(members: Sequence[CollectionMember]) -> list[str]:
    """A sentence where the members name different base models."""
    bases = {member.base: member.name for member in reversed(members) if member.base}
    if len(bases) < 2:
        return []
    said = ", ".join(f"{name!r} {base}" for base, name in reversed(bases.items()))
    return [f"the adapters name different base models: {said}"]
