"""A tensor in the coordinates it is decomposed in: exact ones, or those of a sketch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tdecomp._xp import Array
from tdecomp.formats import Tucker
from tdecomp.passes.coordinates import Frame, Metric
from tdecomp.passes.data import Data
from tdecomp.passes.stream import CLOSE, streamed, worth_sketching
from tdecomp.progress import Progress, silent

__all__ = ["CoreView", "exact_view", "sketched_view", "with_outside_measured"]


@dataclass(frozen=True, kw_only=True)
class CoreView:
    """What is known of a tensor in the coordinates it is decomposed in.

    Attributes
    ----------
    array
        The tensor there, or the part of it that a sketch has found.
    frame
        The way back to the modes of the data.
    energy
        Of a sketch: squared norm of the whole tensor.
    outside
        Squared norm of what a sketch leaves out.
    energies
        Squared norm of every matrix, where they are known.
    passes
        Over the data.
    """

    array: Array
    frame: Frame = field(default_factory=Frame)
    energy: float | None = None
    outside: float = 0.0
    energies: Sequence[float] | None = None
    passes: int = 1

    @property
    def is_sketch(self) -> bool:
        """Whether `array` is only a part of the tensor."""
        return self.energy is not None

    @property
    def size(self) -> int:
        """Numbers of `array`."""
        return math.prod(self.array.shape)


def exact_view(x: Data[Any], where: Collection[int], metric: Metric | None) -> CoreView:
    """All of the tensor; of a format, the modes that are not compressed keep their size."""
    opened = [name for k, name in enumerate(x.modes) if k not in where]
    array, frame = x.coordinates(opened, metric)
    return CoreView(array=array, frame=frame)


def sketched_view(
    x: Data[Any], rank: Mapping[int, int], seed: int, progress: Progress = silent
) -> CoreView | None:
    """Coordinates of the long modes from a few passes; None where the exact ones are better.

    What they leave out is a difference of norms, to 1e-7 of them.
    """
    order = len(x.shape)
    if x.is_format or order < 2:
        return None
    ranks = worth_sketching(x.shape, (rank.get(order - 2), rank.get(order - 1)))
    if ranks is None:
        return None
    stream = streamed(x.given, ranks, seed, progress)
    assert stream.core is not None
    return CoreView(
        array=stream.core,
        frame=stream.frame,
        energy=stream.energy,
        outside=stream.outside,
        energies=stream.energies,
        passes=stream.passes,
    )


def with_outside_measured(x: Data[Any], view: CoreView, progress: Progress = silent) -> CoreView:
    """What a sketch leaves out by another pass, where it is too little for a difference."""
    assert view.energy is not None
    if view.outside > CLOSE * view.energy:
        return view
    bases = tuple(view.frame.lift.get(k) for k in range(len(x.shape)))
    residual, _ = x.measure(Tucker(x.modes, view.array, bases), view.energies, progress)
    return replace(view, outside=float(residual.sum()), passes=view.passes + 1)
