"""The forward pass of an adapted module: its own output plus the contraction of its sites."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tdecomp import ArgumentError
from tdecomp.adapters import Bound
from tdecomp.adapters.wraps import WRAPS
from tdecomp_torch.fast import FAST
from tdecomp_torch.kinds import Kind
from tdecomp_torch.pool import FactorPool, Member
from tdecomp_torch.state import Examples
from tdecomp_torch.steps import Letters, Step, added_to
from tdecomp_torch.tracing import is_traced

__all__ = ["Hook", "Place"]


@dataclass(frozen=True)
class Place:
    """One site of a module: group, number in the group, rows of the output it makes, and task."""

    member: int
    site: int
    start: int
    stop: int
    task: int = 0


class Hook:
    """Adds the adapter to the output of one module; registered as its forward hook."""

    def __init__(self, pool: FactorPool, kind: Kind, places: Sequence[Place], n_out: int):
        self.pool, self.state, self.kind, self.n_out = pool, pool.state, kind, n_out
        self._is_scheduled = ["step" in m.bound.spec.scale.names for m in pool.members]
        n_tasks = 1 + max(place.task for place in places)
        self.by_task = tuple(tuple(p for p in places if p.task == t) for t in range(n_tasks))

    @property
    def places(self) -> tuple[Place, ...]:
        """The sites of the task that acts."""
        if self.state.examples is not None:
            raise ArgumentError("every example has a task of its own: choose one, adapter.task=...")
        return self.by_task[self.state.task]

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
    ) -> Tensor | None:
        """Output with every site's part added; None leaves it as it is."""
        if not self.state.acts:
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        if self.state.examples is not None:
            return self._by_example(module, x, output, self.state.examples)
        return self._added(module, x, output, self.by_task[self.state.task])

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
        return torch.cat(parts)[examples.back]

    def _added(
        self, module: nn.Module, x: Tensor, output: Tensor, places: Sequence[Place]
    ) -> Tensor:
        """Output with every site's part added."""
        dropped = self.state.dropout and module.training and not self.kind.looks_up
        reader = _Reader(self.kind, module, x, own=not self.kind.reads_alike)
        rows = self.kind.rows(module, output)
        pieces, done = [], 0
        for place in places:
            if dropped:
                reader = self._dropped(module, place, x)
            if place.start > done:
                pieces.append(rows[:, done : place.start])
            whole = place.stop - place.start == self.n_out
            own = rows if whole else rows[:, place.start : place.stop]
            pieces.append(self._adapted(module, place, reader, own))
            done = place.stop
        if done < self.n_out:
            pieces.append(rows[:, done:])
        found = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
        return self.kind.restored(module, found, output)

    def _dropped(self, module: nn.Module, place: Place, x: Tensor) -> _Reader:
        if self.state.shared_dropout:
            x = self.pool.dropped(x, self.state.dropout, (place.member, place.site))
            return _Reader(self.kind, module, x, own=not self.kind.reads_alike)
        x = functional.dropout(x, self.state.dropout)
        return _Reader(self.kind, module, x, own=True)

    def _adapted(self, module: nn.Module, place: Place, reader: _Reader, rows: Tensor) -> Tensor:
        member = self.pool.members[place.member]
        spec = member.bound.spec
        thinned = self.state.rank_dropout if module.training else 0.0
        if spec.wrap and WRAPS[spec.wrap].lengths is None:
            return self._wrapped(module, place, reader, rows)
        if not spec.wrap and spec.base != "replace":
            return self._with_terms(member, place, reader, rows, thinned)
        bias = self.kind.bias(module)
        bias = 0.0 if bias is None else bias[place.start : place.stop]
        if spec.wrap:
            gain = self._gain(module, place)
            rows = self._with_terms(member, place, reader, rows - bias, thinned)
            return (rows * gain).to(rows.dtype) + bias
        return self._with_terms(member, place, reader, torch.zeros_like(rows) + bias, thinned)

    def _with_terms(
        self, member: Member, place: Place, reader: _Reader, rows: Tensor, thinned: float
    ) -> Tensor:
        """``rows`` plus the tokens times ΔW."""
        fast = FAST.get(member.bound.spec.fast)
        factor = self.kind.factor(rows.dtype)
        coefficients = self._coefficients(place)
        if factor != 1:
            coefficients = [factor * own for own in coefficients]
        if fast is not None and self.kind.looks_up:
            added = self.delta(place, rows.device).T[reader.rows()]
            return torch.add(rows, added.to(rows.dtype), alpha=factor)
        if fast is not None:
            parts = self._parts(place, rows.device)
            tokens = reader.rows().to(next(iter(parts.values())).dtype)
            added = fast.product(tokens, parts)
            return added_to(rows, added.to(rows.dtype), coefficients[0])
        for k, coefficient in enumerate(coefficients):
            rows = self._with_term(member, place, k, coefficient, reader, rows, thinned)
        return rows

    def _coefficients(self, place: Place) -> Sequence[float | Tensor]:
        """Of every term; as tensors where a compiled program is to hold for all steps."""
        if torch.compiler.is_compiling() and self._is_scheduled[place.member]:
            return self.state.scales[place.member]
        return self.state.coefficients[place.member]

    def _parts(self, place: Place, device: torch.device) -> dict[str, Tensor]:
        """Every factor of a site, on a device."""
        parts = self.pool.parts(place.member, place.site)
        return {name: part.to(device) for name, part in parts.items()}

    def _gain(self, module: nn.Module, place: Place) -> Tensor:
        """What a wrap multiplies every row of ``W + ΔW`` by, ``(out,)``."""
        member = self.pool.members[place.member]
        wrap = WRAPS[member.bound.spec.wrap]
        assert wrap.lengths is not None
        measure = wrap.lengths

        @torch.no_grad()
        def lengths_now() -> Tensor:
            w = self.kind.matrix(module)[place.start : place.stop]
            delta = self.delta(place, w.device)
            return measure(w.to(torch.promote_types(w.dtype, delta.dtype)), delta)

        lengths = self._kept_lengths(module, place, lengths_now)
        magnitude = self.pool.factors(place.member)["magnitude"][place.site]
        return magnitude.to(lengths.device) / lengths

    def _kept_lengths(
        self, module: nn.Module, place: Place, compute: Callable[[], Tensor]
    ) -> Tensor:
        """The lengths, or those before if neither weight nor factors have changed.

        A quantised weight is decoded for them, which costs more than any comparison; elsewhere on
        an accelerator waiting for the answer costs more than the lengths.
        """
        device = self.pool.device(place.member)
        worth = self.kind.packed or device.type == "cpu"
        if torch.is_grad_enabled() or is_traced() or not worth:
            return compute()
        scales = self.state.coefficients[place.member]
        operands = [
            operand
            for term in range(len(scales))
            for operand in self.pool.operands(place.member, term, place.site, device)
        ]
        inputs = [self.kind.probe(module), *operands]
        return self.pool.kept.get(place, tuple(scales), inputs, compute)

    def _with_term(
        self,
        member: Member,
        place: Place,
        k: int,
        scale: float | Tensor,
        reader: _Reader,
        rows: Tensor,
        thinned: float,
    ) -> Tensor:
        """``rows + scale * (tokens times one term)``."""
        bound, program = member.bound, member.programs[k]
        operands = self.pool.operands(place.member, k, place.site, rows.device)
        if thinned and program.edge is not None:
            operands = _thinned(operands, *program.edge, thinned)
        steps = program.steps(rows.shape[0])
        if self.kind.looks_up:
            read = zip(program.letters, operands, strict=True)
            left, done = [_looked_up(bound, letters, o, reader.x) for letters, o in read], 0
        elif program.shares_first(steps) and not reader.own:
            left, done = self._after_first(bound, place, k, steps.steps[0], reader, operands), 1
        else:
            left, done = [reader.tokens(bound, operands[0]), *operands], 0
        n_out = place.stop - place.start
        whole = math.prod([bound.sizes[n] for n in bound.out_letters]) == n_out
        if whole and rows.dtype == left[-1].dtype:
            return steps.run_onto(left, rows, scale, done=done).to(rows.dtype)
        added = steps.run(left, done=done)[:, :n_out]
        return added_to(rows, added.to(rows.dtype), scale)

    def _after_first(
        self,
        bound: Bound,
        place: Place,
        k: int,
        first: Step,
        reader: _Reader,
        operands: list[Tensor],
    ) -> list[Tensor]:
        """What is left after the first product, which other sites may have taken already."""
        product = self.pool.first_product(place.member, k, reader.x)
        if product is not None:
            return [o for i, o in enumerate(operands, 1) if i != first.right] + [product]
        left = [reader.tokens(bound, operands[0]), *operands]
        first.run(left)
        self.pool.keep_first_product(place.member, k, reader.x, left[-1])
        return left

    def _wrapped(self, module: nn.Module, place: Place, reader: _Reader, rows: Tensor) -> Tensor:
        """``rows`` plus the product with what the normalised weight is more than the base's."""
        w = self.adapted_weight(module, place)
        change = w - self.kind.matrix(module)[place.start : place.stop]
        tokens = reader.rows()
        added = change.T[tokens] if self.kind.looks_up else tokens.to(w.dtype) @ change.T
        return torch.add(rows, added.to(rows.dtype), alpha=self.kind.factor(rows.dtype))

    def delta(self, place: Place, device: torch.device | None = None) -> Tensor:
        """ΔW of one site, ``(out, in)``, scaled, on a device or where the factors are."""
        device = self.pool.device(place.member) if device is None else device
        # what is ready was rounded under autocast, which meta does not know
        cast = device.type != "meta" and torch.is_autocast_enabled(device.type)
        with torch.autocast(device.type, enabled=False) if cast else nullcontext():
            return self._delta(place, device, fresh=cast)

    def _delta(self, place: Place, device: torch.device, *, fresh: bool) -> Tensor:
        member, total = self.pool.members[place.member], None
        bound = member.bound
        fast = FAST.get(bound.spec.fast)
        if fast is not None:
            parts = self._parts(place, device)
            like = next(iter(parts.values()))
            eye = torch.eye(bound.grid.shape[1], dtype=like.dtype, device=like.device)
            return self._coefficients(place)[0] * fast.product(eye, parts).T
        for k, coefficient in enumerate(self._coefficients(place)):
            operands = self.pool.operands(place.member, k, place.site, device, fresh=fresh)
            dense = member.programs[k].dense.run(operands)
            part = dense.reshape(math.prod([bound.sizes[n] for n in bound.out_letters]), -1)
            total = coefficient * part if total is None else total + coefficient * part
        assert total is not None
        n_out, n_in = bound.grid.shape
        return total[:n_out, :n_in]

    def adapted_weight(
        self, module: nn.Module, place: Place, *, detach: Any = torch.Tensor.detach
    ) -> Tensor:
        """W' of one site, ``(out, in)``, in the precision of the factors or wider."""
        member = self.pool.members[place.member]
        w = self.kind.matrix(module)[place.start : place.stop]
        delta = self.delta(place, w.device)
        spec = member.bound.spec
        if spec.base == "replace":
            return delta
        w = w.to(torch.promote_types(w.dtype, delta.dtype))
        if not spec.wrap:
            return w + delta
        wrap = WRAPS[spec.wrap]
        factors = self.pool.factors(place.member)
        own = {name: factors[name][place.site].to(w.device) for name, *_ in wrap.factors}
        return wrap.apply(w, delta, own, detach)


