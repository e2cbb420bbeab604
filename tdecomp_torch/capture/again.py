"""Layers that compute their activations again in the backward pass, so that few are held."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from tdecomp.errors import ArgumentError

__all__ = ["computed_again"]


@contextmanager
def computed_again(model: nn.Module, paths: Iterable[str]) -> Generator[None]:
    """Run a model whose numbered layers hold nothing but their inputs until they are derived.

    Caches of keys and values are off meanwhile: they would be filled twice.

    Parameters
    ----------
    paths
        Of modules that are looked at: the layers are all those of the lists that they are in.

    Raises
    ------
    ArgumentError
        None of them is in a numbered layer.
    """
    layers = _layers(model, paths)
    own = {layer: vars(layer).get("forward") for layer in layers}
    caching = [config for config in _configs(model) if getattr(config, "use_cache", False)]
    try:
        for config in caching:
            config.use_cache = False
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        yield
    finally:
        for layer, forward in own.items():
            vars(layer).pop("forward", None)
            if forward is not None:
                layer.forward = forward
        for config in caching:
            config.use_cache = True


def _layers(model: nn.Module, paths: Iterable[str]) -> list[nn.Module]:
    """All members of the outermost lists that modules are in."""
    lists = {prefix for path in paths if (prefix := _list_around(path)) is not None}
    if not lists:
        raise ArgumentError(
            "checkpoint=True computes numbered layers again, and the model has none around the"
            " chosen weights: leave it out, or checkpoint in the model itself with"
            " use_reentrant=False"
        )
    return [layer for prefix in sorted(lists) for layer in model.get_submodule(prefix).children()]


def _list_around(path: str) -> str | None:
    """Path of what holds the first numbered module of a path; None where there is none."""
    parts = path.split(".")
    number = next((k for k, part in enumerate(parts) if part.isdigit()), None)
    return None if number is None else ".".join(parts[:number])


def _configs(model: nn.Module) -> list[Any]:
    """Configurations of a model of transformers and of its parts."""
    found = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    return list(found.values())
