"""Which tensor of one model is which of another, by name and shape; no file is read.

Names are compared on several levels, each with coarser keys than the last (`renamings.LEVELS`), as
they are and after a prefix that one side writes. What two names could claim with equal right is
left unpaired: a wrong pair would give a wrong delta with a true-looking error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .renamings import LEVELS

__all__ = ["Match", "match_names"]

Shapes = Mapping[str, tuple[int, ...]]
_Rule = tuple[str, str]
"""Side that writes a prefix, and the prefix; ``("", "")`` for equal keys."""

_EQUAL: _Rule = ("", "")
_DEEPEST = 8  # segments of a prefix
_ROUNDS = 16  # prefixes of one level


@dataclass(frozen=True)
class Match:
    """Pairs of names.

    Attributes
    ----------
    pairs
        Base name to tuned name, one to one, in the order of the base.
    doubts
        Why names of either side that have candidates were not paired at first sight.
    """

    pairs: dict[str, str]
    doubts: dict[str, str] = field(default_factory=dict[str, str])


def match_names(base: Shapes, tuned: Shapes) -> Match:
    """Match the names of two models.

    On each level of keys equal keys compete with every prefix that one side may write before the
    names of the other: the rule that pairs most tensors of equal shape wins, and takes all names
    that it pairs, whatever their shape. Rules that claim one name for different partners, equally
    often, are ambiguous, unless one of them is that the keys are equal.

    Parameters
    ----------
    base, tuned
        Shapes by name.

    Examples
    --------
    >>> match_names({"h.0.w": (2, 3), "h.1.w": (2, 3)}, {"gpt.h.0.w": (2, 3), "gpt.h.1.w": (2, 3)})
    Match(pairs={'h.0.w': 'gpt.h.0.w', 'h.1.w': 'gpt.h.1.w'}, doubts={})
    """
    pairs: dict[str, str] = {}
    doubts: dict[str, str] = {}
    for keys_of in LEVELS:
        used = set(pairs.values())
        free = (
            _single(keys_of([name for name in base if name not in pairs])),
            _single(keys_of([name for name in tuned if name not in used])),
        )
        for _ in range(_ROUNDS):
            chosen, disputed = _choose(_claims(*free), base, tuned)
            if not chosen and not disputed:
                break
            pairs |= dict(chosen)
            doubts |= _doubts(disputed)
            settled = chosen + [pair for claim in disputed for pair in claim.pairs]
            free = (
                _without(free[0], {a for a, _ in settled}),
                _without(free[1], {b for _, b in settled}),
            )
    return Match({name: pairs[name] for name in base if name in pairs}, doubts)


def _without(keys: Mapping[str, str], names: set[str]) -> dict[str, str]:
    return {key: name for key, name in keys.items() if name not in names}


def _single(keys: Mapping[str, str]) -> dict[str, str]:
    """Name of every key that only one name has."""
    counts = Counter(keys.values())
    return {key: name for name, key in keys.items() if counts[key] == 1}


@dataclass(frozen=True)
class _Candidates:
    """What a rule pairs; `under` counts the free names that it could have spoken of."""

    rule: _Rule
    pairs: list[tuple[str, str]]
    under: int


def _claims(base: Mapping[str, str], tuned: Mapping[str, str]) -> list[_Candidates]:
    """What every rule pairs among the free names, given by key."""
    found: dict[_Rule, list[tuple[str, str]]] = {
        _EQUAL: [(name, tuned[key]) for key, name in base.items() if key in tuned]
    }
    under = Counter[_Rule]()
    for side, long, short in (("base", base, tuned), ("tuned", tuned, base)):
        for key, name in long.items():
            for prefix in _prefixes(key):
                under[side, prefix] += 1
                other = short.get(key[len(prefix) :])
                if other is not None:
                    pair = (name, other) if side == "base" else (other, name)
                    found.setdefault((side, prefix), []).append(pair)
    sizes = {"base": len(tuned), "tuned": len(base), "": 0}
    return [
        _Candidates(rule, pairs, min(under[rule], sizes[rule[0]])) for rule, pairs in found.items()
    ]


def _prefixes(key: str) -> Iterable[str]:
    """Dotted beginnings without a number, which would tell layers apart and not models."""
    at = 0
    for depth in range(_DEEPEST):
        dot = key.find(".", at)
        if dot < 0 or (depth and key[at:dot].isdecimal()):
            return
        at = dot + 1
        yield key[:at]


def _choose(
    claims: list[_Candidates], base: Shapes, tuned: Shapes
) -> tuple[list[tuple[str, str]], list[_Candidates]]:
    """Pairs of the rules that win now, and the claims that contradict each other.

    A prefix counts from two pairs on that are half of what it could speak of: one norm that is
    spelt like a norm of another tower is no prefix, unless the models have nothing else.
    """
    least = min(2, max(len(base), len(tuned)))
    votes = {claim.rule: sum(base[a] == tuned[b] for a, b in claim.pairs) for claim in claims}
    able = [
        claim
        for claim in claims
        if claim.pairs
        and (
            claim.rule == _EQUAL
            or (votes[claim.rule] >= least and 2 * votes[claim.rule] >= claim.under)
        )
    ]
    if not able:
        return [], []
    most = max(votes[claim.rule] for claim in able)
    best = [claim for claim in able if votes[claim.rule] == most]
    if best[0].rule == _EQUAL or len(best) == 1:
        return best[0].pairs, []
    disputed = _contradictions(best)
    return [pair for claim in best if claim not in disputed for pair in claim.pairs], disputed


def _contradictions(claims: list[_Candidates]) -> list[_Candidates]:
    """Claims that give a name to another partner than some other claim does."""
    partners: tuple[dict[str, set[str]], dict[str, set[str]]] = ({}, {})
    for a, b in (pair for claim in claims for pair in claim.pairs):
        partners[0].setdefault(a, set()).add(b)
        partners[1].setdefault(b, set()).add(a)
    return [
        claim
        for claim in claims
        if any(len(partners[0][a]) > 1 or len(partners[1][b]) > 1 for a, b in claim.pairs)
    ]


def _doubts(disputed: list[_Candidates]) -> dict[str, str]:
    """Reason for every name of the claims that contradict each other."""
    why = f"two pairings are equally good: {' or '.join(map(_said, disputed[:3]))}"
    return {name: why for claim in disputed for pair in claim.pairs for name in pair}


def _said(claim: _Candidates) -> str:
    side, prefix = claim.rule
    return f"with {prefix!r} in the {'base' if side == 'base' else 'tuned model'}"
