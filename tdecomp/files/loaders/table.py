"""The programs that load adapters, as rows of one table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from tdecomp._nearest import nearest
from tdecomp.errors import ArgumentError
from tdecomp.files.loaders.image_loaders import comfyui_view, diffusers_view
from tdecomp.files.loaders.llama_cpp_loader import llama_cpp_view
from tdecomp.files.loaders.loader import ERROR, NOTHING, Loader, Verdict
from tdecomp.files.loaders.peft_loader import peft_view
from tdecomp.files.loaders.sglang_loader import sglang_view
from tdecomp.files.loaders.vllm_loader import vllm_view
from tdecomp.files.loras.peft_scales import PeftScales
from tdecomp.files.peft_lora import VLLM_RANKS

__all__ = ["LOADERS", "loader_of"]


def _vllm_scale(scales: PeftScales, rank: int) -> float:
    return scales.alpha / (math.sqrt(scales.rank) if scales.rooted else scales.rank)


def _sglang_scale(scales: PeftScales, rank: int) -> float:
    return scales.alpha / scales.rank


def _llama_cpp_scale(scales: PeftScales, rank: int) -> float:
    return scales.alpha / rank


_VLLM_HELPER = "vllm/lora/peft_helper.py: PEFTHelper"
_VLLM_NAME = "vllm/lora/utils.py: parse_fine_tuned_lora_name"
_SGLANG_CONFIG = "sglang/srt/lora/lora.py: LoRAAdapter.initialize_weights"
_GGUF = "convert_lora_to_gguf.py: get_tensors"
_COMFY = "ComfyUI comfy/lora.py: load_lora"


def _parts(program: str, rule: str, told: str, **whys: str) -> dict[str, Verdict]:
    return {
        part: Verdict(why=f"{program} {why}", told=told, rule=rule) for part, why in whys.items()
    }


_IN_MEMORY = Verdict(
    why="'.default' is the adapter's name in memory, which no file has", told=ERROR, rule=""
)

LOADERS: Mapping[str, Loader] = {
    row.name: row
    for row in (
        Loader(
            name="peft",
            says="PEFT, into a model of transformers 5",
            source="peft 0.21: utils/save_and_load.py, utils/transformers_weight_conversion.py",
            schemes=("peft",),
            view=peft_view,
        ),
        Loader(
            name="vllm",
            says="vLLM's LoRA manager",
            source="vllm/lora: lora_model.py, model_manager.py, peft_helper.py, utils.py",
            schemes=("peft",),
            view=vllm_view,
            parts={
                **_parts("vLLM", _VLLM_HELPER, ERROR, magnitude="has no DoRA"),
                **_parts("vLLM", _VLLM_NAME, ERROR, bias="has no biases of adapters"),
                **_parts("vLLM", _VLLM_HELPER, ERROR, whole="takes no modules_to_save"),
                "in memory": replace(_IN_MEMORY, rule=_VLLM_NAME),
            },
            scale=_vllm_scale,
            scale_rule=_VLLM_HELPER,
            ranks=VLLM_RANKS,
        ),
        Loader(
            name="sglang",
            says="SGLang's LoRA manager",
            source="sglang/srt/lora: lora.py, lora_config.py, utils.py",
            schemes=("peft",),
            view=sglang_view,
            parts=_parts(
                "SGLang",
                _SGLANG_CONFIG,
                NOTHING,
                magnitude="reads A and B alone, without DoRA's lengths",
                bias="reads A and B alone",
                whole="reads A and B alone",
            ),
            scale=_sglang_scale,
            scale_rule="sglang/srt/lora/lora.py: LoRAAdapter.scaling",
        ),
        Loader(
            name="llama.cpp",
            says="llama.cpp, by its convert_lora_to_gguf.py",
            source="convert_lora_to_gguf.py, convert_hf_to_gguf.py, src/llama-adapter.cpp",
            schemes=("peft",),
            view=llama_cpp_view,
            parts={
                **_parts(
                    "the converter",
                    _GGUF,
                    ERROR,
                    magnitude="takes A and B alone",
                    bias="takes A and B alone",
                    whole="takes A and B alone, and norms",
                ),
                "in memory": replace(_IN_MEMORY, rule=_GGUF),
            },
            scale=_llama_cpp_scale,
            scale_rule="src/llama-adapter.h: llama_adapter_lora_weight::get_scale",
        ),
        Loader(
            name="diffusers",
            says="load_lora_weights of diffusers' pipelines",
            source="diffusers/loaders: lora_pipeline.py, lora_conversion_utils.py, peft.py",
            schemes=("diffusers", "diffusers_old", "diffusers_linear", "kohya"),
            view=diffusers_view,
        ),
        Loader(
            name="comfyui",
            says="ComfyUI's LoRA loaders",
            source="ComfyUI comfy/lora.py, comfy/utils.py: flux_to_diffusers",
            schemes=("diffusers", "kohya", "ai_toolkit", "comfyui", "lycoris", "bare"),
            view=comfyui_view,
            parts=_parts(_COMFY.split()[0], _COMFY, NOTHING, bias="reads no biases of a pair"),
        ),
    )
}
"""Every loader by name."""


def loader_of(name: str) -> Loader:
    """A row by its name; an ArgumentError tells the names that there are."""
    if name in LOADERS:
        return LOADERS[name]
    raise ArgumentError(
        f"no loader {name!r} is known: there are {', '.join(LOADERS)}",
        tip=nearest(name, LOADERS).removeprefix(", "),
    )
