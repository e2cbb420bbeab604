"""The forward pass of an adapted module: its own output plus the contraction of its sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tdecomp._brief import brief, brief_count
from tdecomp.adapters.wraps import RowGain
from tdecomp.errors import ArgumentError
from tdecomp_torch.forward.products import SiteProduct
from tdecomp_torch.forward.program import FEW
from tdecomp_torch.forward.reader import Reader
from tdecomp_torch.forward.tasks import Examples
from tdecomp_torch.model.kinds import Kind
from tdecomp_torch.tracing import is_traced

__all__ = ["Hook", "ModuleSite"]


@dataclass(frozen=True, kw_only=True)
class ModuleSite:
    """One site of a module: group, number in the group, rows of the output it makes, and task."""

    member: int
    site: int
    start: int
    stop: int
    task: int = 0


class Hook:
    """Adds the adapter to the output of one module; registered as its forward hook.

    Parameters
    ----------
    products
        How every group of the adapter multiplies tokens.
    kind, places, n_out
        Kind, sites and width of the output of the module.

    Attributes
    ----------
    pool
        Holds the factors.
    state
        What can be switched.
    kind
        Of the module.
    n_out
        Width of its output.
    by_task
        The sites of the module for every task.
    """

    def __init__(
        self,
        products: Sequence[SiteProduct],
        kind: Kind,
        places: Sequence[ModuleSite],
        n_out: int,
    ):
        self._products, self.pool = products, products[0].pool
        self.state, self.kind, self.n_out = self.pool.state, kind, n_out
        n_tasks = 1 + max(place.task for place in places)
        self.by_task = tuple(tuple(p for p in places if p.task == t) for t in range(n_tasks))
        self._whole = tuple(kind.is_matrix and self._is_whole(own) for own in self.by_task)

    def _is_whole(self, places: Sequence[ModuleSite]) -> bool:
        """Whether the sites are one, which adds to the whole output."""
        (place, *more) = places
        return not more and place.stop - place.start == self.n_out and self.adds

    def __repr__(self) -> str:
        name = self.pool.members[self.by_task[0][0].member].bound.spec.name
        return brief(type(self), f"{name}, {brief_count(len(self.by_task[0]), 'site')}")

    @property
    def places(self) -> tuple[ModuleSite, ...]:
        """The sites of the task that acts."""
        if self.state.examples is not None:
            raise ArgumentError("every example has a task of its own: choose one, adapter.task=...")
        return self.by_task[self.state.task]

    @property
    def adds(self) -> bool:
        """Whether every site adds ΔW to its base weight, as a second adapter then may, too."""
        return all(self.pool.members[place.member].adds for place in self.by_task[0])

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
    ) -> Tensor | None:
        """Output with every site's part added; None leaves it as it is."""
        if not self.state.acts:
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        if self.state.examples is not None:
            return self._by_example(module, x, output, self.state.examples)
        if not torch.is_grad_enabled() and not module.training and self._whole[self.state.task]:
            quick = self._quickly(x, output, self.by_task[self.state.task][0])
            if quick is not None:
                return quick
        return self._added(module, x, output, self.by_task[self.state.task])

    def _quickly(self, x: Tensor, output: Tensor, place: ModuleSite) -> Tensor | None:
        """The same for a few tokens without gradient; None where that is not what they are."""
        few = 0 < x.numel() < FEW * x.shape[-1]
        if not few or type(x) is not Tensor or torch.is_autocast_enabled(x.device.type):
            return None
        return self._products[place.member].quickly(x, output, place.site)

    def _by_example(
        self, module: nn.Module, x: Tensor, output: Tensor, examples: Examples
    ) -> Tensor:
        """Output with the sites of its own task added to every example, the first axis."""
        if not len(x) == len(output) == len(examples.tasks):
            raise ArgumentError(
                f"adapter.task names the tasks of {len(examples.tasks)} examples, a"
                f" {type(module).__name__} got an input of {tuple(x.shape)}"
            )
        parts = [
            self._added(module, x[where], output[where], self.by_task[task])
            for task, where in examples.groups
        ]
        return torch.cat(parts)[examples.back]  # (example, ...), in their own order again

    def _added(
        self, module: nn.Module, x: Tensor, output: Tensor, places: Sequence[ModuleSite]
    ) -> Tensor:
        """Output with every site's part added."""
        dropped = self.state.dropout and module.training and not self.kind.looks_up
        reader = Reader(self.kind, module, x, own=not self.kind.reads_alike)
        rows = self.kind.rows(module, output)  # (token, out)
        pieces, done = [], 0
        for place in places:
            if dropped:
                reader = self._dropped(module, place, x)
            if place.start > done:
                pieces.append(rows[:, done : place.start])
            whole = place.stop - place.start == self.n_out
            own = rows if whole else rows[:, place.start : place.stop]  # (token, out of the site)
            pieces.append(self._adapted(module, place, reader, own))
            done = place.stop
        if done < self.n_out:
            pieces.append(rows[:, done:])
        found = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)  # (token, out)
        return self.kind.restored(module, found, output)

    def _dropped(self, module: nn.Module, place: ModuleSite, x: Tensor) -> Reader:
        if self.state.shared_dropout:
            x = self.pool.dropped(x, self.state.dropout, (place.member, place.site))
            return Reader(self.kind, module, x, own=not self.kind.reads_alike)
        return Reader(self.kind, module, functional.dropout(x, self.state.dropout), own=True)

    def _adapted(
        self, module: nn.Module, place: ModuleSite, reader: Reader, rows: Tensor
    ) -> Tensor:
        """The output of one site with its adapter, ``(token, out)``; `rows` is that without."""
        member = self.pool.members[place.member]
        if member.adds:
            return self._with_delta(module, place, reader, rows)
        rescaled = None if member.wrap is None else member.wrap.rows
        if member.wrap is not None and rescaled is None:
            return self._with_change(module, place, reader, rows)
        bias = self.kind.bias(module)
        bias = 0.0 if bias is None else bias[place.start : place.stop]
        if rescaled is None:  # ΔW stands in for W
            return self._with_delta(module, place, reader, torch.zeros_like(rows) + bias)
        gain = self._gain(module, place, rescaled)  # (out,)
        rows = self._with_delta(module, place, reader, rows - bias)
        return (rows * gain).to(rows.dtype) + bias

    def _with_delta(
        self, module: nn.Module, place: ModuleSite, reader: Reader, rows: Tensor
    ) -> Tensor:
        """``rows`` plus the tokens times ΔW."""
        thinned = self.state.rank_dropout if module.training else 0.0
        product, factor = self._products[place.member], self.kind.factor(rows.dtype)
        return product.onto(rows, reader, place.site, factor=factor, thinned=thinned)

    def _with_change(
        self, module: nn.Module, place: ModuleSite, reader: Reader, rows: Tensor
    ) -> Tensor:
        """``rows`` plus the tokens times W' - W, where W' has to be formed."""
        w = self.adapted_weight(module, place)  # (out, in)
        added = reader.times(w - self.kind.matrix(module)[place.start : place.stop])
        return torch.add(rows, added.to(rows.dtype), alpha=self.kind.factor(rows.dtype))

    def _gain(self, module: nn.Module, place: ModuleSite, rows: RowGain) -> Tensor:
        """What a wrap multiplies every row of ``W + ΔW`` by, ``(out,)``."""

        @torch.no_grad()
        def measured_now() -> Tensor:
            w = self.kind.matrix(module)[place.start : place.stop]
            delta = self.delta(place, w.device)
            return rows.measure(w.to(torch.promote_types(w.dtype, delta.dtype)), delta)

        measured = self._kept(module, place, measured_now)
        return rows.gain(measured, self._of_wrap(place, measured.device))

    def _of_wrap(self, place: ModuleSite, device: torch.device) -> dict[str, Tensor]:
        """The arrays of a wrap that belong to a site, on a device."""
        wrap, factors = self.pool.members[place.member].wrap, self.pool.factors(place.member)
        names = [name for name, *_ in wrap.factors] if wrap is not None else []
        return {name: factors[name][place.site].to(device) for name in names}

    def _kept(self, module: nn.Module, place: ModuleSite, compute: Callable[[], Tensor]) -> Tensor:
        """What is measured of V; the measure of before if neither weight nor factors changed.

        A quantised weight is decoded for it, which costs more than any comparison; elsewhere on an
        accelerator waiting for the answer costs more than measuring.
        """
        device = self.pool.device(place.member)
        worth = self.kind.packed or device.type == "cpu"
        if torch.is_grad_enabled() or is_traced() or not worth:
            return compute()
        product = self._products[place.member]
        inputs = [self.kind.probe(module), *product.inputs(place.site, device)]
        return self.pool.kept.get(place, tuple(product.coefficients()), inputs, compute)

    def delta(self, place: ModuleSite, device: torch.device | None = None) -> Tensor:
        """ΔW of one site, ``(out, in)``, scaled, on a device or where the factors are."""
        device = self.pool.device(place.member) if device is None else device
        return self._products[place.member].delta(place.site, device)

    def hooks(self) -> Iterable[Hook]:
        """Itself, where a weight is lent to a module."""
        return (self,)

    def acting(self) -> Iterable[Hook]:
        """Itself if it acts, where a weight is lent to a module."""
        return (self,) if self.state.acts else ()

    def formed(self, module: nn.Module, before: Tensor | None = None) -> Tensor:
        """The adapted weight of a whole module in the layout and dtype that it is stored in.

        Parameters
        ----------
        before
            The weight with other adapters in it, if there are any.
        """
        stored = self.kind.stored(module) if before is None else before
        matrix, pieces, done = self.kind.as_matrix(stored), [], 0  # (out, in)
        for run in _runs(self.places):
            if run[0].start > done:
                pieces.append(matrix[done : run[0].start])
            done = run[-1].stop
            pieces.append(self._formed_run(module, run, matrix[run[0].start : done]))
        if done < len(matrix):
            pieces.append(matrix[done:])
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)  # (out, in)
        return self.kind.laid(whole, stored)

    def _formed_run(self, module: nn.Module, run: Sequence[ModuleSite], w: Tensor) -> Tensor:
        """The adapted rows of sites of one group that follow one another."""
        if not self.pool.members[run[0].member].adds:
            return torch.cat([self.adapted_weight(module, place) for place in run]).to(w.dtype)
        product = self._products[run[0].member]
        delta = product.deltas([place.site for place in run], w.device).flatten(0, 1)
        return (w.to(torch.promote_types(w.dtype, delta.dtype)) + delta).to(w.dtype)

    def adapted_weight(
        self,
        module: nn.Module,
        place: ModuleSite,
        *,
        detach: Callable[[Any], Any] = torch.Tensor.detach,
    ) -> Tensor:
        """W' of one site, ``(out, in)``, in the precision of the factors or wider."""
        member = self.pool.members[place.member]
        w = self.kind.matrix(module)[place.start : place.stop]
        delta = self.delta(place, w.device)
        w = w.to(torch.promote_types(w.dtype, delta.dtype))
        if member.wrap is None:
            return member.base.weight(w, delta)
        return member.wrap.apply(w, delta, self._of_wrap(place, w.device), detach)


def _runs(places: Sequence[ModuleSite]) -> Iterator[list[ModuleSite]]:
    """Sites of one group whose rows follow one another."""
    run: list[ModuleSite] = []
    for place in places:
        if run and (place.member != run[-1].member or place.start != run[-1].stop):
            yield run
            run = []
        run.append(place)
    if run:
        yield run
