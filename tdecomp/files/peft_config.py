"""What PEFT must be told so that it finds every module of a LoRA folder in the loaded model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from tdecomp.files.loaded_names import loaded_names
from tdecomp.files.plain import is_list

__all__ = [
    "FUSED_EXPERTS",
    "Aims",
    "Expert",
    "aims",
    "cautions",
    "expert_of",
    "facts",
    "n_experts",
    "refused",
]

FUSED_EXPERTS = frozenset(
    {
        *("mixtral", "phimoe", "minimax", "minimax_m2", "minimax_m3_vl", "lfm2_moe", "jamba"),
        *("qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5_moe_text", "qwen3_omni_moe"),
        *("qwen3_omni_moe_text", "qwen3_omni_moe_thinker", "olmoe", "flex_olmo", "glm4_moe"),
        *("glm4_moe_lite", "glm_moe_dsa", "glm4v_moe", "deepseek_v2", "deepseek_v3"),
        *("deepseek_v32", "dots1", "ernie4_5_moe", "exaone_moe", "hunyuan_v1_moe", "afmoe"),
        *("longcat_flash", "solar_open", "cohere2_moe", "mimo_v2_flash", "mellum", "beam"),
    }
)
"""Model types whose experts transformers 5 fuses on loading, and PEFT with them."""

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(w[123]|(?:gate|up|down)_proj)")
_PARTNER = {"w1": "w3", "w3": "w1", "gate_proj": "up_proj", "up_proj": "gate_proj"}
_BY_WEIGHT: tuple[tuple[frozenset[str], re.Pattern[str]], ...] = (
    # PEFT takes these names for experts, wherever they are, and drops those that are none.
    (FUSED_EXPERTS, re.compile(r"(?:.+\.)?(w[123]|(?:gate|up|down)_proj|gate)")),
)
"""Model types, and modules that are targeted there by the name of their weight."""
_REFUSED: tuple[tuple[frozenset[str], re.Pattern[str]], ...] = (
    (
        frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}),
        re.compile(r"(?:.+\.)?(out_proj|conv1d)"),
    ),
    (frozenset({"nemotron_h"}), re.compile(r".+\.experts\.\d+\..+")),
)
"""Model types, and modules that PEFT refuses there or finds no place for."""
_READ: tuple[tuple[frozenset[str], re.Pattern[str]], ...] = (
    (
        frozenset({"mamba", "falcon_mamba", "jamba", "zamba"}),
        re.compile(r"(?:.+\.)?dt_proj"),
    ),
    (frozenset({"wavlm"}), re.compile(r".+\.attention\.(q|k|v|out)_proj")),
)
"""Model types, and modules whose weight they may read without calling the module."""
_MOST_EXPERTS = 4096
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Expert:
    """One projection of one expert: ``(container).(number).(proj)``."""

    container: str
    number: int
    proj: str

    @property
    def fused(self) -> str:
        """Name of the parameter that holds it after loading."""
        return "gate_up_proj" if self.proj in _PARTNER else "down_proj"

    @property
    def alike(self) -> tuple[str, ...]:
        """The projections that are fused with it, itself included, in order."""
        return tuple(sorted({self.proj, _PARTNER.get(self.proj, self.proj)}))

    @property
    def down(self) -> str:
        """Name of the projection back, as the layer names its projections."""
        return "w2" if self.proj.startswith("w") else "down_proj"

    def path(self, number: int, proj: str) -> str:
        """Module path of another projection or expert of its layer."""
        return f"{self.container}.{number}.{proj}"


@dataclass(frozen=True, kw_only=True)
class Aims:
    """Where the pairs of a folder go.

    Attributes
    ----------
    modules, parameters
        ``target_modules`` and ``target_parameters``.
    key
        Module -> its key in ``rank_pattern`` and ``alpha_pattern``.
    doubled
        Ranks of ``rank_pattern`` are twice the global one for the fused ``gate_up_proj``.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    key: Mapping[str, str] = field(default_factory=dict[str, str])
    doubled: bool = False


def expert_of(module: str, model: Mapping[str, Any]) -> Expert | None:
    """The expert that a module path names, in models whose experts are fused on loading."""
    if model.get("model_type") not in FUSED_EXPERTS:
        return None
    found = _EXPERT.fullmatch(module)
    return Expert(found[1], int(found[2]), found[3]) if found else None


def n_experts(model: Mapping[str, Any]) -> int:
    """Number of experts that a configuration says; 0 where it says none that can be."""
    found = (model.get(key) for key in _COUNTS)
    return next((n for n in found if type(n) is int and 0 < n <= _MOST_EXPERTS), 0)


def aims(modules: Collection[str], model: Mapping[str, Any]) -> Aims:
    """Targets of a LoRA on these modules of a model of some type.

    PEFT takes ``gate_proj``, ``up_proj``, ``down_proj`` and ``w1`` to ``w3`` among the targets of
    a mixture of experts for the experts, and drops those that are a dense or shared block's. Such
    a module is named by its weight, which means the same and is left alone.
    """
    experts = {m: found for m in modules if (found := expert_of(m, model))}
    named = _among(_BY_WEIGHT, modules, model)
    by_weight = {m: f"{m}.weight" for m in named if m not in experts}
    containers = loaded_names({e.container for e in experts.values()}, model)
    fused = {f"{containers[e.container]}.{e.fused}" for e in experts.values()}
    return Aims(
        modules=tuple(sorted(m for m in modules if m not in experts and m not in by_weight)),
        parameters=tuple(sorted({*fused, *by_weight.values()})),
        key=by_weight,
        doubled=any(e.fused == "gate_up_proj" for e in experts.values()),
    )


def refused(modules: Iterable[str], model: Mapping[str, Any]) -> list[str]:
    """The modules that PEFT does not adapt in a model of this type."""
    return _among(_REFUSED, modules, model)


def cautions(modules: Iterable[str], model: Mapping[str, Any]) -> list[str]:
    """Sentences on modules that PEFT adapts, and whose model may not use what it adapts."""
    read = _among(_READ, modules, model)
    if not read:
        return []
    more = f" and {len(read) - 1} more" if read[1:] else ""
    return [
        f"{read[0]}{more}: the model may read this weight without calling the module, so that"
        " PEFT's adapter acts for sure only after merge_and_unload()."
    ]


def _among(
    rows: Iterable[tuple[frozenset[str], re.Pattern[str]]],
    modules: Iterable[str],
    model: Mapping[str, Any],
) -> list[str]:
    """The modules that a row for the model's type names."""
    own = [pattern for types, pattern in rows if model.get("model_type") in types]
    return [m for m in modules if any(pattern.fullmatch(m) for pattern in own)]


def facts(config: Any) -> dict[str, Any]:
    """The part of a configuration that the names of a LoRA depend on, as far as it can be read."""
    if not isinstance(config, Mapping):
        return {}
    config = cast("Mapping[str, Any]", config)
    found: dict[str, Any] = {"num_experts": n_experts(config)}
    if isinstance(kind := config.get("model_type"), str):
        found["model_type"] = kind
    if is_list(classes := config.get("architectures")):
        found["architectures"] = [name for name in classes if isinstance(name, str)]
    return {key: value for key, value in found.items() if value}
