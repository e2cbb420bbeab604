"""vLLM: names by the rules of each model's class, and what its LoRA manager looks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from tdecomp.files.loaders.adapter_names import AdapterNames, PairNames
from tdecomp.files.loaders.experts import fused_places, is_fused, single_places
from tdecomp.files.loaders.loader import (
    EACH,
    ERROR,
    FUSED,
    NOTHING,
    PEFT_PREFIX,
    LoaderPlace,
    ModelView,
    Verdict,
)
from tdecomp.files.loaders.model_names import Experts, ModelNames, Shape
from tdecomp.files.loaders.sizes import size_of
from tdecomp.files.peft_config import FUSED_EXPERTS

__all__ = ["VLLM_MODELS", "VllmModels", "vllm_view"]

_MANAGER = "vllm/lora/model_manager.py: LoRAModelManager.activate_adapter"
_EXPECTED = "vllm/lora/lora_model.py: LoRAModel.from_local_checkpoint, check_unexpected_modules"
_NAME = "vllm/lora/utils.py: parse_fine_tuned_lora_name"
_TOWERS = "vllm/lora/model_manager.py: LoRAModelManager._maybe_init_mm"
_FUSED_MOE = "vllm/lora/model_manager.py: LoRAModelManager._stack_moe_lora_weights"
_MODELS = "vllm/model_executor/models"

_Renamings = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class VllmModels:
    """Models that one class of vLLM serves.

    Attributes
    ----------
    model_types
        Of the configuration.
    source
        File of the class.
    prefixes, inside
        What its `WeightsMapper` puts in the place of what: at the beginning, anywhere.
    language
        What the modules of the language model begin with, where there are others.
    fused
        It takes experts together (``is_3d_moe_weight``), not one by one.
    embeddings
        It has ``embedding_modules``.
    loras
        It takes adapters at all (``SupportsLoRA``).
    """

    model_types: tuple[str, ...]
    source: str
    prefixes: _Renamings = ()
    inside: _Renamings = ()
    language: str = ""
    fused: bool = False
    embeddings: bool = False
    loras: bool = True

    def mapped(self, name: str) -> str:
        """A name after the mapper."""
        name += "."
        for old, new in self.inside:
            name = name.replace(old, new, 1)
        for old, new in self.prefixes:
            if name.startswith(old):
                name = name.replace(old, new, 1)
        return name[:-1]


_TOWER_PREFIXES: _Renamings = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
_QWEN_PREFIXES: _Renamings = (
    ("model.language_model.", "language_model.model."),
    ("model.visual.", "visual."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)

VLLM_MODELS: tuple[VllmModels, ...] = (
    VllmModels(
        model_types=("llama", "mistral", "mixtral", "granite", "granitemoe"),
        source=f"{_MODELS}/llama.py, mixtral.py, granite.py",
        embeddings=True,
    ),
    VllmModels(
        model_types=("qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma", "gemma2", "gemma3_text"),
        source=f"{_MODELS}/qwen2.py, qwen3.py, qwen3_moe.py, gemma3.py",
    ),
    VllmModels(
        model_types=("phi3", "deepseek_v2", "deepseek_v3"),
        source=f"{_MODELS}/phi3.py, deepseek_v2.py",
    ),
    VllmModels(
        model_types=("gemma3", "llava", "llava_next", "paligemma", "llava_onevision"),
        source=f"{_MODELS}/gemma3_mm.py, llava.py, paligemma.py: hf_to_vllm_mapper",
        prefixes=_TOWER_PREFIXES,
        language="language_model.",
    ),
    VllmModels(
        model_types=("mistral3",),
        source=f"{_MODELS}/mistral3.py: hf_to_vllm_mapper",
        prefixes=(*_TOWER_PREFIXES, ("model.", "language_model.model.")),
        language="language_model.",
    ),
    VllmModels(
        model_types=("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
        source=f"{_MODELS}/qwen2_5_vl.py, qwen3_vl.py: hf_to_vllm_mapper",
        prefixes=_QWEN_PREFIXES,
        language="language_model.",
    ),
    VllmModels(
        model_types=("qwen3_vl_moe", "qwen3_5_moe"),
        source=f"{_MODELS}/qwen3_vl_moe.py, qwen3_5.py: is_3d_moe_weight",
        prefixes=_QWEN_PREFIXES,
        language="language_model.",
        fused=True,
    ),
    VllmModels(
        model_types=("gpt_oss",),
        source=f"{_MODELS}/gpt_oss.py: hf_to_vllm_mapper, is_3d_moe_weight",
        inside=((".self_attn.", ".attn."),),
        fused=True,
    ),
    VllmModels(
        model_types=("whisper",),
        source=f"{_MODELS}/whisper.py: WhisperForConditionalGeneration has no SupportsLoRA",
        loras=False,
    ),
)
"""Model types by the class that serves them; of others names are taken as they are."""


_UNKNOWN = (
    "vLLM's class for models {} is in no row here: its names are taken as the checkpoint has them,"
    " which that class may change."
)


def vllm_view(names: ModelNames) -> ModelView:
    """A model as vLLM's LoRA manager finds it."""
    row = next((row for row in VLLM_MODELS if names.kind in row.model_types), None)
    row = row or VllmModels(model_types=(), source=f"{_MODELS}/")
    fused = row.fused or _fused_of_unknown(names, row)
    places: dict[str, LoaderPlace] = {}
    for module, shape in names.modules.items():
        container = module.partition(".experts.")[0] + ".experts"
        if container not in names.experts:
            name, place = _place(row, module, shape)
            places[name] = place
    for container, experts in names.experts.items():
        places |= _experts(row, container, experts, fused=fused)
    reads = partial(_read, row)
    expected = {_last(name) for name in places}
    return ModelView(
        places=places,
        reads=reads,
        lost=partial(_lost, expected),
        refused=_refused(names, row),
        note="" if row.model_types else _UNKNOWN.format(names.kind or "without a model_type"),
        layouts=frozenset({FUSED if fused else EACH}),
        missing=lambda adapter, reached: _halves(adapter, reached) if fused else {},
    )


