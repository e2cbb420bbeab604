"""What fine-tuning changed: two checkpoints as lazy stacks of deltas, and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from tdecomp._xp import Array, quick_sum_of_squares
from tdecomp.errors import SiteError
from tdecomp.files.checkpoint import Checkpoint, Pair, Update, open_checkpoint, pair
from tdecomp.files.device import numpy_place, torch_place
from tdecomp.files.factors import Factors
from tdecomp.stack import Group, Site, Stack, Survey, Targets, find_sites, group_sites

__all__ = ["Delta", "Uncovered", "open_delta", "stacks_of", "survey_model", "updates"]

_SIZES = (
    "model_type",
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "hidden_size",
    "n_embd",
    "d_model",
)


@dataclass(frozen=True)
class Uncovered:
    """A tensor that the stacks leave out.

    Attributes
    ----------
    tensor, reason
        Its name and why.
    energy
        Squared norm of its delta, 0 where there is none to speak of.
    """

    tensor: str
    reason: str
    energy: float


@dataclass(frozen=True)
class Delta:
    """Tuned minus base: the stacks to decompose, and what they leave out.

    The first reading of a slice also measures its rounding, which `rounding_floor` then need not.
    """

    pair: Pair
    survey: Survey
    groups: tuple[Group, ...]
    left_out: tuple[tuple[str, str], ...]
    _roundings: dict[Site, float] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """One lazy stack of float32 numpy deltas per group, read ahead."""
        return stacks_of(self.pair, self.groups, roundings=self._roundings)

    def stacks_on(self, device: str | None, *, keep: int = 0) -> tuple[Stack, ...]:
        """As `stacks`, as torch tensors on a device, kept between passes; see `stacks_of`."""
        return stacks_of(self.pair, self.groups, device, roundings=self._roundings, keep=keep)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Stored shape of every tensor that holds a site."""
        names = {site.tensor for group in self.groups for site in group.sites}
        return {n: self.pair.base.shape(n) for n in self.pair.common if n in names}

    def uncovered(self, tick: Callable[[int], None] = lambda numbers: None) -> list[Uncovered]:
        """Every tensor left out, with the squared norm of its delta; reads those tensors once."""
        measured = {*self.pair.common, *(head for head, _ in self.pair.tied)}
        rows = []
        for tensor, reason in self.left_out:
            energy = self.pair.energy(tensor) if tensor in measured else 0.0
            rows.append(Uncovered(tensor, reason, energy))
            if tensor in measured:
                tick(math.prod(self.pair.base.shape(self.pair.base_name(tensor))))
        return rows + self._partly_covered()

    def rounding_floor(self, tick: Callable[[int], None] = lambda numbers: None) -> float:
        """Expected squared error of the covered delta that is only half-precision storage.

        Reads only those sites that no stack has read yet.
        """
        total = 0.0
        for site in (site for group in self.groups for site in group.sites):
            if site not in self._roundings:
                self._roundings[site] = self.pair.rounding(site.tensor, site.slices)
            total += self._roundings[site]
            tick(math.prod(site.shape))
        return total

    def _partly_covered(self) -> list[Uncovered]:
        """Tensors of which only some rows are sites (one projection of a fused weight)."""
        covered: dict[str, list[Site]] = {}
        for site in (site for group in self.groups for site in group.sites):
            covered.setdefault(site.tensor, []).append(site)
        rows, shapes = [], self.shapes
        for tensor, sites in covered.items():
            shape = shapes[tensor]
            if (rest := math.prod(shape) - sum(math.prod(s.shape) for s in sites)) > 0:
                delta = self.pair.delta(tensor)
                for site in sites:
                    delta[site.slices] = 0
                rows.append(
                    Uncovered(
                        tensor,
                        f"{rest} of its numbers were not targeted",
                        quick_sum_of_squares(delta),
                    )
                )
        return rows


def survey_model(
    checkpoint: Checkpoint,
    *,
    targets: Targets | None = None,
    exclude: Targets | None = None,
    layers: Collection[int] | None = None,
    patterns: Sequence[str] = (),
) -> Survey:
    """Sites of one checkpoint; parameters as in `find_sites`."""
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names}
    try:
        survey = find_sites(
            shapes,
            checkpoint.config,
            targets=targets,
            exclude=exclude,
            layers=layers,
            patterns=patterns,
        )
    except SiteError as error:
        refused = next(iter(checkpoint.refused.values()), "")
        raise SiteError(f"{checkpoint.path}: {error}" + (refused and f"; {refused}")) from None
    return replace(survey, notes=(*survey.notes, *checkpoint.notes))


def open_delta(
    base: str | Path,
    tuned: str | Path,
    *,
    targets: Targets | None = None,
    exclude: Targets | None = None,
    layers: Collection[int] | None = None,
    patterns: Sequence[str] = (),
    share: Sequence[str] | None = None,
) -> Delta:
    """Pair two checkpoints and stack the deltas of their sites, reading nothing but headers.

    Raises
    ------
    SiteError
        No site, or sites that the two do not have in common.
    FileError
        A checkpoint that cannot be read.
    """
    both = pair(open_checkpoint(base), open_checkpoint(tuned))
    survey = survey_model(
        both.base, targets=targets, exclude=exclude, layers=layers, patterns=patterns
    )
    survey = replace(survey, notes=(*survey.notes, *both.tuned.notes))
    sites, missing = _paired(both, survey)
    groups = group_sites(sites, share=share)
    return Delta(both, survey, groups, (*missing, *_other_tensors(both, survey)))


