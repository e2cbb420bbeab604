"""Finding the packed weights of a checkpoint: the table of layouts, tried on every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..dtypes import FP8
from ..safetensors import Entry
from .bitsandbytes import BITSANDBYTES_LAYOUTS
from .floats import FLOAT_LAYOUTS, SCALES
from .gptq import GPTQ_LAYOUTS
from .integers import INTEGER_LAYOUTS
from .layout import Context, Layout, Packed, Refused, StoredWeight, settings_of
from .refusals import NAMED_LAYOUTS, UNKNOWN_LAYOUTS

__all__ = ["LAYOUTS", "Found", "find_packed"]

LAYOUTS: tuple[Layout, ...] = (
    *NAMED_LAYOUTS,
    *BITSANDBYTES_LAYOUTS,
    *FLOAT_LAYOUTS,
    *GPTQ_LAYOUTS,
    *INTEGER_LAYOUTS,
    *UNKNOWN_LAYOUTS,
)
"""All layouts; the first row that recognises a tensor decides."""

# Of activations and caches; they say nothing about the weights and go where the scales go.
_BESIDE = frozenset(
    {
        "input_scale",
        "input_scale_inv",
        "input_scale_ub",
        "input_global_scale",
        "input_zero_point",
        "activation_scale",
        "activation_scale_inv",
        "scale_input",
        "output_scale",
    }
)
_CACHES = frozenset(
    {"k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale", "k_zero_point", "v_zero_point"}
)
_MARKER = "scaled_fp8"  # an empty tensor by which ComfyUI knows files with scales
_STRANGE = ("scale", "absmax", "zero_point", "quant", "codebook", "SCB", "g_idx", "perm")
_WORDS = 8  # of a companion's name after that of its weight, at most
_CODES = ("_blocks", "_packed")


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """What the tensors of a checkpoint stand for.

    Parameters
    ----------
    entries
        Every tensor and logical weight by name, in file order; companions are not among them. The
        entry of a packed weight has its decoded shape and `Packed.code` as its dtype; where a
        layout is refused, what is stored, without a shape if that is not known.
    packed
        The weights that can be decoded.
    refused
        Why the others cannot, a sentence each.
    companions
        Names of the stored tensors that belong to a packed or refused weight.
    layouts
        Names of the layouts of all packed and refused weights.
    """

    entries: dict[str, Entry]
    packed: dict[str, Packed]
    refused: dict[str, str]
    companions: frozenset[str]
    layouts: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _Recognised:
    """A row that recognised a tensor."""

    layout: Layout
    stored: StoredWeight
    companions: frozenset[str]
    reason: str


def find_packed(stored: Mapping[str, Entry], config: Mapping[str, Any]) -> Found:
    """Find the weights that several stored tensors make up, or that are codes.

    Parameters
    ----------
    stored
        Every tensor of the files, by name.
    config
        The model's config.json.
    """
    context = Context(settings_of(config), str(config.get("model_type", "")), _fp8_scale(stored))
    beside = _beside(stored)
    claims = {name: _claim(entry, stored, beside, context) for name, entry in stored.items()}
    taken = {name: claim for name, claim in claims.items() if claim is not None}
    companions = {name for claim in taken.values() for name in claim.companions}
    if taken or context.settings:
        companions |= {name for name in stored if _tail(name) in _CACHES or name == _MARKER}
    found = Found(entries={}, packed={}, refused={}, companions=frozenset(companions), layouts={})
    for name, entry in stored.items():
        if name in companions:
            continue
        claim = taken.get(name)
        if claim is None:
            found.entries[name] = entry
        else:
            _take(found, claim, stored)
    return found


def _claim(
    entry: Entry,
    everything: Mapping[str, Entry],
    beside: Mapping[str, list[str]],
    context: Context,
) -> _Recognised | None:
    """The first row that recognises a tensor, with the companions that are there."""
    module, _, tail = entry.name.rpartition(".")
    for layout in LAYOUTS:
        core = layout.core(tail) if entry.dtype in layout.dtypes else None
        if core is None or not layout.only(entry):
            continue
        there = partial(_there, everything, module, core, entry.name)
        marks = [
            name
            for name in there(layout.marks)
            if layout.mark_dtypes is None or everything[name].dtype in layout.mark_dtypes
        ]
        if layout.marks and not marks:
            continue
        roles = {role: there(templates) for role, templates in layout.parts.items()}
        roles |= {"mark": marks} if layout.marks else {}
        parts = {role: everything[names[0]] for role, names in roles.items() if names}
        name = ".".join(part for part in (module, core) if part)
        known = {n for names in roles.values() for n in names}
        around = [n for n in beside.get(name, ()) if n not in known and n != entry.name]
        strange = [n for n in around if not _is_beside(_tail(n))]
        doubt = _doubt(roles, strange) if layout.open else f"which is not read: {layout.advice}"
        return _Recognised(
            layout=layout,
            stored=StoredWeight(entry, name, parts, context),
            companions=frozenset(known.union(around)),
            reason=doubt,
        )
    return None


def _doubt(roles: Mapping[str, list[str]], strange: list[str]) -> str:
    """Why companions do not say what to do; ``""`` where they do."""
    for names in roles.values():
        if len(names) > 1:
            return f"but has {names[0]!r} and {names[1]!r}: which of them counts?"
    return f"but {strange[0]!r} beside it is not known in this layout" if strange else ""


def _there(
    everything: Mapping[str, Entry], module: str, core: str, own: str, templates: tuple[str, ...]
) -> list[str]:
    """Companions that are in the file."""
    usual = core in ("", "weight")
    wanted = [t.format(core) for t in templates if usual or "{}" in t]
    names = (".".join(part for part in (module, tail) if part) for tail in wanted)
    return [name for name in names if name in everything and name != own]


def _beside(stored: Mapping[str, Entry]) -> dict[str, list[str]]:
    """By weight, the names around it that look like companions."""
    weights: dict[str, list[str]] = {}
    for name in stored:
        if any(word in _tail(name) for word in _STRANGE):
            weights.setdefault(_owner(name, stored), []).append(name)
    return weights


def _owner(name: str, stored: Mapping[str, Entry]) -> str:
    """Weight that a companion belongs to by its name.

    Of ``up`` and ``up_proj`` only the second has an ``up_proj_scale``; ``x.weight.absmax`` belongs
    to ``x.weight``, and so do ``x.SCB`` and all others in the module.
    """
    module, _, tail = name.rpartition(".")
    for _ in range(min(tail.count("_"), _WORDS)):
        tail = tail.rpartition("_")[0]
        weight = f"{module}.{tail}" if module else tail
        is_scale = any(word in tail for word in _STRANGE)
        if not is_scale and any(weight + ending in stored for ending in ("", *_CODES)):
            return weight
    return module if module in stored else f"{module}.weight".lstrip(".")


def _is_beside(tail: str) -> bool:
    return tail in _CACHES or any(tail == known or tail.endswith(f"_{known}") for known in _BESIDE)


def _tail(name: str) -> str:
    return name.rpartition(".")[2]


def _fp8_scale(stored: Mapping[str, Entry]) -> str:
    """Name of the scale of any fp8 weight, ``""`` where none has one."""
    if _MARKER in stored:
        return _MARKER
    for name, entry in stored.items():
        if entry.dtype in FP8:
            module, _, tail = name.rpartition(".")
            for found in _there(stored, module, tail, name, SCALES):
                return found
    return ""


def _take(found: Found, claim: _Recognised, everything: Mapping[str, Entry]) -> None:
    """Add a recognised weight to what was found."""
    own, codes, name = claim.layout, claim.stored.codes, claim.stored.name
    reason = claim.reason
    if name in found.entries or (name != codes.name and name in everything):
        name, reason = codes.name, f"but {name!r} is in the file as well: which of them counts?"
    found.layouts[name] = own.name
    packed = None
    if not reason:
        try:
            packed = _opened(claim)
        except Refused as error:
            reason = str(error)
    if packed is not None:
        found.packed[name] = packed
        found.entries[name] = replace(codes, name=name, dtype=packed.code, shape=packed.shape)
        return
    known = codes.name == name and codes.dtype in (*FP8, "I8")
    found.refused[name] = (
        f"{name!r} in {codes.file} is stored as {own.name} ({codes.dtype}), {reason}"
    )
    found.entries[name] = replace(codes, name=name, shape=codes.shape if known else ())


def _opened(claim: _Recognised) -> Packed:
    layout, stored = claim.layout, claim.stored
    assert layout.open is not None
    opened = layout.open(stored)
    turned = layout.conv1d and len(opened.shape) == 2 and stored.is_conv1d
    return Packed(
        name=stored.name,
        shape=opened.shape[::-1] if turned else opened.shape,
        code=opened.code,
        layout=layout.name,
        stored=stored.codes,
        companions=claim.companions,
        rows=opened.rows,
        transposed=turned,
    )
