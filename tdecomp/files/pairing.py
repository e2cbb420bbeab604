"""Pair the tensors of a base model with those of a tuned one, and subtract them."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import NoReturn

import numpy as np

from .._xp import quick_sum_of_squares
from ..errors import DataError, SiteError
from .dtypes import DTYPES
from .opening import Checkpoint
from .parts import Part
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
)
_DEEPEST_PREFIX = 16  # segments; those of wrappers have up to five
_MANTISSA_BITS = {"BF16": 7, "F16": 10}

Empty = Callable[[tuple[int, ...], np.dtype], np.ndarray]
"""Where a result is written: an uninitialised array of a shape and dtype."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A base model and a tuned one, tensor by tensor; base names are the names.

    Parameters
    ----------
    base, tuned
        The two models.
    prefix, prefixed
        What one side writes before the names of the other, and which: ``""`` (neither),
        ``"base"`` or ``"tuned"``.
    common
        Floating tensors in both with the same shape.
    only_base, only_tuned
        Floating tensors in one of them, as that one writes their names.
    reshaped
        ``(name, base shape, tuned shape)`` where the shapes differ.
    tied
        ``(head, embedding)``: an output head that only one model stores, and the embedding that
        the other one uses in its place. Not in `common`; `delta` takes it.
    ignored
        Tensors that are not floating point in one of them.
    places
        For every name in `common` and `tied`, its name in the base and in the tuned model.
    """

    base: Checkpoint
    tuned: Checkpoint
    prefix: str
    prefixed: str
    common: tuple[str, ...]
    only_base: tuple[str, ...]
    only_tuned: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    tied: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]
    places: Mapping[str, tuple[str, str]]

    def base_name(self, name: str) -> str:
        """Name of a paired tensor in the base model."""
        return self._place(name)[0]

    def tuned_name(self, name: str) -> str:
        """Name of a paired tensor in the tuned model."""
        return self._place(name)[1]

    def delta(
        self, name: str, index: tuple[slice | int, ...] = (), *, empty: Empty = np.empty
    ) -> np.ndarray:
        """Tuned minus base, subtracted after widening, tile by tile.

        Parameters
        ----------
        name
            One of `common`, or a head in `tied`.
        index
            The part to read.
        empty
            ``empty(shape, dtype)`` gives the memory to write into, such as pinned memory.

        Returns
        -------
        ndarray
            float32; float64 if either model stores float64.

        Raises
        ------
        DataError
            If a value is NaN or infinite; names the tensor and the file.
        """
        parts = self._parts(name, index)
        out = empty(parts[0].shape, _wider(parts))
        with _quiet():
            for difference, _ in _differences(parts, out):
                self._check(difference, name, index)
        return out

    def delta_and_rounding(
        self, name: str, index: tuple[slice | int, ...] = (), *, empty: Empty = np.empty
    ) -> tuple[np.ndarray, float]:
        """`delta` and `rounding` from one reading of both files; parameters as there."""
        parts = self._parts(name, index)
        out, code, total = empty(parts[0].shape, _wider(parts)), self._tuned_code(name), 0.0
        with _quiet():
            for difference, stored in _differences(parts, out):
                self._check(difference, name, index)
                total += _rounding(stored, difference, code)
        return out, total

    def energy(self, name: str, index: tuple[slice | int, ...] = ()) -> float:
        """Squared norm of `delta`, which is never in memory whole; parameters and errors as there.

        To about 1e-7 in float32.
        """
        total = 0.0
        with _quiet():
            for difference, _ in _differences(self._parts(name, index)):
                self._check(difference, name, index)
                total += quick_sum_of_squares(difference)
        return total

    def rounding(self, name: str, index: tuple[slice | int, ...] = ()) -> float:
        r"""Squared error that storing the tuned tensor in half precision is expected to add.

        :math:`\sum ulp(w)^2 / 12` over the entries that training changed: an entry rounded to
        the nearest number has an error spread evenly over one unit in the last place. 0 for
        float32 and float64. For fp8 the scales are unknown to this estimate: 0 too.

        Parameters
        ----------
        name
            One of `common`, or a head in `tied`.
        index
            The part to read.
        """
        code = self._tuned_code(name)
        if code not in _MANTISSA_BITS:
            return 0.0
        with _quiet():  # NaN and Inf are for `delta` to report
            parts = self._parts(name, index)
            return sum((_rounding(new, moved, code) for moved, new in _differences(parts)), 0.0)

    def _parts(self, name: str, index: tuple[slice | int, ...]) -> tuple[Part, Part]:
        base, tuned = self._place(name)
        return self.base.part(base, index), self.tuned.part(tuned, index)

    def _tuned_code(self, name: str) -> str:
        return self.tuned.dtype(self._place(name)[1])

    def _check(self, tile: np.ndarray, name: str, index: tuple[slice | int, ...]) -> None:
        if not np.isfinite(tile).all():
            self._blame(name, index)

    def _place(self, name: str) -> tuple[str, str]:
        if name not in self.places:
            raise SiteError(
                f"{name!r} is not paired between {self.base.path} and {self.tuned.path}"
            )
        return self.places[name]

    def _blame(self, name: str, index: tuple[slice | int, ...]) -> NoReturn:
        for checkpoint, own in zip((self.base, self.tuned), self._place(name), strict=True):
            values = checkpoint.read(own, index)
            bad = values.size - int(np.isfinite(values).sum())
            if bad:
                raise DataError(
                    f"tensor {own!r} in {checkpoint.entry(own).file} has {bad} NaN or infinite "
                    f"values of {values.size}: leave it out, or repair the file"
                )
        raise DataError(f"tensor {name!r}: tuned minus base is too large for its dtype")


def _quiet() -> np.errstate:
    return np.errstate(invalid="ignore", over="ignore")


def _wider(parts: tuple[Part, Part]) -> np.dtype:
    return np.result_type(*(part.dtype for part in parts))


def _differences(
    parts: tuple[Part, Part], out: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per tile: tuned minus base, and the tuned numbers as stored.

    The differences are written into ``out``; without it each is overwritten by the next.
    """
    base, tuned = parts
    old, new = base.scratch(), tuned.scratch()
    difference = np.empty(old.size if out is None else 0, _wider(parts))
    for tile in base.walk():
        before, after = base.widened(tile, old), tuned.widened(tile, new)
        target = difference[: after.size].reshape(after.shape) if out is None else out[tile]
        np.subtract(after, before, out=target)
        yield target, tuned.stored[tile]


