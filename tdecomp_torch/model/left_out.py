"""What the default targets leave out of a model: told by name, reason and share of the numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping

from tdecomp.stack.claims import reason_against
from tdecomp_torch.model.inventory import Inventory

__all__ = ["left_out"]

_MOST = 12  # kinds of weights in one sentence
_NUMBERED = re.compile(r"(.*\.)?\d+\..+")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def left_out(
    inventory: Inventory,
    taken: Collection[str],
    reasons: Mapping[str, str],
    asked: Collection[str] = ("excluded", "layer not selected"),
) -> list[str]:
    """Say in one sentence which weights of numbered layers are not adapted, if any.

    Parameters
    ----------
    inventory
        Of the model; its weights of two axes and more count, tables that are looked up do not.
    taken
        Names of the weights that are adapted.
    reasons
        Weight -> why it is not, as far as that is known.
    asked
        Reasons that the user gave himself, which are not told.
    """
    weights = {name: (n, why) for name, n, why in _weights(inventory)}
    left = {
        name: (n, reasons.get(name, why))
        for name, (n, why) in weights.items()
        if name not in taken and reasons.get(name) not in asked
    }
    if not left:
        return []
    kinds = {_NUMBER.sub("*", name.removesuffix(".weight")): why for name, (_, why) in left.items()}
    words = [f"{name} ({why})" for name, why in kinds.items()]
    more = f" and {len(words) - _MOST} more kinds" if len(words) > _MOST else ""
    share = sum(n for n, _ in left.values()) / sum(n for n, _ in weights.values())
    return [
        f"Left out: {len(left)} of {len(weights)} weights in numbered layers, {share:.2%} of their"
        f" numbers: {', '.join(words[:_MOST])}{more}. Give targets= to adapt those that the model"
        " calls."
    ]


def _weights(inventory: Inventory) -> Iterator[tuple[str, int, str]]:
    """Name, size and what it is, of every weight in a numbered layer, tables excepted."""
    for path, module in inventory.modules.items():
        matrix = inventory.matrices.get(path)
        if matrix is not None:
            name = f"{path}.weight"
            reason = reason_against(name, matrix.shape)
            if _NUMBERED.fullmatch(name) and not matrix.kind.looks_up and reason != "embedding":
                yield name, math.prod(matrix.shape), reason
            continue
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if parameter.dim() > 1 and _NUMBERED.fullmatch(name):
                yield name, parameter.numel(), f"in a {type(module).__name__}"
