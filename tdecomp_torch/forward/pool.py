"""The factors of an adapter, each held once, and what is computed from them ahead of a forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tdecomp._brief import brief, brief_count
from tdecomp.adapters import Bound, Factor, Operand
from tdecomp.adapters.bases import Base
from tdecomp.adapters.unit import unit_along
from tdecomp.adapters.wraps import Wrap
from tdecomp_torch.forward.fast import Fast
from tdecomp_torch.forward.kept import KeptResults
from tdecomp_torch.forward.parts import (
    apart,
    as_operand,
    parts_of_sites,
    places_of_operands,
    sites_first,
)
from tdecomp_torch.forward.passes import ByThread, Pass, Ready, StandingReady, is_checkpointed
from tdecomp_torch.forward.program import FactorBlock, Program
from tdecomp_torch.forward.switches import Switches
from tdecomp_torch.model.guest import Guest
from tdecomp_torch.tracing import is_traced

__all__ = ["Derived", "FactorPool", "Member"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Member:
    """One group of the adapter: a method on a grid, its programs, and the keys of its factors.

    Attributes
    ----------
    bound
        The method on the grid.
    programs
        One per term; none where there is a faster way.
    keys
        Factor name -> key in the pool; a factor that several groups share has one key. Constants
        that are the base weight itself have none.
    weight
        The base weight of a site, ``(out, in)``, as it is now.
    fast
        A faster way to the product of the terms, if there is one.
    base, wrap, adds
        The rules of the method: see `Spec.base_rule`, `Spec.wrap_rule` and `Spec.adds`.
    units
        Factors of which only the direction counts.
    """

    bound: Bound
    programs: tuple[Program, ...]
    keys: Mapping[str, str]
    weight: Callable[[int], Tensor]
    fast: Fast | None
    base: Base = field(init=False)
    wrap: Wrap | None = field(init=False)
    adds: bool = field(init=False)
    units: tuple[Factor, ...] = field(init=False)

    def __repr__(self) -> str:
        return brief(type(self), f"{self.bound.spec.name} on {self.bound.grid.name}")

    def __post_init__(self):  # looked up here, not in every forward pass
        spec = self.bound.spec
        units = tuple(factor for factor in spec.factors if factor.unit)
        rules = {"base": spec.base_rule, "wrap": spec.wrap_rule, "adds": spec.adds, "units": units}
        for name, rule in rules.items():
            object.__setattr__(self, name, rule)


@dataclass(frozen=True)
class Derived:
    """A constant that is made from the seed: of what, and the dtype that it was made in."""

    bound: Bound
    factor: Factor
    dtype: torch.dtype


class FactorPool(Guest):
    """Every factor of an adapter, once; layers hold a site and ask here.

    Trainable factors are parameters. Constants are buffers; those that follow from a seed are not
    in the ``state_dict``, see `tdecomp_torch.forward.seeded`. Products that need no tokens are
    computed once per forward pass of the whole model (`begin` ... `end`) with autograd intact; a
    layer that is called by itself computes its own.
    """

    def __init__(self, members: Sequence[Member], state: Switches):
        super().__init__()
        self.members, self.state = tuple(members), state
        # plain lists and numbers, as torch.compile needs them
        self._where = [places_of_operands(member.bound) for member in members]
        self._of_site = [parts_of_sites(member.bound) for member in members]
        with torch.inference_mode(False):
            self._rows = [
                {mode: torch.as_tensor(rows) for mode, rows in m.bound.grid.rows.items()}
                for m in members
            ]
        self._make_empty()
        self.frozen: dict[str, Tensor] = {}
        """Key of a factor -> which of its columns get no gradient."""
        self.seed = 0
        """From which the `derived` constants are made."""
        self.derived: dict[str, Derived] = {}
        """Constants that are not in the ``state_dict``, by key."""

    def extra_repr(self) -> str:
        """For the print of the model that it is in."""
        groups = brief_count(len(self.members), "group")
        trained = sum(p.numel() for p in self.parameters())
        return f"{self.members[0].bound.spec.name}; {groups}; {trained:,} trainable"

    def _make_empty(self) -> None:
        """Nothing computed yet."""
        self.kept = KeptResults()
        self._standing: dict[int, StandingReady] = {}
        self._by_thread = ByThread()
        self._traced = Pass()

    def __getstate__(self) -> dict[str, Any]:
        """Without what was computed, which cannot be copied while it has a gradient."""
        return {k: v for k, v in self.__dict__.items() if k not in _COMPUTED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._make_empty()

    def add(
        self,
        key: str,
        factor: Factor,
        array: np.ndarray | Tensor,
        dtype: torch.dtype,
        derived: Derived | None = None,
    ) -> None:
        """Hold one factor; with `derived`, a constant that is not kept in files."""
        value = torch.as_tensor(array).to(dtype, copy=True).contiguous()
        if factor.trainable:
            self.register_parameter(key, nn.Parameter(value))
            return
        self.register_buffer(key, value, persistent=derived is None)
        if derived is not None:
            self.derived[key] = derived

    def stored(self) -> dict[str, Tensor]:
        """What a file holds: every parameter and constant that does not follow from the seed."""
        state = self.state_dict(keep_vars=True)
        return {key: value for key, value in state.items() if hasattr(self, key)}

    def factors(self, member: int) -> dict[str, Tensor]:
        """The factors of one group by name."""
        return {
            name: _partly_frozen(getattr(self, key), self.frozen.get(key))
            for name, key in self.members[member].keys.items()
        }

    def acting(self, member: int) -> dict[str, Tensor]:
        """The factors of one group by name as they stand in products: some have norm 1."""
        factors = self.factors(member)
        for factor in self.members[member].units:
            axes = [factor.modes.index(n) for n in factor.unit]
            found: Any = unit_along(factors[factor.name], axes)
            factors[factor.name] = found
        return factors

    def parts(self, member: int, site: int) -> dict[str, Tensor]:
        """Every factor of one group as one of its sites sees it."""
        factors = self.acting(member)
        return {
            name: factors[name][where]
            for name, where in self._of_site[member][site]
            if name in factors
        }

    # -- the outermost forward ---------------------------------------------------------------

    @property
    def _pass(self) -> Pass:
        """The forward pass of the whole model that this thread is in.

        One thread's pass is nothing to another's. A tracer follows one thread, and plain attributes
        only.
        """
        return self._traced if torch.compiler.is_compiling() else self._by_thread.now

    def begin(self, *_: Any) -> None:
        """Compute what needs no tokens; called before the forward pass of the whole model."""
        self.end()
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            self.kept.clear()
            self._standing.clear()
        if self.state.acts and not is_checkpointed():
            now = self._pass
            now.with_grad, now.ready = torch.is_grad_enabled(), self._computed()

    def end(self, *_: Any) -> None:
        """Forget what was computed; called after the forward pass, also when it failed."""
        now = self._pass
        now.ready, now.first, now.dropped = None, {}, None

    def _computed(self) -> list[list[Ready]]:
        return [self._ready(m) for m in range(len(self.members))]

    def _ready(self, m: int) -> list[Ready]:
        """The operands of every term of one group; the same objects while nothing has changed."""
        terms, factors = self.members[m].bound.spec.terms, self.acting(m)
        programs = self.members[m].programs  # none where a faster way needs no operands
        blocks = [
            [
                self._product(
                    m, block, [self._gathered(m, own.operands[k], factors) for k in block.where]
                )
                for block in program.blocks
            ]
            for program, own in zip(programs, terms, strict=False)
        ]
        plain = not torch.is_grad_enabled() and not is_traced()
        known = self._standing.get(m) if plain else None
        if known is not None and known.holds(factors, blocks):
            return known.ready
        ready = [
            self._ready_term(m, p, terms[k].operands, factors, blocks[k])
            for k, p in enumerate(programs)
        ]
        if plain:
            self._standing[m] = StandingReady.of(factors, blocks, ready)
        return ready

    def _ready_term(
        self,
        m: int,
        program: Program,
        operands: Sequence[Operand],
        factors: Mapping[str, Tensor],
        blocks: Sequence[Tensor],
    ) -> Ready:
        bound, weight = self.members[m].bound, self.members[m].weight
        sources: list[Tensor | Sequence[Tensor]] = [
            found.unbind(0) if block.per_site else found
            for block, found in zip(program.blocks, blocks, strict=True)
        ]
        for k in program.rest:
            if operands[k].factor in factors:
                sources.append(apart(bound, operands[k], factors[operands[k].factor]))
            else:
                sites = range(bound.grid.n_sites)
                own = [as_operand(bound, operands[k], weight(site)) for site in sites]
                sources.append(own)
        return Ready(tuple(sources))

    def _product(self, m: int, block: FactorBlock, parts: list[Tensor]) -> Tensor:
        """A block for all sites at once; without gradient it may be that of the pass before."""
        if is_traced() or parts[0].device.type != "cpu":
            return block.ahead.run(parts)  # elsewhere comparing costs a wait for the device
        cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        return self.kept.get((m, id(block)), cast, parts, lambda: block.ahead.run(parts))

    def _gathered(self, m: int, operand: Operand, factors: Mapping[str, Tensor]) -> Tensor:
        """Every site's part of a factor, ``(site, ...)``, or the factor if all have the same."""
        array, modes = sites_first(self.members[m].bound, operand, factors[operand.factor])
        if modes in ([], ["site"]):
            return array
        return array[tuple(self._index(m, mode) for mode in modes)]

    def _index(self, m: int, mode: str) -> Tensor:
        """Position of every site along a site mode, on the device of the factors."""
        known, device = self._rows[m][mode], self.device(m)
        if known.device != device:
            with torch.inference_mode(False):  # it is for later passes too, which may train
                known = known.to(device)
            if not is_traced():
                self._rows[m][mode] = known
        return known

    # -- what one site multiplies its tokens with --------------------------------------------

    def operands(
        self, m: int, term: int, site: int, device: torch.device, *, fresh: bool = False
    ) -> list[Tensor]:
        """Blocks and other operands of one term of one site, on a device; `fresh`: computed now.

        A model may lie on several; the factors are on one of them, and go where they are needed.
        """
        member = self.members[m]
        ready = self._pass.ready if not fresh and self._is_usable() else None
        found = self._alone(m, term, site) if ready is None else ready[m][term].at(site)
        if len(member.keys) < len(member.bound.factors):  # a base weight is among them
            dtype = getattr(self, next(iter(member.keys.values()))).dtype
            found = [array.to(dtype) for array in found]
        return [array.to(device) for array in found]

    def ready_without_gradient(self, m: int) -> list[Ready] | None:
        """Operands of every term of a group, made ahead of a pass without gradient.

        None where there are none that stay for the pass after this one.
        """
        if torch.is_grad_enabled() or is_traced():
            return None
        now, known = self._by_thread.now, self._standing.get(m)
        if now.ready is None or now.with_grad or known is None or not known.stays:
            return None
        return now.ready[m] if now.ready[m] is known.ready else None

    def device(self, m: int) -> torch.device:
        """Where the factors of a group are."""
        return getattr(self, next(iter(self.members[m].keys.values()))).device

    def _alone(self, m: int, term: int, site: int) -> list[Tensor]:
        """Blocks and other operands of one site, computed for it alone."""
        member = self.members[m]
        bound, program = member.bound, member.programs[term]
        operands = bound.spec.terms[term].operands
        factors, where = self.acting(m), self._where[m][term]

        def take(k: int) -> Tensor:
            array = factors.get(operands[k].factor)
            if array is None:
                return as_operand(bound, operands[k], member.weight(site))
            return array[where[k][site]]

        blocks = [block.alone.run([take(k) for k in block.where]) for block in program.blocks]
        return blocks + [take(k) for k in program.rest]

    def dropped(self, x: Tensor, p: float, site: tuple[int, int]) -> Tensor:
        """Dropout of `x`: sites that read the same tensor share one mask.

        A site that reads it a second time gets a fresh one.
        """
        known = self._pass.dropped
        if known is None or known[0] is not x or site in known[2]:
            known = self._pass.dropped = (x, functional.dropout(x, p), set())
        known[2].add(site)
        return known[1]

    def first_product(self, m: int, term: int, x: Tensor) -> Tensor | None:
        """The first product of the tokens `x`, if a site before this one computed it."""
        known = self._pass.first.get((m, term)) if self._shares() else None
        same = known is not None and known[0] is x and known[1] == _moment(x)
        return known[2] if same and known is not None else None

    def keep_first_product(self, m: int, term: int, x: Tensor, product: Tensor) -> None:
        """Remember the first product of the tokens `x` for the next site."""
        if self._shares():
            self._pass.first[m, term] = (x, _moment(x), product)

    def _is_usable(self) -> bool:
        """Whether what was computed ahead has the gradient that is wanted here, if any."""
        now = self._pass
        if now.ready is None or is_checkpointed():
            return False
        return now.with_grad or not torch.is_grad_enabled()

    def _shares(self) -> bool:
        """Whether one site may use what another computed; torch.compile finds that by itself."""
        return not torch.compiler.is_compiling() and self._is_usable()


_COMPUTED = ("kept", "_standing", "_by_thread", "_traced")


def _moment(x: Tensor) -> tuple[int, bool]:
    """What a product of a tensor depends on besides the tensor: its writes, and autograd."""
    return (0 if x.is_inference() else x._version), torch.is_grad_enabled()


def _partly_frozen(array: Tensor, frozen: Tensor | None) -> Tensor:
    """A factor of which some columns get no gradient."""
    if frozen is None or not array.requires_grad:
        return array
    return torch.where(frozen.to(array.device), array.detach(), array)
