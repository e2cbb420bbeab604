import json
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tdecomp.errors import ArgumentError, DataError, FileError, SiteError
from tdecomp.files import checkpoint as ck
from tdecomp.files.atomic import output_folder
from tdecomp.files.dtypes import NAMES

CODES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
E4M3 = torch.float8_e4m3fn


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


TENSORS = {
    "a.weight": random(3, 5, dtype=torch.bfloat16),
    "b.weight": random(4, 2, dtype=torch.float16),
    "c.weight": random(2, 1, 3),
    "d.weight": random(5, dtype=torch.float64),
    "scalar": random(),
    "empty": random(0, 3),
    "ids": torch.arange(4),
}


@pytest.fixture
def model(tmp_path):
    """Make a sharded model with everything that lies beside weights."""
    folder = tmp_path / "model"
    for sub in ("2_Dense", "original", ".git", "extra", "blobs"):
        (folder / sub).mkdir(parents=True)
    one, two = list(TENSORS)[:3], list(TENSORS)[3:]
    save_file({n: TENSORS[n] for n in one}, folder / "m-1.safetensors", {"format": "pt"})
    save_file({n: TENSORS[n] for n in two}, folder / "m-2.safetensors", {"format": "pt"})
    places = dict.fromkeys(one, "m-1.safetensors") | dict.fromkeys(two, "m-2.safetensors")
    index = {"metadata": {"total_size": 1, "by": "me"}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}, "hidden_size": 5}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modules.json").write_text('[{"path": ""}, {"path": "2_Dense"}]')
    for name in KEPT_FILES + DROPPED_FILES:
        (folder / name).write_text(name)
    return folder


KEPT_FILES = ["tokenizer.json", "merges.txt", "extra/note.md", "2_Dense/model.safetensors"]
DROPPED_FILES = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
    "model.onnx",
    "model.gguf",
    "model.fp16.safetensors",
    "original/consolidated.00.pth",
    "extra/last.ckpt",
    ".gitattributes",
    ".git/config",
]


def everything(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def rewrite(source, folder, update=None, **options):
    folder.mkdir()
    ck.write_model(ck.open_checkpoint(source), folder, update or {}, **options)
    return ck.open_checkpoint(folder / source.name if source.is_file() else folder)


def test_without_changes_it_is_the_same_model(model, tmp_path):
    copy = rewrite(model, tmp_path / "copy")
    for shard in ("m-1.safetensors", "m-2.safetensors"):
        assert (tmp_path / "copy" / shard).read_bytes() == (model / shard).read_bytes()
    assert (tmp_path / "copy" / "config.json").read_text() == (model / "config.json").read_text()
    expected = {"config.json", "modules.json", "model.safetensors.index.json", *KEPT_FILES}
    assert everything(tmp_path / "copy") == expected | {"m-1.safetensors", "m-2.safetensors"}
    for name in KEPT_FILES:
        assert (tmp_path / "copy" / name).read_text() == name
    index = json.loads(copy.index_file.read_text())
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in TENSORS.values()), "by": "me"}
    assert (
        index["weight_map"] == json.loads((model / copy.index_file.name).read_text())["weight_map"]
    )


