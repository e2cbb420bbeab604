"""llama.cpp: an adapter is converted by the names of the model's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from tdecomp.files.loaders.adapter_names import AdapterNames, PairNames
from tdecomp.files.loaders.experts import all_or_none, single, single_places
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

__all__ = ["llama_cpp_view"]

_CONVERTER = "convert_lora_to_gguf.py"
_LANGUAGE = (("model.language_model.", "model."), ("language_model.", ""))
_REFUSED_TYPES = frozenset({"whisper"})
_LATENT = frozenset({"deepseek_v2", "deepseek_v3"})
_ALL = ("gate_proj", "up_proj", "down_proj")


def llama_cpp_view(names: ModelNames) -> ModelView:
    """A model as the converter of adapters reads it."""
    places: dict[str, LoaderPlace] = {}
    for module, shape in names.modules.items():
        found = single(module)
        if found and found[0] in names.experts:
            continue
        place = LoaderPlace(
            stem=PEFT_PREFIX + module, sizes=size_of(shape), idle=_idle(names, module)
        )
        places[_text_name(module)] = place
    layouts = frozenset[str]()
    if not any(experts.interleaved for experts in names.experts.values()):
        layouts = frozenset({EACH})
        for container, experts in names.experts.items():
            own = single_places(experts, _text_name(container), _stem)
            places |= own
    return ModelView(
        places=places,
        reads=partial(_read, places),
        lost=_lost,
        refused=_refused(names),
        layouts=layouts,
        whole=True,
        missing=partial(_incomplete, places),
    )


def _stem(name: str) -> str:
    return PEFT_PREFIX + name


def _text_name(name: str) -> str:
    for old, new in _LANGUAGE:
        if name.startswith(old):
            return name.replace(old, new, 1)
    return name


def _read(places: Mapping[str, LoaderPlace], stem: str) -> str:
    name = _text_name(stem.replace(PEFT_PREFIX, ""))
    if (found := single(name)) is not None:
        container, number, proj = found
        known = f"{container}.{number}.{proj}"
        return known if known in places else name
    return name


_OF_TOWER = Verdict(
    why="the converter drops what is not of the language model",
    told=NOTHING,
    rule="convert_hf_to_gguf.py: TextModel.modify_tensors",
)


def _lost(name: str) -> Verdict:
    if is_of_tower(name):
        return _OF_TOWER
    return Verdict(
        why="the converter finds no tensor of that name in such a model",
        told=ERROR,
        rule=f"{_CONVERTER}: modify_tensors, and convert_hf_to_gguf.py: map_tensor_name",
    )


def _idle(names: ModelNames, module: str) -> Verdict | None:
    if is_of_tower(module):
        return _OF_TOWER
    if module.endswith("lm_head") and names.config.get("tie_word_embeddings") is True:
        return Verdict(
            why="the head is tied to the embeddings, and llama.cpp has none of its own",
            told=ERROR,
            rule=f"{_CONVERTER}: lm_head is present in adapter, but is ignored in base model",
        )
    if names.kind in _LATENT and module.endswith(".kv_b_proj"):
        return Verdict(
            why="llama.cpp splits kv_b_proj and turns one half, which the converter cannot do"
            " with a pair",
            told=ERROR,
            rule=f"{_CONVERTER}: LoraTorchTensor.permute",
        )
    return None


def _refused(names: ModelNames) -> Verdict | None:
    if names.kind in _REFUSED_TYPES or "model_type" not in names.config:
        return Verdict(
            why=f"llama.cpp has no such models ({names.kind or 'no model_type'})",
            told=ERROR,
            rule="convert_hf_to_gguf.py: ModelBase.from_model_architecture",
        )
    return None


def _incomplete(
    places: Mapping[str, LoaderPlace], adapter: AdapterNames, reached: Mapping[str, PairNames]
) -> dict[str, Verdict]:
    """Experts are stacked, all of a layer or none."""
    return all_or_none(
        reached,
        places,
        lambda gap: Verdict(
            why=f"the converter stacks the experts of a layer, and there is no pair for {gap}",
            told=ERROR,
            rule="convert_hf_to_gguf.py: modify_tensors of models with experts",
        ),
        partners=dict.fromkeys(_ALL, _ALL),
    )
