"""Which module of a model a name that arrives nowhere may have meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tdecomp.files.loaders.loader import LoaderPlace
from tdecomp.files.renamings import weight_key

__all__ = ["Meant", "dotted_key", "flat_key"]

_FLAT_PREFIXES = (
    *("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet."),
    *("lora_transformer_", "lora_unet_", "lycoris_"),
)

_INNER = ".experts.base_layer"  # PEFT's inner place of two for experts


def dotted_key(stem: str) -> str:
    """What a name and others for the same module have in common.

    >>> dotted_key("base_model.model._orig_mod.model.layers.0.mlp.up_proj")
    'layers.0.mlp.up_proj'
    """
    inner = ".base_layer" if stem.endswith(_INNER) else ""
    return weight_key(f"{stem}.weight").removesuffix(".weight") + inner


def flat_key(stem: str) -> str:
    """The same for networks that make images, whose names may have no dots.

    >>> flat_key("transformer.x_embedder") == flat_key("lora_transformer_x_embedder")
    True
    """
    changed = True
    while changed:
        before = stem
        for prefix in _FLAT_PREFIXES:
            stem = stem.removeprefix(prefix)
        changed = stem != before
    return stem.replace(".", "_")


class Meant:
    """The places of a model by what their names have in common with other names for them.

    Parameters
    ----------
    places
        As a loader has them.
    key
        `dotted_key` or `flat_key`.
    """

    def __init__(self, places: Mapping[str, LoaderPlace], key: Callable[[str], str]) -> None:
        self._key = key
        self._by_key: dict[str, list[LoaderPlace]] = {}
        self._by_tail: dict[str, list[LoaderPlace]] = {}
        for place in places.values():
            if place.idle is None:
                self._by_key.setdefault(key(place.stem), []).append(place)
        for name, rows in self._by_key.items():
            for tail in _tails(name):
                self._by_tail.setdefault(tail, []).extend(rows)

    def place(self, stem: str, size: tuple[int, int] | None) -> LoaderPlace | None:
        """The one place that a name may have meant; None if there is none, or several."""
        key = self._key(stem)
        for name in (key, *_tails(key)):
            if found := _one(self._by_key.get(name, ()), size):
                return found
        for name in (key, *_tails(key)):
            text = [p for p in self._by_tail.get(name, ()) if self._key(p.stem) == f"text.{name}"]
            if found := _one(text or self._by_tail.get(name, ()), size):
                return found
        return None


def _tails(name: str) -> list[str]:
    """What is left of a name without its first segments, of two segments or more."""
    segments = name.split(".")
    return [".".join(segments[i:]) for i in range(1, len(segments) - 1)]


def _one(places: list[LoaderPlace] | tuple[()], size: tuple[int, int] | None) -> LoaderPlace | None:
    fitting = [p for p in places if size is None or not p.sizes or size in p.sizes]
    stems = {p.stem for p in fitting}
    return fitting[0] if len(stems) == 1 else None
