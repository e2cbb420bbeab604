"""What fine-tuning changed: two checkpoints as lazy stacks of deltas, and the way back."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from tdecomp._memory import half_of_the_free_memory
from tdecomp._threads import cores, one_each, side_by_side
from tdecomp._xp import quick_sum_of_squares
from tdecomp.errors import FileError, SiteError
from tdecomp.files.checkpoint import Checkpoint, Pair, Update, open_checkpoint, pair
from tdecomp.files.coming import Coming
from tdecomp.files.delta_stacks import SliceReader, stacks_of
from tdecomp.files.factors import Factors
from tdecomp.files.left_out import (
    Measured,
    RowBlock,
    ahead,
    blocks,
    measured,
    rows_of,
    size_of,
    with_doubt,
)
from tdecomp.files.storage import Location, Url, from_root
from tdecomp.files.tally import Tally
from tdecomp.files.unpaired import Uncovered, differing_sizes, refuse_missing, unpaired
from tdecomp.formats import Format
from tdecomp.progress import Progress, part, silent
from tdecomp.stack import Group, Selection, Site, Stack, Survey, find_sites, group_sites
from tdecomp.stack.selection import EVERYTHING
from tdecomp.tasks import Executor, sendable, spread

__all__ = [
    "Delta",
    "DeltaRecipe",
    "Remainder",
    "Uncovered",
    "open_delta",
    "stacks_of",
    "survey_model",
    "updates",
]


_OPEN = 4  # deltas that a worker holds open
_IDLE = 60.0  # seconds that a worker keeps slices that nobody asks for


@dataclass(frozen=True, kw_only=True)
class Delta:
    """Tuned minus base: the stacks to decompose, and what they leave out.

    The first reading of a slice also measures its rounding, which `rounding_floor` then need not.

    Attributes
    ----------
    pair, survey, groups
        The models, the sites of the base, and those that are paired, as groups.
    left_out
        Tensors that both models hold and no group does, with the reason.
    unpaired
        What has no partner: what changed there is unknown.
    recipe
        How another process opens this.
    """

    pair: Pair
    survey: Survey
    groups: tuple[Group, ...]
    left_out: Mapping[str, str]
    unpaired: tuple[Uncovered, ...] = ()
    recipe: DeltaRecipe | None = field(default=None, repr=False, compare=False)
    _roundings: dict[Site, float] = field(
        default_factory=dict[Site, float], init=False, repr=False, compare=False
    )

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """One lazy stack of float32 numpy deltas per group, read ahead; for `executor=`, too."""
        return self.stacks_on(None)

    def stacks_on(
        self, device: str | None, *, keep: int = 0, keep_there: int | None = 0
    ) -> tuple[Stack, ...]:
        """As `stacks`, as torch tensors on a device, kept between passes; see `stacks_of`.

        `keep_there` are bytes that each worker keeps, None: a share of what is free there.
        """
        return stacks_of(
            self.pair,
            self.groups,
            device,
            roundings=self._roundings,
            keep=keep,
            recipe=None if self.recipe is None else replace(self.recipe, keep=keep_there).of_group,
        )

    def reader(self, keep: int = 0, idle: float | None = None) -> SliceReader:
        """Reads slices of any group; parameters as for `SliceReader`."""
        return SliceReader(self.pair, None, self._roundings, keep, idle)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Stored shape of every tensor that holds a site."""
        names = {site.tensor for group in self.groups for site in group.sites}
        return {n: self.pair.base.shape(n) for n in self.pair.base.names if n in names}

    @property
    def n_numbers(self) -> int:
        """Numbers that the stacks cover."""
        return sum(math.prod(group.shape) for group in self.groups)

    @property
    def n_to_measure(self) -> int:
        """Numbers that `remainder` visits."""
        return self._n_left_out + self.n_numbers

    @property
    def _n_left_out(self) -> int:
        return sum(size_of(self.pair, tensor) for tensor in self.left_out)

    def remainder(self, progress: Progress = silent, executor: Executor | None = None) -> Remainder:
        """All that a decomposition of the stacks does not tell; both steps under one progress."""
        share = self._n_left_out / max(self.n_to_measure, 1)
        return Remainder(
            uncovered=tuple(self.uncovered(part(progress, 0, share), executor)),
            rounding=self.rounding_floor(part(progress, share, 1)),
        )

    def uncovered(
        self, progress: Progress = silent, executor: Executor | None = None
    ) -> list[Uncovered]:
        """Every tensor left out, with the squared norm of its delta; reads those tensors once.

        Nothing that is not covered is refused: what cannot be read or is not finite is unknown.
        """
        rows, tally = list(self.unpaired), Tally(progress, self._n_left_out)
        parts = {tensor: blocks(self.pair, tensor) for tensor in self.left_out}
        with self._each_measured([b for own in parts.values() for b in own], executor) as found:
            for tensor, reason in self.left_out.items():
                own = [(block, next(found)) for block in parts[tensor]]
                rows += rows_of(self.pair, tensor, reason, own)
                tally.add(size_of(self.pair, tensor))
        return rows + self._partly_covered()

    @contextmanager
    def _each_measured(
        self, parts: Sequence[RowBlock], executor: Executor | None
    ) -> Generator[Iterator[Measured]]:
        """Inside, every block measured, here or by workers, in their order."""
        if executor is not None and self.recipe is not None:
            calls = (partial(_measured_there, self.recipe, block) for block in parts)
            with spread(executor, calls) as found:
                yield found
        else:
            coming = Coming(parts, partial(ahead, self.pair))
            work = partial(self._measured_here, coming)
            with side_by_side(work, parts, one_each(len(parts))) as found:
                yield found

    def _measured_here(self, coming: Coming[RowBlock], block: RowBlock) -> Measured:
        coming.tell(block)
        return measured(self.pair, block)

    def rounding_floor(self, progress: Progress = silent) -> float:
        """Expected squared error of the covered delta that is only half-precision storage.

        Reads only those sites that no stack has read yet.
        """
        total, tally = 0.0, Tally(progress, self.n_numbers)
        for site in (site for group in self.groups for site in group.sites):
            if site not in self._roundings:
                self._roundings[site] = self.pair.rounding(site.tensor, site.slices)
            total += self._roundings[site]
            tally.add(math.prod(site.shape))
        return total

    def _partly_covered(self) -> list[Uncovered]:
        """Tensors of which only some rows are sites (one projection of a fused weight)."""
        covered: dict[str, list[Site]] = {}
        for site in (site for group in self.groups for site in group.sites):
            covered.setdefault(site.tensor, []).append(site)
        rows: list[Uncovered] = []
        shapes = self.shapes
        for tensor, sites in covered.items():
            rest = math.prod(shapes[tensor]) - sum(math.prod(s.shape) for s in sites)
            if rest > 0:
                delta = self.pair.known_delta(tensor)
                for site in sites:
                    delta[site.slices] = 0
                energy = quick_sum_of_squares(delta) if np.isfinite(delta).all() else None
                why = f"{rest} of its numbers were not targeted"
                rows.append(Uncovered(tensor, with_doubt(why, energy), energy))
        return rows