def test_updates(model, tmp_path):
    seen = {}

    def plus(value):
        def change(values):
            seen[value] = values.dtype
            return values + np.float32(value)

        return change

    fractions = []
    update = {"a.weight": plus(1.0), "d.weight": plus(2.0), "scalar": lambda x: -x}
    copy = rewrite(model, tmp_path / "copy", update, progress=fractions.append)
    assert seen == {1.0: np.float32, 2.0: np.float64}
    assert fractions == [n / len(TENSORS) for n in range(1, len(TENSORS) + 1)]
    theirs = load_file(copy.files[0]) | load_file(copy.files[1])
    expected = TENSORS | {
        "a.weight": (TENSORS["a.weight"].float() + 1).to(torch.bfloat16),
        "d.weight": TENSORS["d.weight"] + 2,
        "scalar": -TENSORS["scalar"],
    }
    for name, tensor in expected.items():
        assert theirs[name].dtype == tensor.dtype
        assert torch.equal(theirs[name], tensor)
    with safe_open(copy.files[0], "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("code", CODES)
def test_cast(model, tmp_path, code):
    copy = rewrite(model, tmp_path / "copy", {"c.weight": lambda x: 2 * x}, dtype=code)
    theirs = load_file(copy.files[0]) | load_file(copy.files[1])
    for name, tensor in TENSORS.items():
        expected = 2 * tensor if name == "c.weight" else tensor
        wide = expected.to(CODES[code]) if tensor.is_floating_point() else expected
        assert torch.equal(theirs[name], wide)
        assert theirs[name].dtype == wide.dtype
    name = str(CODES[code]).removeprefix("torch.")
    assert copy.config == {"torch_dtype": name, "text_config": {"dtype": name}, "hidden_size": 5}
    size = json.loads(copy.index_file.read_text())["metadata"]["total_size"]
    assert size == sum(tensor.nbytes for tensor in theirs.values())


def test_a_single_file_is_written_alone(model, tmp_path):
    copy = rewrite(model / "m-1.safetensors", tmp_path / "copy", {"c.weight": lambda x: x + 1})
    assert everything(tmp_path / "copy") == {"m-1.safetensors"}
    np.testing.assert_array_equal(copy.read("c.weight"), (TENSORS["c.weight"] + 1).numpy())


def test_folder_without_index_or_config_and_a_shard_in_a_subfolder(tmp_path):
    source = tmp_path / "model"
    (source / "part").mkdir(parents=True)
    save_file({"x": random(2, 3)}, source / "part" / "x.safetensors")
    index = {"weight_map": {"x": "part/x.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    copy = rewrite(source, tmp_path / "copy")
    assert torch.equal(load_file(copy.files[0])["x"], random(2, 3))
    (tmp_path / "plain").mkdir()
    save_file({"x": random(2, 3)}, tmp_path / "plain" / "x.safetensors")
    rewrite(tmp_path / "plain", tmp_path / "copy2", dtype="BF16")
    assert everything(tmp_path / "copy2") == {"x.safetensors"}


def test_a_stale_copy_in_another_shard_is_left_out(tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    save_file({"x": random(2, 3), "y": random(2)}, source / "a.safetensors")
    save_file({"x": random(2, 3, seed=1), "z": random(3)}, source / "b.safetensors")
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    copy = rewrite(source, tmp_path / "copy", {"x": lambda x: x + 1})
    assert load_file(copy.files[0]).keys() == {"y"}
    np.testing.assert_array_equal(copy.read("x"), (random(2, 3, seed=1) + 1).numpy())
    places = json.loads(copy.index_file.read_text())["weight_map"]
    assert places == {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}


# ------------------------------------------------------------------------------------- fp8


@pytest.fixture
def fp8_model(tmp_path):
    """Make a model with fp8 weights whose scales lie in the other shard."""
    folder = tmp_path / "fp8"
    folder.mkdir()
    tensors = {"x.weight": random(4, 6).to(E4M3), "y.weight": random(3, 2).to(E4M3)}
    rest = {
        "x.weight_scale_inv": random(2, 2, seed=1),
        "y.weight_scale_inv": random(1, 1, seed=2),
        "norm": random(4, dtype=torch.bfloat16),
    }
    save_file(tensors, folder / "a.safetensors")
    save_file(rest, folder / "b.safetensors")
    places = dict.fromkeys(tensors, "a.safetensors") | dict.fromkeys(rest, "b.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    config = {"dtype": "float8", "quantization_config": {"weight_block_size": [2, 3]}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_fp8_is_copied_raw(fp8_model, tmp_path):
    copy = rewrite(fp8_model, tmp_path / "copy", {"norm": lambda x: 2 * x})
    original = ck.open_checkpoint(fp8_model)
    assert (tmp_path / "copy" / "a.safetensors").read_bytes() == original.files[0].read_bytes()
    assert copy.companions == {"x.weight_scale_inv", "y.weight_scale_inv"}
    assert copy.config == original.config
    np.testing.assert_array_equal(copy.read("x.weight"), original.read("x.weight"))
    np.testing.assert_array_equal(copy.read("norm"), 2 * original.read("norm"))


def test_fp8_is_multiplied_out_on_request(fp8_model, tmp_path):
    original = ck.open_checkpoint(fp8_model)
    copy = rewrite(fp8_model, tmp_path / "copy", {"x.weight": lambda x: 2 * x}, dtype="F32")
    assert set(copy.names) == {"x.weight", "y.weight", "norm"}
    assert copy.companions == set()
    assert copy.packed == {}
    assert copy.config == {"dtype": "float32"}
    assert json.loads(copy.index_file.read_text())["weight_map"].keys() == set(copy.names)
    np.testing.assert_array_equal(copy.read("x.weight"), 2 * original.read("x.weight"))
    np.testing.assert_array_equal(copy.read("y.weight"), original.read("y.weight"))


def test_settings_of_other_quantisations_stay(model, tmp_path):
    settings = {"quantization_config": {"bits": 4, "dtype": "int4"}, "dtype": "float32"}
    (model / "config.json").write_text(json.dumps(settings))
    copy = rewrite(model, tmp_path / "copy", dtype="F16")
    assert copy.config == settings | {"dtype": "float16"}


# ------------------------------------------------------------------------------------- refusals


def test_refused_before_any_work(model, fp8_model, tmp_path):
    target = tmp_path / "copy"
    target.mkdir()
    plain, fp8 = ck.open_checkpoint(model), ck.open_checkpoint(fp8_model)
    same = {"x.weight": lambda x: x}
    with pytest.raises(SiteError, match="no tensor 'x.weight' to update"):
        ck.write_model(plain, target, same)
    with pytest.raises(FileError, match="'x.weight' is stored as F8_E4M3.*add dtype="):
        ck.write_model(fp8, target, same)
    for code in ("F8_E4M3", "bfloat16", "I64"):
        with pytest.raises(ArgumentError, match=f"cannot write a model as '{code}'"):
            ck.write_model(plain, target, {}, dtype=code)
    assert everything(target) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.T, r"new 'b.weight' has shape \(2, 4\), not \(4, 2\)"),
        (lambda x: x * np.nan, "new 'b.weight' has NaN"),
        (lambda x: x + np.inf, "new 'b.weight' has NaN or infinite"),
        (lambda x: 0 * x + 65520, "'b.weight' reaches 6.552e.04, which float16 cannot hold"),
    ],
)
def test_bad_new_tensors(model, tmp_path, change, message):
    base = ck.open_checkpoint(model)
    with (
        pytest.raises(DataError, match=message),
        output_folder(tmp_path / "copy", inputs=[model]) as folder,
    ):
        ck.write_model(base, folder, {"b.weight": change})
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


@pytest.mark.parametrize(
    ("code", "fits", "too_large"),
    [("F16", 65519.0, 65520.0), ("BF16", 3.394e38, 3.3961776e38), ("F32", 3.4028235e38, 3.41e38)],
)
def test_a_cast_that_overflows_is_an_error(tmp_path, code, fits, too_large):
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.tensor([1.0, -fits], dtype=torch.float64)}, path)
    copy = rewrite(path, tmp_path / "copy", dtype=code)
    assert np.isfinite(copy.read("x")).all()
    save_file({"x": torch.tensor([1.0, -too_large], dtype=torch.float64)}, path)
    with pytest.raises(DataError, match=f"'x' reaches .* which {NAMES[code]} cannot hold"):
        rewrite(path, tmp_path / "again", dtype=code)


def test_nan_and_inf_that_were_there_are_cast(tmp_path):
    path, values = tmp_path / "model.safetensors", torch.tensor([1.0, torch.nan, -torch.inf])
    save_file({"x": values}, path)
    copy = rewrite(path, tmp_path / "copy", dtype="BF16")
    np.testing.assert_array_equal(copy.read("x"), values.numpy())


def test_one_tensor_in_memory_at_a_time(tmp_path):
    path, count = tmp_path / "model.safetensors", 500_000
    save_file({f"x{i}": torch.ones(count, dtype=torch.bfloat16) for i in range(8)}, path)
    base = ck.open_checkpoint(path)
    (tmp_path / "copy").mkdir()
    tracemalloc.start()
    ck.write_model(base, tmp_path / "copy", {f"x{i}": lambda x: x + 1 for i in range(8)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 4 * count  # a handful of float32 copies of one tensor, not of eight
