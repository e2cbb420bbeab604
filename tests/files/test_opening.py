import hashlib
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tdecomp.errors import FileError, SiteError
from tdecomp.files import checkpoint as ck
from tdecomp.files import hashing, stored
from tests.waiting import new_threads


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


TENSORS = {
    "embed.weight": random(7, 4),
    "layers.0.weight": random(3, 5, seed=1, dtype=torch.bfloat16),
    "layers.1.weight": random(3, 5, seed=2, dtype=torch.float16),
    "scalar": random(seed=3),
    "empty": random(0, 4),
    "ids": torch.arange(6).reshape(2, 3),
}
SPLIT = {
    "model-00001-of-00002.safetensors": ["embed.weight", "layers.1.weight", "ids"],
    "model-00002-of-00002.safetensors": ["layers.0.weight", "scalar", "empty"],
}


def write_index(folder, weight_map, name="model.safetensors.index.json"):
    (folder / name).write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    )
    return folder / name


def shards(folder, tensors=TENSORS, split=SPLIT):
    """Write a model in shards with an index."""
    weight_map = {}
    for file, names in split.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    return write_index(folder, weight_map)


def check_tensors(checkpoint, tensors=TENSORS):
    assert set(checkpoint.names) == tensors.keys()
    for name, tensor in tensors.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        expected = tensor.float() if tensor.is_floating_point() else tensor
        np.testing.assert_array_equal(checkpoint.read(name), expected.numpy())


# ------------------------------------------------------------------------------------- layouts


def test_single_file(tmp_path):
    save_file(TENSORS, tmp_path / "any.safetensors")
    opened = ck.open_checkpoint(tmp_path / "any.safetensors")
    check_tensors(opened)
    assert opened.files == (tmp_path / "any.safetensors",)
    assert (opened.config, opened.index_file, opened.folder) == ({}, None, None)
    assert opened.dtype("layers.0.weight") == "BF16"


def test_folder_with_one_file_and_config(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "._model.safetensors").write_text("left by another system")
    opened = ck.open_checkpoint(str(tmp_path))
    check_tensors(opened)
    assert opened.config == {"model_type": "bert"}
    assert opened.folder == tmp_path


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "other.safetensors.index.json"])
@pytest.mark.parametrize("by_index", [False, True])
def test_shards_with_index(tmp_path, name, by_index):
    index = shards(tmp_path).rename(tmp_path / name)
    save_file({"stale": random(2)}, tmp_path / "stale.safetensors")
    opened = ck.open_checkpoint(index if by_index else tmp_path)
    check_tensors(opened)
    assert [file.name for file in opened.files] == list(SPLIT)
    assert (opened.index_file, opened.folder) == (index, tmp_path)


def test_shards_without_index_and_in_a_subfolder(tmp_path):
    shards(tmp_path).unlink()
    check_tensors(ck.open_checkpoint(tmp_path))
    (tmp_path / "deep").mkdir()
    shards(tmp_path / "deep", split={f"part/{file}": names for file, names in SPLIT.items()})
    check_tensors(ck.open_checkpoint(tmp_path / "deep"))


def test_the_index_decides_between_two_copies(tmp_path):
    save_file({"x": random(2, 3), "y": random(4)}, tmp_path / "a.safetensors")
    save_file({"x": random(2, 3, seed=9), "z": random(5)}, tmp_path / "b.safetensors")
    write_index(tmp_path, {"x": "b.safetensors", "y": "a.safetensors"})
    opened = ck.open_checkpoint(tmp_path)
    np.testing.assert_array_equal(opened.read("x"), random(2, 3, seed=9).numpy())
    assert set(opened.names) == {"x", "y", "z"}  # z is not in the index, but not lost either


def test_reading_a_part(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    opened = ck.open_checkpoint(tmp_path)
    for index in [(slice(1, 3),), (2, slice(None)), (slice(None), -1)]:
        expected = opened.read("layers.0.weight")[index]
        np.testing.assert_array_equal(opened.read("layers.0.weight", index), expected)


# ------------------------------------------------------------------------------------- refusals


def refused(path, message):
    with pytest.raises(FileError, match=message) as caught:
        ck.open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_nothing_there(tmp_path):
    refused(tmp_path / "none", "none does not exist")
    refused(tmp_path, "has no .safetensors files: name the folder")
    (tmp_path / "sub").mkdir()
    refused(tmp_path, "has no .safetensors files: name the folder")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "a.ckpt"])
