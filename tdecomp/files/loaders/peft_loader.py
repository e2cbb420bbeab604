"""PEFT on transformers 5: modules by the names of the loaded model, and what targets them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tdecomp.errors import FileError
from tdecomp.files.loaded_names import RENAMED_ELSEWHERE, loaded_names
from tdecomp.files.loaders.adapter_names import AdapterNames, PairNames
from tdecomp.files.loaders.experts import all_or_none, fused_places, single, single_places
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
from tdecomp.files.loaders.model_names import ModelNames, Shape
from tdecomp.files.loaders.sizes import size_of
from tdecomp.files.loras.peft_scales import is_involved
from tdecomp.files.peft_config import FUSED_EXPERTS, aims, facts, refused
from tdecomp.files.plain import is_list

__all__ = ["peft_view"]

_LOAD = "peft/utils/save_and_load.py: set_peft_model_state_dict loads with strict=False"
_CONVERT = "peft/utils/transformers_weight_conversion.py"
_TARGETS = "peft/tuners/tuners_utils.py: check_target_module_exists"
_PARAMETERS = "peft/tuners/tuners_utils.py: BaseTuner._inject_parameters"
_RENAMED_ON_LOAD = frozenset(
    {
        *("llava", "llava_next", "llava_next_video", "llava_onevision", "vipllava"),
        *("video_llava", "gemma3", "paligemma", "mistral3", "aya_vision", "internvl"),
        *("got_ocr2",),
    }
)
"""Model types whose adapters PEFT renames as transformers renames the checkpoint."""
_PARTNERS: Mapping[str, tuple[str, ...]] = {
    "gate_proj": ("gate_proj", "up_proj"),
    "up_proj": ("gate_proj", "up_proj"),
}
_LAYER = re.compile(r"\.(\d+)\.")
_MOST_REPEATS = 8  # of a pattern of modules


_UNKNOWN = (
    "transformers 5 loads {} models under other names than their checkpoints have, by rules that"
    " are not known here: their names are taken as they are stored."
)


def peft_view(names: ModelNames) -> ModelView:
    """A model as PEFT finds it in memory."""
    model = facts(names.config)
    loaded = loaded_names([*names.modules, *names.experts], model)
    fused_on_load = names.kind in FUSED_EXPERTS
    in_memory = {c: e for c, e in names.experts.items() if fused_on_load or e.stacked}
    lost = set(refused(names.modules, model))
    places: dict[str, LoaderPlace] = {}
    for module, shape in names.modules.items():
        found = single(module)
        if found and found[0] in in_memory:
            continue
        name = loaded[module]
        idle = _refused(module) if module in lost else None
        places[name] = LoaderPlace(stem=PEFT_PREFIX + name, sizes=size_of(shape), idle=idle)
    for container, experts in in_memory.items():
        places |= fused_places(experts, loaded[container], lambda name: _stem(name, loaded))
        if fused_on_load:
            places |= single_places(experts, loaded[container], lambda name: PEFT_PREFIX + name)
    head = _tied_head(names)
    if head is not None and "lm_head" not in places:
        places["lm_head"] = LoaderPlace(stem=f"{PEFT_PREFIX}lm_head", sizes=size_of(head))
    aliases = _aliases(names, loaded)
    return ModelView(
        places=places,
        reads=lambda stem: _read(stem, aliases, places),
        note="" if names.kind not in RENAMED_ELSEWHERE else _UNKNOWN.format(names.kind),
        lost=lambda name: Verdict(
            why="the loaded model has no such module", told=NOTHING, rule=_LOAD
        ),
        layouts=frozenset({FUSED} if in_memory else set[str]())
        | frozenset({EACH} if fused_on_load or not in_memory else set[str]()),
        missing=lambda adapter, reached: {
            **_untargeted(adapter, reached),
            **_taken_for_experts(adapter, reached, model),
            **_alone(reached, places),
        },
    )


def _stem(name: str, loaded: Mapping[str, str]) -> str:
    container = name.removesuffix(".base_layer")
    return PEFT_PREFIX + loaded[container] + name.removeprefix(container)


def _tied_head(names: ModelNames) -> Shape:
    """Shape of a head that the checkpoint has as embeddings alone; None where there is none."""
    if names.config.get("tie_word_embeddings") is False:
        return None
    ends = (s for m, s in names.modules.items() if m.rpartition(".")[2] == "embed_tokens")
    return next(ends, None)


def _aliases(names: ModelNames, loaded: Mapping[str, str]) -> dict[str, str]:
    """Names of the checkpoint that PEFT turns into those of the loaded model."""
    if names.kind not in _RENAMED_ON_LOAD:
        return {c: loaded[c] for c in names.experts}
    return {old: new for old, new in loaded.items() if old != new}


def _read(stem: str, aliases: Mapping[str, str], places: Mapping[str, LoaderPlace]) -> str:
    if not stem.startswith(PEFT_PREFIX):
        return stem
    name = stem.removeprefix(PEFT_PREFIX)
    if (found := single(name)) is not None:
        container, number, proj = found
        known = f"{aliases.get(container, container)}.{number}.{proj}"
        return known if known in places else name
    return aliases.get(name, name)


def _refused(module: str) -> Verdict:
    return Verdict(
        why="PEFT adapts no such module in models of this type",
        told=ERROR,
        rule="peft/tuners/lora/model.py: LoraModel._check_target_module_compatiblity",
    )


def _alone(
    reached: Mapping[str, PairNames], places: Mapping[str, LoaderPlace]
) -> Mapping[str, Verdict]:
    return all_or_none(
        reached,
        places,
        lambda gap: Verdict(
            why=f"experts are fused on loading, and there is no pair for {gap}",
            told=ERROR,
            rule=f"{_CONVERT}: _convert_peft_config_moe, PeftConcatenate",
        ),
        partners=_PARTNERS,
    )


def _untargeted(adapter: AdapterNames, reached: Mapping[str, PairNames]) -> dict[str, Verdict]:
    """Pairs for modules that the configuration does not name: PEFT makes no layer for them."""
    config = adapter.config
    parameters = _names_in(config.get("target_parameters"))
    is_target = _target(adapter)
    wrong: dict[str, Verdict] = {}
    for name in reached:
        inside = [p for p in parameters if _holds(name, p)]
        if is_target(name) or inside:
            continue
        wrong[name] = Verdict(
            why=f"{'target_parameters' if name.endswith('experts') else 'target_modules'} of"
            " adapter_config.json does not name it",
            told=NOTHING,
            rule=_PARAMETERS if parameters else _TARGETS,
        )
    return wrong


def _taken_for_experts(
    adapter: AdapterNames, reached: Mapping[str, PairNames], model: Mapping[str, Any]
) -> dict[str, Verdict]:
    """Dense and shared blocks beside experts, whose names PEFT takes for those of the experts."""
    parameters = _names_in(adapter.config.get("target_parameters"))
    alone = [name for name in reached if single(name) is None]
    wanted = {name.removesuffix(".weight") for name in aims(alone, model).parameters}
    return {
        name: Verdict(
            why="PEFT takes a target of that name for the experts; target_parameters has to name"
            " its weight",
            told=NOTHING,
            rule=f"{_CONVERT}: _convert_peft_config_moe",
        )
        for name in wanted
        if not any(f".{name}.weight".endswith(f".{p}") for p in parameters)
    }


def _holds(name: str, parameter: str) -> bool:
    """Whether a pair at a module may be that of a parameter."""
    found = single(name)
    container = found[0] if found else name.removesuffix(".base_layer")
    owner = parameter.rpartition(".")[0]
    return f".{container}".endswith(f".{owner}") if owner else True


def _names_in(value: object) -> list[str]:
    return [str(item) for item in value] if is_list(value) else []


def _target(adapter: AdapterNames) -> Callable[[str], bool]:
    """Whether PEFT takes a module for a target."""
    config = adapter.config
    named, without = config.get("target_modules"), config.get("exclude_modules")
    for pattern in (named, without):
        if isinstance(pattern, str) and is_involved(pattern, most=_MOST_REPEATS):
            raise FileError(
                f"{adapter.path}: the pattern {pattern[:80]!r} is too involved to be matched safely"
            )
    layers = config.get("layers_to_transform")
    wanted = {layers} if isinstance(layers, int) else set(layers) if is_list(layers) else None

    def is_target(name: str) -> bool:
        if _fits(name, without) or not _fits(name, named):
            return False
        found = _LAYER.search(f".{name}.")
        return wanted is None or (found is not None and int(found[1]) in wanted)

    return is_target


def _fits(name: str, asked: object) -> bool:
    if isinstance(asked, str):
        if asked.lower() == "all-linear":
            return not name.endswith((".lm_head", ".embed_tokens")) and name != "lm_head"
        try:
            return re.fullmatch(asked, name) is not None
        except re.error:
            return False
    return any(name == own or name.endswith(f".{own}") for own in _names_in(asked))
