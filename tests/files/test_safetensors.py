import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file

from tdecomp.errors import FileError
from tdecomp.files import safetensors as sf

SHAPES = [(), (1,), (5,), (3, 4), (1, 7), (2, 1, 3), (0,), (3, 0, 2)]
FLOAT_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
FP8_TYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
OTHER_TYPES = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
TYPES = FLOAT_TYPES | FP8_TYPES | OTHER_TYPES


def widened(tensor):
    half = tensor.dtype in (torch.float16, torch.bfloat16, *FP8_TYPES.values())
    return (tensor.float() if half else tensor).numpy()


def random(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(shape, generator=generator)).to(dtype)


def craft(path, header, data=b"", *, length=None):
    """Write a file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def row(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# ------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("code", TYPES)
def test_reads_what_the_package_wrote(tmp_path, code):
    tensors = {f"t{i}": random(shape, TYPES[code], i) for i, shape in enumerate(SHAPES)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    entries, metadata = sf.read_header(tmp_path / "a.safetensors")
    assert metadata == {"format": "pt"}
    assert entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        ours, expected = sf.load(entries[name]), widened(tensor)
        assert entries[name].dtype == code
        assert entries[name].nbytes == tensor.nbytes
        assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("code", "storage"),
    [("F16", np.uint16), ("BF16", np.uint16), *[(c, np.uint8) for c in FP8_TYPES]],
)
def test_every_code_widens_as_in_torch(tmp_path, code, storage):
    bits = np.arange(np.iinfo(storage).max + 1).astype(storage)
    tensor = torch.from_numpy(bits.copy()).view(TYPES[code])
    save_file({"x": tensor}, tmp_path / "a.safetensors")
    ours = sf.load(sf.read_header(tmp_path / "a.safetensors")[0]["x"])
    expected = tensor.float().numpy()
    np.testing.assert_array_equal(ours, expected)  # NaN equal to NaN
    np.testing.assert_array_equal(np.signbit(ours), np.signbit(expected))


INDICES = [
    (),
    (slice(1, 3),),
    (2,),
    (slice(None), 1),
    (slice(0, 4, 2), slice(2, None)),
    (slice(None, None, -1),),
    (slice(2, 2),),
    (-1, slice(None), 2),
]


@pytest.mark.parametrize("code", ["F32", "BF16", "F16", "F8_E4M3", "I32"])
@pytest.mark.parametrize("index", INDICES)
def test_index_equals_whole_then_index(tmp_path, code, index):
    save_file({"x": random((4, 5, 3), TYPES[code])}, tmp_path / "a.safetensors")
    entry = sf.read_header(tmp_path / "a.safetensors")[0]["x"]
    part = sf.load(entry, index)
    np.testing.assert_array_equal(part, sf.load(entry)[index])
    assert part.flags.writeable
    assert part.flags.c_contiguous


@pytest.mark.parametrize("code", ["F32", "BF16", "F16"])
def test_a_part_takes_the_memory_of_a_part(tmp_path, code):
    save_file({"x": torch.zeros(1000, 1000, dtype=TYPES[code])}, tmp_path / "a.safetensors")
    entry = sf.read_header(tmp_path / "a.safetensors")[0]["x"]
    tracemalloc.start()
    sf.load(entry, (slice(3, 5),))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_raw_is_read_only_and_load_is_a_copy(tmp_path):
    save_file({"x": random((3, 4), torch.float32), "e": torch.zeros(0)}, tmp_path / "a.safetensors")
    entries, _ = sf.read_header(tmp_path / "a.safetensors")
    for entry in entries.values():
        assert not sf.raw(entry).flags.writeable
        assert sf.raw(entry).shape == (entry.nbytes,)
    before = sf.raw(entries["x"]).tobytes()
    sf.load(entries["x"])[:] = 7
    assert sf.raw(entries["x"]).tobytes() == before


def test_entries_come_in_file_order(tmp_path):
    header = {"b": row(offsets=(8, 16)), "a": row(offsets=(0, 8))}
    entries, _ = sf.read_header(craft(tmp_path / "a.safetensors", header, bytes(16)))
    assert list(entries) == ["a", "b"]


def test_an_unknown_dtype_is_listed_but_not_loaded(tmp_path):
    header = {"x": row("Q3", (5,), (0, 2)), "y": row("F4", (4,), (2, 4))}
    entries, _ = sf.read_header(craft(tmp_path / "a.safetensors", header, bytes(4)))
    for name, code in [("x", "Q3"), ("y", "F4")]:
        with pytest.raises(FileError, match=f"cannot decode '{name}', its dtype is {code}"):
            sf.load(entries[name])


def test_a_file_that_shrank_is_an_error(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(100)}, path)
    entry = sf.read_header(path)[0]["x"]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FileError, match="has changed"):
        sf.load(entry)
    path.unlink()  # still open
    with pytest.raises(FileError, match="has changed"):
        sf.load(entry)
    with pytest.raises(FileError, match="cannot read"):
        sf.load(replace(entry, source=None))


# ------------------------------------------------------------------------------------- bad files

BAD_HEADERS = {
    "shape_negative": ({"x": row(shape=(-2,))}, 8, "shape"),
    "shape_float": ({"x": row(shape=(2.0,))}, 8, "shape"),
    "shape_bool": ({"x": row(shape=(True, 2))}, 8, "shape"),
    "shape_not_list": ({"x": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}, 8, "shape"),
    "shape_overflows": ({"x": row(shape=(0, 2**40, 2**40), offsets=(0, 0))}, 0, "shape"),
    "shape_too_long": ({"x": row(shape=(1,) * 65, offsets=(0, 4))}, 4, "65 modes"),
    "shape_of_huge_sizes": (
        b'{"x":{"dtype":"F32","data_offsets":[0,0],"shape":[%s]}}'
        % b",".join([b"9" * 4300] * 2000),
        0,
        "2000 modes",
    ),
    "shape_one_huge_size": (
        b'{"x":{"dtype":"F32","data_offsets":[0,0],"shape":[%s]}}' % (b"9" * 4300),
        0,
        "shape",
    ),
    "offsets_huge": (
        b'{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,%s]}}' % (b"9" * 4300),
        8,
        "data_offsets",
    ),
    "offsets_overflow": ({"x": row(offsets=(0, 2**63))}, 8, "data_offsets"),
    "offsets_bool": ({"x": row(shape=(), offsets=(False, True))}, 8, "data_offsets"),
    "offsets_nan": ({"x": row(offsets=(0, float("nan")))}, 8, "data_offsets"),
    "offsets_negative": ({"x": row(offsets=(-8, 0))}, 8, "data_offsets"),
    "offsets_reversed": ({"x": row(offsets=(8, 0))}, 8, "data_offsets"),
    "offsets_three": ({"x": row(offsets=(0, 4, 8))}, 8, "data_offsets"),
    "offsets_text": ({"x": row(offsets=("0", "8"))}, 8, "data_offsets"),
    "offsets_past_end": ({"x": row()}, 7, "cut short"),
    "overlap": ({"x": row(), "y": row(offsets=(4, 12))}, 12, "'y' overlaps"),
    "hole": ({"x": row(), "y": row(offsets=(12, 20))}, 20, "'y' follows a hole"),
    "trailing": ({"x": row()}, 9, "1 bytes after"),
    "byte_count": ({"x": row(shape=(3,))}, 8, "'x' has 8 bytes"),
    "dtype_number": ({"x": row(dtype=3)}, 8, "dtype of 'x'"),
    "row_not_object": ({"x": [1]}, 8, "'x' lacks"),
    "row_incomplete": ({"x": {"dtype": "F32"}}, 8, "'x' lacks"),
    "metadata": ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
    "metadata_list": ({"__metadata__": []}, 0, "__metadata__"),
    "metadata_false": ({"__metadata__": False}, 0, "__metadata__"),
    "metadata_surrogate": (b'{"__metadata__":{"a":"\\udfff"}}', 0, "__metadata__"),
    "metadata_surrogate_name": (b'{"__metadata__":{"\\ud800":"a"}}', 0, "__metadata__"),
    "metadata_twice": (b'{"__metadata__":{},"__metadata__":{}}', 0, "'__metadata__' twice"),
    "twice_of_very_many": (
        b"{" + b",".join(b'"%d":0' % i for i in range(50_000)) + b',"49999":0}',
        0,
        "'49999' twice",
    ),
    "surrogate": (
        b'{"\\ud800": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        8,
        "valid text",
    ),
    "twice": (b'{"x":{"dtype":"I8","shape":[0],"data_offsets":[0,0]},"x":{}}', 0, "'x' twice"),
    "not_json": (b"{x", 0, "not JSON"),
    "not_utf8": (b'{"\xff": 1}', 0, "not JSON"),
    "deep": (b'{"x":' + b"[" * 100_000, 0, "not JSON"),
    "huge_number": (b'{"x":' + b"9" * 5000 + b"}", 0, "not JSON"),
    "list": (b"[]", 0, "not a safetensors file"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_headers(tmp_path, case):
    header, size, message = BAD_HEADERS[case]
    path = craft(tmp_path / "bad.safetensors", header, bytes(size))
    with pytest.raises(FileError, match=message) as caught:
        sf.read_header(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_BYTES = {
    "empty": (b"", "not a safetensors file"),
    "short": (b"\x02\0\0\0\0\0\0\0", "not a safetensors file"),
    "no_header": (bytes(64), "not a safetensors file"),
    "header_longer_than_file": ((1000).to_bytes(8, "little") + b"{}", "claims 1000 bytes"),
    "header_of_4_GB": ((2**32).to_bytes(8, "little") + b"{}", "claims"),
    "header_above_the_limit": ((10**9).to_bytes(8, "little") + b"{}", "at most 100000000 are"),
    "header_length_zero": (bytes(8) + b"{}", "claims 0 bytes"),
    "zip": (b"PK\x03\x04\0\0\x08\x08\0\0\0", "pickle or zip.*safe_serialization"),
    "pickle": (b"\x80\x02}q\x00.padding", "pickle or zip.*safe_serialization"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_files_in_other_formats(tmp_path, case):
    content, message = BAD_BYTES[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError, match=message):
        sf.read_header(path)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_pickles_are_refused_by_suffix(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save({"x": torch.zeros(2)}, path)
    with pytest.raises(FileError, match="safe_serialization=True"):
        sf.read_header(path)


def test_a_header_length_that_looks_like_a_pickle_is_fine(tmp_path):
    text = b"{}" + b" " * (0x0280 - 2)
    assert sf.read_header(craft(tmp_path / "a.safetensors", text)) == ({}, {})


def test_no_metadata_can_be_written_as_null(tmp_path):
    header = {"__metadata__": None, "": row("I8", (0,), (0, 0))}  # the package reads both
    entries, metadata = sf.read_header(craft(tmp_path / "a.safetensors", header))
    assert ([*entries], metadata) == ([""], {})


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        sf.read_header(tmp_path / "none.safetensors")
    with pytest.raises(FileError, match="not a regular file"):
        sf.read_header(tmp_path)


GOOD = {
    "__metadata__": {"format": "pt"},
    "a.weight": row("BF16", (3, 2), (0, 12)),
    "b": row("F32", (), (12, 16)),
    "c": row("F8_E4M3", (0, 4), (16, 16)),
}


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=0, max_size=3)), max_size=4),
    st.integers(0, 20),
)
@example([(0, b"\xff")], 0)
def test_mutated_headers_are_read_or_refused(tmp_path, changes, cut):
    path = craft(tmp_path / "fuzz.safetensors", GOOD, bytes(16))
    content = bytearray(path.read_bytes())
    for place, replacement in changes:
        place %= len(content) - 16
        content[place : place + max(len(replacement), 1)] = replacement
    path.write_bytes(content[: len(content) - cut])
    message = f"{path} was read"
    try:
        entries, _ = sf.read_header(path)
        for entry in entries.values():
            assert sf.load(entry).shape == entry.shape
    except FileError as error:
        message = str(error)
    assert str(path) in message


# ------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("code", [*FLOAT_TYPES, *OTHER_TYPES])
def test_encode_load_round_trip_and_package_reads_it(tmp_path, code):
    tensors = {f"t{i}": random(shape, TYPES[code], i) for i, shape in enumerate(SHAPES)}
    rows = [(name, code, tuple(tensor.shape)) for name, tensor in tensors.items()]
    path = tmp_path / "a.safetensors"
    sf.write(path, rows, lambda name: sf.encode(widened(tensors[name]), code), {"k": "é"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"k": "é"}
    theirs, entries = load_torch(path), sf.read_header(path)[0]
    assert list(entries) == list(tensors)
    assert (int.from_bytes(path.read_bytes()[:8], "little")) % 8 == 0
    for name, tensor in tensors.items():
        assert theirs[name].dtype == tensor.dtype
        assert torch.equal(theirs[name], tensor)
        np.testing.assert_array_equal(sf.load(entries[name]), widened(tensor))


def float32_cases():
    """Every bf16 value, the two neighbours of every midpoint, and the midpoints themselves."""
    high = np.arange(65536, dtype=np.uint32) << 16
    return np.concatenate([high + low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])


def test_bf16_is_rounded_as_in_torch():
    values = float32_cases().view(np.float32)
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
    ours = sf.encode(values, "BF16").view(np.uint16)
    nan = np.isnan(values)
    np.testing.assert_array_equal(ours[~nan], expected[~nan])
    assert np.isnan((ours[nan].astype(np.uint32) << 16).view(np.float32)).all()


@pytest.mark.parametrize("code", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_casts_down_as_torch_does(code, dtype):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((7, 9)) * 10.0 ** rng.integers(-42, 39, (7, 9))
    edges = [
        0,
        -0.0,
        np.inf,
        -np.inf,
        65504,
        65519.9,
        65520,
        -70000,
        3.4e38,
        5.96e-8,
        2.9e-8,
        1e-40,
    ]
    with np.errstate(over="ignore", under="ignore"):
        values = np.append(values.ravel(), edges).astype(dtype)
    expected = torch.from_numpy(values).to(TYPES[code])
    assert sf.encode(values, code).tobytes() == expected.view(torch.uint8).numpy().tobytes()


def test_encode_does_not_change_its_input_and_takes_any_strides():
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    view = values.T[::2, ::-1]
    before = values.copy()
    for code, dtype in FLOAT_TYPES.items():
        expected = torch.from_numpy(view.copy()).to(dtype).view(torch.uint8).numpy().tobytes()
        assert sf.encode(view, code).tobytes() == expected
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2", "F4", "nonsense"])
def test_encode_refuses_dtypes_that_need_scales(code):
    with pytest.raises(FileError, match=f"cannot write numbers as {code}"):
        sf.encode(np.zeros(3, np.float32), code)


@pytest.mark.parametrize(
    ("dtype", "code"), [("f4", "I32"), ("c8", "F32"), ("c8", "BF16"), ("U1", "F32")]
)
def test_encode_refuses_other_kinds_of_numbers(dtype, code):
    with pytest.raises(FileError, match="without changing them"):
        sf.encode(np.zeros(3, dtype), code)


def test_write_asks_for_one_tensor_at_a_time(tmp_path):
    asked = []

    def data(name):
        asked.append(name)
        return np.zeros(4, np.uint8)

    sf.write(tmp_path / "a.safetensors", [("z", "F32", (1,)), ("a", "BF16", (2, 1))], data)
    assert asked == ["z", "a"]
    assert load_torch(tmp_path / "a.safetensors")["a"].shape == (2, 1)


def test_write_nothing(tmp_path):
    sf.write(tmp_path / "a.safetensors", [], lambda name: np.empty(0, np.uint8))
    assert load_numpy(tmp_path / "a.safetensors") == {}


@pytest.mark.parametrize(
    ("rows", "block", "message"),
    [
        ([("x", "F32", (2,))], np.zeros(7, np.uint8), "'x' came as 7 bytes of uint8.*takes 8"),
        ([("x", "F32", (2,))], np.zeros(2, np.float32), "of float32"),
        ([("x", "I8", (1,)), ("x", "I8", (1,))], np.zeros(1, np.uint8), "'x' is taken"),
        ([("__metadata__", "I8", (1,))], np.zeros(1, np.uint8), "is taken"),
        ([("x", "Q3", (1,))], np.zeros(1, np.uint8), "unknown safetensors dtype 'Q3'"),
        ([("x", "F4", (3,))], np.zeros(1, np.uint8), "whole bytes"),
    ],
)
def test_write_refuses(tmp_path, rows, block, message):
    with pytest.raises(FileError, match=message):
        sf.write(Path(tmp_path / "a.safetensors"), rows, lambda name: block)
