"""SGLang: modules by the number of a layer and the last part of a name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tdecomp.files.loaders.experts import single, single_places
from tdecomp.files.loaders.loader import (
    EACH,
    ERROR,
    NOTHING,
    PEFT_PREFIX,
    LoaderPlace,
    ModelView,
    Verdict,
)
from tdecomp.files.loaders.model_names import ModelNames
from tdecomp.files.loaders.sizes import size_of
from tdecomp.files.loaders.towers import is_of_tower

__all__ = ["sglang_view"]

_LOADED = "sglang/srt/lora/lora.py: LoRAAdapter.initialize_weights"
_TARGETS = "sglang/srt/lora/utils.py: get_normalized_target_modules, get_hidden_dim"
_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)")
_KNOWN = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "out_proj", "in_proj"),
        *("gate_proj", "up_proj", "gate_up_proj", "down_proj", "embed_tokens", "lm_head"),
        *("q_a_proj", "kv_a_proj_with_mqa", "q_b_proj", "kv_b_proj"),
    }
)
"""Last parts of names that it has buffers for."""
_TOWER = "tower:"


def sglang_view(names: ModelNames) -> ModelView:
    """A model as SGLang's LoRA manager finds it."""
    found: dict[str, list[tuple[str, LoaderPlace]]] = {}
    for module, place in _places(names):
        found.setdefault(_read(PEFT_PREFIX + module), []).append((module, place))
    places = {name: _one(name, rows) for name, rows in found.items() if name}
    return ModelView(
        places=places,
        reads=_read,
        lost=_lost,
        refused=_refused(names),
        layouts=frozenset({EACH}),
    )


def _places(names: ModelNames) -> Iterator[tuple[str, LoaderPlace]]:
    for module, shape in names.modules.items():
        found = single(module)
        if not (found and found[0] in names.experts):
            yield module, LoaderPlace(stem=PEFT_PREFIX + module, sizes=size_of(shape))
    for container, experts in names.experts.items():
        for _, place in single_places(experts, container, lambda name: PEFT_PREFIX + name):
            yield place.stem.removeprefix(PEFT_PREFIX), place


def _one(name: str, rows: list[tuple[str, LoaderPlace]]) -> LoaderPlace:
    """The place of a name, or why several modules of that name are none."""
    module, place = rows[0]
    if name.startswith(_TOWER):
        why = "SGLang adapts the language model alone, and takes the number for a layer of that"
        return LoaderPlace(stem=place.stem, sizes=place.sizes, idle=_silent(why))
    if len(rows) > 1:
        why = (
            f"SGLang finds modules by layer and last name, which {module} and {rows[1][0]} have"
            " in common"
        )
        return LoaderPlace(stem=place.stem, sizes=place.sizes, idle=_silent(why))
    if module.rpartition(".")[2] in _KNOWN or single(module):
        return place
    why = f"SGLang has no buffers for {module.rpartition('.')[2]}"
    idle = Verdict(why=why, told=ERROR, rule=_TARGETS)
    return LoaderPlace(stem=place.stem, sizes=place.sizes, idle=idle)


def _silent(why: str) -> Verdict:
    return Verdict(why=why, told=NOTHING, rule=_LOADED)


def _read(stem: str) -> str:
    """What SGLang looks at: the number of the layer, and where in it."""
    tower = _TOWER if is_of_tower(stem) else ""
    if (inside := _LAYER.fullmatch(stem)) is not None:
        rest = inside[2]
        expert = single(f"layers.{inside[1]}.{rest}")
        if expert is not None:
            return f"{tower}layers.{inside[1]}.experts.{expert[1]}.{expert[2]}"
        if rest.endswith((".experts", ".base_layer")):
            return f"{tower}layers.{inside[1]}.{rest}"
        shared = "shared." if ".shared_expert" in rest else ""
        return f"{tower}layers.{inside[1]}.{shared}{rest.rpartition('.')[2]}"
    last = stem.rpartition(".")[2]
    return last if last in ("embed_tokens", "lm_head") else tower + stem


def _lost(name: str) -> Verdict:
    if _LAYER.fullmatch(name):
        last = name.rpartition(".")[2]
        if last not in _KNOWN and not name.endswith(("experts", "base_layer")):
            return Verdict(why=f"SGLang has no buffers for {last}", told=ERROR, rule=_TARGETS)
        return _silent("the model has no such module in that layer")
    return _silent("the name has no layers.N, by which SGLang finds modules")


def _refused(names: ModelNames) -> Verdict | None:
    if "_class_name" in names.config and "model_type" not in names.config:
        return Verdict(
            why=f"SGLang's LoRA manager serves language models, and this is a {names.kind}",
            told=ERROR,
            rule="sglang/srt/lora/lora_manager.py",
        )
    return None