def _fused_of_unknown(names: ModelNames, row: VllmModels) -> bool:
    stacked = any(experts.stacked for experts in names.experts.values())
    return not row.model_types and stacked and names.kind not in FUSED_EXPERTS


def _refused(names: ModelNames, row: VllmModels) -> Verdict | None:
    if "_class_name" in names.config and "model_type" not in names.config:
        return Verdict(
            why=f"vLLM serves language models, and this is a {names.kind}",
            told=ERROR,
            rule=f"{_MODELS}/registry.py",
        )
    if row.loras:
        return None
    return Verdict(
        why=f"vLLM takes no adapters for models of type {names.kind}", told=ERROR, rule=row.source
    )


def _place(row: VllmModels, module: str, shape: Shape) -> tuple[str, LoaderPlace]:
    name = row.mapped(module)
    idle = None
    last = name.rpartition(".")[2]
    if row.language and not name.startswith(row.language):
        idle = Verdict(
            why="outside the language model vLLM adapts nothing unless it is started with"
            " --enable-tower-connector-lora",
            told=NOTHING,
            rule=_TOWERS,
        )
    elif last in ("lm_head", "embed_tokens") and not row.embeddings:
        idle = Verdict(
            why="vLLM's class for this model adapts no embeddings and no head",
            told=ERROR,
            rule="vllm/lora/utils.py: get_supported_lora_modules",
        )
    return name, LoaderPlace(stem=PEFT_PREFIX + module, sizes=size_of(shape), idle=idle)


def _experts(
    row: VllmModels, container: str, experts: Experts, *, fused: bool
) -> dict[str, LoaderPlace]:
    places = fused_places if fused else single_places
    found = places(experts, container, lambda name: PEFT_PREFIX + name)
    if fused:
        return {row.mapped(name): place for name, place in found}
    return {row.mapped(place.stem.removeprefix(PEFT_PREFIX)): place for _, place in found}


def _read(row: VllmModels, stem: str) -> str:
    if stem.startswith(PEFT_PREFIX):
        return row.mapped(stem.replace(PEFT_PREFIX, ""))
    return row.mapped(stem)


def _last(name: str) -> str:
    """The part of a name that vLLM compares with what it expects."""
    at = name.find(".experts")
    return name[at + 1 :] if at >= 0 else name.rpartition(".")[2]


def _lost(expected: set[str], name: str) -> Verdict:
    if _last(name) in expected or name.endswith(".base_layer"):
        return Verdict(why="vLLM has no such module", told=NOTHING, rule=_MANAGER)
    return Verdict(why=f"vLLM has no module that ends in {_last(name)}", told=ERROR, rule=_EXPECTED)


def _halves(adapter: AdapterNames, reached: Mapping[str, PairNames]) -> dict[str, Verdict]:
    """Fused experts of which only gate and up, or only down, are there."""
    wrong: dict[str, Verdict] = {}
    for name in filter(is_fused, reached):
        other = (
            name.removesuffix(".base_layer")
            if name.endswith(".base_layer")
            else (f"{name}.base_layer")
        )
        if other not in reached:
            wrong[name] = Verdict(
                why=f"vLLM takes gate, up and down of fused experts together, and there is no"
                f" pair for {other}",
                told=ERROR,
                rule=_FUSED_MOE,
            )
    return wrong
