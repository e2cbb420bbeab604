"""What to compute when: which factors are contracted ahead for all sites, what each site then does.

A forward pass multiplies tokens with the factors of one site. Products that need no tokens
(``core · proj · layer``) are *blocks*: they are taken once for all sites ahead of a forward pass.
Which blocks are worth it is decided by cost, once, when the adapter is attached.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from tdecomp.adapters import Bound, Term
from tdecomp_torch.forward.contraction import TOKEN, Contraction, Letters, compiled
from tdecomp_torch.tracing import is_traced

__all__ = ["FEW", "FactorBlock", "Program", "dense_of_sites", "make_program"]

_SITE = "site"


@dataclass(frozen=True, kw_only=True)
class FactorBlock:
    """Operands of a term that are contracted ahead.

    Attributes
    ----------
    where
        Positions of the operands in the term.
    per_site
        Whether every site has its own result; else all have one in common.
    ahead
        For all sites at once, ``(site, ...)``.
    alone
        For one site.
    """

    where: tuple[int, ...]
    per_site: bool
    ahead: Contraction
    alone: Contraction


@dataclass(frozen=True, kw_only=True)
class Program:
    """One term: blocks, and what a site does with tokens, blocks and its other operands.

    Attributes
    ----------
    blocks
        Contracted ahead.
    rest
        Positions of the operands that are used as they are, after the blocks.
    letters
        Letters of every block and of the rest, for one site.
    many, few
        Contractions over tokens, blocks and the rest, for many tokens and for one.
    dense
        Contractions over blocks and the rest alone, to the matrix of a site.
    common
        Per operand of `many`, the tokens first: whether it is the same for all sites.
    edge
        Operand and axis of the rank behind the tokens, where it does not touch ``in`` itself if
        possible: what is masked there leaves out ranks. None where no rank touches ``in``.
    """

    blocks: tuple[FactorBlock, ...]
    rest: tuple[int, ...]
    letters: tuple[Letters, ...]
    many: Contraction
    few: Contraction
    dense: Contraction
    common: tuple[bool, ...]
    edge: tuple[int, int] | None

    def contraction(self, n_tokens: Any) -> Contraction:
        """The one planned for about this many tokens; for many where a tracer leaves it open."""
        if torch.compiler.is_compiling():
            from torch.fx.experimental.symbolic_shapes import statically_known_true

            return self.few if statically_known_true(n_tokens < FEW) else self.many
        return self.few if not is_traced() and n_tokens < FEW else self.many

    def shares_first(self, contraction: Contraction) -> bool:
        """Whether the first product is of the tokens with something that all sites share."""
        if not contraction.steps:
            return False
        first = contraction.steps[0]
        return first.left == 0 and self.common[first.right]


FEW = 32
"""Tokens from which on the order is that for many."""


def make_program(
    bound: Bound, term: Term, *, tokens: int, readers: float = 1.0, looked_up: bool = False
) -> Program:
    """Choose what a term contracts ahead, and the order of the rest.

    Parameters
    ----------
    bound, term
        The method on a grid, and one of its terms.
    tokens
        Number of tokens to plan for.
    readers
        How many sites read the same tokens, on average.
    looked_up
        The tokens are positions along ``in`` (an embedding), not vectors.
    """
    best, lowest = None, math.inf
    for sets in _choices(bound, term):
        program, ahead = _program(bound, term, sets, tokens, looked_up)
        each = program.many.cost
        if program.shares_first(program.many):
            each -= program.many.costs[0] * (1 - 1 / readers)
        cost = ahead + each * bound.grid.n_sites
        if cost < lowest:
            best, lowest = program, cost
    assert best is not None
    return best


def _choices(bound: Bound, term: Term) -> Iterator[list[tuple[int, ...]]]:
    """Sets of operands that might be contracted ahead: by the side of the weight they touch."""
    rows, columns = set(bound.out_letters), set(bound.in_letters)
    kinds: dict[str, tuple[int, ...]] = {"middle": (), "rows": (), "columns": ()}
    for k, operand in enumerate(term.operands):
        touched = {*operand.letters}
        if touched & rows and touched & columns:
            continue
        kind = "rows" if touched & rows else "columns" if touched & columns else "middle"
        kinds[kind] += (k,)
    middle, left, right = kinds.values()
    whole = [
        [middle, left, right],
        [(*middle, *left), right],
        [(*middle, *right), left],
    ]
    seen = set()
    for sets in whole:
        useful = [s for s in sets if len(s) > 1]
        for n in range(len(useful) + 1):
            for chosen in combinations(useful, n):
                if chosen not in seen:
                    seen.add(chosen)
                    yield [tuple(sorted(s)) for s in chosen]


def _program(
    bound: Bound, term: Term, sets: Sequence[tuple[int, ...]], tokens: int, looked_up: bool
) -> tuple[Program, float]:
    """The program that contracts some sets of operands ahead, and what these blocks cost."""
    letters = [bound.letters(o) for o in term.operands]
    sited = [not bound.grid.rows.keys().isdisjoint(o.letters) for o in term.operands]
    rows, columns = bound.out_letters, bound.in_letters
    sizes = {**bound.sizes, TOKEN: tokens, _SITE: bound.grid.n_sites}
    blocks, terms = [], []
    for chosen in sets:
        kept = _kept(chosen, letters, {*rows, *columns})
        blocks.append(_block(chosen, kept, letters, sited, sizes))
        terms.append(kept)
    taken = {k for chosen in sets for k in chosen}
    rest = tuple(k for k in range(len(letters)) if k not in taken)
    terms += [letters[k] for k in rest]
    of_tokens = lambda n: _of_tokens(terms, rows, columns, {**sizes, TOKEN: n}, looked_up)
    program = Program(
        blocks=tuple(blocks),
        rest=rest,
        letters=tuple(terms),
        many=of_tokens(tokens),
        few=of_tokens(1),
        dense=compiled(terms, (*rows, *columns), sizes),
        common=(True, *(not b.per_site for b in blocks), *(not sited[k] for k in rest)),
        edge=_edge(terms, {*rows}, {*columns}),
    )
    return program, sum(block.ahead.cost for block in blocks)


def _kept(chosen: Sequence[int], letters: Sequence[Letters], sides: set[str]) -> Letters:
    """Letters of the product of some operands: those that the weight or other operands have."""
    others = [own for k, own in enumerate(letters) if k not in chosen]
    outside = sides.union(*others)
    inside = dict.fromkeys(n for k in chosen for n in letters[k])
    return tuple(n for n in inside if n in outside)


def _block(
    chosen: tuple[int, ...],
    kept: Letters,
    letters: Sequence[Letters],
    sited: Sequence[bool],
    sizes: Mapping[str, int],
) -> FactorBlock:
    """Some operands contracted, for all sites at once and for one."""
    per_site = any(sited[k] for k in chosen)
    lead = (_SITE,) if per_site else ()
    of_all = [(_SITE, *letters[k]) if sited[k] else letters[k] for k in chosen]
    return FactorBlock(
        where=chosen,
        per_site=per_site,
        ahead=compiled(of_all, (*lead, *kept), sizes),
        alone=compiled([letters[k] for k in chosen], kept, sizes),
    )


def _of_tokens(
    terms: Sequence[Letters],
    rows: Letters,
    columns: Letters,
    sizes: Mapping[str, int],
    looked_up: bool,
) -> Contraction:
    """Tokens times blocks and the rest: ``(token, out)``; `looked_up`: at positions along in."""
    if looked_up:
        operands = [_at_positions(term, columns) for term in terms]
    else:
        operands = [(TOKEN, *columns), *terms]
    return compiled(operands, (TOKEN, *rows), sizes)


def _edge(terms: Sequence[Letters], rows: set[str], columns: set[str]) -> tuple[int, int] | None:
    """Operand and axis of the first rank behind ``in``; see `Program.edge`."""
    behind = [n for term in terms if columns & {*term} for n in term if n not in rows | columns]
    carriers = [k for k, term in enumerate(terms) if behind and behind[0] in term]
    if not carriers:
        return None
    which = next((k for k in carriers if not columns & {*terms[k]}), carriers[-1])
    return which, terms[which].index(behind[0])


def _at_positions(term: Letters, columns: Letters) -> Letters:
    """Letters of an operand whose ``in`` axes were indexed by the tokens: they come first."""
    rest = tuple(n for n in term if n not in columns)
    return rest if rest == term else (TOKEN, *rest)


def dense_of_sites(program: Program, bound: Bound, n: int) -> Contraction:
    """Operands of n sites to their matrices, ``(site, *rows, *columns)``.

    Operands that all sites have in common are without an axis of sites.
    """
    pairs = zip(program.letters, program.common[1:], strict=True)
    sited = [own if same else (_SITE, *own) for own, same in pairs]
    output = (_SITE, *bound.out_letters, *bound.in_letters)
    return compiled(sited, output, {**bound.sizes, _SITE: n})