class _Reader:
    """The input of a module, brought into the shape of tokens only when it is needed."""

    def __init__(self, kind: Kind, module: nn.Module, x: Tensor, *, own: bool = False):
        self.kind, self.module, self.x, self.own = kind, module, x, own
        self._rows: Tensor | None = None

    def rows(self) -> Tensor:
        """``(token, in)``."""
        if self._rows is None:
            self._rows = self.kind.tokens(self.module, self.x)
        return self._rows

    def tokens(self, bound: Bound, like: Tensor) -> Tensor:
        """``(token, ...)`` over the letters of ``in``, in the precision of `like`."""
        rows = self.rows()
        if rows.dtype != like.dtype and not torch.is_autocast_enabled(rows.device.type):
            rows = rows.to(like.dtype)
        sizes = [bound.sizes[n] for n in bound.in_letters]
        if (extra := math.prod(sizes) - bound.grid.shape[1]) > 0:
            rows = functional.pad(rows, (0, extra))
        return rows if len(sizes) == 1 else rows.reshape(-1, *sizes)


def _thinned(operands: list[Tensor], which: int, axis: int, p: float) -> list[Tensor]:
    """The operands with a share of the ranks along one axis of one of them left out."""
    chosen = operands[which]
    kept = functional.dropout(chosen.new_ones(chosen.shape[axis]), p)
    kept = kept.reshape(-1, *[1] * (chosen.dim() - axis - 1))
    return [*operands[:which], chosen * kept, *operands[which + 1 :]]


def _looked_up(bound: Bound, letters: Letters, operand: Tensor, positions: Tensor) -> Tensor:
    """The operand at positions along ``in``: ``(token, ...)``; as it is if it has no such axis."""
    columns = bound.in_letters
    touched = [n for n in columns if n in letters]
    if not touched:
        return operand
    rest = [n for n in letters if n not in touched]
    stride, where, flat = 1, {}, positions.reshape(-1)
    for n in reversed(columns):
        where[n] = flat // stride % bound.sizes[n]
        stride *= bound.sizes[n]
    order = [letters.index(n) for n in (*touched, *rest)]
    return operand.permute(order)[tuple(where[n] for n in touched)]
