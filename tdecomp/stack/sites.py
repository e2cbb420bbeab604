"""Sites: the adapted weight matrices of a model, as blocks of the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tdecomp._brief import brief, brief_count, brief_modes
from tdecomp._xp import ArrayKind
from tdecomp.stack.patterns import Labels

__all__ = ["Index", "Site", "Survey"]

Index = tuple["int | tuple[int, int]", ...]
"""A block of a stored tensor: per leading axis a position or (start, stop); ``()`` is all of it."""


@dataclass(frozen=True, repr=False, kw_only=True)
class Site:
    """One adapted weight matrix, (out, in): a tensor of a checkpoint or a block of one.

    Attributes
    ----------
    tensor
        Name in the checkpoint, ``"...q_proj.weight"``.
    index
        Block of the stored tensor, per leading axis a position or (start, stop).
    transpose
        The block is stored (in, out).
    labels
        Site mode -> label, in mode order.
    shape
        (out, in).
    role
        The space it lives in: sites stack only within one role.
    prefix
        What stood before the pattern in the module path: it tells towers apart.
    part
        Label of the block of a fused tensor, ``"q"``.
    heads
        Number of heads along out; 0 where unknown or not made of heads.
    """

    tensor: str
    index: Index
    transpose: bool
    labels: Labels
    shape: tuple[int, int]
    role: str
    prefix: str = ""
    part: str = ""
    heads: int = 0

    def __repr__(self) -> str:
        labels = ", ".join(f"{mode} {label}" for mode, label in self.labels)
        return brief(type(self), self.path, labels, brief_modes(("out", "in"), self.shape))

    @property
    def module(self) -> str:
        """Tensor name without ``.weight``."""
        return self.tensor.removesuffix(".weight")

    @property
    def path(self) -> str:
        """Module path, with position and part for a block of a fused tensor: unique per site."""
        return ".".join((self.module, *map(str, self.positions), *filter(None, (self.part,))))

    @property
    def positions(self) -> tuple[int, ...]:
        """Where it lies along the leading axes of its tensor: the number of its expert."""
        return tuple(i for i in self.index if isinstance(i, int))

    @property
    def slices(self) -> tuple[int | slice, ...]:
        """`index` as numpy takes it."""
        return tuple(i if isinstance(i, int) else slice(*i) for i in self.index)

    @property
    def first_row(self) -> int:
        """Where the matrix starts along the out mode of its module or expert."""
        spans = [i for i in self.index if not isinstance(i, int)]
        axis = 1 if self.transpose else 0
        return spans[axis][0] if axis < len(spans) else 0

    def view(self, block: ArrayKind) -> ArrayKind:
        """Turn a stored block to (out, in); no copy."""
        return block.T if self.transpose else block

    def take(self, stored: ArrayKind) -> ArrayKind:
        """Take the matrix (out, in) out of the whole stored tensor, as a view."""
        return self.view(stored[(*self.slices, ...)])

    def rows(self, start: int, stop: int) -> Index:
        """Index of the rows start:stop of this matrix in the stored tensor."""
        numbers = self.positions
        spans = tuple(i for i in self.index if not isinstance(i, int))
        stored = self.shape[::-1] if self.transpose else self.shape
        spans += tuple((0, n) for n in stored[len(spans) :])
        axis = 1 if self.transpose else 0
        first = spans[axis][0]
        block = (first + start, first + stop)
        return (*numbers, spans[0], block) if axis else (*numbers, block)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        plain = asdict(self)
        plain["index"] = [list(i) if isinstance(i, tuple) else i for i in self.index]
        plain["labels"] = [list(pair) for pair in self.labels]
        return plain | {"shape": list(self.shape)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Site:
        """Read what `to_json` wrote."""
        out, in_ = plain["shape"]
        index = tuple(i if isinstance(i, int) else (i[0], i[1]) for i in plain["index"])
        labels = tuple((mode, label) for mode, label in plain["labels"])
        site = cls(**{**plain, "index": index, "labels": labels, "shape": (out, in_)})
        hash(site)  # a TypeError here rather than wherever sites are looked up
        return site


@dataclass(frozen=True, repr=False, kw_only=True)
class Survey:
    """What `find_sites` found in a checkpoint.

    Attributes
    ----------
    family
        Row of the families table, ``"pattern"`` for a user's patterns, or ``"generic"``.
    sites
        The sites, in table order, then by label.
    uncovered
        (tensor name, reason) of every tensor that holds no site.
    notes
        One sentence for each thing that is not as one would expect.
    """

    family: str
    sites: tuple[Site, ...]
    uncovered: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        counts = {"site": self.sites, "other tensor": self.uncovered, "note": self.notes}
        held = (brief_count(len(found), what) for what, found in counts.items())
        return brief(type(self), self.family, ", ".join(held))


def block(site: Site, start: int, stop: int, labels: Labels, part: str, heads: int = 0) -> Site:
    """Make the rows start:stop of a site a site of its own."""
    return Site(
        tensor=site.tensor,
        index=site.rows(start, stop),
        transpose=site.transpose,
        labels=labels,
        shape=(stop - start, site.shape[1]),
        role=site.role,
        prefix=site.prefix,
        part=part,
        heads=heads,
    )


def head_sites(site: Site) -> tuple[Site, ...]:
    """Every head of a q, k or v site as a site, ``hd x in``, with `head` labels ``"q_proj.0"``."""
    size = site.shape[0] // site.heads
    proj = dict(site.labels).get("proj", site.part)
    rest = tuple(pair for pair in site.labels if pair[0] != "proj")
    return tuple(
        block(
            site,
            h * size,
            (h + 1) * size,
            (*rest, ("head", f"{proj}.{h}")),
            ".".join(filter(None, (site.part, str(h)))),
            heads=1,
        )
        for h in range(site.heads)
    )
