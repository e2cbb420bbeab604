"""The sites of a merge, one at a time, and the sums over them that a report is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tdecomp._xp import Array, to_numpy
from tdecomp.collections import AdapterPair
from tdecomp.collections.merging import Merged, MergeMethod, MergeRule, MergeSite
from tdecomp.collections.resizing import PairSpectrum, choose_ranks, resized
from tdecomp.errors import ArgumentError, SiteError
from tdecomp.files import safetensors
from tdecomp.files.loras.adapter_file import HeldPair
from tdecomp.files.loras.base_names import alike
from tdecomp.jobs.members import Members
from tdecomp.ranking.target import Target
from tdecomp.statistics import Statistics

__all__ = ["Figures", "Merging", "WrittenPairs", "ranks_of"]


@dataclass
class Figures:
    """Sums over all sites: of every member, and of the merged delta."""

    count: int
    sites: int = 0
    merged: float = 0.0
    energies: np.ndarray = field(init=False)
    inner: np.ndarray = field(init=False)
    lost: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.energies, self.inner, self.lost = np.zeros((3, self.count))

    def add(self, site: MergeSite, merged: Merged, lost: Sequence[float]) -> None:
        """Count one site."""
        self.sites += 1
        self.merged += merged.energy()
        self.energies += [Merged(b, a).energy() for b, a in site.pairs]
        self.inner += [merged.inner(b, a) for b, a in site.pairs]
        self.lost += lost or 0.0


@dataclass
class Merging:
    """One merge: what is asked for, and what was seen while it was made."""

    row: MergeMethod
    rule: MergeRule
    members: Members
    weights: tuple[float, ...]
    seed: int
    seen: tuple[Statistics, ...]
    figures: Figures = field(init=False)

    def __post_init__(self) -> None:
        self.figures = Figures(len(self.weights))

    def merged(self, site: str, *, counted: bool = True) -> Merged:
        """The merged delta of one site; in the figures every site counts once."""
        asked = self._site(site)
        merged = self.row(asked, self.rule)
        if counted:
            lost = () if self.row.losses is None else self.row.losses(self.rule, asked)
            self.figures.add(asked, merged, lost)
        return merged

    def spectrum(self, site: str) -> PairSpectrum:
        """Singular values of the merged delta of one site, which is not counted."""
        pair = self.merged(site, counted=False).pair()
        return PairSpectrum(to_numpy(pair.spectrum()), pair.shape)

    def _site(self, site: str) -> MergeSite:
        out, in_ = self.members.together.shapes[site]
        nothing = np.zeros((out, 0)), np.zeros((0, in_))
        found = (
            nothing if pair is None else tuple(map(to_numpy, pair.folded()))
            for pair in self.members.together.pairs(site)
        )
        return MergeSite(
            name=site,
            pairs=tuple((b, a) for b, a in found),
            weights=self.weights,
            seed=self.seed,
            fishers=self._of(site, _fisher) if "fishers" in self.row.needs else (),
            inputs=self._of(site, _moment) if "inputs" in self.row.needs else (),
        )

    def _of(
        self, site: str, find: Callable[[Statistics, str], np.ndarray]
    ) -> tuple[np.ndarray, ...]:
        return tuple(find(one, _weight_in(one, site)) for one in self.seen)


def _weight_in(seen: Statistics, site: str) -> str:
    """What statistics call the weight of a site."""
    names = (site, site.partition(".")[2])
    for weight in seen.sites:
        if any(alike(weight.removesuffix(".weight")) == alike(name) for name in names):
            return weight
    raise SiteError(f"the statistics of {seen.model or 'the model'} hold nothing of {site}")


def _fisher(seen: Statistics, weight: str) -> np.ndarray:
    found = seen.of(weight).fisher
    if found is None:
        raise ArgumentError(f"the statistics hold no Fisher diagonal of {weight}: capture it")
    return found[1].astype(np.float64)


def _moment(seen: Statistics, weight: str) -> np.ndarray:
    return seen.inputs_of(weight).second_moment().astype(np.float64)


@dataclass
class WrittenPairs:
    """Pairs of a merged adapter as they are stored, and how far they are from what was merged.

    Attributes
    ----------
    dtype
        Storage code of the factors.
    stored
        The pair of every site so far.
    lost
        ``‖written − merged‖²`` of all of them.
    """

    dtype: str
    stored: dict[str, HeldPair] = field(default_factory=dict[str, HeldPair])
    lost: float = 0.0

    def add(self, members: Members, site: str, merged: Merged, rank: int) -> None:
        """Cut and round the delta of a site."""
        like = members.first(site)
        new = resized(merged.pair(), rank, rounding=self._rounded)
        turned = replace(_used(new.pair), transpose=like.transpose, kernel=like.kernel)
        self.stored[site] = members.held(site, turned, self.dtype)
        self.lost += new.departure

    def _rounded(self, array: Array) -> np.ndarray:
        return safetensors.rounded(to_numpy(array).astype(np.float32), self.dtype)

    @property
    def largest_rank(self) -> int:
        """Of all pairs."""
        return max(held.pair.rank for held in self.stored.values())

    @property
    def numbers(self) -> int:
        """In all pairs."""
        return sum(sum(held.shape) * held.pair.rank for held in self.stored.values())


def ranks_of(work: Merging, rank: int | None, error: float | None, budget: int | None) -> list[int]:
    """The largest rank of every site; an error or a budget needs all spectra, and merges twice."""
    sites = work.members.together.sites
    if error is None and budget is None:
        return [_WIDEST if rank is None else rank] * len(sites)
    spectra = [work.spectrum(site) for site in sites]
    if not any(row.s.any() for row in spectra):
        return [0] * len(sites)
    return choose_ranks(spectra, Target(None, error, budget, None))


def _used(pair: AdapterPair) -> AdapterPair:
    """A balanced pair without the columns that only rounding fills."""
    squares = (np.asarray(pair.b) ** 2).sum(axis=0)  # singular values
    kept = int((squares > _ROUNDING * squares.max(initial=0.0)).sum())
    return replace(pair, b=pair.b[:, :kept], a=pair.a[:kept, :])


_WIDEST = 2**31
_ROUNDING = 1e-12
