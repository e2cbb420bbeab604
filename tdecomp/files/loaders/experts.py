"""Experts of a model in the layouts that adapters have: one by one, or together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from tdecomp.files.loaders.adapter_names import PairNames
from tdecomp.files.loaders.loader import LoaderPlace, Verdict
from tdecomp.files.loaders.model_names import Experts

__all__ = ["all_or_none", "fused_places", "is_fused", "is_single", "single", "single_places"]

_SINGLE = re.compile(r"(.+\.experts)\.(\d{1,6})\.(\w+)")
_FUSED = re.compile(r"(.+\.experts)(\.base_layer)?")
_SHORT = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def single(name: str) -> tuple[str, int, str] | None:
    """Container, number and projection of a module that is one expert's.

    >>> single("layers.0.mlp.experts.3.w1")
    ('layers.0.mlp.experts', 3, 'gate_proj')
    """
    found = _SINGLE.fullmatch(name)
    return (found[1], int(found[2]), _SHORT.get(found[3], found[3])) if found else None


def is_single(name: str) -> bool:
    """Whether a name is that of one expert."""
    return _SINGLE.fullmatch(name) is not None


def is_fused(name: str) -> bool:
    """Whether a name is that of all experts of a module, as PEFT names them."""
    return _FUSED.fullmatch(name) is not None


def single_places(
    experts: Experts, container: str, stem: Callable[[str], str]
) -> Iterator[tuple[str, LoaderPlace]]:
    """A place for every projection of every expert, by ``container.number.projection``."""
    for number in range(experts.count):
        for proj, leaf in experts.leaves.items():
            size = experts.sizes.get(proj)
            name = f"{experts.container}.{number}.{leaf}"
            place = LoaderPlace(stem=stem(name), sizes=(size,) if size else ())
            yield f"{container}.{number}.{proj}", place


def fused_places(
    experts: Experts, container: str, stem: Callable[[str], str]
) -> Iterator[tuple[str, LoaderPlace]]:
    """The two places that PEFT has for the experts of a module: the outer and the inner one."""
    sizes = tuple(experts.sizes[p] for p in ("gate_up_proj", "down_proj") if p in experts.sizes)
    for ending in ("", ".base_layer"):
        yield (
            f"{container}{ending}",
            LoaderPlace(stem=stem(f"{experts.container}{ending}"), sizes=sizes),
        )


def all_or_none(
    reached: Mapping[str, PairNames],
    places: Mapping[str, LoaderPlace],
    verdict: Callable[[str], Verdict],
    *,
    partners: Mapping[str, tuple[str, ...]],
) -> dict[str, Verdict]:
    """Verdicts on single experts of whom some are there and others, that are needed, are not.

    Parameters
    ----------
    reached, places
        Places with a pair, and all places, by name.
    verdict
        On a missing place.
    partners
        Projection -> those that are needed with it, itself included.
    """
    needed: dict[tuple[str, str], list[str]] = {}
    for name in places:
        if (found := single(name)) is not None:
            needed.setdefault((found[0], found[2]), []).append(name)
    wrong: dict[str, Verdict] = {}
    gaps: dict[tuple[str, tuple[str, ...]], str] = {}
    for name in reached:
        if (found := single(name)) is None:
            continue
        container, _, proj = found
        group = partners.get(proj, (proj,))
        if (container, group) not in gaps:
            wanted = (n for p in group for n in needed.get((container, p), ()))
            gaps[container, group] = next((n for n in wanted if n not in reached), "")
        if gaps[container, group]:
            wrong[name] = verdict(gaps[container, group])
    return wrong
