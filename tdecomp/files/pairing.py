"""Pair the tensors of a base model with those of a tuned one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..errors import SiteError
from ..stack.names import is_adapter
from .fusions import fused_pairs, turned_experts
from .matching import match_names
from .opening import Checkpoint
from .pair import Grown, Pair, Reading
from .pieces import Piece
from .safetensors import Entry

__all__ = ["Pair", "pair"]

# Last words of names; the shapes must agree as well.
_HEADS = ("lm_head.weight", "output.weight", "embed_out.weight", "decoder.weight")
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "shared.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "embed_in.weight",
    "token_embedding.weight",
)
_BIASES = ("lm_head.bias", "predictions.bias", "decoder.bias", "embed_out.bias")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Tied:
    """An output head that one model stores, read against the embedding of the other one."""

    embedding: str
    reading: Reading
    grown: Grown | None


def pair(base: Checkpoint, tuned: Checkpoint) -> Pair:
    """Pair the tensors of two models.

    Equal names pair; then names that differ by what wrappers write, by a prefix of one side, or by
    what releases of libraries call a module (`matching`, `renamings`); then what one side stores
    fused and the other one by one (`fusions`). What could be paired in two ways is not paired.

    Parameters
    ----------
    base, tuned
        From `open_checkpoint`; sharding and dtypes may differ.

    Raises
    ------
    SiteError
        If nothing is in both with the same shape.
    """
    every = _shapes(base.entries), _shapes(tuned.entries)
    match = match_names(*every)
    old, new = _shapes(base.floats), _shapes(tuned.floats)
    both = {name: other for name, other in match.pairs.items() if name in old and other in new}
    readings = _whole(both, old, new)
    lone_base = {name: shape for name, shape in old.items() if name not in match.pairs}
    matched = set(match.pairs.values())
    lone_tuned = {name: shape for name, shape in new.items() if name not in matched}
    fused = fused_pairs(lone_base, lone_tuned, match.pairs, every)
    readings |= {name: Reading(name, pieces=pieces) for name, pieces in fused.pieces.items()}
    if not readings:
        raise SiteError(_nothing_common(base, tuned, both))
    lone_base = {name: shape for name, shape in lone_base.items() if name not in fused.pieces}
    lone_tuned = {name: shape for name, shape in lone_tuned.items() if name not in fused.tuned}
    tied = _tied(lone_base, old, new, in_base=True) | _tied(lone_tuned, new, old, in_base=False)
    misfits = {name: other for name, other in both.items() if name not in readings}
    grown = {
        name: reading
        for name, other in misfits.items()
        if (reading := _grown(name, other, old, new))
    }
    ignored = _ignored(base, tuned, match.pairs, both)
    return Pair(
        base=base,
        tuned=tuned,
        common=tuple(name for name in base.entries if name in readings),
        only_base=tuple(name for name in lone_base if name not in tied),
        only_tuned=tuple(name for name in lone_tuned if name not in tied),
        reshaped=tuple((n, old[n], new[o]) for n, o in misfits.items() if n not in grown),
        tied=tuple((head, found.embedding) for head, found in tied.items()),
        ignored=ignored,
        alike={
            name: other
            for name, other in match.pairs.items()
            if name not in both and _stored_alike(base, name, tuned, other)
        },
        grown={name: _rows(old[name], new[misfits[name]]) for name in grown}
        | {head: found.grown for head, found in tied.items() if found.grown is not None},
        readings=readings | grown | {head: found.reading for head, found in tied.items()},
        doubts=match.doubts | fused.doubts,
        refused=tuned.refused
        | base.refused
        | {n: tuned.refused[other] for n, other in match.pairs.items() if other in tuned.refused},
    )


def _shapes(entries: Mapping[str, Entry]) -> dict[str, Shape]:
    return {name: entry.shape for name, entry in entries.items()}


def _whole(
    both: Mapping[str, str], old: Mapping[str, Shape], new: Mapping[str, Shape]
) -> dict[str, Reading]:
    """Readings of the tensors that have one partner of the same shape, or the same turned round."""
    turned = turned_experts(both, old, new)
    readings: dict[str, Reading] = {}
    for name, other in both.items():
        if name in turned:
            readings[name] = Reading(name, pieces=_experts_turned(other, old[name]))
        elif old[name] == new[other]:
            readings[name] = Reading(name, other)
    return readings


def _experts_turned(other: str, shape: Shape) -> tuple[Piece, ...]:
    """Every expert of a tensor by itself, so that one can be read without the others."""
    experts, *sides = shape
    rows, columns = ((0, size) for size in sides)
    return tuple(
        Piece(((e, e + 1), rows, columns), other, (e, (2, 0), (1, 0))) for e in range(experts)
    )


def _grown(
    name: str, other: str, old: Mapping[str, Shape], new: Mapping[str, Shape]
) -> Reading | None:
    """Reading of the rows that both models have of a vocabulary."""
    before, after = old[name], new[other]
    if not _ends(name, (*_HEADS, *_EMBEDDINGS, *_BIASES)) or before[1:] != after[1:]:
        return None
    return _common_rows(name, other, before, after)


def _common_rows(name: str, other: str, before: Shape, after: Shape) -> Reading | None:
    rows = min(before[0], after[0])
    block = ((0, rows), *((0, size) for size in before[1:]))
    axes = tuple((axis, 0) for axis in range(len(before)))
    return Reading(name, pieces=(Piece(block, other, axes),)) if rows else None


def _rows(before: Shape, after: Shape) -> Grown:
    return Grown(min(before[0], after[0]), before[0], after[0])


def _tied(
    lone: Mapping[str, Shape],
    own: Mapping[str, Shape],
    other: Mapping[str, Shape],
    *,
    in_base: bool,
) -> dict[str, _Tied]:
    """Embedding of the other model that stands for each head that only this one stores.

    It may have other rows than the head where this model's own embedding has the head's.
    """
    embeddings = {name: size for name, size in other.items() if _ends(name, _EMBEDDINGS)}
    heads = {size for name, size in other.items() if _ends(name, _HEADS)}
    own_sizes = {size for name, size in own.items() if _ends(name, _EMBEDDINGS)}
    tied: dict[str, _Tied] = {}
    for head, shape in lone.items():
        if not _ends(head, _HEADS) or shape in heads:
            continue
        sources = [name for name, size in embeddings.items() if size == shape]
        if not sources and shape in own_sizes and len(shape) == 2:
            sources = [n for n, size in embeddings.items() if size[1:] == shape[1:]]
            sources = [] if embeddings.get(sources[0] if sources else "") in heads else sources
        if not sources:
            continue
        names = (head, sources[0]) if in_base else (sources[0], head)
        sizes = (shape, other[sources[0]]) if in_base else (other[sources[0]], shape)
        if sizes[0] == sizes[1]:
            tied[head] = _Tied(sources[0], Reading(*names), None)
        elif reading := _common_rows(*names, *sizes):
            tied[head] = _Tied(sources[0], reading, _rows(*sizes))
    return tied


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return f".{name}".endswith(tuple(f".{ending}" for ending in endings))


def _stored_alike(base: Checkpoint, name: str, tuned: Checkpoint, other: str) -> bool:
    """Whether two tensors hold integers of one shape and dtype."""
    if (
        name in base.refused
        or other in tuned.refused
        or {name, other} & {*base.packed, *tuned.packed}
    ):
        return False
    one, two = base.entries[name], tuned.entries[other]
    return (one.shape, one.dtype) == (two.shape, two.dtype)


def _ignored(
    base: Checkpoint, tuned: Checkpoint, match: Mapping[str, str], both: Collection[str]
) -> tuple[str, ...]:
    """Names of tensors that are not floating point in one of the models."""
    matched = set(match.values())
    lone_base = [n for n in base.entries if n not in match and n not in base.floats]
    lone_tuned = [n for n in tuned.entries if n not in matched and n not in tuned.floats]
    return tuple([n for n in match if n not in both] + lone_base + lone_tuned)


def _nothing_common(base: Checkpoint, tuned: Checkpoint, same_names: Collection[str]) -> str:
    if any(map(is_adapter, tuned.entries)):
        return (
            f"{tuned.path} holds an adapter that is not merged into a model: merge it into "
            "its base (merge_and_unload in PEFT), save that, and name its folder"
        )
    kinds = [
        f"{c.path} ({c.config.get('model_type', 'unknown model type')})" for c in (base, tuned)
    ]
    reason = (
        f"{len(same_names)} names agree, but no shape does"
        if same_names
        else f"e.g. {_first(base)} and {_first(tuned)}"
    )
    return f"{' and '.join(kinds)} have no tensor in common: {reason}; different architectures?"


def _first(checkpoint: Checkpoint) -> str:
    return repr(next(iter(checkpoint.entries), "no tensors"))
