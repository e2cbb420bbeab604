import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tdecomp.errors import FileError
from tdecomp.files import checkpoint as ck

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def opened(folder, tensors, config=None):
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return ck.open_checkpoint(folder)


def blockwise(scale, block, shape):
    """Scale of every entry, by repeating and cutting off."""
    for axis, (size, count) in enumerate(zip(block, shape, strict=True)):
        scale = scale.repeat_interleave(size, axis).narrow(axis, 0, count)
    return scale


# weight shape, suffix, scale shape, configured block, block that it means
LAYOUTS = {
    "tensor": ((6, 10), "_scale", (), None, (6, 10)),
    "tensor_1": ((6, 10), "_scale", (1,), None, (6, 10)),
    "tensor_11": ((6, 10), "_scale_inv", (1, 1), None, (6, 10)),
    "channel": ((6, 10), "_scale", (6,), None, (1, 10)),
    "channel_1": ((6, 10), "_scale", (6, 1), None, (1, 10)),
    "one_row": ((1, 10), "_scale", (1, 1), None, (1, 10)),
    "block_128": ((200, 300), "_scale_inv", (2, 3), None, (128, 128)),
    "block_128_exact": ((128, 256), "_scale_inv", (1, 2), None, (128, 128)),
    "block_of_vllm": ((200, 300), "_scale", (2, 3), None, (128, 128)),
    "block_configured": ((5, 9), "_scale_inv", (3, 3), [2, 4], (2, 4)),
    "experts": ((3, 5, 9), "_scale_inv", (3, 3, 3), [2, 4], (1, 2, 4)),
    "experts_tensor": ((3, 5, 9), "_scale", (3, 1, 1), None, (1, 5, 9)),
    "experts_channel": ((3, 5, 9), "_scale", (3, 5), None, (1, 1, 9)),
    "vector": ((9,), "_scale", (1,), None, (9,)),
}
INDICES = [(), (slice(1, 4),), (slice(None, None, 2), slice(1, None)), (0,), (-1, slice(2, 3))]


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("case", LAYOUTS)
def test_weights_are_multiplied_by_their_scales(tmp_path, case, dtype):
    shape, suffix, scale_shape, configured, block = LAYOUTS[case]
    weight, scale = random(*shape).to(dtype), random(*scale_shape, seed=1).exp()
    config = {"quantization_config": {"weight_block_size": configured}} if configured else None
    tensors = {"x.weight": weight, f"x.weight{suffix}": scale, "other": random(2)}
    checkpoint = opened(tmp_path, tensors, config)
    spread = scale.reshape([-(-n // b) for n, b in zip(shape, block, strict=True)])
    expected = (weight.float() * blockwise(spread, block, shape)).numpy()
    assert set(checkpoint.names) == {"x.weight", "other"}
    assert set(checkpoint.scales) == {"x.weight"}
    assert checkpoint.read("x.weight").dtype == np.float32
    np.testing.assert_array_equal(checkpoint.read("x.weight"), expected)
    for index in INDICES if len(shape) > 1 else []:
        np.testing.assert_array_equal(checkpoint.read("x.weight", index), expected[index])


def test_a_weight_without_entries(tmp_path):
    tensors = {"x.weight": random(0, 4).to(E4M3), "x.weight_scale": random(1)}
    assert opened(tmp_path, tensors).read("x.weight").shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scales_in_other_dtypes(tmp_path, dtype):
    weight, scale = random(3, 4).to(E4M3), torch.tensor([0.5, 2.0, 4.0], dtype=dtype)
    checkpoint = opened(tmp_path, {"x.weight": weight, "x.weight_scale": scale})
    expected = weight.float() * scale.float()[:, None]
    np.testing.assert_array_equal(checkpoint.read("x.weight"), expected.numpy())


def test_a_scale_in_another_shard(tmp_path):
    weight, scale = random(3, 4).to(E4M3), random(3, 1, seed=1)
    save_file({"x.weight": weight}, tmp_path / "a.safetensors")
    save_file({"x.weight_scale": scale}, tmp_path / "b.safetensors")
    files = {"x.weight": "a.safetensors", "x.weight_scale": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    checkpoint = ck.open_checkpoint(tmp_path)
    assert checkpoint.scales["x.weight"].file.name == "b.safetensors"
    np.testing.assert_array_equal(checkpoint.read("x.weight"), (weight.float() * scale).numpy())


def test_without_scale_it_is_a_cast_and_scales_of_others_are_tensors(tmp_path):
    tensors = {
        "x.weight": random(3, 4).to(E5M2),
        "y.weight": random(2),
        "y.weight_scale": random(2),
    }
    checkpoint = opened(tmp_path, tensors)
    assert set(checkpoint.names) == set(tensors)
    np.testing.assert_array_equal(checkpoint.read("x.weight"), tensors["x.weight"].float().numpy())


@pytest.mark.parametrize(
    ("shape", "scale_shape", "configured"),
    [
        ((6, 10), (5,), None),
        ((6, 10), (10,), None),
        ((6, 10), (2, 2), None),
        ((200, 300), (2, 3), [64, 64]),
        ((200, 300), (2, 3, 1), None),
        ((6, 10), (0,), None),
        ((6,), (2, 3), None),
    ],
)
def test_scales_that_fit_no_layout(tmp_path, shape, scale_shape, configured):
    config = {"quantization_config": {"weight_block_size": configured}}
    tensors = {"x.weight": random(*shape).to(E4M3), "x.weight_scale_inv": random(*scale_shape)}
    checkpoint = opened(tmp_path, tensors, config)
    with pytest.raises(FileError, match="scale 'x.weight_scale_inv' of shape .* 'x.weight' of"):
        checkpoint.read("x.weight")


@pytest.mark.parametrize("block", [None, "128", [0, 128], [1.5, 2], {}])
def test_odd_configured_blocks_are_passed_over(tmp_path, block):
    tensors = {"x.weight": random(2, 200).to(E4M3), "x.weight_scale_inv": random(1, 2)}
    checkpoint = opened(tmp_path, tensors, {"quantization_config": {"weight_block_size": block}})
    assert checkpoint.read("x.weight").shape == (2, 200)