@dataclass(frozen=True, kw_only=True)
class Remainder:
    """What is measured beside the stacks of a `Delta`.

    Attributes
    ----------
    uncovered
        As `Delta.uncovered`.
    rounding
        As `Delta.rounding_floor`.
    """

    uncovered: tuple[Uncovered, ...]
    rounding: float


def survey_model(checkpoint: Checkpoint, selection: Selection = EVERYTHING) -> Survey:
    """Sites of one checkpoint."""
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names}
    try:
        survey = find_sites(
            shapes,
            checkpoint.config,
            targets=selection.targets,
            exclude=selection.exclude,
            layers=selection.layers,
            patterns=selection.patterns,
        )
    except SiteError as error:
        refused = next(iter(checkpoint.refused.values()), "")
        message = f"{checkpoint.path}: {error.message}" + (refused and f"; {refused}")
        raise SiteError(message, tip=error.tip) from None
    return replace(survey, notes=(*survey.notes, *checkpoint.notes))


def open_delta(
    base: str | Path | Url,
    tuned: str | Path | Url,
    selection: Selection = EVERYTHING,
    *,
    allow_missing: bool = False,
    mmap: bool = True,
) -> Delta:
    """Pair two checkpoints and stack the deltas of their sites, reading nothing but headers.

    Parameters
    ----------
    base, tuned
        Model folders, files or indexes, here or on a server.
    selection
        Which weights are sites, and how they are stacked.
    allow_missing
        Go on when sites of either model have no partner: what changed there stays unknown.
    mmap
        As for `open_checkpoint`.

    Raises
    ------
    SiteError
        No site; or sites without a partner, unless they are allowed.
    FileError
        A checkpoint that cannot be read.
    """
    both = pair(open_checkpoint(base, mmap=mmap), open_checkpoint(tuned, mmap=mmap))
    survey = survey_model(both.base, selection)
    survey = replace(survey, notes=(*survey.notes, *both.tuned.notes))
    whole = both.readings.keys() - both.grown.keys()
    sites = [site for site in survey.sites if site.tensor in whole]
    lone = unpaired(both, survey, _tuned_sites(both, selection))
    if not sites:
        why = differing_sizes(both) or next(iter(both.refused.values()), "")
        raise SiteError(
            f"none of the sites of {both.base.path} is in {both.tuned.path}"
            + (f": {why}" if why else "")
        )
    if not allow_missing:
        refuse_missing(both, [row for row in lone if row.site])
    return Delta(
        pair=both,
        survey=survey,
        groups=group_sites(sites, share=selection.share),
        left_out=_other_tensors(both, survey),
        unpaired=lone,
        recipe=DeltaRecipe(
            base=from_root(both.base.path),
            tuned=from_root(both.tuned.path),
            selection=json.dumps(selection.to_json()),
            marks=(both.base.marks, both.tuned.marks),
            mmap=mmap,
        ),
    )


