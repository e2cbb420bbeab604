"""Weights that one model stores fused and the other one by one: experts, q k v, gate and up.

What is fused is a row of a table; which way round the experts of a model are stored is read from
the shapes of all its fused tensors together, because one of them alone may be square.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .matching import Shapes
from .pieces import Piece
from .renamings import weight_key

__all__ = ["FUSIONS", "Fused", "Fusion", "fused_pairs", "turned_experts"]


@dataclass(frozen=True)
class Fusion:
    """Matrices that are stored in one tensor, one after another along out.

    Attributes
    ----------
    parts
        Last segments of the single modules, in order.
    fused
        Last segment of the fused one.
    parent
        Last segment of the module that holds them.
    experts
        Single weights are ``parent.N.part.weight``, the fused one has a leading axis of experts.
    """

    parts: tuple[str, ...]
    fused: str
    parent: str
    experts: bool = False


FUSIONS: tuple[Fusion, ...] = (
    Fusion(("gate_proj", "up_proj"), "gate_up_proj", "experts", experts=True),
    Fusion(("gate_proj",), "gate_proj", "experts", experts=True),
    Fusion(("up_proj",), "up_proj", "experts", experts=True),
    Fusion(("down_proj",), "down_proj", "experts", experts=True),
    Fusion(("q_proj", "k_proj", "v_proj"), "qkv_proj", "self_attn"),
    Fusion(("gate_proj", "up_proj"), "gate_up_proj", "mlp"),
    Fusion(("gate_proj", "up_proj"), "weights_in", "mlp"),
)
_SINGLE = re.compile(r"(.*)\.(\d{1,6})\.(\w+)\.weight")
_INTERLEAVED = "gate_up_proj_bias"  # GPT-OSS, whose gate and up rows alternate
_KINDS = (".weight", ".bias", "")


@dataclass(frozen=True)
class Fused:
    """What the fusions pair.

    Attributes
    ----------
    pieces
        For base tensors: where the tuned model holds them.
    tuned
        Tensors of the tuned model that are used up.
    doubts
        Why fused tensors of either side, and what they would hold, are not paired.
    """

    pieces: dict[str, tuple[Piece, ...]]
    tuned: frozenset[str]
    doubts: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _FusedTensor:
    """A fused tensor and its single ones, in the order of experts and parts."""

    row: Fusion
    parent: str
    fused: str
    singles: tuple[str, ...]
    size: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]

    def layouts(self) -> set[bool]:
        """Ways round (turned or not) in which the fused tensor can hold the single ones."""
        n = len(self.row.parts)
        shapes = self.shapes[:n]
        columns = {shape[1:] for shape in shapes}
        if len(columns) != 1 or any(s != shapes[i % n] for i, s in enumerate(self.shapes)):
            return set()
        rows, (rest,) = sum(shape[0] for shape in shapes), columns
        if not self.row.experts:
            return {False} if self.size == (rows, *rest) else set()
        straight: set[bool] = {False} if self.size[1:] == (rows, *rest) else set()
        return straight | ({True} if self.size[1:] == (*rest, rows) else set())

    def cells(self, turned: bool) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
        """Name, shape, expert and first row of every single tensor."""
        n = len(self.row.parts)
        for i, (name, shape) in enumerate(zip(self.singles, self.shapes, strict=True)):
            yield name, shape, i // n, sum(s[0] for s in self.shapes[: i % n])

    def from_fused(self, turned: bool) -> dict[str, tuple[Piece, ...]]:
        """Every single base tensor as a slice of the fused tuned one."""
        pieces: dict[str, tuple[Piece, ...]] = {}
        for name, shape, expert, first in self.cells(turned):
            block = tuple((0, n) for n in shape)
            along: tuple[tuple[int, int], ...] = tuple((axis, 0) for axis in range(len(shape)))
            along = ((0, first), *along[1:])
            along = along[::-1] if turned else along
            axes = (expert, *along) if self.row.experts else along
            pieces[name] = (Piece(block, self.fused, axes),)
        return pieces

    def from_singles(self, turned: bool) -> dict[str, tuple[Piece, ...]]:
        """The fused base tensor as the single tuned ones side by side."""
        pieces: list[Piece] = []
        for name, shape, expert, first in self.cells(turned):
            rows, *rest = ((0, n) for n in shape)
            block = ((first, first + rows[1]), *rest)
            axes = tuple(range(len(shape)))
            if turned:
                block, axes = block[::-1], axes[::-1]
            if self.row.experts:
                block, axes = ((expert, expert + 1), *block), tuple(a + 1 for a in axes)
            pieces.append(Piece(block, name, tuple((axis, 0) for axis in axes)))
        return {self.fused: tuple(pieces)}


def fused_pairs(
    base: Shapes, tuned: Shapes, pairs: Mapping[str, str], everything: tuple[Shapes, Shapes]
) -> Fused:
    """Pair what one side stores fused and the other one by one.

    Parameters
    ----------
    base, tuned
        Floating tensors without a partner of the same name.
    pairs
        Names that are paired: what a prefix of one side is, is read from them.
    everything
        All tensors of both models.
    """
    if not base or not tuned:
        return Fused({}, frozenset(), {})
    keys = _keys(base, "base", pairs), _keys(tuned, "tuned", pairs)
    pieces: dict[str, tuple[Piece, ...]] = {}
    used: set[str] = set()
    doubts: dict[str, str] = {}
    for fused_in_base in (True, False):
        fused, singles = keys if fused_in_base else keys[::-1]
        sizes = (base, tuned) if fused_in_base else (tuned, base)
        interleaved = {
            weight_key(name).rpartition(".")[0]
            for name in everything[not fused_in_base]
            if name.endswith(_INTERLEAVED)
        }
        for families in _families(fused, singles, *sizes):
            layouts = set[bool].intersection(*(family.layouts() for family in families))
            parent = families[0].parent
            why = _against(parent in interleaved, layouts)
            for family in families:
                if why:
                    doubts |= dict.fromkeys((family.fused, *family.singles), why)
                    continue
                (turned,) = layouts
                if fused_in_base:
                    pieces |= family.from_singles(turned)
                    used |= set(family.singles)
                else:
                    pieces |= family.from_fused(turned)
                    used.add(family.fused)
    return Fused(pieces, frozenset(used), doubts)


def _against(interleaved: bool, layouts: set[bool]) -> str:
    if interleaved:
        return (
            "gate and up rows alternate in the fused tensor, which is not paired with single ones"
        )
    if not layouts:
        return "fused in one model and single in the other, with shapes that do not fit"
    return "fused either way round: the shapes do not say which" if len(layouts) > 1 else ""


def _keys(names: Shapes, side: str, pairs: Mapping[str, str]) -> dict[str, str]:
    """Name by key, without the prefix that this side writes before the keys of the other."""
    prefixes = Counter[str]()
    for pair in pairs.items():
        own, other = map(weight_key, pair if side == "base" else pair[::-1])
        if own != other and own.endswith(f".{other}"):
            prefixes[own.removesuffix(other)] += 1
    usual = [prefix for prefix, count in prefixes.items() if count > 1]
    found: dict[str, str] = {}
    twice = set[str]()
    for name in names:
        key = weight_key(name)
        key = key.removeprefix(next(filter(key.startswith, usual), ""))
        twice |= {key} & found.keys()
        found[key] = name
    return {key: name for key, name in found.items() if key not in twice}


def _families(
    fused: Mapping[str, str], singles: Mapping[str, str], sizes: Shapes, shapes: Shapes
) -> Iterator[list[_FusedTensor]]:
    """Fused tensors with their single ones; those of one module's experts together."""
    experts: dict[str, dict[tuple[int, str], str]] = {}
    for key, name in singles.items():
        if (found := _SINGLE.fullmatch(key)) is not None:
            parent, number, part = found.groups()
            experts.setdefault(parent, {})[int(number), part] = name
    together: dict[str, list[_FusedTensor]] = {}
    for key, name in fused.items():
        for row in FUSIONS:
            for kind in _KINDS:
                ending = f"{row.parent}.{row.fused}{kind}"
                if key != ending and not key.endswith(f".{ending}"):
                    continue
                parent = key.removesuffix(f".{row.fused}{kind}")
                if row.experts:
                    members = _of_experts(experts.get(parent, {}), row, sizes[name])
                else:
                    members = tuple(singles.get(f"{parent}.{part}{kind}", "") for part in row.parts)
                if members and all(members):
                    family = _FusedTensor(
                        row=row,
                        parent=parent,
                        fused=name,
                        singles=members,
                        size=sizes[name],
                        shapes=tuple(shapes[m] for m in members),
                    )
                    place = parent if row.experts else key
                    together.setdefault(place, []).append(family)
    yield from together.values()


