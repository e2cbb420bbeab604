"""How a site multiplies tokens with its ΔW: by the terms of its method, or by a transform."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tdecomp_torch.forward.contraction import Contraction, PairwiseStep, added_to
from tdecomp_torch.forward.fast import Fast
from tdecomp_torch.forward.laid import LaidProducts, laid_products
from tdecomp_torch.forward.passes import Ready
from tdecomp_torch.forward.pool import FactorPool
from tdecomp_torch.forward.program import dense_of_sites
from tdecomp_torch.forward.reader import Reader

__all__ = ["SiteProduct", "product_of"]

Coefficients = Sequence[float | Tensor]
"""Of every term; as tensors where a compiled program is to hold for all steps."""


class SiteProduct(ABC):
    """Tokens times ΔW, for every site of one group."""

    def __init__(self, pool: FactorPool, m: int):
        self.pool, self.m, self.member = pool, m, pool.members[m]
        self.bound = self.member.bound
        self._is_scheduled = "step" in self.bound.spec.scale.names

    def coefficients(self) -> Coefficients:
        """What every term is multiplied by at the present step."""
        if torch.compiler.is_compiling() and self._is_scheduled:
            return self.pool.state.scales[self.m]
        return self.pool.state.coefficients[self.m]

    def quickly(self, x: Tensor, output: Tensor, site: int) -> Tensor | None:
        """``output + x ΔWᵀ`` of a few tokens, ``(..., out)``, where nothing is differentiated.

        None where it takes more than products with factors as they lie.
        """
        del x, output, site
        return None

    @abstractmethod
    def onto(
        self, rows: Tensor, reader: Reader, site: int, *, factor: float, thinned: float
    ) -> Tensor:
        """``rows + factor * tokens ΔWᵀ``, ``(token, out)``.

        Parameters
        ----------
        rows
            What is added to.
        reader
            Has the tokens.
        site
            Number of the site in its group.
        factor
            What the module multiplies its product with.
        thinned
            Share of the ranks that are left out.
        """

    def delta(self, site: int, device: torch.device) -> Tensor:
        """ΔW of a site, ``(out, in)``, scaled, on a device; never rounded under autocast."""
        # what is ready was rounded under autocast, which meta does not know
        cast = device.type != "meta" and torch.is_autocast_enabled(device.type)
        with torch.autocast(device.type, enabled=False) if cast else nullcontext():
            return self._dense(site, device, fresh=cast)

    def deltas(self, sites: Sequence[int], device: torch.device) -> Tensor:
        """ΔW of several sites, ``(site, out, in)``, scaled; never rounded under autocast."""
        cast = device.type != "meta" and torch.is_autocast_enabled(device.type)
        with torch.autocast(device.type, enabled=False) if cast else nullcontext():
            return self._several(sites, device, fresh=cast)

    @abstractmethod
    def _several(self, sites: Sequence[int], device: torch.device, *, fresh: bool) -> Tensor:
        """The same; `fresh` as in `_dense`."""

    @abstractmethod
    def _dense(self, site: int, device: torch.device, *, fresh: bool) -> Tensor:
        """ΔW of a site; `fresh`: of nothing that was computed before."""

    @abstractmethod
    def inputs(self, site: int, device: torch.device) -> list[Tensor]:
        """Everything that ΔW of a site follows from, besides the coefficients."""


class _ByTerms(SiteProduct):
    """Term by term, as their programs say."""

    def __init__(self, pool: FactorPool, m: int):
        super().__init__(pool, m)
        self._planned: dict[tuple[int, int], Contraction] = {}
        self._chains: dict[int, tuple[list[Ready], list[LaidProducts | None]]] = {}
        n_out, n_in = self.bound.grid.shape
        columns = tuple(self.bound.sizes[n] for n in self.bound.in_letters)
        rows = math.prod(self.bound.sizes[n] for n in self.bound.out_letters)
        self._fits = rows == n_out and math.prod(columns) == n_in
        self._token = columns
        self._shares = [p.shares_first(p.few) for p in self.member.programs]

    def __getstate__(self) -> dict[str, Any]:
        """Without what was laid out."""
        return self.__dict__ | {"_chains": {}}

    def quickly(self, x: Tensor, output: Tensor, site: int) -> Tensor | None:
        ready = self.pool.ready_without_gradient(self.m) if self._fits else None
        if ready is None:
            return None
        known = self._chains.get(site)
        if known is None or known[0] is not ready:
            known = self._chains[site] = ready, self._chains_of(ready, site)
        n_out = self.bound.grid.shape[0]
        rows, tokens = output.reshape(-1, n_out), x.reshape(-1, *self._token)
        coefficients = self.pool.state.coefficients[self.m]
        for k, chain in enumerate(known[1]):
            if chain is None or not chain.takes(tokens, rows):
                return None
            if self._shares[k]:
                first = self.pool.first_product(self.m, k, x)
                if first is None:
                    first = chain.first(tokens)
                    self.pool.keep_first_product(self.m, k, x, first)
                rows = chain.onto(rows, first, coefficients[k], done=1)
            else:
                rows = chain.onto(rows, tokens, coefficients[k])
        return rows.reshape(output.shape)

    def _chains_of(self, ready: Sequence[Ready], site: int) -> list[LaidProducts | None]:
        width = self.bound.grid.shape[0]
        return [
            laid_products(program.few, own.at(site), width)
            for program, own in zip(self.member.programs, ready, strict=True)
        ]

    def onto(
        self, rows: Tensor, reader: Reader, site: int, *, factor: float, thinned: float
    ) -> Tensor:
        for k, coefficient in enumerate(self.coefficients()):
            scale = coefficient if factor == 1 else factor * coefficient
            rows = self._with_term(rows, reader, site, k, scale, thinned)
        return rows

    def _with_term(
        self,
        rows: Tensor,
        reader: Reader,
        site: int,
        k: int,
        scale: float | Tensor,
        thinned: float,
    ) -> Tensor:
        """``rows + scale * (tokens times one term)``, ``(token, out)``."""
        bound, program = self.bound, self.member.programs[k]
        operands = self.pool.operands(self.m, k, site, rows.device)
        if thinned and program.edge is not None:
            operands = _thinned(operands, *program.edge, thinned)
        contraction = program.contraction(rows.shape[0])
        if reader.looks_up:
            read = zip(program.letters, operands, strict=True)
            left, done = [reader.at_positions(bound, own, o) for own, o in read], 0
        elif program.shares_first(contraction) and not reader.own:
            left, done = self._after_first(k, contraction.steps[0], reader, operands), 1
        else:
            left, done = [reader.tokens(bound, operands[0]), *operands], 0
        n_out = bound.grid.shape[0]
        whole = math.prod([bound.sizes[n] for n in bound.out_letters]) == n_out
        if whole and rows.dtype == left[-1].dtype:
            return contraction.run_onto(left, rows, scale, done=done).to(rows.dtype)
        added = contraction.run(left, done=done)[:, :n_out]  # (token, out)
        return added_to(rows, added.to(rows.dtype), scale)

    def _after_first(
        self, k: int, first: PairwiseStep, reader: Reader, operands: list[Tensor]
    ) -> list[Tensor]:
        """What is left after the first product, which other sites may have taken already."""
        product = self.pool.first_product(self.m, k, reader.x)
        if product is not None:
            return [o for i, o in enumerate(operands, 1) if i != first.right] + [product]
        left = [reader.tokens(self.bound, operands[0]), *operands]
        first.run(left)
        self.pool.keep_first_product(self.m, k, reader.x, left[-1])
        return left

    def _dense(self, site: int, device: torch.device, *, fresh: bool) -> Tensor:
        bound, total = self.bound, None
        whole_out = math.prod([bound.sizes[n] for n in bound.out_letters])
        for k, coefficient in enumerate(self.coefficients()):
            operands = self.pool.operands(self.m, k, site, device, fresh=fresh)
            dense = self.member.programs[k].dense.run(operands)
            part = coefficient * dense.reshape(whole_out, -1)  # (whole out, whole in)
            total = part if total is None else total + part
        assert total is not None
        n_out, n_in = bound.grid.shape
        return total[:n_out, :n_in]  # (out, in)

    def _several(self, sites: Sequence[int], device: torch.device, *, fresh: bool) -> Tensor:
        bound, total = self.bound, None
        whole_out = math.prod([bound.sizes[n] for n in bound.out_letters])
        for k, coefficient in enumerate(self.coefficients()):
            dense = self._dense_term(k, sites, device, fresh)  # (site, *rows, *columns)
            part = coefficient * dense.reshape(len(dense), whole_out, -1)
            total = part if total is None else total + part
        assert total is not None
        n_out, n_in = bound.grid.shape
        return total[:, :n_out, :n_in].expand(len(sites), -1, -1)  # (site, out, in)

    def _dense_term(
        self, k: int, sites: Sequence[int], device: torch.device, fresh: bool
    ) -> Tensor:
        """One term of several sites, ``(site, *rows, *columns)``; of all alike once."""
        program, common = self.member.programs[k], self.member.programs[k].common[1:]
        chosen = sites[:1] if all(common) else sites
        own = [self.pool.operands(self.m, k, site, device, fresh=fresh) for site in chosen]
        if len(chosen) == 1:
            return program.dense.run(own[0])[None]
        operands = [
            of_sites[0] if same else torch.stack(of_sites)
            for same, of_sites in zip(common, zip(*own, strict=True), strict=True)
        ]
        planned = self._planned.get((k, len(chosen)))
        if planned is None:
            planned = dense_of_sites(program, self.bound, len(chosen))
            self._planned[k, len(chosen)] = planned
        return planned.run(operands)

    def inputs(self, site: int, device: torch.device) -> list[Tensor]:
        terms = range(len(self.member.programs))
        return [o for k in terms for o in self.pool.operands(self.m, k, site, device)]


class _ByTransform(SiteProduct):
    """By a faster way to the same product, which needs no term."""

    def __init__(self, pool: FactorPool, m: int, fast: Fast):
        super().__init__(pool, m)
        self.fast = fast

    def onto(
        self, rows: Tensor, reader: Reader, site: int, *, factor: float, thinned: float
    ) -> Tensor:
        del thinned  # it has no ranks
        if reader.looks_up:
            added = reader.times(self.delta(site, rows.device))  # (token, out)
            return torch.add(rows, added.to(rows.dtype), alpha=factor)
        parts = self._parts(site, rows.device)
        tokens = reader.rows().to(next(iter(parts.values())).dtype)
        added = self.fast.product(tokens, parts)  # (token, out)
        coefficient = self.coefficients()[0]  # the same for all terms
        scale = coefficient if factor == 1 else factor * coefficient
        return added_to(rows, added.to(rows.dtype), scale)

    def _dense(self, site: int, device: torch.device, *, fresh: bool) -> Tensor:
        del fresh  # nothing is computed ahead
        parts = self._parts(site, device)
        like = next(iter(parts.values()))
        eye = torch.eye(self.bound.grid.shape[1], dtype=like.dtype, device=like.device)
        coefficient = self.coefficients()[0]  # the same for all terms
        return coefficient * self.fast.product(eye, parts).T  # (out, in)

    def _several(self, sites: Sequence[int], device: torch.device, *, fresh: bool) -> Tensor:
        return torch.stack([self._dense(site, device, fresh=fresh) for site in sites])

    def inputs(self, site: int, device: torch.device) -> list[Tensor]:
        return list(self._parts(site, device).values())

    def _parts(self, site: int, device: torch.device) -> dict[str, Tensor]:
        """Every factor of a site, on a device."""
        return {name: part.to(device) for name, part in self.pool.parts(self.m, site).items()}


def product_of(pool: FactorPool, m: int) -> SiteProduct:
    """The product of one group."""
    fast = pool.members[m].fast
    return _ByTerms(pool, m) if fast is None else _ByTransform(pool, m, fast)


def _thinned(operands: list[Tensor], which: int, axis: int, p: float) -> list[Tensor]:
    """The operands with a share of the ranks along one axis of one of them left out."""
    chosen = operands[which]
    kept = functional.dropout(chosen.new_ones(chosen.shape[axis]), p)  # (rank,)
    kept = kept.reshape(-1, *[1] * (chosen.dim() - axis - 1))  # (rank, 1, ...)
    return [*operands[:which], chosen * kept, *operands[which + 1 :]]
