"""A format comes back from its file as it was, and nothing else is taken for one."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import to_numpy
from tdecomp.files import safetensors
from tdecomp.files.format_file import load, load_metadata, save
from tdecomp.formats import to_lowrank, to_tt, to_tucker
from tests.formats.cases import CASES, dense, ids

EACH = pytest.mark.parametrize("fmt", CASES, ids=ids)
CP = td.CP(("out", "in"), np.ones(2), (np.eye(3, 2), np.eye(4, 2)))


@EACH
def test_every_format_comes_back(fmt, tmp_path):
    save(fmt, tmp_path / "x.safetensors")
    again = load(tmp_path / "x.safetensors")
    assert type(again) is type(fmt)
    assert (again.modes, again.shape, again.rank) == (fmt.modes, fmt.shape, fmt.rank)
    assert again.layout == fmt.layout
    for name, array in fmt.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
        assert again.arrays[name].dtype == array.dtype
    np.testing.assert_array_equal(dense(again), dense(fmt))


@EACH
def test_networks_of_conversions_come_back(fmt, tmp_path):
    for k, one in enumerate((to_tucker(fmt), to_tt(fmt), to_lowrank(fmt), fmt[..., 1:])):
        for kind in (one, one.to_network()):
            save(kind, tmp_path / "x.safetensors", overwrite=k > 0 or kind is not one)
            again = load(tmp_path / "x.safetensors")
            assert again.modes == one.modes
            np.testing.assert_allclose(dense(again), dense(one), atol=1e-10)


def test_arrays_of_every_library(xp, tmp_path):
    fmt = CP.with_arrays({k: xp.asarray(a.tolist()) for k, a in CP.arrays.items()})
    save(fmt, tmp_path / "x.safetensors")
    again = load(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(again.to_dense(), to_numpy(fmt.to_dense()))


@pytest.mark.parametrize(
    ("dtype", "back"),
    [
        *[(dtype, dtype) for dtype in ("float64", "float32", "complex64", "complex128")],
        ("float16", "float32"),
    ],
)
def test_dtypes(dtype, back, tmp_path):
    turn = 1 + 2j if dtype.startswith("complex") else 1
    fmt = CP.with_arrays({k: (a / 3 * turn).astype(dtype) for k, a in CP.arrays.items()})
    save(fmt, tmp_path / "x.safetensors")
    again = load(tmp_path / "x.safetensors")
    for name, array in fmt.arrays.items():
        assert again.arrays[name].dtype == back
        np.testing.assert_array_equal(again.arrays[name], array.astype(back))


def test_bfloat16_of_torch(tmp_path):
    torch = pytest.importorskip("torch")
    fmt = CP.with_arrays({k: torch.tensor(a / 3).bfloat16() for k, a in CP.arrays.items()})
    save(fmt, tmp_path / "x.safetensors")
    entries, _ = safetensors.read_header(tmp_path / "x.safetensors")
    assert {e.dtype for e in entries.values()} == {"BF16"}
    again = load(tmp_path / "x.safetensors")
    for name, array in fmt.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array.float().numpy())


@EACH
def test_complex128_of_every_format(fmt, tmp_path):
    fmt = fmt.with_arrays({k: a * (0.6 + 0.8j) for k, a in fmt.arrays.items()})
    save(fmt, tmp_path / "x.safetensors")
    again = load(tmp_path / "x.safetensors")
    assert {a.dtype.name for a in again.arrays.values()} == {"complex128"}
    np.testing.assert_array_equal(dense(again), dense(fmt))


def test_complex128_beside_other_numbers_and_of_every_library(xp, tmp_path):
    arrays = CP.arrays | {"weights": np.asarray([1e300 + 1e-300j, np.nan - 1j])}
    own = {k: xp.asarray(a.tolist(), dtype=getattr(xp, a.dtype.name)) for k, a in arrays.items()}
    save(CP.with_arrays(own), tmp_path / "x.safetensors")
    again = load(tmp_path / "x.safetensors").arrays
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize("names", ["weights", ["weights"], ["factor.out"], ["no"], [1], [[]], 3])
def test_pairs_that_are_none_are_damage(names, tmp_path):
    file = tmp_path / "x.safetensors"
    write(file, CP.arrays, described(version=2, complex128=names))
    with pytest.raises(td.FileError, match="is damaged"):
        load(file)


@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_numbers_without_a_place_are_refused(dtype, tmp_path):
    fmt = CP.with_arrays({k: a.astype(dtype) for k, a in CP.arrays.items()})
    with pytest.raises(td.FileError, match=f"is {dtype}.*cast it"):
        save(fmt, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_existing_file_stays_unless_asked(tmp_path):
    file = tmp_path / "x.safetensors"
    save(CP, file)
    with pytest.raises(td.FileError, match="already exists"):
        save(2.0 * CP, file)
    np.testing.assert_array_equal(load(file).to_dense(), CP.to_dense())
    save(2.0 * CP, file, overwrite=True)
    np.testing.assert_array_equal(load(file).to_dense(), 2 * CP.to_dense())
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_metadata_is_kept(tmp_path):
    file = tmp_path / "x.safetensors"
    save(CP, file, metadata={"error": 0.25, "from": ["a", "b"]})
    assert load_metadata(file) == {"error": 0.25, "from": ["a", "b"]}
    with pytest.raises(td.FileError, match="plain JSON"):
        save(CP, tmp_path / "y.safetensors", metadata={"array": np.ones(2)})


def write(file, arrays, strings):
    arrays = {k: np.asarray(a, dtype="float32") for k, a in arrays.items()}
    safetensors.write(
        file,
        [(k, "F32", a.shape) for k, a in arrays.items()],
        lambda name: safetensors.encode(arrays[name], "F32"),
        strings,
    )


def described(**changes):
    document = {"version": 1, "format": "CP", "modes": ["out", "in"], "shape": [3, 4], "layout": {}}
    return {"tdecomp.format": json.dumps(document | changes)}


BROKEN = [
    (CP.arrays, None, "holds no single tdecomp format"),
    (CP.arrays, {"tdecomp.format": "{"}, "description is not readable"),
    (CP.arrays, {"tdecomp.format": "[]"}, "description is not readable"),
    (CP.arrays, described(version=3), "has format version 3"),
    (CP.arrays, described(format="Pickle"), "is damaged"),
    (CP.arrays, described(modes=["out", "layer"]), "is damaged"),
    (CP.arrays, described(modes=["out", "in", "layer"]), "is damaged"),
    (CP.arrays, described(shape=[3, 5]), "is damaged"),
    (CP.arrays | {"other": np.ones(2)}, described(), "is damaged"),
    (CP.arrays | {"weights": np.ones(3)}, described(), "is damaged"),
    (CP.arrays, described(format="Sum", layout={"parts": [{"format": "CP"}]}), "is damaged"),
    (CP.arrays, described(format="TT"), "is damaged"),
]


@pytest.mark.parametrize(("arrays", "strings", "message"), BROKEN)
def test_foreign_and_damaged_files_are_refused(arrays, strings, message, tmp_path):
    write(tmp_path / "x.safetensors", arrays, strings)
    with pytest.raises(td.FileError, match=message):
        load(tmp_path / "x.safetensors")


def test_a_file_that_is_cut_short_or_missing(tmp_path):
    file = tmp_path / "x.safetensors"
    save(CP, file)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(td.FileError, match="cut short"):
        load(file)
    with pytest.raises(td.FileError, match="does not exist"):
        load(tmp_path / "none.safetensors")


def test_the_wrong_order_of_arguments_is_said(tmp_path):
    with pytest.raises(td.ArgumentError, match="a format and then a path, got a .*Path"):
        save(tmp_path / "x.safetensors", CP)  # type: ignore[arg-type]
    for call in (lambda: load(3), lambda: save(CP, 3)):  # type: ignore[arg-type]
        with pytest.raises(td.ArgumentError, match="a path is needed, got a int"):
            call()
    with pytest.raises(td.ArgumentError, match="an equation and then sizes"):
        td.plan({"a": 2}, "a b, b c -> a c")  # type: ignore[arg-type]
