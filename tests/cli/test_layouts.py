"""Folders with a second copy of the weights, and packed models, from command to command."""

from __future__ import annotations

import json

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.cli import models


def second_copy(folder):
    """Add the weights under other names, as Mistral's own code reads them."""
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= {f"other.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(weights, folder / "consolidated.safetensors")


def test_a_second_copy_is_neither_counted_nor_left_behind(base, tuned, tmp_path, call, report):
    plain = report("decompose", base, tuned, "-o", tmp_path / "plain", "--rank", 2)
    for folder in (base, tuned):
        second_copy(folder)
    told = report("decompose", base, tuned, "-o", tmp_path / "out", "--rank", 2)
    assert told["uncovered_share"] == plain["uncovered_share"]
    assert len(told["uncovered"]) == len(plain["uncovered"])
    notes = set(told["notes"]) - set(plain["notes"])
    assert len(notes) == 2
    assert all("left aside is consolidated.safetensors" in note for note in notes)
    assert notes & set(report("inspect", base)["notes"])
    result = call("apply", tmp_path / "out", base, "-o", tmp_path / "model")
    assert "left aside is consolidated.safetensors" in result.err
    assert not (tmp_path / "model" / "consolidated.safetensors").exists()


def test_a_packed_model_is_decomposed_and_applied(tmp_path, done, refused, report):
    """On int8 of bitsandbytes: the delta is that of the dense weights, apply wants a dtype."""
    arrays = models.base_arrays()
    base = models.write_base(tmp_path / "base", arrays)
    matrices = [n for n, a in arrays.items() if a.ndim == 2 and ".layer" in n and "." in n]
    packed, dense = {}, dict(arrays)
    for name, array in arrays.items():
        tensor = torch.from_numpy(np.array(array, np.float32))
        if name in matrices:
            scale = tensor.abs().amax(1)
            codes = (tensor * 127 / scale[:, None]).round().to(torch.int8)
            packed |= {name: codes, name.removesuffix("weight") + "SCB": scale}
            dense[name] = (codes.float() * scale[:, None] / 127).numpy()
        else:
            packed[name] = tensor
    tuned = tmp_path / "packed"
    tuned.mkdir()
    save_file(packed, tuned / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tuned / "config.json").write_text(json.dumps(config))
    told = report("decompose", base, tuned, "-o", tmp_path / "out", "--error", 1e-5)
    assert told["error"] <= 1e-5
    new = tmp_path / "new"
    refused(["apply", tmp_path / "out", tuned, "-o", new], "--dtype", "bitsandbytes int8")
    done("apply", tmp_path / "out", tuned, "-o", new, "--dtype", "float32", "-q")
    written = load_file(new / "model.safetensors")
    assert set(written) == set(arrays)
    for name in matrices:
        expected = 2 * dense[name] - np.asarray(arrays[name], np.float32)
        np.testing.assert_allclose(written[name].numpy(), expected, atol=1e-4)


def test_a_base_whose_weights_are_not_read_takes_no_delta(out, base, tmp_path, refused):
    """What is said is how they are stored, not that their shape is another one."""
    weights = load_file(base / "model.safetensors")
    for name in [n for n in weights if n.endswith("up_proj.weight")]:
        weights[name.removesuffix("weight") + "W_q"] = weights.pop(name).to(torch.uint8)
    save_file(weights, base / "model.safetensors")
    for dtype in ([], ["--dtype", "float32"]):
        arguments = ["apply", out, base, "-o", tmp_path / "new", *dtype]
        refused(arguments, "up_proj.weight", "stored as HQQ (U8), which is not read")
