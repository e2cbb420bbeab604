"""Every tensor of an adapter against the names of a model, by the rules of a loader."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tdecomp.files.loaders.adapter_names import AdapterNames, PairNames
from tdecomp.files.loaders.experts import is_fused, is_single
from tdecomp.files.loaders.loader import (
    EACH,
    ERROR,
    FUSED,
    NOTHING,
    PEFT_PREFIX,
    Loader,
    LoaderPlace,
    ModelView,
    Verdict,
)
from tdecomp.files.loaders.meant import Meant, dotted_key, flat_key
from tdecomp.files.loras.peft_scales import PeftScales
from tdecomp.files.loras.reading import CONFIG
from tdecomp.files.plain import is_list
from tdecomp.stack.names import canonical

__all__ = ["CheckedKey", "check_names"]

_IN_MEMORY = Verdict(
    why="'.default' is the adapter's name in memory, which no file has",
    told=NOTHING,
    rule="peft/utils/save_and_load.py: remove_adapter_name, set_peft_model_state_dict",
)
_SAVED = "peft/utils/other.py: ModulesToSaveWrapper"
_BIASES = "peft/utils/save_and_load.py: get_peft_model_state_dict"


@dataclass(frozen=True, kw_only=True)
class CheckedKey:
    """What a loader does with one tensor of an adapter, or with a setting.

    Attributes
    ----------
    key
        The tensor; of a setting ``adapter_config.json: NAME``.
    module
        Where it arrives, by the loader's name; "" nowhere.
    acts
        Whether it changes the model as it was trained to.
    why
        If not: why.
    told
        What the loader says of it: ``"nothing"``, ``"a warning in its log"``, ``"an error"``; ""
        where it acts.
    instead
        The name under which it would act, without the ending; "" where nothing is known.
    rule
        Where the rule is from; "" where it acts.
    """

    key: str
    module: str
    acts: bool
    why: str = ""
    told: str = ""
    instead: str = ""
    rule: str = ""


@dataclass(frozen=True)
class _Outcome:
    """Of one module of an adapter."""

    module: str
    verdict: Verdict | None = None
    instead: str = ""


def check_names(adapter: AdapterNames, view: ModelView, loader: Loader) -> tuple[CheckedKey, ...]:
    """What becomes of every tensor of an adapter.

    Parameters
    ----------
    adapter
        Its names.
    view
        The model as the loader sees it, ``loader.view(names)``.
    loader
        The row whose rules are followed.
    """
    outcomes = _outcomes(adapter, view, loader)
    lines = list(_settings(adapter, loader))
    for stem, pair in adapter.pairs.items():
        outcome = outcomes[stem]
        for part, entry in pair.parts.items():
            verdict = outcome.verdict or _of_part(adapter, pair, part, loader)
            lines.append(_line(entry.name, replace(outcome, verdict=verdict)))
    unread = Verdict(why="no known name", told=NOTHING, rule=loader.source)
    lines += [_line(name, _Outcome("", unread)) for name in adapter.unread]
    return tuple(lines)


def _line(key: str, outcome: _Outcome) -> CheckedKey:
    verdict = outcome.verdict
    if verdict is None:
        return CheckedKey(key=key, module=outcome.module, acts=True)
    return CheckedKey(
        key=key,
        module=outcome.module,
        acts=False,
        why=verdict.why,
        told=verdict.told,
        instead=outcome.instead,
        rule=verdict.rule,
    )


# ---------------------------------------------------------------------------------- modules


def _outcomes(adapter: AdapterNames, view: ModelView, loader: Loader) -> dict[str, _Outcome]:
    whole = view.refused or _of_scheme(adapter, loader)
    if whole is not None:
        return {stem: _Outcome("", whole) for stem in adapter.pairs}
    reached: dict[str, PairNames] = {}
    found: dict[str, _Outcome] = {}
    strangers: list[PairNames] = []
    for stem, pair in adapter.pairs.items():
        name = view.reads(stem)
        place = view.places.get(name)
        if not pair.kind:  # saved whole: `_of_part` says whether it acts
            lone = {"whole", "bias"}.isdisjoint(pair.parts)
            found[stem] = _Outcome(name, _lone(loader) if lone else None)
        elif place is None:
            strangers.append(pair)
        elif name in reached:
            found[stem] = _Outcome(name, _twice(reached[name], loader))
        else:
            verdict = place.idle or _of_pair(adapter, pair, name, place, loader)
            found[stem] = _Outcome(name, verdict)
            if verdict is None:
                reached[name] = pair
    for name, verdict in view.missing(adapter, reached).items():
        found[reached[name].stem] = _Outcome(name, verdict)
    if strangers:
        meant = Meant(view.places, flat_key if "peft" not in loader.schemes else dotted_key)
        found |= {pair.stem: _stranger(pair, view, meant, loader) for pair in strangers}
    return found


def _of_scheme(adapter: AdapterNames, loader: Loader) -> Verdict | None:
    if adapter.scheme.name in loader.schemes:
        return None
    return Verdict(
        why=f"its names are those of {adapter.scheme.name!r}, which {loader.name} does not read",
        told=ERROR,
        rule=loader.source,
    )


def _lone(loader: Loader) -> Verdict:
    return Verdict(why="it belongs to no pair", told=NOTHING, rule=loader.source)


def _twice(other: PairNames, loader: Loader) -> Verdict:
    return Verdict(why=f"{other.stem} arrives at the same module", told=NOTHING, rule=loader.source)


def _stranger(pair: PairNames, view: ModelView, meant: Meant, loader: Loader) -> _Outcome:
    """A pair for a module that the loader does not have under that name."""
    name = view.reads(pair.stem)
    lost = view.lost(name)
    if is_fused(name) and FUSED not in view.layouts:
        why = f"a pair for all experts, which {loader.name} takes one by one in this model"
        return _Outcome("", replace(lost, why=why))
    if is_single(name) and EACH not in view.layouts:
        together = (
            f"which {loader.name} takes together"
            if FUSED in view.layouts
            else (f"and {loader.name} adapts none in this model")
        )
        return _Outcome("", replace(lost, why=f"a pair for one expert, {together}"))
    place = meant.place(pair.stem, pair.shape)
    wrapper = _wrapper_in(pair.stem)
    why = f"{lost.why}: {wrapper} is of a wrapper" if wrapper else lost.why
    return _Outcome("", replace(lost, why=why), place.stem if place else "")


def _wrapper_in(stem: str) -> str:
    """Segments that a wrapper wrote into a name, and that are not PEFT's one prefix."""
    inner = stem.removeprefix(PEFT_PREFIX)
    kept = canonical(inner)
    if kept == inner or not inner.endswith(kept):
        return ""
    return inner.removesuffix(kept).strip(".")


