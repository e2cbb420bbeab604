"""Sites of experts that lie in one parameter: a matrix for each, stacked along `expert`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from tdecomp.stack import Site
from tdecomp_torch.model.inventory import Adaptable, Inventory

__all__ = ["is_turned_over", "named_experts", "shapes_of_experts"]


def shapes_of_experts(inventory: Inventory) -> dict[str, tuple[int, ...]]:
    """Stored shape of every parameter that holds experts."""
    return {
        path: tuple(own.kind.stored(own.module).shape) for path, own in inventory.experts.items()
    }


def is_turned_over(inventory: Inventory, site: Site) -> bool:
    """Whether a family takes experts for (out, in) that the model says are (in, out), or back."""
    own = inventory.experts.get(site.module)
    return own is not None and own.kind.turned != site.transpose


def named_experts(
    inventory: Inventory, chosen: Callable[[str], bool], layers: Collection[int] | None
) -> tuple[Site, ...]:
    """A site for every expert of the parameters that are chosen by their path."""
    return tuple(
        site
        for path, own in inventory.experts.items()
        if chosen(path)
        for site in _sites_of(path, own, layers)
    )


def _sites_of(path: str, own: Adaptable, layers: Collection[int] | None) -> list[Site]:
    *before, name = path.split(".")
    at = next((k for k, segment in enumerate(before) if segment.isdecimal()), None)
    layer = None if at is None else int(before[at])
    if layers is not None and layer not in layers:
        return []
    labels: tuple[Any, ...] = (() if layer is None else (("layer", layer),)) + (("proj", name),)
    n_experts, n_in = own.kind.stored(own.module).shape[0], own.shape[1]
    return [
        Site(
            tensor=path,
            index=(number,),
            transpose=own.kind.turned,
            labels=(*labels, ("expert", number)),
            shape=(own.shape[0] // n_experts, n_in),
            role="experts",
            prefix=".".join(before[:at] if at is not None else before),
        )
        for number in range(n_experts)
    ]