def _rounding(stored: np.ndarray, moved: np.ndarray, code: str) -> float:
    """Sum of ulp²/12 over the stored half-precision numbers where ``moved`` is not 0."""
    if code not in _MANTISSA_BITS:
        return 0.0
    bits = _MANTISSA_BITS[code]
    smallest = 1 << bits  # the code of the smallest normal number, whose ulp subnormals share
    # The exponent bits alone are the power of two below each number.
    powers = np.bitwise_and(stored.view("<u2"), np.uint16(0x8000 - smallest))
    np.maximum(powers, np.full_like(powers, smallest), out=powers)  # 7 times a scalar's speed
    powers *= moved != 0
    wide = np.empty(powers.shape, np.float32)
    DTYPES[code].fill(powers.view(stored.dtype), wide)
    return quick_sum_of_squares(wide) * 4.0**-bits / 12


def pair(base: Checkpoint, tuned: Checkpoint) -> Pair:
    """Pair the tensors of two models by name.

    Names must be equal; when fewer than half are, a dotted prefix that one side writes before the
    names of the other is looked for (``bert.``).

    Parameters
    ----------
    base, tuned
        From `open_checkpoint`; sharding and dtypes may differ.

    Raises
    ------
    SiteError
        If nothing is in both with the same shape.
    """
    old, new = base.floats, tuned.floats
    prefix, prefixed = _find_prefix(old, new)
    match = _match(base.entries, tuned.entries, prefix, prefixed)
    both = {name: other for name, other in match.items() if name in old and other in new}
    common = {n: (n, other) for n, other in both.items() if old[n].shape == new[other].shape}
    if not common:
        raise SiteError(_nothing_common(base, tuned, both))
    only_base = {name: entry for name, entry in old.items() if name not in match}
    matched = set(match.values())
    only_tuned = {name: entry for name, entry in new.items() if name not in matched}
    tied = {head: (source, head) for head, source in _tied(only_tuned, old).items()}
    tied |= {head: (head, source) for head, source in _tied(only_base, new).items()}
    return Pair(
        base=base,
        tuned=tuned,
        prefix=prefix,
        prefixed=prefixed,
        common=tuple(common),
        only_base=tuple(name for name in only_base if name not in tied),
        only_tuned=tuple(name for name in only_tuned if name not in tied),
        reshaped=tuple(
            (n, old[n].shape, new[other].shape) for n, other in both.items() if n not in common
        ),
        tied=tuple((head, a if b == head else b) for head, (a, b) in tied.items()),
        ignored=_ignored(base, tuned, match, both),
        places=common | tied,
    )