def test_pickles(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("a pickle was opened",)

    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    refused(tmp_path, f"only pickles.*{name}.*safe_serialization=True")
    refused(tmp_path / name, "pickle.*safe_serialization=True")
    refused(write_index(tmp_path, {"x": name}, "pytorch_model.bin.index.json"), "may hold a pickle")


def test_a_tensor_twice_within_a_set(tmp_path):
    save_file({"x": random(2)}, tmp_path / "part-1.safetensors")
    save_file({"x": random(2)}, tmp_path / "part-2.safetensors")
    refused(tmp_path, "'x' is both in part-1.safetensors and in part-2.safetensors")


@pytest.mark.parametrize("name", ["model.gguf", "model.onnx", "tf_model.h5", "flax_model.msgpack"])
def test_other_formats(tmp_path, name):
    (tmp_path / name).write_bytes(b"GGUF")
    refused(tmp_path, f"only {name}: convert them first")


def test_missing_shard_and_missing_tensor(tmp_path):
    index = shards(tmp_path)
    content = json.loads(index.read_text())
    content["weight_map"]["gone"] = next(iter(SPLIT))
    index.write_text(json.dumps(content))
    refused(tmp_path, f"index says that 'gone' is in {next(iter(SPLIT))}; it is not")
    (tmp_path / list(SPLIT)[1]).unlink()
    refused(tmp_path, f"names 1 of 2 files that are not there: {list(SPLIT)[1]}")


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "a/../../x", "..\\x", "C:x", "", "a\0b"]
)
def test_an_index_cannot_lead_outside(tmp_path, shard):
    (tmp_path / "model").mkdir()
    save_file({"x": random(2)}, tmp_path / "x.safetensors")
    write_index(tmp_path / "model", {"x": shard})
    refused(tmp_path / "model", "lies outside its folder: refused")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "index.json is not valid JSON"),
        ("[]", "index.json is not a JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": ["a"]}', "has no weight_map"),
        ('{"weight_map": {"a": 1}}', "has no weight_map"),
        ('{"weight_map": {}}', "lists no tensors"),
        ("[" * 100_000, "is not valid JSON"),
        ("\udcff", "is not valid JSON"),
    ],
)
def test_malformed_index(tmp_path, text, message):
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(tmp_path, message)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_malformed_config(tmp_path, text):
    save_file({"x": random(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(tmp_path, "config.json is not")


def test_unknown_name(tmp_path):
    save_file({"x": random(2)}, tmp_path / "model.safetensors")
    opened = ck.open_checkpoint(tmp_path)
    for ask in (opened.read, opened.shape, opened.dtype):
        with pytest.raises(SiteError, match="has no tensor 'y'"):
            ask("y")


def test_fingerprint(tmp_path):
    shards(tmp_path)
    opened, counts = ck.open_checkpoint(tmp_path), []
    prints = ck.fingerprint(opened, counts.append)
    for line, file in zip(prints, opened.files, strict=True):
        content = file.read_bytes()
        expected = hashlib.sha256(content).hexdigest()
        assert line == {"file": file.name, "size": len(content), "sha256": expected}
    assert counts == sorted(counts)
    assert counts[-1] == 1
    assert ck.fingerprint(opened) == prints
    assert ck.fingerprints([opened, opened]) == [prints, prints]
    for row in prints:
        del row["sha256"]
    assert ck.fingerprints([opened], hashed=False) == [prints]


def test_hashing_ends_for_all_files_where_one_cannot_be_read(tmp_path, monkeypatch):
    """What is left of the other files is not read, and no thread is left."""
    shards(tmp_path)
    opened = ck.open_checkpoint(tmp_path)
    monkeypatch.setattr(hashing, "_CHUNK", 16)
    monkeypatch.setattr(hashing, "cores", lambda: 2)
    read = stored.OpenFile._read

    def fail(self, out, start):
        if start >= 32:
            raise OSError(5, "Input/output error")
        return read(self, out, start)

    monkeypatch.setattr(stored.OpenFile, "_read", fail)
    with new_threads("hashing") as threads:
        with pytest.raises(FileError, match="Input/output error"):
            ck.fingerprint(opened)
        assert not threads()

    def interrupt(fraction):
        raise KeyboardInterrupt

    monkeypatch.setattr(stored.OpenFile, "_read", read)
    with new_threads("hashing") as threads:
        with pytest.raises(KeyboardInterrupt):
            ck.fingerprint(opened, interrupt)
        assert not threads()
