"""diffusers and ComfyUI: modules of a network by its name, with dots or without."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tdecomp.files.loaders.flux import diffusers_names, original_name
from tdecomp.files.loaders.loader import ERROR, WARNING, LoaderPlace, ModelView, Verdict
from tdecomp.files.loaders.model_names import ModelNames, Shape
from tdecomp.files.loaders.sizes import size_of

__all__ = ["comfyui_view", "diffusers_view"]

_DIFFUSERS = "diffusers/loaders/lora_pipeline.py"
_PREFIXED = "diffusers/loaders/peft.py: PeftAdapterMixin.load_lora_adapter"
_COMFY = "ComfyUI comfy/lora.py: model_lora_keys_unet, load_lora"
_INSIDE = ("model.diffusion_model.", "diffusion_model.")
_ORIGINAL_FLUX = re.compile(r"(?:^|\.)double_blocks\.\d+\.img_attn\.qkv$")
_KOHYA_NETWORKS = {
    "transformer": "lora_unet_",
    "unet": "lora_unet_",
    "text_encoder": "lora_te1_",
    "text_encoder_2": "lora_te2_",
}


def diffusers_view(names: ModelNames) -> ModelView:
    """A pipeline, or one network, as diffusers loads adapters into it."""
    places: dict[str, LoaderPlace] = {}
    flux = _is_flux(names)
    for network, module, shape in _modules(names):
        stem = f"{network}.{module}"
        places[stem] = LoaderPlace(stem=stem, sizes=size_of(shape))
        if network == "transformer" and (original := original_name(module)) and flux:
            alike = f"lora_unet_{original}".replace(".", "_")
            places[alike] = LoaderPlace(stem=alike)
    return ModelView(
        places=places,
        reads=lambda stem: stem,
        lost=lambda name: Verdict(
            why="no network of the pipeline has such a module", told=WARNING, rule=_PREFIXED
        ),
        refused=_refused(names, "diffusers", f"{_DIFFUSERS}: LoraBaseMixin"),
    )


def comfyui_view(names: ModelNames) -> ModelView:
    """A model as ComfyUI names its modules for adapters."""
    places: dict[str, LoaderPlace] = {}
    flux = _is_flux(names)
    for network, module, shape in _modules(names):
        aliases = _comfy_stems(network, module, flux=flux)
        for stem in aliases:
            places[stem] = LoaderPlace(stem=aliases[0], sizes=size_of(shape))
        for stems in _beside(module) if flux and network == "transformer" else ():
            for stem in stems:
                places.setdefault(stem, LoaderPlace(stem=stems[0]))
    return ModelView(
        places=places,
        reads=lambda stem: stem,
        lost=lambda name: Verdict(
            why="ComfyUI knows no module by that name", told=WARNING, rule=_COMFY
        ),
        refused=_refused(names, "ComfyUI", "ComfyUI comfy/model_detection.py"),
    )


def _modules(names: ModelNames) -> Iterator[tuple[str, str, Shape]]:
    """Network, module and shape; single files of a network have no network before them."""
    for name, shape in names.modules.items():
        network, _, module = name.partition(".")
        if network in names.networks:
            yield network, module, shape
            continue
        inside = next((p for p in _INSIDE if name.startswith(p)), "")
        yield ("unet" if "UNet" in names.kind else "transformer"), name[len(inside) :], shape


def _comfy_stems(network: str, module: str, *, flux: bool) -> tuple[str, ...]:
    """Names that ComfyUI knows a module by; the first is the one that is written."""
    flat = module.replace(".", "_")
    if network.startswith("text_encoder"):
        return f"{network}.{module}", f"{_KOHYA_NETWORKS.get(network, 'lora_te3_')}{flat}"
    if flux and original_name(module) is not None:
        return _flux_stems(module)
    return f"diffusion_model.{module}", f"lora_unet_{flat}"


def _flux_stems(module: str) -> tuple[str, ...]:
    flat = module.replace(".", "_")
    return f"transformer.{module}", f"lycoris_{flat}", f"lora_transformer_{flat}", module


def _beside(module: str) -> Iterator[tuple[str, ...]]:
    """Names for each part of a module of FLUX, or for the one that it is a part of."""
    if (original := original_name(module)) is not None:
        yield f"diffusion_model.{original}", f"lora_unet_{original}".replace(".", "_")
    yield from map(_flux_stems, diffusers_names(module))


def _is_flux(names: ModelNames) -> bool:
    original = any(_ORIGINAL_FLUX.search(module) for module in names.modules)
    return "Flux" in names.kind or original


def _refused(names: ModelNames, loader: str, rule: str) -> Verdict | None:
    if names.networks or "model_type" not in names.config:
        return None
    return Verdict(
        why=f"{loader} makes images, and this is a model of type {names.kind}",
        told=ERROR,
        rule=rule,
    )
