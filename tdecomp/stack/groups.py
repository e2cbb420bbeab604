"""Groups: sites of equal shape, stacked along site modes. Canonical order: site modes, out, in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from tdecomp._brief import brief, brief_modes
from tdecomp.errors import ArgumentError, SiteError
from tdecomp.stack.sites import Site, head_sites

__all__ = ["Group", "group_sites", "open_heads"]

Label = int | str
Cells = dict[tuple[Label, ...], Site]

_MOST_GRIDS = 4


@dataclass(frozen=True, repr=False, kw_only=True)
class Group:
    """Sites of one role and shape, on a grid of site modes.

    Attributes
    ----------
    name
        Unique among the groups made together, safe as a file name: ``"attn_in.384x384"``.
    modes
        Site modes, then ``out`` (``hd`` in a head stack) and ``in``.
    labels
        Labels of each site mode, in order.
    sites
        In C order over the labels.
    grid
        How it came about: ``"full"``, ``"sub-grid"`` (a part of an incomplete grid) or
        ``"flat site mode"`` (one mode `site`, labelled by module path).
    """

    name: str
    modes: tuple[str, ...]
    labels: tuple[tuple[Label, ...], ...]
    sites: tuple[Site, ...]
    grid: str = "full"

    def __post_init__(self):
        cells = math.prod(map(len, self.labels))
        if len(self.modes) != len(self.labels) + 2 or cells != len(self.sites) or not self.sites:
            raise SiteError(
                f"group {self.name!r} has {len(self.sites)} sites for a grid of {cells} cells and "
                f"the modes {' '.join(self.modes)}: give one site per cell and labels per site mode"
            )

    def __repr__(self) -> str:
        return brief(type(self), self.name, brief_modes(self.modes, self.shape), self.grid)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all modes."""
        return (*map(len, self.labels), *self.sites[0].shape)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return {
            "name": self.name,
            "modes": list(self.modes),
            "labels": [list(labels) for labels in self.labels],
            "sites": [site.to_json() for site in self.sites],
            "grid": self.grid,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Group:
        """Read what `to_json` wrote."""
        return cls(
            name=plain["name"],
            modes=tuple(plain["modes"]),
            labels=tuple(map(tuple, plain["labels"])),
            sites=tuple(map(Site.from_json, plain["sites"])),
            grid=plain["grid"],
        )


def group_sites(sites: Iterable[Site], *, share: Sequence[str] | None = None) -> tuple[Group, ...]:
    """Stack sites of equal prefix, role and shape along the site modes in `share`.

    An incomplete grid is split into at most four full sub-grids (labels of one mode that have the
    same partners go together), else it becomes one flat `site` mode.

    Parameters
    ----------
    sites
        As `find_sites` returns them; the order of their names is kept, numbers are sorted.
    share
        Site modes to stack along; the others make groups apart. Default: all of them. ``()``: every
        matrix alone. ``"head"`` makes every head of q, k and v a slice ``hd x in`` of one stack, in
        which `head` stands for `proj` too; exact for grouped-query attention. ``"site"`` makes
        every group one flat mode.

    Returns
    -------
    tuple of Group
        Every site is in exactly one group (in a head stack, every head).

    Raises
    ------
    ArgumentError
        `share` names a mode that no site has.
    SiteError
        No sites; or heads are asked for and their number is unknown.

    Examples
    --------
    >>> from tdecomp.stack import find_sites
    >>> rows = {"q_proj": 8, "k_proj": 4, "v_proj": 4}
    >>> shapes = {
    ...     f"layers.{i}.self_attn.{p}.weight": (n, 6) for i in range(3) for p, n in rows.items()
    ... }
    >>> config = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2}
    >>> sites = find_sites(shapes, config).sites
    >>> [group.shape for group in group_sites(sites)]  # layer, proj, out, in
    [(3, 1, 8, 6), (3, 2, 4, 6)]
    >>> (heads,) = group_sites(sites, share=["layer", "head"])
    >>> heads.modes, heads.shape
    (('layer', 'head', 'hd', 'in'), (3, 8, 2, 6))
    """
    sites = tuple(sites)
    if not sites:
        raise SiteError("no sites to group: select some with find_sites")
    shared = _shared(sites, share)
    if "head" in shared:
        sites = open_heads(sites)
    buckets: dict[tuple[Any, ...], list[Site]] = {}
    for site in sites:
        buckets.setdefault(_key(site, shared), []).append(site)
    towers = len({site.prefix for site in sites}) > 1
    groups, taken = [], {}
    for bucket in buckets.values():
        modes = tuple(mode for mode, _ in bucket[0].labels if mode in shared)
        for names, labels, members, grid in _grids(bucket, modes, flat="site" in shared):
            name = _unique(_name(bucket[0], shared, towers), taken)
            weight_modes = ("hd" if _is_head(bucket[0]) else "out", "in")
            groups.append(
                Group(
                    name=name,
                    modes=(*names, *weight_modes),
                    labels=labels,
                    sites=members,
                    grid=grid,
                )
            )
    return tuple(groups)


def _shared(sites: Sequence[Site], share: Sequence[str] | None) -> frozenset[str]:
    """Check the modes to share."""
    known = tuple(dict.fromkeys(mode for site in sites for mode, _ in site.labels))
    if share is None:
        return frozenset(known)
    if isinstance(share, str):
        raise ArgumentError(f"share={share!r} must be a sequence of modes, such as ({share!r},)")
    for mode in share:
        if mode not in (*known, "head", "site"):
            raise ArgumentError(
                f"share names {mode!r}: expected some of {', '.join((*known, 'head', 'site'))}"
            )
    return frozenset(known if "site" in share else ()) | frozenset(share)


def open_heads(sites: Sequence[Site]) -> tuple[Site, ...]:
    """Sites made of heads opened into heads; the others as they are."""
    if any(_is_head(site) for site in sites):
        return tuple(sites)
    unknown = next((s for s in sites if s.role in ("attn_in", "cross_in") and not s.heads), None)
    if unknown or not any(site.heads for site in sites):
        raise SiteError(
            f"share=('head', ...) needs the number of heads of {(unknown or sites[0]).path}: "
            "give a config with num_attention_heads (and head_dim), or share without 'head'"
        )
    return tuple(part for s in sites for part in (head_sites(s) if s.heads else (s,)))


def _is_head(site: Site) -> bool:
    return any(mode == "head" for mode, _ in site.labels)


def _key(site: Site, shared: frozenset[str]) -> tuple[Any, ...]:
    apart = tuple(pair for pair in site.labels if pair[0] not in shared)
    return site.prefix, site.role, site.shape, tuple(mode for mode, _ in site.labels), apart


def _name(site: Site, shared: frozenset[str], towers: bool) -> str:
    apart = (v if isinstance(v, str) else f"{m}{v}" for m, v in site.labels if m not in shared)
    heads = ("heads",) if _is_head(site) else ()
    words = (site.prefix if towers else "", site.role, *heads, *apart)
    size = "x".join(map(str, site.shape))
    return re.sub(r"[^\w.\-]+", "_", ".".join((*filter(None, words), size)))


def _unique(name: str, taken: dict[str, int]) -> str:
    """`name`, numbered if another group has it; also when the file system ignores case.

    `taken` maps every name to the last number that was tried for it.
    """
    number, unique = taken.get(name.lower(), 1), name
    while unique.lower() in taken:
        number += 1
        unique = f"{name}-{number}"
    taken[name.lower()] = number
    taken.setdefault(unique.lower(), 1)
    return unique


_FullGrid = tuple[tuple[str, ...], tuple[tuple[Label, ...], ...], tuple[Site, ...], str]


def _grids(bucket: Sequence[Site], modes: tuple[str, ...], *, flat: bool) -> list[_FullGrid]:
    """Divide a bucket into full grids: (site modes, labels, sites, how)."""
    cells: Cells = {}
    for site in bucket:
        labels = dict(site.labels)
        cells[tuple(labels[mode] for mode in modes)] = site
    found = None if flat or len(cells) < len(bucket) else _full_grids(cells, len(modes))
    if found is None or len(found) > _MOST_GRIDS:
        paths = tuple(site.path for site in bucket)
        return [(("site",), (paths,), tuple(bucket), "flat site mode")]
    how = "full" if len(found) == 1 else "sub-grid"
    grids = []
    for part in found:
        axes = _axes(part, len(modes))
        grids.append((modes, axes, tuple(part[cell] for cell in product(*axes)), how))
    return grids


def _full_grids(cells: Cells, order: int) -> list[Cells] | None:
    """Split cells into the fewest full grids, by the partners of one mode after another.

    Labels of a mode that occur with the same labels of the other modes stay together; None when
    no mode splits the cells. The last mode is tried first, so projections with the same layers do.
    """
    if len(cells) == math.prod(map(len, _axes(cells, order))):
        return [cells]
    best: list[Cells] | None = None
    for mode in reversed(range(order)):
        classes = _by_partners(cells, mode)
        if not 1 < len(classes) <= _MOST_GRIDS:
            continue
        parts = [_full_grids(part, order) for part in classes]
        grids = [grid for part in parts for grid in part or ()]
        if None not in parts and (best is None or len(grids) < len(best)):
            best = grids
    return best


def _by_partners(cells: Cells, mode: int) -> list[Cells]:
    """Cells by the set of partners that their label of `mode` has."""
    partners: dict[Label, set[tuple[Label, ...]]] = {}
    for cell in cells:
        partners.setdefault(cell[mode], set()).add(cell[:mode] + cell[mode + 1 :])
    kinds: dict[frozenset[tuple[Label, ...]], Cells] = {}
    frozen: dict[Label, frozenset[tuple[Label, ...]]] = {
        label: frozenset(others) for label, others in partners.items()
    }
    for cell, site in cells.items():
        kinds.setdefault(frozen[cell[mode]], {})[cell] = site
    return list(kinds.values())


def _axes(cells: Cells, order: int) -> tuple[tuple[Label, ...], ...]:
    """Labels of each mode: numbers ascending, then names as first seen."""
    axes: list[tuple[Label, ...]] = []
    for mode in range(order):
        labels = dict.fromkeys(cell[mode] for cell in cells)
        axes.append(tuple(sorted(labels, key=_numbers_first)))
    return tuple(axes)


def _numbers_first(label: Label) -> tuple[bool, int]:
    return (False, label) if isinstance(label, int) else (True, 0)
