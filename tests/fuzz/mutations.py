"""Ways to damage a file: its bytes, the JSON in it, the tensors in its header, its place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Rng = np.random.Generator
Mutation = Callable[[Path, Rng], None]

ACTS = "\x1b]0;owned\x07\x1b[2J\r\u202e[red]\n\x9b\u2028"
_RAW = "@raw{}@"
_TEXTS = ("9" * 5000, "-0", "1e999", "[" * 50_000, "1" * 400 + ".5", '"' + "x" * 10**6 + '"', "{,}")
"""What no Python value is written as; put in place of a mark."""
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 1.5, -0.0, float("nan"), float("inf"), -float("inf")),
    *(2**31, 2**53, 2**63, 2**64, 10**12, 10**30, -(10**30), 10**400),
    *("", ".", "..", "/", "x", "../../x", "a\0b", "\ud800", ACTS, "0", "F64", "I8", "BF16"),
    *([], {}, [[]], [0] * 40, [1] * 10**4, {"a": {"b": []}}, ["x"], [10**9, 10**9], {"": ""}),
    *(_RAW.format(i) for i in range(len(_TEXTS))),
)
_NAMES = (
    *("", ".", "..", "weight", ".weight", "lm_head.weight", "__metadata__", "a/b\\c", "\0", ACTS),
    *("\ud800", "x" * 10**5, "a" + ".b" * 10**5, "model.layers.0.self_attn.q_proj.weight"),
    *(f"model.layers.{n}.self_attn.q_proj.weight" for n in (10**9, 10**30, "9" * 5000, -1, "٣")),
    *("model.layers.007.self_attn.k_proj.weight", "model.layers..self_attn.q_proj.weight"),
    *("model.layers.0.mlp.experts.gate_up_proj", "model.embed_tokens.weight"),
    *("model.layers.0.self_attn.q_proj.weight_scale_inv", "model.layers.0.mlp.experts.9.w1.weight"),
    *("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",),
)
_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F4", "C64")
_DTYPES += ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "Q3", "")


def choose(rng: Rng, items: Any) -> Any:
    """One of some items, as it is."""
    return items[int(rng.integers(len(items)))]


# ------------------------------------------------------------------------------------------ bytes


def _bytes(change: Callable[[bytearray, Rng], bytes | bytearray]) -> Mutation:
    def mutate(file: Path, rng: Rng) -> None:
        data = bytearray(file.read_bytes())
        if data:
            file.write_bytes(change(data, rng))

    return mutate


def _span(data: bytearray, rng: Rng, longest: int = 64) -> slice:
    """A piece, half of them in the first two kilobytes, where headers are."""
    end = min(len(data), 2048) if rng.random() < 0.5 else len(data)
    start = int(rng.integers(end))
    return slice(start, start + int(rng.integers(1, longest)))


def _flip(data: bytearray, rng: Rng) -> bytearray:
    for _ in range(int(rng.integers(1, 4))):
        data[_span(data, rng).start] ^= 1 << int(rng.integers(8))
    return data


def _overwrite(data: bytearray, rng: Rng) -> bytearray:
    piece = _span(data, rng, 9)
    data[piece] = choose(rng, (bytes(8), b"\xff" * 8, rng.bytes(8), b'"}],{[:', b"0"))
    return data


def _truncate(data: bytearray, rng: Rng) -> bytearray:
    return data[: _span(data, rng).start]


def _insert(data: bytearray, rng: Rng) -> bytearray:
    at = _span(data, rng).start
    return data[:at] + rng.bytes(int(rng.integers(1, 40))) + data[at:]


def _delete(data: bytearray, rng: Rng) -> bytearray:
    del data[_span(data, rng)]
    return data


def _repeat(data: bytearray, rng: Rng) -> bytearray:
    piece = _span(data, rng)
    data[piece] = data[piece] * int(rng.integers(2, 9))
    return data


def _lie_about_the_length(data: bytearray, rng: Rng) -> bytearray:
    length = int.from_bytes(data[:8], "little")
    lies = (0, 1, 2, length - 1, length + 1, length * 2, 10**8, 10**8 + 1, 2**63, 2**64 - 1)
    data[:8] = (choose(rng, lies) % 2**64).to_bytes(8, "little")
    return data


# ------------------------------------------------------------------------------------------- JSON


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place below the root of a JSON value."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def _parent(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        tree = tree[key]
    return tree


def _dumps(tree: Any) -> bytes:
    text = json.dumps(tree)
    for i, raw in enumerate(_TEXTS):
        text = text.replace(f'"{_RAW.format(i)}"', raw)
    return text.encode()


class _Document:
    """The JSON of a file, by itself or as a header with, maybe, one more in its metadata."""

    def __init__(self, file: Path):
        self.file, self.data = file, b""
        text = file.read_bytes()
        if file.suffix == ".safetensors":
            length = int.from_bytes(text[:8], "little")
            text, self.data = text[8 : 8 + length], text[8 + length :]
        self.tree = json.loads(text)
        if not isinstance(self.tree, dict):
            raise ValueError("no object")
        metadata = self.tree.get("__metadata__")
        pairs = metadata.items() if isinstance(metadata, dict) else ()
        keys = [k for k, v in pairs if isinstance(v, str) and v.startswith("{")]
        self.inner = keys[0] if keys else None
        self.document = json.loads(metadata[keys[0]]) if keys else None

    def trees(self) -> list[Any]:
        return [self.tree] if self.inner is None else [self.tree, self.document, self.document]

    def write(self, change: Callable[[bytes], bytes] = bytes) -> None:
        """Write it back, the tensors behind it as they were."""
        metadata = self.tree.get("__metadata__")
        if isinstance(metadata, dict) and self.inner in metadata:
            metadata[self.inner] = change(_dumps(self.document)).decode("utf-8", "replace")
        text = _dumps(self.tree) if self.inner is not None else change(_dumps(self.tree))
        head = len(text).to_bytes(8, "little") if self.file.suffix == ".safetensors" else b""
        self.file.write_bytes(head + text + self.data)


def _json(change: Callable[[Any, tuple[Any, ...], Rng], None]) -> Mutation:
    def mutate(file: Path, rng: Rng) -> None:
        try:
            document = _Document(file)
        except (ValueError, RecursionError):  # an earlier mutation was here
            return
        tree = choose(rng, document.trees())
        found = list(places(tree))
        if found:
            change(tree, choose(rng, found), rng)
            document.write()

    return mutate


def _replace(tree: Any, path: tuple[Any, ...], rng: Rng) -> None:
    _parent(tree, path)[path[-1]] = choose(rng, _VALUES)


def _remove(tree: Any, path: tuple[Any, ...], rng: Rng) -> None:
    del rng, _parent(tree, path)[path[-1]]


def _nudge(tree: Any, path: tuple[Any, ...], rng: Rng) -> None:
    """A number that is a little off, a word with one letter more, a list in another order."""
    parent, key = _parent(tree, path), path[-1]
    value = parent[key]
    if isinstance(value, int | float) and not isinstance(value, bool):
        parent[key] = choose(
            rng, (value + 1, value - 1, -value, value * 2, value / 2, value * 10**6)
        )
    elif isinstance(value, str):
        parent[key] = value + choose(rng, ("x", " ", ".", "\ud800", ACTS, "0"))
    elif isinstance(value, list):
        parent[key] = choose(rng, (value[::-1], value * 2, value[:-1], [*value, None], [value]))
    elif isinstance(value, dict):
        parent[key] = dict(reversed(value.items()))


def _rename(tree: Any, path: tuple[Any, ...], rng: Rng) -> None:
    parent = _parent(tree, path)
    if isinstance(parent, dict):
        parent[choose(rng, _NAMES)] = parent.pop(path[-1])


def _swap(tree: Any, path: tuple[Any, ...], rng: Rng) -> None:
    other = choose(rng, list(places(tree)))
    shorter = min(len(path), len(other))
    if path[:shorter] != other[:shorter]:  # neither holds the other
        a, b = _parent(tree, path), _parent(tree, other)
        a[path[-1]], b[other[-1]] = b[other[-1]], a[path[-1]]


def _twice(file: Path, rng: Rng) -> None:
    """An object with one key given twice."""
    try:
        document = _Document(file)
    except (ValueError, RecursionError):
        return
    tree = choose(rng, document.trees())
    found = [p for p in places(tree) if isinstance(_parent(tree, p), dict)]
    if found:
        path = choose(rng, found)
        _parent(tree, path)["@twice@"] = choose(rng, _VALUES[:20])
        key = json.dumps(path[-1]).encode()
        document.write(lambda text: text.replace(b'"@twice@"', key))


def _is_row(row: Any) -> bool:
    """Whether a row of a header is as it should be: earlier mutations may have been here."""
    if not isinstance(row, dict) or not isinstance(row.get("data_offsets"), list):
        return False
    numbers = [*row["data_offsets"], *row["shape"]] if isinstance(row.get("shape"), list) else [""]
    return len(row["data_offsets"]) == 2 and all(type(n) is int and n < 2**40 for n in numbers)


def _tensors(change: Callable[[dict[str, Any], str, Rng], None]) -> Mutation:
    """A change of the rows of a header, with all else as it should be."""

    def mutate(file: Path, rng: Rng) -> None:
        if file.suffix == ".safetensors":
            try:
                document = _Document(file)
            except (ValueError, RecursionError):
                return
            rows = {name: row for name, row in document.tree.items() if _is_row(row)}
            if rows:
                change(rows, choose(rng, list(rows)), rng)
                others = {name: row for name, row in document.tree.items() if not _is_row(row)}
                document.tree = others | rows
                document.write()

    return mutate


def _dtype(header: dict[str, Any], name: str, rng: Rng) -> None:
    header[name]["dtype"] = choose(rng, _DTYPES)


def _dtype_that_fits(header: dict[str, Any], name: str, rng: Rng) -> None:
    """Another dtype for the same bytes, the last size as it then must be."""
    row = header[name]
    code, bits = choose(rng, (("F64", 64), ("BF16", 16), ("F8_E4M3", 8), ("U8", 8), ("I32", 32)))
    start, stop = row["data_offsets"]
    others = int(np.prod(row["shape"][:-1])) or 1
    row |= {"dtype": code, "shape": [*row["shape"][:-1], (stop - start) * 8 // bits // others]}


def _shape_that_fits(header: dict[str, Any], name: str, rng: Rng) -> None:
    """Other sizes with the same product."""
    shape = header[name]["shape"]
    flat = int(np.prod(shape))
    some = (shape[::-1], [flat], [1, *shape], [*shape, 1], [flat, 1], [1] * 31 + [flat], [1, flat])
    header[name]["shape"] = choose(rng, some)


def _empty_tensor(header: dict[str, Any], name: str, rng: Rng) -> None:
    """One more tensor of no bytes, which may claim any size beside a 0."""
    end = max(row["data_offsets"][1] for row in header.values())
    shape = choose(rng, ([0], [2**40, 0], [0, 2**55], [0, 0], [2**20, 2**20, 0], [4, 0, 2**30]))
    new = choose(rng, (*_NAMES, f"{name}x", name.replace("0", "1")))
    header.setdefault(new, {"dtype": "F32", "shape": shape, "data_offsets": [end, end]})


def _rename_tensor(header: dict[str, Any], name: str, rng: Rng) -> None:
    header.setdefault(choose(rng, _NAMES), header.pop(name))


def _swap_tensors(header: dict[str, Any], name: str, rng: Rng) -> None:
    other = choose(rng, list(header))
    header[name], header[other] = header[other], header[name]


def _nonfinite(file: Path, rng: Rng) -> None:
    """Numbers that are not numbers, or very large ones, among the tensors."""
    if file.suffix == ".safetensors":
        data = bytearray(file.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        if start + 8 < len(data):
            at = int(rng.integers(start, len(data) - 4))
            data[at : at + 4] = choose(rng, (b"\xff" * 4, b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f"))
            file.write_bytes(data)


# ------------------------------------------------------------------------------------------ place


def _link(target: str) -> Mutation:
    def mutate(file: Path, rng: Rng) -> None:
        del rng
        file.unlink()
        file.symlink_to(target.format(name=file.name, folder=file.parent.name))

    return mutate


def _gone(file: Path, rng: Rng) -> None:
    del rng
    file.unlink()


def _folder(file: Path, rng: Rng) -> None:
    del rng
    file.unlink()
    file.mkdir()


def _pipe(file: Path, rng: Rng) -> None:
    del rng
    file.unlink()
    os.mkfifo(file)


def _second_copy(file: Path, rng: Rng) -> None:
    name = choose(rng, ("other.safetensors", f"{ACTS}.safetensors", "x.safetensors.index.json"))
    file.with_name(name).write_bytes(file.read_bytes())


MUTATIONS: Mapping[str, Mutation] = {
    "flip bits": _bytes(_flip),
    "overwrite bytes": _bytes(_overwrite),
    "truncate": _bytes(_truncate),
    "insert bytes": _bytes(_insert),
    "delete bytes": _bytes(_delete),
    "repeat bytes": _bytes(_repeat),
    "header length": _bytes(_lie_about_the_length),
    "JSON value": _json(_replace),
    "JSON value again": _json(_replace),
    "JSON nudged": _json(_nudge),
    "JSON removed": _json(_remove),
    "JSON key": _json(_rename),
    "JSON swapped": _json(_swap),
    "JSON key twice": _twice,
    "dtype": _tensors(_dtype),
    "dtype that fits": _tensors(_dtype_that_fits),
    "shape that fits": _tensors(_shape_that_fits),
    "empty tensor": _tensors(_empty_tensor),
    "tensor renamed": _tensors(_rename_tensor),
    "tensors swapped": _tensors(_swap_tensors),
    "not finite": _nonfinite,
    "link out": _link("/etc/hostname"),
    "link to a device": _link("/dev/zero"),
    "link to nothing": _link("nothing"),
    "link in a circle": _link("{name}"),
    "link to the folder": _link("../{folder}"),
    "gone": _gone,
    "folder": _folder,
    "pipe": _pipe,
    "second copy": _second_copy,
}
