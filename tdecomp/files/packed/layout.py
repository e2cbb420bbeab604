"""What a layout is: one row of the table that says how weights are stored in other dtypes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..plain import is_object
from ..safetensors import Entry, load

__all__ = ["Context", "Layout", "Opened", "Packed", "Refused", "StoredWeight", "settings_of"]

_BLOCK = 1 << 18  # numbers decoded at a time, with some ten times the bytes beside them
_SMALL = 1 << 16  # bytes of a description that is read while a file is opened
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_CONV1D_MODULES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_SETTINGS = ("quantization_config", "compression_config", "quantization")


class Refused(Exception):  # noqa: N818 - a reason, turned into an error where the weight is asked for
    """Why a packed weight is not read: a clause that follows "is stored as LAYOUT, "."""


Rows = Callable[[int, int], np.ndarray]
"""``rows(start, stop)`` decodes these entries of the first mode; float32, the rest of the shape."""


@dataclass(frozen=True)
class Opened:
    """What a layout makes of one weight: its shape, and how rows of it are decoded.

    Parameters
    ----------
    shape
        Of the decoded weight, as a linear layer has it.
    rows
        Decodes a range of the first mode.
    code
        What tables show in the place of a dtype.
    """

    shape: tuple[int, ...]
    rows: Rows
    code: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Packed:
    """One logical weight that several stored tensors make up.

    Parameters
    ----------
    name, shape, code
        Of the decoded weight; ``code`` stands in the place of a dtype.
    layout
        Name of the row.
    stored
        The tensor that holds the codes.
    companions
        Names of the other stored tensors that belong to it.
    rows
        Decodes a range of the first mode; of the last mode if ``transposed``.
    transposed
        The model keeps the weight (in, out), the layout (out, in).
    """

    name: str
    shape: tuple[int, ...]
    code: str
    layout: str
    stored: Entry
    companions: frozenset[str]
    rows: Rows
    transposed: bool = False

    def read(self, index: tuple[slice | int, ...] = ()) -> np.ndarray:
        """Decode the weight or a part of it, in blocks of rows.

        Parameters
        ----------
        index
            Only the rows that its first item selects are decoded.

        Returns
        -------
        ndarray
            A new float32 array.
        """
        with np.errstate(all="ignore"):  # what is not finite is told by whoever uses it
            return self._read(index)

    def _read(self, index: tuple[slice | int, ...]) -> np.ndarray:
        if self.transposed:
            inner = (*self.shape[1:], self.shape[0])
            return np.ascontiguousarray(self._whole(inner).T[(*index, ...)])
        if not self.shape:
            return self.rows(0, 1).reshape(())
        first, rest = (index or (slice(None),))[0], index[1:]
        if not isinstance(first, slice):
            row = range(self.shape[0])[first]
            return np.ascontiguousarray(self.rows(row, row + 1)[(0, *rest, ...)])
        wanted = range(self.shape[0])[first]
        low, high = (min(wanted), max(wanted) + 1) if wanted else (0, 0)
        found = self._blocks(low, high, (slice(None), *rest, ...))
        return np.ascontiguousarray(found[:: wanted.step] if wanted.step != 1 else found)

    def _whole(self, shape: tuple[int, ...]) -> np.ndarray:
        out = np.empty(shape, np.float32)
        for start, stop in _ranges(0, shape[0], math.prod(shape[1:])):
            out[start:stop] = self.rows(start, stop)
        return out

    def _blocks(self, low: int, high: int, index: tuple[Any, ...]) -> np.ndarray:
        out = None
        for start, stop in _ranges(low, high, math.prod(self.shape[1:])):
            block = self.rows(start, stop)[index]
            if out is None:
                out = np.empty((high - low, *block.shape[1:]), np.float32)
            out[start - low : stop - low] = block
        return np.empty((0, *self.shape[1:]), np.float32)[index] if out is None else out


def _ranges(low: int, high: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, _BLOCK // max(1, width))
    for start in range(low, high, step):
        yield start, min(start + step, high)


@dataclass(frozen=True)
class Layout:
    """One row: how a layout is recognised, and how it is read or why it is not.

    Parameters
    ----------
    name
        As people call it.
    stored
        How it lies in a file, for the table in the guide.
    dtypes
        Codes of the tensor that holds the codes.
    ending, becomes
        That tensor's last name ends in ``ending``; with ``becomes`` in its place it is the
        weight's name.
    marks
        Companions of which one at least must be there. ``{}`` is the weight's last name;
        companions without it are taken only of weights called ``weight``.
    open
        Reads the layout; raises `Refused`. ``None``: the whole layout is refused.
    mark_dtypes
        What the mark is stored as; ``None``: anything.
    parts
        Other companions, by their role; the ones in ``marks`` have the role ``mark``.
    advice
        What to do where it is refused.
    conv1d
        Whether models that keep weights (in, out) are stored (out, in) in this layout.
    only
        What else the tensor with the codes has to be.
    """

    name: str
    stored: str
    dtypes: frozenset[str]
    ending: str
    becomes: str
    marks: tuple[str, ...]
    open: Callable[[StoredWeight], Opened] | None
    mark_dtypes: frozenset[str] | None = None
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    advice: str = "dequantise it first, and save it as safetensors in bfloat16"
    conv1d: bool = False
    only: Callable[[Entry], bool] = lambda entry: True

    def core(self, tail: str) -> str | None:
        """Last name of the weight whose codes have the last name ``tail``; None: not this row."""
        if not tail.endswith(self.ending):
            return None
        return tail[: len(tail) - len(self.ending)] + self.becomes


@dataclass(frozen=True, eq=False)
class Context:
    """What is said of the model as a whole.

    Parameters
    ----------
    settings
        Quantisation settings, ``{}`` where there are none.
    model_type
        Of the config.
    fp8_scale
        Name of a scale of any fp8 weight; ``""`` where no fp8 weight has one.
    """

    settings: Mapping[str, Any]
    model_type: str
    fp8_scale: str

    @property
    def method(self) -> str:
        """``quant_method`` of the settings, in lower case."""
        return str(self.settings.get("quant_method", "")).lower()


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """The stored tensors of one weight, and what its layout may look at.

    Parameters
    ----------
    codes
        The tensor that holds the codes.
    name
        The weight's name.
    parts
        Companions by role.
    context
        The model it belongs to.
    """

    codes: Entry
    name: str
    parts: Mapping[str, Entry]
    context: Context

    def description(self, role: str) -> Mapping[str, Any]:
        """The JSON object that a small companion holds as bytes."""
        try:
            found = json.loads(self.small(role).astype(np.uint8).tobytes().decode("utf-8"))
        except (ValueError, RecursionError):
            found = None
        if not is_object(found):
            raise Refused(f"but {self.parts[role].name!r} is not a JSON object")
        return found

    @property
    def is_conv1d(self) -> bool:
        """Whether the model keeps this weight as (in, out)."""
        module = self.name.rpartition(".")[0]
        known = self.context.model_type in _CONV1D_MODELS
        return known and module.rpartition(".")[2] in _CONV1D_MODULES

    def part(self, role: str, called: str) -> Entry:
        """A companion that must be there."""
        if role not in self.parts:
            raise Refused(f"but its {called} is not in the file: download it again")
        return self.parts[role]

    def small(self, role: str) -> np.ndarray:
        """The numbers of a small companion, read while the file is opened."""
        entry = self.parts[role]
        if entry.nbytes > _SMALL:
            raise Refused(f"but its {entry.name!r} has {entry.nbytes} bytes, which is too long")
        return load(entry)


def settings_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Quantisation settings of a config.json, of one of its sections if it has none itself."""
    sections: Sequence[Any] = [config, *config.values()]
    for section in sections:
        for key in _SETTINGS if is_object(section) else ():
            found = section.get(key)
            if is_object(found) and found:
                return found
    return {}
