"""Tensors that both models hold and no stack does: what changed there, some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tdecomp.errors import DataError, FileError
from tdecomp.files.checkpoint import Pair
from tdecomp.files.storage import Range
from tdecomp.files.unpaired import Uncovered
from tdecomp.tasks import sendable

__all__ = [
    "RowBlock",
    "Measured",
    "ahead",
    "blocks",
    "measured",
    "rows_of",
    "size_of",
    "with_doubt",
]

_BLOCK = 1 << 24  # numbers of a block, at most, but for one long row


@sendable
@dataclass(frozen=True)
class RowBlock:
    """Some rows of a tensor: those that both models have of it, or those that only one has.

    Attributes
    ----------
    tensor
        Its name.
    rows
        The first, and the one after the last; None: the tensor as a whole.
    extra
        Whether these are the rows that one model has alone.
    """

    tensor: str
    rows: tuple[int, int] | None = None
    extra: bool = False

    @property
    def index(self) -> tuple[slice, ...]:
        """What picks the rows out of the tensor."""
        return () if self.rows is None else (slice(*self.rows),)


@sendable
@dataclass(frozen=True)
class Measured:
    """Squared norm of the delta of a block.

    Attributes
    ----------
    energy
        None where it is unknown.
    fault
        Why it could not be read.
    """

    energy: float | None
    fault: str = ""


def size_of(both: Pair, tensor: str) -> int:
    """Numbers of a paired tensor; 0 for another one."""
    return math.prod(both.base.shape(both.base_name(tensor))) if tensor in both.readings else 0


def blocks(both: Pair, tensor: str) -> list[RowBlock]:
    """All of a tensor, in the order of its rows."""
    if tensor in both.alike or tensor not in both.readings:
        return [RowBlock(tensor)]
    shape = both.base.shape(both.base_name(tensor))
    if not shape:
        return [RowBlock(tensor)]
    grown = both.grown.get(tensor)
    n = shape[0] if grown is None else grown.rows
    step = max(1, _BLOCK // max(1, math.prod(shape[1:])))
    found = [RowBlock(tensor, (i, min(i + step, n))) for i in range(0, n, step)]
    return found if grown is None else [*found, RowBlock(tensor, extra=True)]


def ahead(both: Pair, block: RowBlock) -> Iterator[Range]:
    """What measuring a block will ask of a server."""
    if block.tensor in both.alike:
        yield from both.base.ahead(block.tensor)
        yield from both.tuned.ahead(both.alike[block.tensor])
    elif block.tensor in both.readings and not block.extra:
        yield from both.ahead(block.tensor, block.index)


def measured(both: Pair, block: RowBlock) -> Measured:
    """How much a block changed. Nothing is refused: what cannot be read is unknown."""
    try:
        if block.tensor in both.alike:
            return Measured(0.0 if both.identical(block.tensor) else None)
        if block.extra:
            return Measured(both.extra_energy(block.tensor))
        return Measured(both.known_energy(block.tensor, block.index))
    except (DataError, FileError) as error:
        return Measured(None, str(error))


def rows_of(
    both: Pair, tensor: str, reason: str, found: Sequence[tuple[RowBlock, Measured]]
) -> list[Uncovered]:
    """Row of a tensor of which all blocks are measured; two where one model has more rows."""
    if fault := next((one.fault for _, one in found if one.fault), ""):
        return [Uncovered(tensor, f"{reason}, cannot be read: {fault}", None)]
    energy = _total([one.energy for block, one in found if not block.extra])
    if tensor in both.alike:
        return [
            Uncovered(tensor, reason if energy is None else f"{reason}, the same in both", energy)
        ]
    if tensor not in both.grown:
        return [Uncovered(tensor, with_doubt(reason, energy), energy)]
    grown, extra = both.grown[tensor], _total([one.energy for block, one in found if block.extra])
    side = "the base" if grown.base_rows > grown.tuned_rows else "the tuned model"
    more = f"{abs(grown.base_rows - grown.tuned_rows)} rows that only {side} has"
    return [
        Uncovered(tensor, with_doubt(f"{reason}, the {grown.rows} common rows", energy), energy),
        Uncovered(tensor, with_doubt(f"{reason}, {more}", extra), extra),
    ]


def with_doubt(reason: str, energy: float | None) -> str:
    """The reason, and that what changed cannot be told where that is so."""
    return f"{reason}, with NaN or infinite values" if energy is None else reason


def _total(energies: Sequence[float | None]) -> float | None:
    known = [energy for energy in energies if energy is not None]
    return math.fsum(known) if len(known) == len(energies) else None