@sendable
@dataclass(frozen=True)
class DeltaRecipe:
    """How another process opens a delta: paths, a selection, and what tells the files.

    Attributes
    ----------
    base, tuned
        Where the models are; paths from the root.
    selection
        As `Selection.to_json`, in JSON.
    marks
        `Checkpoint.marks` of both, where the recipe was made.
    mmap
        As for `open_delta`.
    group
        Name of the one whose slices are read.
    keep
        Bytes of slices that stay there for the next pass, until nobody has asked for a minute.
        None: a quarter of the free memory, shared by the processors.
    """

    base: Location
    tuned: Location
    selection: str
    marks: tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]
    mmap: bool
    group: str = ""
    keep: int | None = 0

    def of_group(self, group: Group) -> DeltaRecipe:
        """The recipe of one stack."""
        return replace(self, group=group.name)

    def opened(self, slices: Sequence[int], *, beside: bool = True) -> Stack:
        """The stack of the group, of which some slices will be read."""
        delta, reader = _opened(replace(self, group=""))
        (group,) = (one for one in delta.groups if one.name == self.group)
        return reader.stack(group, [group.sites[i] for i in slices], beside=beside)


@lru_cache(maxsize=_OPEN)
def _opened(recipe: DeltaRecipe) -> tuple[Delta, SliceReader]:
    """A delta that this process holds open, and what reads its slices."""
    selection = Selection(**json.loads(recipe.selection))
    delta = open_delta(recipe.base, recipe.tuned, selection, allow_missing=True, mmap=recipe.mmap)
    for checkpoint, then in zip((delta.pair.base, delta.pair.tuned), recipe.marks, strict=True):
        for (name, before), (_, now) in zip(then, checkpoint.marks, strict=False):
            if before != now:
                raise FileError(
                    f"{checkpoint.path}: {name} is another file for a worker than for the process"
                    " that gave it work: run again when nothing writes to it"
                )
    share = (half_of_the_free_memory() or 0) // 2 // cores()
    keep = share if recipe.keep is None else min(recipe.keep, share)
    return delta, delta.reader(keep, idle=_IDLE)


@sendable
def _measured_there(recipe: DeltaRecipe, block: RowBlock) -> Measured:
    """`measured`; this runs on a worker."""
    delta, _ = _opened(recipe)
    return measured(delta.pair, block)


def updates(factors: Factors) -> Mapping[str, Update]:
    """For every tensor that holds sites, the function that adds the decoded delta to it."""
    changes: dict[str, list[_Change]] = {}
    for one in factors.parts:
        for i, site in enumerate(one.group.sites):
            changes.setdefault(site.tensor, []).append((one.tensor, i, site))
    return {tensor: partial(_changed, places) for tensor, places in changes.items()}


_Change = tuple[Format, int, Site]
"""A tensor in factors, the position of one of its matrices, and where that belongs."""


def _changed(changes: Sequence[_Change], stored: np.ndarray) -> np.ndarray:
    """A stored tensor with the matrices added."""
    stored = stored.copy()
    for tensor, i, site in changes:
        site.take(stored)[...] += tensor.matrix(i)
    return stored


def _tuned_sites(both: Pair, selection: Selection) -> set[str]:
    """Tensors of the tuned model alone that would be sites by the same search."""
    lone = {*both.only_tuned, *both.ignored} & both.tuned.entries.keys()
    if not lone:
        return set()
    try:
        found = survey_model(both.tuned, selection)
    except SiteError:  # nothing there has such a name
        return set()
    return {site.tensor for site in found.sites} & lone


def _other_tensors(both: Pair, survey: Survey) -> dict[str, str]:
    """What both models hold and no site does, with the reason."""
    sites = {site.tensor for site in survey.sites}
    rows = {name: reason for name, reason in survey.uncovered if name in both.readings}
    rows |= {name: "not floating point" for name in both.alike if name not in sites}
    rows |= {
        head: f"output head, tied to {source} in one model"
        for head, source in both.tied
        if head not in sites
    }
    return rows