def _find_prefix(old: Collection[str], new: Collection[str]) -> tuple[str, str]:
    """Return the prefix and the side that writes it, ``("", "")`` when equal names match better."""
    exact = len(set(old) & set(new))
    if 2 * exact >= min(len(old), len(new)):
        return "", ""
    counts = Counter[tuple[str, str]]()
    for side, longer, shorter in (("base", old, set(new)), ("tuned", new, set(old))):
        for name in longer:
            ends = accumulate(len(word) + 1 for word in name.split(".", _DEEPEST_PREFIX)[:-1])
            counts.update((name[:end], side) for end in ends if name[end:] in shorter)
    best = max(counts, key=lambda found: (counts[found], -len(found[0])), default=("", ""))
    return best if counts[best] > exact else ("", "")


def _match(
    base: Collection[str], tuned: Collection[str], prefix: str, prefixed: str
) -> dict[str, str]:
    """Map base names to tuned names; with the prefix first, then as they are."""
    match: dict[str, str] = {}
    for name in base:
        other = prefix + name if prefixed == "tuned" else name.removeprefix(prefix)
        if other in tuned and (prefixed != "base" or name.startswith(prefix)):
            match[name] = other
    taken = set(match.values())
    match |= {n: n for n in base if n not in match and n in tuned and n not in taken}
    return {name: match[name] for name in base if name in match}


def _tied(unpaired: Mapping[str, Entry], other: Mapping[str, Entry]) -> dict[str, str]:
    """Embedding of the other model that stands for each head that only this one stores."""
    heads = {theirs.shape for name, theirs in other.items() if _ends(name, _HEADS)}
    sources: dict[tuple[int, ...], str] = {}
    for name, theirs in other.items():
        if theirs.shape not in heads and _ends(name, _EMBEDDINGS):
            sources.setdefault(theirs.shape, name)
    return {
        head: sources[entry.shape]
        for head, entry in unpaired.items()
        if entry.shape in sources and _ends(head, _HEADS)
    }


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return f".{name}".endswith(tuple(f".{ending}" for ending in endings))


def _ignored(
    base: Checkpoint, tuned: Checkpoint, match: Mapping[str, str], both: Collection[str]
) -> tuple[str, ...]:
    """Names of tensors that are not floating point in one of the models."""
    matched = set(match.values())
    lone_base = [n for n in base.entries if n not in match and n not in base.floats]
    lone_tuned = [n for n in tuned.entries if n not in matched and n not in tuned.floats]
    return tuple([n for n in match if n not in both] + lone_base + lone_tuned)


def _nothing_common(base: Checkpoint, tuned: Checkpoint, same_names: Collection[str]) -> str:
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