# ---------------------------------------------------------------------------------- pairs


def _of_pair(
    adapter: AdapterNames, pair: PairNames, name: str, place: LoaderPlace, loader: Loader
) -> Verdict | None:
    """Whether a pair that arrives fits, and at which scale it acts."""
    if pair.in_memory and adapter.scheme.in_folder:
        return loader.parts.get("in memory", _IN_MEMORY)
    if pair.kind in ("lora", "embedding") and not {"a", "b"} <= set(pair.parts):
        there = ", ".join(sorted(pair.parts))
        why = f"an incomplete pair: there are only {there}"
        return Verdict(why=why, told=ERROR, rule=loader.source)
    size = pair.shape
    turned = pair.kind == "embedding" or (adapter.scales is not None and adapter.scales.turned)
    fits = size in place.sizes or (turned and size is not None and size[::-1] in place.sizes)
    if size is not None and place.sizes and not fits:
        wanted = " or ".join(f"{out} × {in_}" for out, in_ in place.sizes)
        why = f"the pair is {size[0]} × {size[1]}, the weight {wanted}"
        return Verdict(why=why, told=ERROR, rule=loader.source)
    return _of_scale(adapter.scales, pair, loader, fused=is_fused(name))


def _of_scale(
    scales: PeftScales | None, pair: PairNames, loader: Loader, *, fused: bool
) -> Verdict | None:
    if scales is None or not pair.rank:
        return None
    module = pair.stem.removeprefix(PEFT_PREFIX)
    names = scales.names_inside(module)
    told = {scales.rank_of(name): name for name in names}
    if not fused and pair.rank not in told:
        why = f"its rank is {pair.rank}, the configuration says {scales.rank_of(module)}"
        if loader.scale is None:
            return Verdict(why=why, told=ERROR, rule=loader.source)
    rank = scales.rank_of(names[-1]) if fused else pair.rank
    if loader.scale is None or not rank:
        return None
    meant, used = scales.scale_of(names[-1 if fused else 0], rank), loader.scale(scales, rank)
    if math.isclose(meant, used, rel_tol=1e-6):
        return None
    return Verdict(
        why=f"{loader.name} multiplies it with {used:g}, and it was trained with {meant:g}: only"
        " the global r and lora_alpha are read",
        told=NOTHING,
        rule=loader.scale_rule,
    )


def _of_part(adapter: AdapterNames, pair: PairNames, part: str, loader: Loader) -> Verdict | None:
    """Whether a tensor beside a pair acts."""
    if part in loader.parts:
        return loader.parts[part]
    if not adapter.scheme.in_folder or part not in ("bias", "whole"):
        return None
    config = adapter.config
    if part == "whole":
        last, saved = pair.stem.rpartition(".")[2], config.get("modules_to_save")
        if is_list(saved) and any(str(name).rpartition(".")[2] == last for name in saved):
            return None
        return Verdict(
            why="modules_to_save of adapter_config.json does not name it",
            told=NOTHING,
            rule=_SAVED,
        )
    of_pair = any(entry.name.endswith(".lora_B.bias") for entry in pair.parts.values())
    says = config.get("lora_bias") is True if of_pair else config.get("bias", "none") != "none"
    option = "lora_bias" if of_pair else "bias"
    why = f"{option} of adapter_config.json does not say that there are any"
    return None if says else Verdict(why=why, told=NOTHING, rule=_BIASES)


# ---------------------------------------------------------------------------------- settings


def _settings(adapter: AdapterNames, loader: Loader) -> Iterator[CheckedKey]:
    """Settings that a loader refuses, whatever the tensors are."""
    named: Mapping[str, tuple[str, bool]] = {
        "modules_to_save": ("whole", bool(adapter.config.get("modules_to_save"))),
        "use_dora": ("magnitude", adapter.config.get("use_dora") is True),
    }
    for option, (part, is_set) in named.items():
        verdict = loader.parts.get(part)
        if is_set and verdict is not None:
            yield _line(f"{CONFIG}: {option}", _Outcome("", verdict))
    most = max((pair.rank for pair in adapter.pairs.values() if not is_fused(pair.stem)), default=0)
    most = max(most, adapter.scales.rank if adapter.scales else 0)
    if loader.ranks and most > loader.ranks[-1]:
        why = f"its rank is {most}, and {loader.name} takes at most {loader.ranks[-1]}"
        verdict = Verdict(why=why, told=ERROR, rule=loader.scale_rule)
        yield _line(f"{CONFIG}: r", _Outcome("", verdict))
