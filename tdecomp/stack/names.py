"""Canonical names of tensors and modules: without the segments that wrappers write into them.

Wrapping a model changes the names of its weights and nothing else. A new wrapper is a new row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["WRAPPERS", "Wrapper", "canonical", "canonical_names", "is_adapter"]

_ANY = "*"
_KEPT_COPY = "original_module"


@dataclass(frozen=True)
class Wrapper:
    """Segments that a wrapper writes into the names of what it wraps.

    Attributes
    ----------
    segments
        Dotted segments that stand together; ``*`` is any one.
    source
        What writes them.
    anywhere
        False: only at the beginning, or next to another wrapper's segments, because models have
        segments of that name themselves.
    """

    segments: str
    source: str
    anywhere: bool = True


WRAPPERS: tuple[Wrapper, ...] = (
    Wrapper("base_model.model", "PEFT's PeftModel"),
    Wrapper("base_layer", "PEFT's adapted layers"),
    Wrapper("modules_to_save.*", "PEFT's trained copies, by the adapter's name"),
    Wrapper(_KEPT_COPY, "PEFT's frozen copies beside modules_to_save"),
    Wrapper("_orig_mod", "torch.compile"),
    Wrapper("_checkpoint_wrapped_module", "activation checkpointing"),
    Wrapper("_fsdp_wrapped_module", "FSDP"),
    Wrapper("_fpw_module", "FSDP before torch 2"),
    Wrapper("_forward_module", "Lightning Fabric"),
    Wrapper("module", "DataParallel, DDP, DeepSpeed, AveragedModel", anywhere=False),
    Wrapper("_module", "Opacus", anywhere=False),
)

_FIRST = frozenset(wrapper.segments.partition(".")[0] for wrapper in WRAPPERS)
"""Without one of these no wrapper is in a name."""

# Segments of what adapters store beside the weights they change.
_ADAPTERS = frozenset(
    {
        *("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_E"),
        *("lora_magnitude_vector", "vera_lambda_b", "vera_lambda_d", "ia3_l"),
        *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "oft_r", "oft_R", "boft_R"),
        *("lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        *("ln_tuning_layers", "prompt_encoder"),
    }
)


def canonical(name: str) -> str:
    """Drop the segments of all `WRAPPERS` from the name of a tensor or module.

    A name of nothing else (the root of a wrapped model) becomes ``""``.

    Examples
    --------
    >>> canonical("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight")
    'model.layers.0.self_attn.q_proj.weight'
    >>> canonical("_fsdp_wrapped_module.module.h.3._checkpoint_wrapped_module.mlp.weight")
    'h.3.mlp.weight'
    """
    kept: list[str] = []
    segments = name.split(".")
    if _FIRST.isdisjoint(segments):
        return name
    after_wrapper, i = True, 0
    while i < len(segments):
        size = _wrapper_at(segments, i, bare=after_wrapper)
        if size:
            i, after_wrapper = i + size, True
        else:
            kept.append(segments[i])
            i, after_wrapper = i + 1, False
    return ".".join(kept)


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Canonical name of each of a model's tensors; their own name where two would be the same.

    PEFT keeps the frozen copy of a module (``original_module``) beside the trained one
    (``modules_to_save``): the trained one has the canonical name then.

    Examples
    --------
    >>> copies = ["score.original_module.weight", "score.modules_to_save.default.weight"]
    >>> canonical_names(copies)[copies[1]], canonical_names(copies)[copies[0]] == copies[0]
    ('score.weight', True)
    """
    short = {name: canonical(name) for name in names}
    holders: dict[str, list[str]] = {}
    for name, found in short.items():
        holders.setdefault(found, []).append(name)
    for found, sharers in holders.items():
        if len(sharers) > 1:
            first = [name for name in sharers if _KEPT_COPY not in name.split(".")]
            keeper = first[0] if len(first) == 1 else found
            short |= {name: name for name in sharers if name != keeper}
    return short


def is_adapter(name: str) -> bool:
    """Whether a tensor belongs to an adapter that is not merged into its weights.

    Examples
    --------
    >>> is_adapter("model.layers.0.self_attn.q_proj.lora_A.default.weight")
    True
    """
    return not _ADAPTERS.isdisjoint(name.split("."))


def _wrapper_at(segments: list[str], at: int, *, bare: bool) -> int:
    """Number of segments that a wrapper has written at this place."""
    if segments[at] not in _FIRST:
        return 0
    for wrapper in WRAPPERS:
        own = wrapper.segments.split(".")
        there = segments[at : at + len(own)]
        fits = len(there) == len(own) and all(
            mine in (_ANY, theirs) for mine, theirs in zip(own, there, strict=True)
        )
        if fits and (wrapper.anywhere or bare or _before_wrapper(segments, at + len(own))):
            return len(own)
    return 0


def _before_wrapper(segments: list[str], at: int) -> bool:
    return at < len(segments) and any(
        wrapper.anywhere and wrapper.segments.split(".")[0] == segments[at] for wrapper in WRAPPERS
    )