def stacks_of(
    both: Pair,
    groups: Sequence[Group],
    device: str | None = None,
    *,
    roundings: dict[Site, float] | None = None,
    keep: int = 0,
) -> tuple[Stack, ...]:
    """Lazy stacks of the deltas of the given groups, read ahead by one slice.

    Two slices are in memory while one iterates, at times a third; one iteration and the next use
    the same memory.

    Parameters
    ----------
    both
        The models.
    groups
        Of sites that both have.
    device
        ``"cuda"``, ``"cuda:1"``, ``"cpu"``, ...: slices are torch tensors there, copied while the
        caller computes. By default they are numpy arrays.
    roundings
        Takes up `Pair.rounding` of every site that is not in it, when the site is read.
    keep
        Bytes of slices that stay in memory for the next pass over the same group: the first ones
        that fit, until a slice of another group is read. Callers must not write into a slice.

    Raises
    ------
    ArgumentError
        If torch is not installed, or has no such device here.
    """
    place = numpy_place() if device is None else torch_place(device)
    kept = _Kept(keep)

    def read(site: Site) -> Array:
        if roundings is None or site in roundings:
            delta = both.delta(site.tensor, site.slices, empty=place.empty)
        else:
            delta, roundings[site] = both.delta_and_rounding(
                site.tensor, site.slices, empty=place.empty
            )
        return site.view(place.put(delta))

    readers = [partial(kept.read, group, read) for group in groups]
    return tuple(Stack(g, reader, ahead=True) for g, reader in zip(groups, readers, strict=True))


class _Kept:
    """Slices of one group that stay in memory, the first ones that there is room for."""

    def __init__(self, room: int) -> None:
        self._room, self._left = room, room
        self._group: Group | None = None
        self._slices: dict[Site, Array] = {}

    def read(self, group: Group, read: Callable[[Site], Array], site: Site) -> Array:
        """The slice of a site, read unless it is there."""
        if self._room == 0:
            return read(site)
        if group is not self._group:
            self._group, self._left = group, self._room
            self._slices = {}
        if site in self._slices:
            return self._slices[site]
        matrix = read(site)
        size = matrix.dtype.itemsize * math.prod(matrix.shape)
        if size <= self._left:
            self._slices[site] = matrix
            self._left -= size
        return matrix


def updates(factors: Factors) -> Mapping[str, Update]:
    """For every tensor that holds sites, the function that adds the decoded delta to it."""
    parts: dict[str, list[tuple[int, int, Site]]] = {}
    for g, group in enumerate(factors.groups):
        for i, site in enumerate(group.sites):
            parts.setdefault(site.tensor, []).append((g, i, site))

    def adder(places: list[tuple[int, int, Site]]) -> Update:
        def add(stored: np.ndarray) -> np.ndarray:
            stored = stored.copy()
            for g, i, site in places:
                site.take(stored)[...] += factors.tensors[g].matrix(i)
            return stored

        return add

    return {tensor: adder(places) for tensor, places in parts.items()}


def _paired(both: Pair, survey: Survey) -> tuple[list[Site], list[tuple[str, str]]]:
    """Sites that both models have, and those that only the base has."""
    hold_sites = {site.tensor for site in survey.sites}
    for name, old, new in both.reshaped:
        if name in hold_sites:
            raise SiteError(
                f"{name} is {old} in {both.base.path} and {new} in {both.tuned.path}: "
                "different architectures? leave it out with --exclude if they are not"
            )
    common = set(both.common)
    missing = dict.fromkeys(s.tensor for s in survey.sites if s.tensor not in common)
    lone = [f"{name} is only in the base" for name in missing]
    lone += [f"{name} is only in the tuned model" for name in both.only_tuned]
    if lone and (differs := _differing_sizes(both)):
        raise SiteError(
            f"{both.base.path} and {both.tuned.path} are of different architectures: {differs}; "
            f"{lone[0]}"
        )
    sites = [site for site in survey.sites if site.tensor in common]
    if not sites:
        raise SiteError(f"none of the sites of {both.base.path} is in {both.tuned.path}")
    return sites, [(name, "only in the base") for name in missing]


def _differing_sizes(both: Pair) -> str:
    old, new = both.base.config, both.tuned.config
    differing = [k for k in _SIZES if k in old and k in new and old[k] != new[k]]
    return ", ".join(f"{k} {old[k]} and {new[k]}" for k in differing)


def _other_tensors(both: Pair, survey: Survey) -> list[tuple[str, str]]:
    """Everything else that is in either model, with the reason it holds no site."""
    why = {name: "only in the base" for name in both.only_base}
    why |= {
        name: f"{old} in the base, {new} in the tuned model" for name, old, new in both.reshaped
    }
    why |= {name: "not floating point" for name in both.ignored}
    tied = {head: f"output head, tied to {embedding} in one model" for head, embedding in both.tied}
    rows = [(name, tied.get(name, why.get(name, reason))) for name, reason in survey.uncovered]
    known = {name for name, _ in rows} | {site.tensor for site in survey.sites}
    rows += [(name, reason) for name, reason in (tied | why).items() if name not in known]
    return rows + [(name, "only in the tuned model") for name in both.only_tuned]
