"""How wide an adapter's LoRA pairs are, and when sharing factors stores fewer numbers than LoRA."""

from __future__ import annotations

from itertools import product

import sympy

from tdecomp.adapters import Spec, Term
from tdecomp.adapters.terms import SITE_MODES
from tdecomp.modes import flatten
from theory.formulas import at, size_of, volume

__all__ = ["exported_count", "lora_rank", "lotr_break_even"]


def lora_rank(spec: Spec) -> sympy.Expr:
    """Width of the pair ``ΔW = B A`` of one weight: the narrowest cut between ``out`` and ``in``.

    Every term is cut where the product of the ranks that run across is smallest, the widths of
    terms add up, and none is wider than the weight. No ΔW has a larger rank, since its parts on
    both sides of a cut are such a pair. Parts of a side count as letters whatever their size; an
    export leaves out those of size 1, so FacT's pairs are narrower where a weight is one square.

    Source: a cut of a network bounds the rank of its tensor, Cui et al. [cui2016].

    >>> from tdecomp.adapters import method
    >>> lora_rank(method("lotr"))
    Min(in, out, r, s)
    >>> lora_rank(method("loha"))
    Min(in, out, r*s)
    """
    sides = tuple(map(size_of, spec.sides))
    return sympy.Min(*sides, sum(_width(spec, term) for term in spec.terms))


def _width(spec: Spec, term: Term) -> sympy.Expr:
    """Width of one term; that of the weight where some factor has letters of both sides."""
    out, inp = (set(flatten((axis,))) for axis in spec.output)
    sites = {*SITE_MODES} - {*spec.weight_modes}
    letters = [set(o.letters) - sites for o in term.operands]
    cuts: set[frozenset[str]] = set()
    for left in product((True, False), repeat=len(letters)):
        near = set().union(*(part for part, here in zip(letters, left, strict=True) if here))
        far = set().union(*(part for part, here in zip(letters, left, strict=True) if not here))
        if not near & inp and not far & out:
            cuts.add(frozenset(near & far))
    narrow = [cut for cut in cuts if not any(other < cut for other in cuts)]
    return sympy.Min(*map(volume, narrow), *map(size_of, spec.sides))


def exported_count(spec: Spec) -> sympy.Expr:
    """Numbers in the LoRA pairs of all weights: ``site · rank · (out + in)``.

    >>> from tdecomp.adapters import method
    >>> exported_count(method("tenslora_qkv_depth_cp"))
    site*(in + out)*Min(in, out, r)
    """
    return size_of("site") * lora_rank(spec) * (size_of("out") + size_of("in"))


def lotr_break_even() -> sympy.Expr:
    """Rank ``r = s`` up to which LoTR trains no more numbers than LoRA of rank ``k``.

    The positive root of ``N r² + (out + in) r = N k (out + in)``; for many weights it goes to
    ``√(k (out + in))``. The export of LoTR has rank ``r``, so it is smaller than that of LoRA
    exactly where ``r < k``. At equal trained numbers it is larger, by ``r / k``, whenever there
    are two weights or more (``N (out + in - k) > out + in``).

    Source: the counts of LoTR [bershatsky2024lotr].

    >>> at(lotr_break_even(), MINILM).evalf(4)
    13.64
    """
    k, sites, sides = size_of("k"), size_of("site"), size_of("out") + size_of("in")
    r = size_of("r")
    roots = sympy.solve(sites * r**2 + sides * r - sites * k * sides, r)
    (root,) = [x for x in roots if at(x, MINILM).is_positive]
    return root


MINILM = {"out": 384, "in": 384, "site": 18, "k": 1}
"""Query, key and value of MiniLM's six layers, beside LoRA of rank 1."""
