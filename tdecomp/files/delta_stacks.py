"""Deltas of a pair of models as lazy stacks: read ahead, and kept where there is room."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from tdecomp._xp import Array
from tdecomp.files.checkpoint import Pair
from tdecomp.files.coming import Coming
from tdecomp.files.device import numpy_place, torch_place
from tdecomp.stack import Group, Recipe, Site, Stack

__all__ = ["SliceReader", "stacks_of"]

_WORTH = 1 << 16  # numbers of a slice: to hand on fewer takes longer than to read them


def stacks_of(
    both: Pair,
    groups: Sequence[Group],
    device: str | None = None,
    *,
    roundings: dict[Site, float] | None = None,
    keep: int = 0,
    recipe: Callable[[Group], Recipe] | None = None,
) -> tuple[Stack, ...]:
    """Lazy stacks of the deltas of the given groups, read ahead by one slice unless that is tiny.

    Two slices are in memory while one iterates, at times a third; one iteration and the next use
    the same memory. Those of numpy may be read in several threads at once.

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
    recipe
        How another process reads a group; numpy only.

    Raises
    ------
    ArgumentError
        If torch is not installed, or has no such device here.
    """
    reader = SliceReader(both, device, roundings, keep)
    return tuple(
        reader.stack(group, recipe=None if recipe is None or device else recipe(group))
        for group in groups
    )


class SliceReader:
    """Reads slices of the deltas of two models; parameters as for `stacks_of`.

    What was kept is forgotten where nothing was read for `idle` seconds; None: it never is.
    """

    def __init__(
        self,
        both: Pair,
        device: str | None = None,
        roundings: dict[Site, float] | None = None,
        keep: int = 0,
        idle: float | None = None,
    ) -> None:
        self._both, self._roundings = both, roundings
        self._place = numpy_place() if device is None else torch_place(device)
        self._concurrent = device is None
        self._kept = _KeptSlices(keep, idle)

    def stack(
        self,
        group: Group,
        order: Sequence[Site] | None = None,
        *,
        recipe: Recipe | None = None,
        beside: bool = True,
    ) -> Stack:
        """One group; `order` are the sites that will be read, by default all.

        `beside` says whether roundings are taken up, where there is a place for them.
        """
        ahead = math.prod(group.shape[-2:]) >= _WORTH
        sites = group.sites if order is None else order
        roundings = self._roundings if beside else None
        coming = Coming(sites, lambda site: self._both.ahead(site.tensor, site.slices))
        return Stack(
            group,
            partial(self._kept.read, group, partial(self._read, coming, roundings)),
            ahead=ahead,
            concurrent=self._concurrent,
            recipe=recipe,
            beside={} if roundings is None else roundings,
        )

    def _read(self, coming: Coming[Site], roundings: dict[Site, float] | None, site: Site) -> Array:
        coming.tell(site)
        both, place = self._both, self._place
        if roundings is None or site in roundings:
            delta = both.delta(site.tensor, site.slices, empty=place.empty)
        else:
            delta, roundings[site] = both.delta_and_rounding(
                site.tensor, site.slices, empty=place.empty
            )
        return site.view(place.put(delta))


class _KeptSlices:
    """Slices of one group that stay in memory, the first ones that there is room for."""

    def __init__(self, room: int, idle: float | None) -> None:
        self._room, self._idle = room, idle
        self._lock = threading.Lock()
        self._group: Group | None = None
        self._used, self._watched = 0.0, False
        self._forget()

    def read(self, group: Group, read: Callable[[Site], Array], site: Site) -> Array:
        """The slice of a site, read unless it is there."""
        if self._room == 0:
            return read(site)
        with self._lock:
            self._used = time.monotonic()
            if group is not self._group:
                self._forget()
                self._group = group
            if site in self._slices:
                return self._slices[site]
        matrix = read(site)
        size = matrix.dtype.itemsize * math.prod(matrix.shape)
        with self._lock:
            if size <= self._left:
                self._slices[site] = matrix
                self._left -= size
                self._watch()
        return matrix

    def _forget(self) -> None:
        self._left, self._slices = self._room, dict[Site, Array]()

    def _watch(self) -> None:
        """Forget all once nothing was read for a while."""
        if self._idle is None or self._watched:
            return
        self._watched = True
        left = max(0.0, self._used + self._idle - time.monotonic())
        timer = threading.Timer(left, self._look)
        timer.daemon = True
        timer.start()

    def _look(self) -> None:
        with self._lock:
            self._watched = False
            if self._idle is not None and time.monotonic() - self._used < self._idle:
                self._watch()
            else:
                self._forget()