def _of_experts(
    there: Mapping[tuple[int, str], str], row: Fusion, size: tuple[int, ...]
) -> tuple[str, ...]:
    """Single tensors of all experts, expert by expert; empty if they are others than the fused."""
    own = {place: name for place, name in there.items() if place[1] in row.parts}
    if len(size) != 3 or len(own) != size[0] * len(row.parts):
        return ()
    wanted = [(expert, part) for expert in range(size[0]) for part in row.parts]
    return tuple(own[place] for place in wanted) if all(p in own for p in wanted) else ()


def turned_experts(pairs: Mapping[str, str], base: Shapes, tuned: Shapes) -> frozenset[str]:
    """Base names of fused experts that the other model stores the other way round, (in, out).

    Square ones are turned where the other tensors of the same module are.
    """
    modules: dict[str, list[str]] = {}
    names = {row.fused for row in FUSIONS if row.experts}
    for name, other in pairs.items():
        if len(base[name]) == len(tuned[other]) == 3:
            parent, _, last = weight_key(name).removesuffix(".weight").rpartition(".")
            if last in names:
                modules.setdefault(parent, []).append(name)
    turned: set[str] = set()
    for group in modules.values():
        shapes = [(base[name], tuned[pairs[name]]) for name in group]
        if all(_reversed(new) == old for old, new in shapes) and any(o != n for o, n in shapes):
            turned |= set(group)
    return frozenset(turned)


def _reversed(shape: Sequence[int]) -> tuple[int, ...]:
    return (shape[0], shape[2], shape[1])
