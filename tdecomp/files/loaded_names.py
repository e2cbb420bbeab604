"""Names under which transformers 5 loads modules that a checkpoint names otherwise.

PEFT looks for the modules of the loaded model, so a LoRA must name those. A model that is renamed
on loading is a row of `ROWS`; those without a row are in `RENAMED_ELSEWHERE`, and can only be told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tdecomp.files.plain import is_list
from tdecomp.stack.names import canonical

__all__ = [
    "BASE_PREFIXES",
    "RENAMED_ELSEWHERE",
    "ROWS",
    "RenamedModels",
    "are_known",
    "loaded_names",
    "warnings_about",
]

_NUMBERED = re.compile(r"(.+\.)?\d+\..+")

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RenamedModels:
    """Models whose modules are renamed alike.

    Attributes
    ----------
    model_types
        Of the configuration.
    rules
        (regex, replacement), applied one after another to the path of a module. A path as it is
        in memory stays as it is.
    bare
        What a model without a head (``...Model``) does not have in front of its paths.
    classes
        If there are some: only these ``architectures`` are renamed.
    """

    model_types: tuple[str, ...]
    rules: Rules
    bare: str = ""
    classes: tuple[str, ...] = ()


_TOWERS: Rules = (
    (r"^language_model\.(model\.)?", "model.language_model."),
    (r"^model\.language_model\.lm_head$", "lm_head"),
    (r"^(\w+_tower|vision_model|multi_modal_projector)(?=\.|$)", r"model.\1"),
    (r"^(model\.vision_tower)\.vision_model\.", r"\1."),
)
_QKV_OF_SELF: Rules = tuple(
    (rf"\battention\.self\.{name}$", f"attention.{name[0]}_proj")
    for name in ("query", "key", "value")
)
_QKV: Rules = tuple(
    (rf"\battention\.attention\.{name}$", f"attention.{name[0]}_proj")
    for name in ("query", "key", "value")
)
_O_PROJ: Rules = ((r"\battention\.output\.dense$", "attention.o_proj"),)
_MLP: Rules = ((r"\bintermediate\.dense$", "mlp.fc1"), (r"\boutput\.dense$", "mlp.fc2"))

ROWS: tuple[RenamedModels, ...] = (
    RenamedModels(
        (
            *("llava", "llava_next", "llava_next_video", "llava_onevision", "vipllava"),
            *("video_llava", "gemma3", "paligemma", "mistral3", "aya_vision", "internvl"),
            *("got_ocr2", "aria", "mllama", "qwen2_audio", "voxtral"),
        ),
        _TOWERS,
        bare="model.",
    ),
    RenamedModels(
        ("qwen2_vl", "qwen2_5_vl"),
        (
            (r"^visual\.", "model.visual."),
            (r"^model\.(?!(language_model|visual)(\.|$))", "model.language_model."),
        ),
        bare="model.",
    ),
    RenamedModels(
        (
            *("vit", "deit", "vit_mae", "vit_msn", "beit", "ijepa", "vivit"),
            "audio-spectrogram-transformer",
        ),
        (*_QKV, *_O_PROJ, *_MLP, (r"\bencoder\.layer\.(\d+)\.", r"layers.\1.")),
    ),
    RenamedModels(("dinov2", "dinov2_with_registers"), (*_QKV, *_O_PROJ)),
    RenamedModels(("swin",), (*_QKV_OF_SELF, *_O_PROJ, *_MLP)),
    RenamedModels(
        ("segformer",),
        (
            *_QKV_OF_SELF,
            *_O_PROJ,
            (r"\bmlp\.dense([12])$", r"mlp.fc\1"),
            (r"\battention\.self\.sr$", "attention.sequence_reduction.sequence_reduction"),
            (r"\bencoder\.block\.(\d+)\.", r"stages.\1.blocks."),
            (r"\bencoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embeddings."),
        ),
    ),
    RenamedModels(
        ("detr", "deformable_detr"),
        (
            (r"\bbackbone\.conv_encoder\.", "backbone."),
            (r"\b(self_attn|encoder_attn)\.out_proj$", r"\1.o_proj"),
            (r"\blayers\.(\d+)\.(fc[12])$", r"layers.\1.mlp.\2"),
        ),
    ),
    RenamedModels(("dinov3_vit",), ((r"(?<!model\.)\blayer\.(\d+)\.", r"model.layer.\1."),)),
    RenamedModels(
        ("gemma3n_text", "qwen3_5_text", "qwen3_5_moe_text"),
        ((r"^model\.language_model\.", "model."),),
    ),
    RenamedModels(("nemotron_h",), ((r"^backbone\.", "model."),)),
    RenamedModels(
        ("mixtral", "minimax", "minimax_m2"),
        ((r"\.block_sparse_moe\.(?!experts\.)", ".mlp."),),
    ),
    RenamedModels(
        ("phimoe",),
        (
            (r"\.block_sparse_moe\.gate$", ".mlp.router"),
            (r"\.block_sparse_moe\.(?!experts\.)", ".mlp."),
        ),
    ),
    RenamedModels(("gpt_neox",), ((r"^embed_out$", "lm_head"),)),
    RenamedModels(
        (
            *("clip", "clip_vision_model", "siglip", "siglip_vision_model", "siglip2"),
            *("siglip2_vision_model", "clipseg_vision_model", "altclip_vision_model", "mlcd"),
            *("mlcd_vision", "chinese_clip_vision_model", "metaclip_2_vision_model"),
        ),
        ((r"^vision_model\.", ""),),
        classes=(
            *("CLIPVisionModel", "SiglipVisionModel", "Siglip2VisionModel", "MLCDVisionModel"),
            *("AltCLIPVisionModel", "ChineseCLIPVisionModel", "MetaClip2VisionModel"),
        ),
    ),
    RenamedModels(
        (
            *("clip", "clip_text_model", "siglip", "siglip_text_model", "siglip2"),
            *("siglip2_text_model", "clipseg_text_model", "metaclip_2_text_model"),
        ),
        ((r"^text_model\.", ""),),
        classes=("CLIPTextModel", "SiglipTextModel", "Siglip2TextModel", "MetaClip2TextModel"),
    ),
)

_BASES: dict[str, tuple[str, ...]] = {
    "transformer": ("gpt2", "gpt_bigcode", "bloom", "gptj", "gpt_neo", "codegen", "falcon", "mpt"),
    "model": (
        *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma"),
        *("gemma2", "gemma3_text", "phi", "phi3", "opt", "olmo", "olmo2", "starcoder2", "granite"),
        *("stablelm", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "modernbert", "whisper"),
        *("bart", "smollm3", "glm", "glm4", "nemotron", "olmoe", "gpt_oss", "lfm2", "jamba"),
    ),
    "roberta": ("roberta", "xlm-roberta", "camembert"),
    "deberta": ("deberta", "deberta-v2"),
    "vit": ("vit", "vit_mae"),
    "backbone": ("mamba", "mamba2"),
    **{
        kind: (kind,)
        for kind in (
            *("gpt_neox", "bert", "distilbert", "electra", "albert", "mpnet", "deit", "dinov2"),
            *("swin", "beit", "segformer", "wav2vec2", "hubert", "wavlm", "rwkv", "esm", "ernie"),
        )
    },
}
BASE_PREFIXES = {kind: prefix for prefix, kinds in _BASES.items() for kind in kinds}
"""Model type -> the segment that a model with a head has in front of the names of its layers."""

RENAMED_ELSEWHERE = frozenset(
    {
        *("altclip", "aria_text", "audioflamingo3", "axk1", "axk2", "bailing_hybrid"),
        *("cohere_asr", "colqwen2", "conditional_detr", "cosmos3_edge", "cosmos3_omni"),
        *("d_fine", "deepseek_ocr2", "deepseek_v4", "dinov3_convnext", "dots3_note"),
        *("dots3_note_audio_encoder", "dots3_note_vision_encoder", "emu3"),
        *("ernie4_5_vl_moe", "flint", "fuyu", "gemma4_unified", "glm5_next"),
        *("glm5_next_text", "glmasr", "gradium_phonon_tts", "granite_speech"),
        *("granite_speech_plus", "gte", "hrm_text", "hunyuan_vl", "hy_v3", "hy_v4"),
        *("hyperclovax_vision_v2", "inkling2", "inkling2_text", "inkling_mm_model", "jev"),
        *("jina_embeddings_v3", "kimi_k25", "kimi_linear", "kolibri1", "laguna", "lfm3"),
        *("lfm3_vl_vision", "lw_detr", "maskformer", "mimi", "mimi_decoder"),
        *("mimi_encoder", "mimo_v2_flash", "minimax_m3_vl", "mistral_large4"),
        *("mistral_large4_text", "molmo2", "molmo2_text", "musicflamingo", "nemo_speechlm"),
        *("nemotron_h_omni", "nomic_bert", "olmo_hybrid", "paddleocr_vl", "pi0", "pixio"),
        *("pp_chart2table", "pp_doclayout_v2", "pp_doclayout_v3", "pp_doclayout_v4"),
        *("qianfan_ocr", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"),
        *("qwen4_exp_text", "radio", "rf_detr", "rt_detr", "rt_detr_v2", "sam3_tracker"),
        *("sam3_tracker_video", "sapiens2", "shieldgemma2", "step3p5_vision", "step3p7"),
        *("t5gemma2_encoder", "timesfm2_5", "timm_wrapper", "tipsv2", "tipsv2_dpt"),
        *("tipsv2_text_model", "tipsv2_vision_model", "ultrabert", "ultravbert"),
        *(
            "unlimited_ocr",
            "vibevoice_asr",
            "voxtral_realtime",
        ),
    }
)
"""Model types that transformers 5.23 renames as well, by rules that are not in `ROWS`."""


def loaded_names(modules: Iterable[str], model: Mapping[str, Any]) -> dict[str, str]:
    """Path of each module in the model as transformers 5 loads it, without wrappers' segments.

    Parameters
    ----------
    modules
        Paths as in a checkpoint; paths in memory stay as they are.
    model
        The model's configuration, of which ``model_type`` and ``architectures`` are read.

    Examples
    --------
    >>> llava = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
    >>> loaded_names(["language_model.model.layers.0.mlp.up_proj"], llava).popitem()[1]
    'model.language_model.layers.0.mlp.up_proj'
    """
    named = model.get("architectures")
    classes = [str(name) for name in named] if is_list(named) else []
    rows = [
        row
        for row in ROWS
        if model.get("model_type") in row.model_types
        and (not row.classes or set(row.classes) & set(classes))
    ]
    first = classes[0] if classes else ""
    headless = first.endswith("Model") and "Head" not in first
    names = {module: _loaded(canonical(module), rows, headless) for module in modules}
    if not classes:
        return names
    return _in_base(names, f"{BASE_PREFIXES.get(str(model.get('model_type')), '')}.", headless)


def _in_base(names: dict[str, str], base: str, headless: bool) -> dict[str, str]:
    """Layers of a base model in a model with a head, and the other way round.

    A checkpoint may hold the one and its configuration name the other: transformers loads both.
    """
    layers = {old: new for old, new in names.items() if _NUMBERED.fullmatch(new)}
    inside = [new.startswith(base) for new in layers.values()]
    if base == "." or (headless and not all(inside)) or (not headless and any(inside)):
        return names
    if headless:
        return names | {old: new.removeprefix(base) for old, new in layers.items()}
    return names | {old: base + new for old, new in layers.items()}


def _loaded(module: str, rows: Iterable[RenamedModels], headless: bool) -> str:
    for row in rows:
        for pattern, replacement in row.rules:
            module = re.sub(pattern, replacement, module)
        if headless:
            module = module.removeprefix(row.bare)
    return module


def are_known(model: Mapping[str, Any]) -> bool:
    """Whether the names that transformers loads models of this type under are known."""
    return bool(model.get("model_type")) and model["model_type"] not in RENAMED_ELSEWHERE


def warnings_about(names: Mapping[str, str], model: Mapping[str, Any]) -> list[str]:
    """Sentences on the names of a LoRA: renamed modules, and models whose names are unknown.

    Parameters
    ----------
    names
        What `loaded_names` gave.
    model
        As there.
    """
    kind = model.get("model_type")
    renamed = [(old, new) for old, new in names.items() if old != new]
    if renamed:
        old, new = renamed[0]
        return [
            f"{len(renamed)} modules are named as transformers 5 loads them: {new} for {old} in the"
            " checkpoint."
        ]
    if not kind:
        return [
            "The factors file does not say of which type the model is, so the names are those of"
            " its checkpoint: PEFT finds only modules that transformers loads under these names."
        ]
    if kind in RENAMED_ELSEWHERE:
        return [
            f"transformers 5 loads {kind!r} models under other names than their checkpoints have,"
            f" and by rules that are not known here: look whether {next(iter(names))} is the name"
            " of a module of the loaded model, else PEFT does not find it."
        ]
    return []
