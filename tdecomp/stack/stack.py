"""Stacks: a group of sites and a way to read them, one or two slices in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Protocol

from tdecomp._brief import brief, brief_modes
from tdecomp._xp import Array, check_array, is_writable, namespace
from tdecomp.errors import ArgumentError, DataError
from tdecomp.stack.ahead import read_ahead
from tdecomp.stack.find import find_sites
from tdecomp.stack.groups import Group, group_sites
from tdecomp.stack.select import Targets
from tdecomp.stack.sites import Site
from tdecomp.tasks import Executor
from tdecomp.tensor import promoted

__all__ = ["Recipe", "Stack"]

_COPIES = 4  # of a whole stack, at most, while it is decomposed: unfoldings, float64


def _unheard(site: Site) -> None:
    """Nobody asks which sites were read."""


class Recipe(Protocol):
    """How slices of a stack are read in another process; small, and can be sent there."""

    def opened(self, slices: Sequence[int], *, beside: bool = True) -> Stack:
        """The stack, of which some slices will be read, in this order.

        `beside` says whether what is found by the way is wanted.
        """
        ...


@dataclass(frozen=True, repr=False)
class Stack:
    """A lazy tensor (site modes..., out, in): the sites of a group, read when asked for.

    Attributes
    ----------
    group
        The sites and their grid.
    read
        Site -> its matrix (out, in); called once per slice and pass, nothing is kept.
    ahead
        Iteration has the next slice read in a thread while the caller computes: `read` takes
        time and may run in another thread. Two slices are then in memory instead of one.
    concurrent
        `read` may run in several threads at once and gives arrays of numpy: slices are then read
        and worked on side by side.
    recipe
        How another process reads some of these slices; None: only this one can.
    executor
        Whose workers take the passes over the slices, see `on`; None: this process.
    beside
        What is found by the way when a site is read, a number each; taken up from workers.
    visited
        Hears of every site whose slice was read, here or by a worker; at times in other threads.
    max_memory
        Bytes that decomposing this stack may take, as far as they are foreseen: loading it whole,
        or the sketches of its slices, is refused beyond. None: no limit.

    Examples
    --------
    >>> import numpy as np
    >>> weights = {f"h.{i}.att.{p}.weight": np.full((6, 4), i) for i in range(3) for p in "qk"}
    >>> (stack,) = Stack.from_arrays(weights)
    >>> stack.modes, stack.shape, int(stack.slice(4)[0, 0])
    (('layer', 'proj', 'out', 'in'), (3, 2, 6, 4), 2)
    """

    group: Group
    read: Callable[[Site], Array]
    _: KW_ONLY
    ahead: bool = False
    concurrent: bool = False
    recipe: Recipe | None = None
    executor: Executor | None = None
    beside: dict[Site, float] = field(default_factory=dict[Site, float])
    visited: Callable[[Site], None] = _unheard
    max_memory: int | None = None

    def __repr__(self) -> str:
        """One line; nothing is read."""
        return brief(type(self), self.group.name, brief_modes(self.modes, self.shape))

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of all modes, site modes first."""
        return self.group.modes

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all modes."""
        return self.group.shape

    @property
    def labels(self) -> tuple[tuple[int | str, ...], ...]:
        """Labels of each site mode."""
        return self.group.labels

    @property
    def n_sites(self) -> int:
        """Number of slices."""
        return len(self.group.sites)

    def slice(self, i: int) -> Array:
        """Matrix (out, in) of the i-th site, in C order over the site modes."""
        if not 0 <= i < self.n_sites:
            raise ArgumentError(
                f"no slice {i}: {self.group.name} has the slices 0-{self.n_sites - 1}"
            )
        site = self.group.sites[i]
        matrix = self.read(site)
        check_array(matrix)
        if tuple(matrix.shape) != site.shape:
            raise DataError(
                f"{site.path} was read with the shape {tuple(matrix.shape)}, expected (out, in) = "
                f"{site.shape}: read must return the site's block, turned to (out, in)"
            )
        self.visited(site)
        return matrix

    def slices(self) -> Iterator[Array]:
        """All matrices (out, in), in C order over the site modes, read ahead if the stack says so.

        An iterator that is not exhausted should be closed or dropped: it holds the thread.
        """
        positions = range(self.n_sites)
        return read_ahead(self.slice, positions) if self.ahead else map(self.slice, positions)

    def __iter__(self) -> Iterator[Array]:
        return self.slices()

    def on(self, executor: Executor | None) -> Stack:
        """The same, with passes over its slices handed to the workers of an executor.

        Parameters
        ----------
        executor
            Of `concurrent.futures`, Dask's ``client.get_executor()``, or anything with its
            ``submit``; None: as before.

        Raises
        ------
        ArgumentError
            Slices that another process cannot read.
        """
        if executor is None:
            return self
        if self.recipe is None:
            raise ArgumentError(
                f"executor= cannot take {self.group.name}: its slices are in the memory of this"
                " process, or read by a function of yours; stacks of model files can be opened"
                " elsewhere (tdecomp.files.open_delta)"
            )
        return replace(self, executor=executor)

    def has_room_for(self, numbers: int) -> bool:
        """Whether so many float32 numbers are within `max_memory`."""
        return self.max_memory is None or 4 * numbers <= self.max_memory

    def require(self, numbers: int, what: str) -> None:
        """Refuse `what` if so many float32 numbers are more than `max_memory`."""
        if self.max_memory is not None and not self.has_room_for(numbers):
            raise ArgumentError(
                f"{self.group.name}: {what} takes about {_megabytes(4 * numbers)}, the limit for"
                f" work is {_megabytes(self.max_memory)}: ask for a small rank, which is found"
                " slice by slice, take fewer layers or targets together, or raise the limit"
            )

    def dense(self) -> Array:
        """Load the whole tensor (site modes..., out, in), in a dtype that holds every slice.

        An `ArgumentError` where this and a few copies to work on are above `max_memory`.
        """
        self.require(_COPIES * math.prod(self.shape), "to work on it whole")
        slices = self.slices()
        first = next(slices)
        xp = namespace(first)
        if not is_writable(first):
            return xp.reshape(xp.stack(promoted([first, *slices])), self.shape)
        device = getattr(first, "device", None)  # numpy 1 arrays have none
        flat = xp.empty((self.n_sites, *first.shape), dtype=first.dtype, device=device)
        flat[0, ...] = first
        for i, matrix in enumerate(slices, 1):
            if matrix.dtype != flat.dtype:
                flat = xp.astype(flat, xp.result_type(flat, matrix))
            flat[i, ...] = matrix
        return xp.reshape(flat, self.shape)

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Array],
        *,
        config: Mapping[str, Any] | None = None,
        targets: Targets | None = None,
        exclude: Targets | None = None,
        layers: Collection[int] | None = None,
        patterns: Sequence[str] = (),
        share: Sequence[str] | None = None,
    ) -> tuple[Stack, ...]:
        """Stacks of the sites among `arrays` (by checkpoint name), reading from them.

        The slices are views. Parameters as in `find_sites` and `group_sites`.

        Raises
        ------
        ArgumentError
            `arrays` is not a mapping from names to arrays.
        SiteError
            None of them is a site.
        """
        shapes = _shapes(arrays)
        survey = find_sites(
            shapes,
            config or {},
            targets=targets,
            exclude=exclude,
            layers=layers,
            patterns=patterns,
        )

        def read(site: Site) -> Array:
            check_array(arrays[site.tensor])
            return site.take(arrays[site.tensor])

        return tuple(cls(group, read) for group in group_sites(survey.sites, share=share))


def _shapes(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Shapes by name, refusing what is not arrays by name."""
    if not isinstance(arrays, Mapping):
        raise ArgumentError(
            "Stack.from_arrays takes arrays by their names in a checkpoint, such as"
            f" {{'layers.0.q_proj.weight': array}}: got a {type(arrays).__name__}"
        )
    for name, array in arrays.items():
        if not isinstance(name, str) or not hasattr(array, "shape"):
            raise ArgumentError(
                "Stack.from_arrays takes arrays by their names in a checkpoint: got a"
                f" {type(array).__name__} for {name!r}"
            )
    return {name: tuple(array.shape) for name, array in arrays.items()}


def _megabytes(count: int) -> str:
    amount = count / 1e6
    return f"{amount:,.0f} MB" if amount >= 100 else f"{amount:.3g} MB"
