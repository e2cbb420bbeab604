"""Finding the sites of a model by the names and shapes of its tensors, without reading a number."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from tdecomp.errors import SiteError
from tdecomp.stack.claims import ClaimRank, generic, reason_against
from tdecomp.stack.scheme import Scheme, choose_scheme, with_heads
from tdecomp.stack.select import SiteFilter, Targets, last_segments, matches
from tdecomp.stack.sites import Site, Survey

__all__ = ["find_sites"]

_MOST_SITES = 200_000  # three times those of the largest models; a kilobyte and 50 µs each
_MOST_HINTS = 20  # targets that get one
_MOST_TAILS = 1000  # endings of names that a word is compared with, about 20 µs each
_MOST = 4  # kinds of names in one sentence


def find_sites(
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    *,
    targets: Targets | None = None,
    exclude: Targets | None = None,
    layers: Collection[int] | None = None,
    patterns: Sequence[str] = (),
) -> Survey:
    """Find the weight matrices of a model by the names and shapes of its tensors.

    The naming scheme is the row of the families table for the config's `model_type`, else the row
    that matches most tensors. All other weights go by the generic rule: every 2-D
    ``*.weight`` under a numbered segment, taken as stored, (out, in), but no embedding, output
    head or router of experts.

    Parameters
    ----------
    shapes
        Tensor name -> shape.
    config
        The model's ``config.json``; may be empty.
    targets
        As in PEFT: module names or dotted suffixes, one regex for the whole path, or
        ``"all-linear"``. A block of a fused weight is named by its part, ``"c_attn.q"``. The
        generic rule then takes matrices without a number and routers, too; embeddings never, and
        output heads only when named. Default: what the family and the generic rule take.
    exclude
        Names or a regex, as `targets`; wins over them.
    layers
        Labels of `layer` to keep; unlike PEFT's it also applies to modules named in full.
    patterns
        ``"blocks.{layer}.att.{proj}"``: replace the family; the modes are in the order written.

    Returns
    -------
    Survey
        Every tensor is either a site's or in `uncovered` with a reason.

    Raises
    ------
    SiteError
        Nothing matched, or a pattern that cannot be read.

    Examples
    --------
    >>> shapes = {f"h.{i}.att.{p}.weight": (6, 4) for i in range(2) for p in "qk"}
    >>> survey = find_sites(shapes, {}, layers=[1])
    >>> survey.family, [site.labels for site in survey.sites]
    ('generic', [(('layer', 1), ('proj', 'q')), (('layer', 1), ('proj', 'k'))])
    """
    scheme = choose_scheme(shapes, config, patterns)
    selection = SiteFilter.of(targets, exclude, layers)
    ranked: list[tuple[ClaimRank, Site]] = []
    uncovered: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    beside: list[str] = []
    for name, shape in shapes.items():
        claim = scheme.claim(name, shape)
        if not patterns and not claim.sites and not claim.reason:
            claim = generic(name, shape, anywhere=selection.anywhere, heads=selection.by_name)
            claim = replace(claim, sites=tuple(with_heads(s, config) for s in claim.sites))
            beside += [name] if claim.sites and targets is None else []
        kept = [site for site in claim.sites if not selection.refusal(site)]
        ranked += [(claim.rank, site) for site in kept]
        if len(ranked) > _MOST_SITES:
            raise SiteError(
                f"more than {_MOST_SITES} sites: take fewer at a time with --targets or --layers"
            )
        if not kept:
            refusals = map(selection.refusal, claim.sites)
            uncovered[name] = next(refusals, claim.reason) or reason_against(name, shape)
        else:
            for note in filter(None, (claim.note, _partly(claim.sites, kept))):
                notes.setdefault(note, []).append(name)
    if not ranked:
        asked = _asked(targets=targets, exclude=exclude, layers=layers, patterns=patterns)
        raise _nothing(asked, uncovered, selection)
    sites = tuple(_in_order(ranked, scheme))
    told = (
        *scheme.notes,
        *_beside(scheme, beside),
        *_idle(selection.names, sites, uncovered),
        *_told(notes),
    )
    return Survey(family=scheme.family, sites=sites, uncovered=tuple(uncovered.items()), notes=told)


def _beside(scheme: Scheme, names: Sequence[str]) -> list[str]:
    """Sentence on the default sites that no row of the family names."""
    if scheme.family == "generic" or not names:
        return []
    kinds = dict.fromkeys(
        re.sub(r"(?<=\.)\d+(?=\.)", "*", n.removesuffix(".weight")) for n in names
    )
    more = f" and {len(kinds) - _MOST} more kinds" if len(kinds) > _MOST else ""
    return [
        f"Found by the generic rule, as {scheme.family!r} models have no such names: {len(names)}"
        f" weights, {', '.join(list(kinds)[:_MOST])}{more}."
    ]


def _partly(sites: Sequence[Site], kept: Sequence[Site]) -> str:
    """Note on a fused tensor of which only some parts are chosen."""
    chosen = set(map(id, kept))  # a fused tensor may hold very many sites: no comparisons
    left = dict.fromkeys(site.part for site in sites if id(site) not in chosen)
    return f"chosen without its parts {', '.join(left)}" if left else ""


def _in_order(ranked: list[tuple[ClaimRank, Site]], scheme: Scheme) -> list[Site]:
    """Sites by rule, prefix and labels: numbers ascending, names in the table's order."""
    seen: dict[tuple[str, int | str], int] = {}
    for pattern, rule in scheme.rules:
        for mode, names in zip(pattern.modes, pattern.choices, strict=True):
            for label in names:
                seen.setdefault((mode, label), len(seen))
        for part, _ in rule.parts:
            seen.setdefault(("proj", part), len(seen))
    for _, site in ranked:
        for pair in site.labels:
            seen.setdefault(pair, len(seen))

    def key(item: tuple[ClaimRank, Site]) -> tuple[Any, ...]:
        rank, site = item
        return rank, [v if isinstance(v, int) else seen[m, v] for m, v in site.labels]

    return [site for _, site in sorted(ranked, key=key)]


