"""From factors to weights: add a decomposed delta to a torch model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tdecomp import SiteError
from tdecomp.files import Factors, load_factors
from tdecomp.files.delta import updates
from tdecomp_torch.plainly import plainly

__all__ = ["apply"]


@plainly()
@torch.no_grad()
def apply(model: nn.Module, factors: Factors | str | Path, *, scale: float = 1.0) -> nn.Module:
    """Add ``scale · ΔW`` to the weights of a model, in place.

    What ``tdecomp apply`` writes to a folder, in memory: one weight at a time is decoded, added in
    float32 and cast back to its own dtype and device.

    Parameters
    ----------
    model
        Its parameters go by the names that the factors carry, or by them after a prefix that the
        model adds (a body inside a task model).
    factors
        From `tdecomp.files.load_factors`, or a folder that ``tdecomp decompose`` wrote.
    scale
        Strength of the delta; a second call with ``-scale`` takes it off again up to rounding.

    Returns
    -------
    nn.Module
        `model` itself.

    Raises
    ------
    SiteError
        If a weight is missing or has another shape; nothing is changed then.
    """
    if not isinstance(factors, Factors):
        factors = load_factors(factors)
    weights = {name: _find(model, name, shape) for name, shape in factors.shapes.items()}
    for name, add in updates(factors).items():
        weight = weights[name]
        before = weight.detach().float().cpu().numpy()
        after = torch.from_numpy(add(before))
        if scale == 1:
            weight.copy_(after)
        else:
            weight.copy_(torch.from_numpy(before).lerp(after, scale))
    return model


def _find(model: nn.Module, name: str, shape: tuple[int, ...]) -> nn.Parameter:
    """The parameter of that name, or the only one whose name ends in it."""
    parameters = dict(model.named_parameters())
    names = [name] if name in parameters else [n for n in parameters if n.endswith(f".{name}")]
    if len(names) != 1:
        found = f"{len(names)} parameters end in it" if names else "the model has no such parameter"
        raise SiteError(f"cannot place the delta of {name!r}: {found}")
    if (actual := tuple(parameters[names[0]].shape)) != shape:
        raise SiteError(f"{names[0]} is {actual}, the factors were made for {shape}")
    return parameters[names[0]]
