"""Grids of sites: which weights of a model an adapter is put on together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from tdecomp._nearest import nearest
from tdecomp.adapters.grid import Grid
from tdecomp.adapters.spec import Spec
from tdecomp.adapters.terms import SITE_MODES
from tdecomp.errors import ArgumentError
from tdecomp.stack import Site
from tdecomp.stack.groups import Label, open_heads

__all__ = [
    "SiteGrid",
    "grids_by_rank",
    "has_own_factors",
    "make_grids",
    "single_heads",
    "sites_with_heads",
]

_INSIDE = ("out", "in")


@dataclass(frozen=True, repr=False)
class SiteGrid:
    """A grid and the sites that it is made of, in its order."""

    grid: Grid
    sites: tuple[Site, ...]

    def __repr__(self) -> str:
        return f"SiteGrid({self.grid!r})"


def make_grids(
    spec: Spec,
    sites: Sequence[Site],
    *,
    share: Sequence[str] | None = None,
    everywhere: Sequence[Site] = (),
) -> tuple[SiteGrid, ...]:
    """Put sites of equal shape on one grid; nothing is padded, repeated or averaged.

    Parameters
    ----------
    spec
        An adapter without ``site`` gives every label of a mode that it does not name a grid of its
        own (T5's encoder, decoder and cross attention, if it names ``layer`` and ``proj``). One
        that splits heads keeps apart the weights with other heads.
    sites
        The chosen sites.
    share
        Site modes to stack along; the labels of all others are kept apart. Default: all that the
        adapter can stack along.
    everywhere
        All sites of the model, from which the number of heads of an output projection is known.

    Returns
    -------
    tuple of SiteGrid
        Every site is in exactly one; models of several towers have grids of each.
    """
    known = tuple(dict.fromkeys(mode for site in sites for mode, _ in site.labels))
    together = _together(spec, known, share)
    heads = _heads_of_outputs((*everywhere, *sites))
    buckets: dict[tuple[Any, ...], list[Site]] = {}
    for site in sites:
        apart = tuple(pair for pair in site.labels if pair[0] not in together)
        found = _heads(site, heads) if "head" in spec.weight_modes else (0, False)
        buckets.setdefault((site.prefix, site.shape, apart, found), []).append(site)
    names = _names(list(buckets))
    return tuple(
        _site_grid(spec, name, bucket, together, key[3])
        for name, (key, bucket) in zip(names, buckets.items(), strict=True)
    )


def has_own_factors(spec: Spec) -> bool:
    """Whether no weight shares a factor with another."""
    operands = (o for term in spec.expanded.terms for o in term.operands)
    return all("site" in o.letters for o in operands)


def grids_by_rank(
    spec: Spec, grids: Sequence[SiteGrid], ranks: Mapping[str, int]
) -> tuple[tuple[SiteGrid, ...], tuple[int, ...]]:
    """Take grids apart until all weights of one have one rank; those of rank 0 are left out.

    Parameters
    ----------
    ranks
        By path of the weight, or of its module.

    Returns
    -------
    grids, ranks
        A rank for every grid.

    Raises
    ------
    ArgumentError
        A weight without a rank, ranks of weights that are not there, or two ranks for weights that
        share a factor.
    """
    known = {name for grid in grids for site in grid.sites for name in (site.path, site.module)}
    if unknown := [name for name in ranks if name not in known]:
        raise ArgumentError(
            f"rank names the weight {unknown[0]!r}{nearest(unknown[0], known)}: it is not among the"
            " targets"
        )
    found: list[tuple[SiteGrid, int]] = []
    for grid in grids:
        own = [_rank_of(site, ranks) for site in grid.sites]
        if len({*own}) > 1 and not has_own_factors(spec):
            other = next(k for k, rank in enumerate(own) if rank != own[0])
            raise ArgumentError(
                f"{spec.name!r} shares factors over {grid.grid.name}, and rank gives"
                f" {grid.sites[0].path} {own[0]} and {grid.sites[other].path} {own[other]}: give"
                " all one rank"
            )
        found += [(_taken(grid, own, rank), rank) for rank in sorted({*own} - {0})]
    if not found:
        raise ArgumentError("rank gives every weight rank 0: nothing is left to adapt")
    return tuple(grid for grid, _ in found), tuple(rank for _, rank in found)


def _rank_of(site: Site, ranks: Mapping[str, int]) -> int:
    rank = ranks.get(site.path, ranks.get(site.module))
    if rank is None:
        raise ArgumentError(f"rank says nothing of {site.path}: give it one, 0 to leave it out")
    if isinstance(rank, bool) or not isinstance(rank, Integral) or rank < 0:
        raise ArgumentError(f"the rank {rank!r} of {site.path} must be a whole number, 0 or more")
    return int(rank)


def _taken(sites: SiteGrid, own: Sequence[int], rank: int) -> SiteGrid:
    """The weights of one rank, on a grid of their own if there are others."""
    kept = [k for k, other in enumerate(own) if other == rank]
    if len(kept) == len(own):
        return sites
    places = tuple(sites.grid.places[k] for k in kept)
    grid = replace(sites.grid, name=f"{sites.grid.name}_rank{rank}", places=places)
    return SiteGrid(grid, tuple(sites.sites[k] for k in kept))


def single_heads(spec: Spec, sites: Sequence[Site]) -> tuple[Spec, tuple[Site, ...]]:
    """An adapter and sites, every head of q, k and v a weight of its own, ``share=["head"]``."""
    return spec.over_heads(), open_heads(sites)


def sites_with_heads(sites: Sequence[Site], *, everywhere: Sequence[Site] = ()) -> list[Site]:
    """The sites whose number of heads is known; parameters as in `make_grids`."""
    of_outputs = _heads_of_outputs((*everywhere, *sites))
    return [site for site in sites if _heads(site, of_outputs)[0]]


def _together(spec: Spec, known: Sequence[str], share: Sequence[str] | None) -> frozenset[str]:
    """The site modes to stack along."""
    named = {n for n in spec.letters if n not in spec.weight_modes}
    able = frozenset(known if "site" in named else (mode for mode in known if mode in named))
    if share is None:
        return able
    if isinstance(share, str):
        raise ArgumentError(f"share={share!r} must be a sequence of modes, such as ({share!r},)")
    if unknown := [mode for mode in share if mode not in known]:
        raise ArgumentError(
            f"share names {unknown[0]!r}: the chosen weights have {', '.join(known) or 'no modes'}"
        )
    return able & frozenset(share)


def _attention(site: Site) -> tuple[str, Label]:
    """Tower and kind of attention (encoder, decoder, cross) that a site belongs to."""
    return site.prefix, dict(site.labels).get("attn", "")


def _heads_of_outputs(sites: Sequence[Site]) -> dict[tuple[str, Label], int]:
    """Number of query heads of every kind of attention."""
    found: dict[tuple[str, Label], int] = {}
    for site in sites:
        if site.role.endswith("_in"):
            found[_attention(site)] = max(found.get(_attention(site), 0), site.heads)
    return found


def _heads(site: Site, of_outputs: Mapping[tuple[str, Label], int]) -> tuple[int, bool]:
    """Number of heads, and whether they lie along ``in``."""
    if site.role in ("attn_out", "cross_out"):
        return of_outputs.get(_attention(site), 0), True
    return site.heads, False


def _names(keys: Sequence[tuple[Any, ...]]) -> list[str]:
    """A name for every grid: shape, and what else tells it apart."""
    towers = len({prefix for prefix, *_ in keys}) > 1
    names: list[str] = []
    for prefix, shape, apart, (_, heads_in) in keys:
        words = [prefix] if towers else []
        words += [label if isinstance(label, str) else f"{mode}{label}" for mode, label in apart]
        words += ["x".join(map(str, shape))] + (["heads_in"] if heads_in else [])
        name = "_".join(word.replace(".", "_") for word in words if word)
        same = sum(n == name or n.startswith(f"{name}-") for n in names)
        names.append(f"{name}-{same + 1}" if same else name)
    return names


def _site_grid(
    spec: Spec,
    name: str,
    sites: Sequence[Site],
    together: frozenset[str],
    heads: tuple[int, bool],
) -> SiteGrid:
    rows = _labels(sites, together)
    modes = _numbered_labels(rows)
    for letter in spec.letters:  # a mode that these weights do not have is one of size 1
        if letter in SITE_MODES and letter not in (*modes, *spec.weight_modes, "site", "task"):
            modes[letter] = {0: 0}

    def place(row: Mapping[str, Label]) -> tuple[int, ...]:
        return tuple(labels.get(row.get(mode, 0), 0) for mode, labels in modes.items())

    places = list(map(place, rows))
    order = sorted(range(len(sites)), key=places.__getitem__)
    n_heads, heads_in = heads
    grid = Grid(
        name=name,
        shape=sites[0].shape,
        modes=tuple((mode, tuple(labels)) for mode, labels in modes.items()),
        places=tuple(places[k] for k in order),
        heads=n_heads,
        heads_in=heads_in,
    )
    return SiteGrid(grid, tuple(sites[k] for k in order))


def _numbered_labels(rows: Sequence[Mapping[str, Label]]) -> dict[str, dict[Label, int]]:
    """Position of every label of every mode: numbers ascending, then words as first seen."""
    seen: dict[str, dict[Label, None]] = {}
    for row in rows:
        for mode, label in row.items():
            seen.setdefault(mode, {})[label] = None
    modes: dict[str, dict[Label, int]] = {}
    for mode, labels in seen.items():
        numbers = sorted(label for label in labels if isinstance(label, int))
        words = [label for label in labels if not isinstance(label, int)]
        modes[mode] = {label: k for k, label in enumerate((*numbers, *words))}
    return modes


def _labels(sites: Sequence[Site], together: frozenset[str]) -> list[dict[str, Label]]:
    """Labels of every site along the stacked modes; two sites never have all in common."""
    rows = [{m: v for m, v in site.labels if m in together} for site in sites]
    if len({tuple(row.items()) for row in rows}) < len(rows) and "proj" in together:
        rows = [
            row | {"proj": f"{site.role}.{row.get('proj', '')}"}
            for row, site in zip(rows, sites, strict=True)
        ]
    return rows
