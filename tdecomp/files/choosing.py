"""Which weights of a folder are the model, where there are several sets or copies of them.

The rule: the set called ``model``, else ``diffusion_pytorch_model``, else ``pytorch_model``; of one
name the index first, then the single file, then the numbered shards. Without such a name, the one
set that is neither an adapter, nor an average, nor a variant of another (``X.fp16``). Where that
leaves several, the user has to name one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import FileError
from .safetensors import Entry
from .storage import Location

__all__ = ["INDEX_SUFFIX", "WeightSet", "choose", "copies"]

INDEX_SUFFIX = ".safetensors.index.json"
_MODELS = ("model", "diffusion_pytorch_model", "pytorch_model")
_ASIDE = re.compile(
    r"(^|[._-])(adapter(_model)?|ema|optimizer|scheduler|non_ema|fp16|bf16|fp32)($|[._-])"
)
_SHARD = re.compile(r"(?P<stem>.+?)[-_.](?P<number>\d+)-of-(?P<total>\d+)")
_NUMBER = re.compile(r"\d+")
# First names of copies that training keeps beside the weights, and of what they are copies of.
_COPIES = (
    "ema",
    "ema_model",
    "model_ema",
    "averaged_model",
    "shadow",
    "teacher",
    "teacher_model",
    "teacher_network",
    "target_network",
    "momentum_encoder",
    "encoder_k",
)
_ORIGINALS = (
    "student",
    "student_model",
    "student_network",
    "online",
    "online_network",
    "encoder_q",
    "encoder",
    "model",
    "module",
    "",
)


@dataclass(frozen=True)
class WeightSet:
    """Files that belong together.

    Parameters
    ----------
    name
        What the files have in common.
    files
        In order; of an index, those that it may list.
    index
        The index, if there is one.
    total
        How many numbered shards there should be; 0: not said.
    """

    name: str
    files: tuple[Location, ...]
    index: Location | None = None
    total: int = field(default=0, compare=False)

    @property
    def told(self) -> str:
        """The set in a few words: the file to name, or a shard of it."""
        if self.index is not None:
            return self.index.name
        return self.files[0].name + (f" (1 of {len(self.files)})" if len(self.files) > 1 else "")


def choose(
    folder: Location, files: Sequence[Location], indexes: Mapping[Location, Sequence[str]]
) -> tuple[WeightSet, tuple[str, ...]]:
    """Choose the set of a folder that is the model, and say what is left aside.

    Parameters
    ----------
    folder
        For messages.
    files
        Its ``.safetensors`` files, in order; at least one, or an index.
    indexes
        Its indexes, with the files that each lists.

    Returns
    -------
    chosen : WeightSet
    notes : tuple of str
        A sentence if there were others.

    Raises
    ------
    FileError
        If no rule decides, or numbered shards are missing.
    """
    sets = _sets(files, indexes)
    chosen = _best(folder, sets)
    if chosen.total and len(chosen.files) != chosen.total:
        raise FileError(
            f"{folder} has {len(chosen.files)} of the {chosen.total} shards of {chosen.name!r} and "
            "no index: download the others"
        )
    others = [other.told for other in sets if other is not chosen]
    if not others:
        return chosen, ()
    return chosen, (
        f"{folder} holds several sets of weights: {chosen.told} is taken, left aside "
        f"{'is' if len(others) == 1 else 'are'} {_listing(others)}; name a file to take another",
    )


def _sets(files: Sequence[Location], indexes: Mapping[Location, Sequence[str]]) -> list[WeightSet]:
    """Group the files by index, and the rest by numbered name."""
    sets = [WeightSet(index.name.removesuffix(INDEX_SUFFIX), tuple(), index) for index in indexes]
    listed = {name for names in indexes.values() for name in names}
    groups: dict[tuple[str, int], list[Location]] = {}
    for file in files:
        if file.name not in listed:
            groups.setdefault(_group(file.name.removesuffix(".safetensors")), []).append(file)
    for (stem, total), found in groups.items():
        sets.append(WeightSet(stem, tuple(found), None, total))
    return sets


def _group(stem: str) -> tuple[str, int]:
    """Common name of numbered files, and how many there should be (0: not said)."""
    if shard := _SHARD.fullmatch(stem):
        return shard["stem"], min(int(shard["total"][:9]), 10**6)
    return _NUMBER.sub("*", stem), 0


def _best(folder: Location, sets: Sequence[WeightSet]) -> WeightSet:
    for name in _MODELS:
        named = [s for s in sets if s.name == name]
        if named:
            return min(named, key=lambda s: (s.index is None, s.total > 0))
    usual = [s for s in sets if not _ASIDE.search(s.told)] or list(sets)
    if len(usual) > 1 and len(with_index := [s for s in usual if s.index is not None]) == 1:
        return with_index[0]
    if len(usual) > 1:
        first = usual[0].index or usual[0].files[0]
        raise FileError(
            f"{folder} holds several sets of weights, none of them called model: "
            f"{_listing([s.told for s in usual])}; name one, e.g. {first}"
        )
    return usual[0]


def _listing(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def copies(entries: Mapping[str, Entry]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Names of tensors that are a training run's second copy of others, and a sentence on them.

    Averages and teachers: ``ema.x`` beside ``model.x`` or ``x``; ``teacher.x`` beside
    ``student.x``.
    """
    found: set[str] = set()
    notes: list[str] = []
    for prefix in _COPIES:
        own = {name for name in entries if name.startswith(f"{prefix}.")}
        for original in _ORIGINALS if own else ():
            pairs = {name: _swapped(name, prefix, original) for name in own}
            twins = {n for n, o in pairs.items() if o in entries and o not in own}
            twins = {n for n in twins if entries[pairs[n]].shape == entries[n].shape}
            if 2 * len(twins) > len(own):
                kept = f"{original}.*" if original else "those without this prefix"
                notes.append(
                    f"{len(own)} tensors of {prefix}.* are a copy of {kept}, which are taken; the "
                    "copy is left aside"
                )
                found |= own
                break
    return frozenset(found), tuple(notes)


def _swapped(name: str, prefix: str, original: str) -> str:
    rest = name.removeprefix(f"{prefix}.").removeprefix("module.")
    return f"{original}.{rest}" if original else rest