def _asked(**values: Any) -> str:
    given = [f"{name}={value!r}" for name, value in values.items() if value not in (None, ())]
    return ", ".join(given) or "the default targets"


def _nothing(asked: str, uncovered: Mapping[str, str], selection: SiteFilter) -> SiteError:
    """The error when no tensor is a site."""
    if not uncovered:
        return SiteError(f"no site matches {asked}: there are no tensors")
    matrices = [name for name, reason in uncovered.items() if reason != "not a matrix"]
    names = [name.removesuffix(".weight") for name in matrices or uncovered]
    text = (
        f"no site matches {asked} among {len(uncovered)} tensors, such as "
        f"{', '.join(names[:: -(-len(names) // 3)])}"
    )
    hints = filter(None, (_hint(word, uncovered, "targets=") for word in selection.words))
    pattern = "name some of these, or say where the sites are: patterns=['blocks.{layer}.{proj}']"
    return SiteError(text, tip=next(hints, pattern))


def _idle(names: Sequence[str], sites: Sequence[Site], uncovered: Mapping[str, str]) -> list[str]:
    """Sentences for the target names that chose nothing."""
    sizes = {name.count(".") + 1 for name in names}
    paths = {path for site in sites for path in (site.module, f"{site.module}.{site.part}")}
    chosen = {last_segments(path, n) for path in paths for n in sizes}
    idle = [name for name in names if name not in chosen]
    hints = [_hint(name, uncovered) for name in idle[:_MOST_HINTS]]
    return [
        f"Target {n!r} chose nothing{f': {hint}' if hint else ''}."
        for n, hint in zip_longest(idle, hints, fillvalue="")
    ]


def _hint(word: str, uncovered: Mapping[str, str], start: str = "") -> str:
    """Say what is in the way of a target, or what is spelled almost like it, after `start`."""
    modules = {name.removesuffix(".weight"): reason for name, reason in uncovered.items()}
    for module, reason in modules.items():
        if matches(word, module) and reason != "not targeted":
            return f"{module} is not a site ({reason})"
    size = word.count(".") + 1
    tails = sorted({last_segments(module, size) for module in modules})
    near = difflib.get_close_matches(word, tails[:_MOST_TAILS], n=1, cutoff=0.5)
    return f"did you mean {start}{near[0]!r}?" if near else ""


def _told(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Write a sentence for each kind of note, naming the first tensor."""
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {note}."
        for note, names in notes.items()
    ]
