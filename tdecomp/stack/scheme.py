"""Naming schemes: the rules of a family applied to the tensors of one checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tdecomp.stack.claims import Claim, reason_against
from tdecomp.stack.families import FAMILIES, Family, Rule
from tdecomp.stack.names import canonical
from tdecomp.stack.patterns import Labels, Pattern
from tdecomp.stack.sites import Site, block

MODE_ORDER = ("layer", "proj", "attn", "stack", "expert", "head")
"""Order of the site modes that the families table names."""

_HIDDEN = ("embed_dim", "hidden_size", "n_embd", "d_model", "dim")
_HEAD_DIM = ("head_dim", "d_kv")
_LARGEST = 2**31 - 1  # what a config may say of a size
_MOST_SLICES = 4096  # of a fused tensor: eight times the experts of the largest models
_ATTENTION = re.compile(r"att|mixer", re.IGNORECASE)
_N_HEADS = "num_attention_heads|num_heads|n_head|n_heads|attention_heads"
_N_KEY_VALUE = f"num_key_value_heads|num_kv_heads|n_kv_heads|{_N_HEADS}"
_QUERY = ("q_proj", "query", "query_proj", "q", "q_lin", "linear_q", "wq", "to_q")
_KEY_VALUE = (
    *("k_proj", "key", "key_proj", "k", "k_lin", "linear_k", "wk", "to_k"),
    *("v_proj", "value", "value_proj", "v", "v_lin", "linear_v", "wv", "to_v"),
)
_QKV = {**{name: _N_HEADS for name in _QUERY}, **{name: _N_KEY_VALUE for name in _KEY_VALUE}}
"""Query, key and value by the names that models give them -> config key of their heads."""
_MISFIT = "stored the other way round than this family stores it"
_TOWERS = (("vision", "vision_config"), ("visual", "vision_config"), ("audio", "audio_config"))


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The rules of one family, with their patterns read, and the config that they consult."""

    family: str
    rules: tuple[tuple[Pattern, Rule], ...]
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def claim(self, name: str, shape: tuple[int, ...]) -> Claim:
        """Sites of a tensor, under the first rule that matches its name without wrappers."""
        module = canonical(name).removesuffix(".weight")
        for number, (pattern, rule) in enumerate(self.rules):
            found = pattern.match(module)
            if found is None:
                continue
            if len(shape) != 2 + bool(rule.lead) or 0 in shape:
                return Claim(reason=reason_against(name, shape))
            if rule.lead and shape[0] > _MOST_SLICES:
                return Claim(reason=f"more than {_MOST_SLICES} matrices in one tensor")
            config = _tower(self.config, found.prefix)
            if not _plausible(rule, shape, config):
                return Claim(reason=_MISFIT)
            whole = _lead_sites(name, shape, rule, found.prefix, found.labels)
            parts, note = _split(whole, rule, config)
            order = self.family != "pattern"
            sites = tuple(_finish(site, rule, config, order) for site in parts)
            return Claim(sites, (number, found.prefix), note=note)
        return Claim()

    def matched(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Count the tensors that hold sites; 0 when one is stored as the family never does."""
        count = 0
        for name, shape in shapes.items():
            claim = self.claim(name, _one_slice(shape))
            if claim.reason == _MISFIT:
                return 0
            count += bool(claim.sites)
        return count


def _lead_sites(
    name: str, shape: tuple[int, ...], rule: Rule, prefix: str, labels: Labels
) -> list[Site]:
    """Make the tensor one site, or one for each position of its leading axis."""
    rows, columns = shape[-2:]
    out_in = (columns, rows) if rule.transpose else (rows, columns)
    labels = (*labels, *rule.labels)
    if not rule.lead:
        return [
            Site(
                tensor=name,
                index=(),
                transpose=rule.transpose,
                labels=labels,
                shape=out_in,
                role=rule.role,
                prefix=prefix,
            )
        ]
    return [
        Site(
            tensor=name,
            index=(i,),
            transpose=rule.transpose,
            labels=(*labels, (rule.lead, i)),
            shape=out_in,
            role=rule.role,
            prefix=prefix,
        )
        for i in range(shape[0])
    ]


def _split(whole: list[Site], rule: Rule, config: Mapping[str, Any]) -> tuple[list[Site], str]:
    """Split a fused tensor into its blocks; where it cannot be, one site and a note why."""
    if not rule.parts:
        return whole, ""
    shares = [_lookup(config, share) for _, share in rule.parts]
    total, rows = sum(shares), whole[0].shape[0]
    if not all(shares):
        missing = next(key for (_, key), n in zip(rule.parts, shares, strict=True) if not n)
        return _unsplit(whole), f"not split, as the config has no {missing}"
    if rows % total:
        return _unsplit(whole), f"not split, as {rows} rows are not divisible by {total}"
    unit, sites = rows // total, []
    for site in whole:
        start = 0
        for (part, _), share in zip(rule.parts, shares, strict=True):
            stop = start + share * unit
            sites.append(block(site, start, stop, site.labels + (("proj", part),), part))
            start = stop
    return sites, ""


def _unsplit(whole: list[Site]) -> list[Site]:
    name = whole[0].module.rsplit(".", 1)[-1]
    return [replace(site, labels=(*site.labels, ("proj", name))) for site in whole]


def _finish(site: Site, rule: Rule, config: Mapping[str, Any], canonical: bool) -> Site:
    """Complete a site: its number of heads, and its labels in the order of `MODE_ORDER`."""
    labels = site.labels
    if canonical:
        labels = tuple(sorted(labels, key=lambda pair: MODE_ORDER.index(pair[0])))
    heads = _heads(site.shape[0], dict(labels).get("proj"), dict(rule.heads), config)
    return replace(site, labels=labels, heads=heads)


def with_heads(site: Site, config: Mapping[str, Any]) -> Site:
    """A site of the generic rule with its number of heads, where its name and size tell it."""
    if not _ATTENTION.search(site.module):
        return site
    proj = dict(site.labels).get("proj")
    return replace(site, heads=_heads(site.shape[0], proj, _QKV, _tower(config, site.prefix)))


def _heads(
    rows: int, proj: int | str | None, keys: Mapping[str, str], config: Mapping[str, Any]
) -> int:
    """Number of heads that `rows` are made of; 0 where they are not, or where it is unknown."""
    heads = _lookup(config, keys.get(str(proj), 0))
    if not heads:
        return 0
    size = next((n for key in _HEAD_DIM if (n := _lookup(config, key))), 0)
    if not size:
        queries = _lookup(config, next(iter(keys.values())))
        size = _hidden(config) // queries if queries else 0
    return heads if (rows == heads * size if size else rows % heads == 0) else 0


def choose_scheme(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], patterns: Sequence[str]
) -> Scheme:
    """Choose the naming scheme of a checkpoint.

    A user's patterns; else the row of the config's `model_type`, if its names are there; else the
    row that matches most tensors; else no rules.
    """
    if patterns:
        read = map(Pattern.parse, [patterns] if isinstance(patterns, str) else patterns)
        rules = tuple(
            (pattern, Rule(pattern.text, pattern.constant or "weight")) for pattern in read
        )
        return Scheme(family="pattern", rules=rules, config=config)
    types = _model_types(config)
    for family in FAMILIES:
        known = _of_family(family, config)
        if set(types) & set(family.model_types) and _any_site(known, shapes):
            return known
    counts = {f.name: _of_family(f, config).matched(shapes) for f in FAMILIES}
    best = max(FAMILIES, key=lambda family: counts[family.name])
    guess = (
        _of_family(best, config)
        if counts[best.name]
        else Scheme(family="generic", rules=(), config=config)
    )
    if not types:
        return guess
    how = "the generic rule" if guess.family == "generic" else f"the names of {best.name!r} models"
    note = f"No row of the families table fits model_type {types[0]!r}: sites were found by {how}."
    return replace(guess, notes=(note,))


def _any_site(scheme: Scheme, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return any(scheme.claim(name, _one_slice(shape)).sites for name, shape in shapes.items())


def _one_slice(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A fused tensor with one matrix: enough to ask whether a rule takes it, and no more work."""
    return (min(shape[0], 1), *shape[1:]) if len(shape) == 3 else shape


def _of_family(family: Family, config: Mapping[str, Any]) -> Scheme:
    return Scheme(
        family=family.name,
        rules=tuple((Pattern.parse(r.pattern), r) for r in family.rules),
        config=config,
    )


def _model_types(config: Mapping[str, Any]) -> list[str]:
    text = config.get("text_config")
    inner = text.get("model_type") if isinstance(text, Mapping) else None
    return [name for name in (config.get("model_type"), inner) if name and isinstance(name, str)]


def _lookup(config: Mapping[str, Any], key: int | str) -> int:
    """Read a number, or the first key of ``"a|b"`` that the config has; 0 if it has neither."""
    if isinstance(key, int):
        return key
    values = (config.get(name) for name in key.split("|"))
    return next((v for v in values if type(v) is int and 0 < v <= _LARGEST), 0)


def _hidden(config: Mapping[str, Any]) -> int:
    return next((n for key in _HIDDEN if (n := _lookup(config, key))), 0)


def _tower(config: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    """Part of a config that describes the tower with this prefix."""
    for word, key in _TOWERS:
        if word in prefix and isinstance(config.get(key), Mapping):
            return config[key]
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, Mapping) else config


def _plausible(rule: Rule, shape: tuple[int, ...], config: Mapping[str, Any]) -> bool:
    """Whether a tensor is stored the way round that the rule says, as far as sizes can tell.

    Only rules whose layout other models use transposed are checked: fused experts and Conv1D.
    """
    if not (rule.lead or rule.transpose):
        return True
    out, in_ = shape[-2:][::-1] if rule.transpose else shape[-2:]
    hidden = _hidden(config)
    if hidden:
        return (in_ if rule.role.endswith("_in") else out) == hidden
    widens = rule.transpose and rule.role.endswith("_in") and not rule.lead
    return out > in_ if widens else True
