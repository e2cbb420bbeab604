"""Statistics in a file: as they were, whole or not at all, and nothing that is not so."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass

import numpy as np
import pytest

from tdecomp import ArgumentError, FileError
from tdecomp.files import load_statistics, safetensors, save_statistics
from tdecomp.statistics import Gradient, InputStatistics, SiteStatistics, Statistics


def example(seed: int = 0) -> Statistics:
    """Everything there can be, gradients whole and sketched, inputs whole and in directions."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal
    inputs = {
        "a": InputStatistics(
            tokens=9, total=normal(4), squares=normal(4) ** 2, whole=normal((4, 4))
        ),
        "b": InputStatistics(
            tokens=9, total=normal(5), squares=normal(5) ** 2, directions=normal((2, 5)), lost=0.5
        ),
        "c": InputStatistics(tokens=9, total=normal(6), squares=normal(6) ** 2),
    }
    whole = Gradient(batches=3, left=None, right=normal((3, 4)))
    few = Gradient(
        batches=3,
        left=normal((2, 2)).astype(np.float32),
        right=normal((2, 5)).astype(np.float32),
    )
    sites = {
        "x.weight": SiteStatistics(
            shape=(3, 4), input="a", weight="f00", gradient=whole, outputs=normal((3, 3)), tokens=9,
            fisher=(3, normal((3, 4)) ** 2),
        ),
        "y": SiteStatistics(shape=(2, 5), input="b", gradient=few),
        "z": SiteStatistics(shape=(2, 6)),
    }  # fmt: skip
    return Statistics(sites=sites, inputs=inputs, losses=(0.5, 0.25, 1e-17), model="Tiny")


def plain(value):
    """The value with arrays as dtype, shape and bytes."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return [(key, plain(item)) for key, item in value.items()]
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def test_what_was_saved_is_loaded_to_the_bit(tmp_path):
    save_statistics(example(), tmp_path / "stats.safetensors")
    assert plain(load_statistics(tmp_path / "stats.safetensors")) == plain(example())


def test_files_add_as_statistics_do(tmp_path):
    for seed in (0, 1):
        save_statistics(example(seed), tmp_path / f"{seed}.safetensors")
    total = load_statistics(tmp_path / "0.safetensors") + load_statistics(
        tmp_path / "1.safetensors"
    )
    assert plain(total) == plain(example(0) + example(1))


def test_only_what_it_wrote_is_replaced(tmp_path):
    path = tmp_path / "stats.safetensors"
    save_statistics(example(0), path)
    with pytest.raises(FileError, match="already exists"):
        save_statistics(example(1), path)
    save_statistics(example(1), path, overwrite=True)
    assert plain(load_statistics(path)) == plain(example(1))
    path.write_bytes(b"mine")
    with pytest.raises(FileError):
        save_statistics(example(1), path, overwrite=True)
    assert path.read_bytes() == b"mine"


def rewritten(path, change):
    """The file with another description or other arrays."""
    entries, strings = safetensors.read_header(path)
    arrays = {name: safetensors.load(entry) for name, entry in entries.items()}
    document = json.loads(strings["tdecomp.statistics"])
    document = change(document, arrays) or document
    metadata = {"tdecomp.statistics": json.dumps(document)}
    rows = [(n, "F64" if a.dtype == np.float64 else "F32", a.shape) for n, a in arrays.items()]
    codes = {name: code for name, code, _ in rows}
    safetensors.write(
        path, rows, lambda name: safetensors.encode(arrays[name], codes[name]), metadata
    )


def setting(*keys, value):
    """A change of one place of the document."""

    def change(document, arrays):
        at = document
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    return change


DAMAGE = {
    "shape": setting("sites", 0, "shape", value=[4, 3]),
    "wide": setting("sites", 1, "shape", value=[2, 6]),
    "text": setting("sites", 0, "name", value=3),
    "twice": setting("sites", 0, "name", value="y"),
    "batches": setting("sites", 0, "gradient", value=0),
    "no batches": setting("sites", 0, "gradient", value=None),
    "fisher": setting("sites", 0, "fisher", value=None),
    "more": setting("sites", 2, "gradient", value=1),
    "tokens": setting("inputs", 0, "tokens", value="9"),
    "truth": setting("losses", value=[True]),
    "rows": setting("sites", value={}),
    "input": setting("sites", 0, "input", value="b"),
    "gone": lambda document, arrays: None if arrays.pop("input.0.total").any() else 0,
    "columns": lambda document, arrays: arrays.update({"site.1.left": np.ones((2, 3))}),
    "stranger": lambda document, arrays: arrays.update({"other": np.ones(2)}),
    "nan": lambda document, arrays: arrays.update({"site.0.right": np.full((3, 4), np.nan)}),
    "list": lambda document, arrays: [1],
    "deep": lambda document, arrays: {"version": 1, "sites": [[]], "inputs": [], "losses": []},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused_in_a_sentence(tmp_path, name):
    path = tmp_path / "stats.safetensors"
    save_statistics(example(), path)
    rewritten(path, DAMAGE[name])
    with pytest.raises(FileError, match="is damaged: its description does not fit its arrays"):
        load_statistics(path)


def test_other_files_and_other_things(tmp_path):
    with pytest.raises(FileError):
        load_statistics(tmp_path / "none.safetensors")
    safetensors.write(
        tmp_path / "x.safetensors", [], lambda name: np.zeros(0, np.uint8), {"a": "b"}
    )
    with pytest.raises(FileError, match="holds no statistics: give a file that tdecomp capture"):
        load_statistics(tmp_path / "x.safetensors")
    with pytest.raises(ArgumentError, match="takes Statistics and then a path"):
        save_statistics({}, tmp_path / "y")
    path = tmp_path / "stats.safetensors"
    save_statistics(example(), path)
    rewritten(path, setting("version", value=2))
    with pytest.raises(FileError, match="has version 2, this tdecomp reads 1"):
        load_statistics(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileError):
        load_statistics(path)
