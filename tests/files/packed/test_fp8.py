import itertools
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


def text(content):
    return torch.frombuffer(bytearray(content.encode()), dtype=torch.uint8)


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
    "column": ((6, 10), "_scale", (1, 10), None, (6, 1)),
    "experts_column": ((3, 5, 9), "_scale", (3, 1, 9), None, (1, 5, 1)),
    "experts_each": ((3, 5, 9), "_scale", (3,), None, (1, 5, 9)),
    "blocks_of_64": ((130, 70), "_scale", (3, 2), None, (64, 64)),
    "rows_of_blocks": ((3, 300), "_scale_inv", (3, 3), [1, 128], (1, 128)),
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
    assert set(checkpoint.packed) == {"x.weight"}
    assert checkpoint.read("x.weight").dtype == np.float32
    np.testing.assert_array_equal(checkpoint.read("x.weight"), expected)
    for index in INDICES if len(shape) > 1 else []:
        np.testing.assert_array_equal(checkpoint.read("x.weight", index), expected[index])


NAMES = (
    "x.weight_scale",
    "x.weight_scale_inv",
    "x.weight_scales",
    "x.weight.scale",
    "x.weight.scales",
    "x.scale_weight",
    "x.scale_inv",
    "x.scale",
    "x.scales",
)
# How a scale of powers of two is stored: the power itself, or its exponent.
STORED = {
    "float": lambda powers: powers,
    "half": lambda powers: powers.half(),
    "e8m0": lambda powers: powers.to(torch.float8_e8m0fnu),
    "bytes": lambda powers: (powers.log2() + 127).to(torch.uint8),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_a_scale(tmp_path, name):
    shapes = [(), (1,), (1, 1), (5, 1), (1, 96), (5, 3)]
    weight = random(5, 96).to(E4M3)
    tensors, expected = {}, {}
    for i, (stored, shape) in enumerate(itertools.product(STORED, shapes)):
        powers = 2.0 ** torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(i))
        around = {"x.input_scale": random(), "x.bias": random(5), "k_scale": random()}
        around |= {"x.comfy_quant": text('{"format": "float8_e4m3fn"}')}
        own = {"x.weight": weight.clone(), name: STORED[stored](powers), **around}
        tensors |= {f"{i}.{key}": tensor for key, tensor in own.items()}
        wide = powers.repeat_interleave(32, 1) if shape == (5, 3) else powers
        expected[f"{i}.x.weight"] = (weight.float() * wide).numpy()
    config = {"quantization_config": {"weight_block_size": [1, 32]}}
    checkpoint = opened(tmp_path, tensors, config)
    biases = {name for name in tensors if name.endswith("bias")}
    assert set(checkpoint.names) == {*expected, *biases}
    for weight_name, values in expected.items():
        np.testing.assert_array_equal(checkpoint.read(weight_name), values)


def test_scales_of_a_conv1d_are_for_its_outputs(tmp_path):
    """GPT-2 keeps (in, out): a list of scales as long as the outputs is for columns."""
    name, config = "h.0.attn.c_attn.weight", {"model_type": "gpt2"}
    weight, scale = random(4, 6).to(E4M3), random(6, seed=1).exp()
    checkpoint = opened(tmp_path, {name: weight, f"{name}_scale": scale}, config)
    np.testing.assert_array_equal(checkpoint.read(name), (weight.float() * scale).numpy())
    weight = random(6, 6).to(E4M3)
    for shape, expected in (((6,), None), ((1, 6), scale), ((6, 1), scale[:, None])):
        tensors = {name: weight, f"{name}_scale": scale.reshape(shape)}
        checkpoint = opened(tmp_path, tensors, config)
        if expected is None:
            assert "6 inputs and as many outputs" in checkpoint.refused[name]
        else:
            wide = (weight.float() * expected).numpy()
            np.testing.assert_array_equal(checkpoint.read(name), wide)


def test_a_fused_parameter_and_its_neighbours(tmp_path):
    shapes = {"up": (3, 5, 9), "up_proj": (3, 9, 5)}  # one name begins the other
    tensors = {f"experts.{n}": random(*shape).to(E4M3) for n, shape in shapes.items()}
    scales = {n: random(3, 1, shape[2], seed=1).exp() for n, shape in shapes.items()}
    tensors |= {f"experts.{n}_scale": scale for n, scale in scales.items()}
    checkpoint = opened(tmp_path, tensors | {"experts.up_input_scale": random()})
    assert set(checkpoint.names) == {"experts.up", "experts.up_proj"}
    for n, scale in scales.items():
        expected = tensors[f"experts.{n}"].float() * scale
        np.testing.assert_array_equal(checkpoint.read(f"experts.{n}"), expected.numpy())


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
    assert checkpoint.companions == {"x.weight_scale"}
    np.testing.assert_array_equal(checkpoint.read("x.weight"), (weight.float() * scale).numpy())


FLUX = {  # a plain cast of everything, with parameters that are called scales themselves
    "x.weight": random(3, 4).to(E5M2),
    "x.bias": random(3).to(E4M3),
    "norm.key_norm.scale": random(4).to(E4M3),
    "layer_scale": random(4),
    "logit_scale": random(),
}


def test_fp8_without_any_scale_is_a_cast(tmp_path):
    checkpoint = opened(tmp_path, FLUX, {"model_type": "flux"})
    assert set(checkpoint.names) == set(FLUX) == set(checkpoint.floats)
    for name, tensor in FLUX.items():
        np.testing.assert_array_equal(checkpoint.read(name), tensor.float().numpy())


# What is beside a plain cast, the config, and what is said.
LOST = {
    "config": ({}, {"quantization_config": {"quant_method": "fp8"}}, r"settings \(fp8\)"),
    "others": ({"y.weight": random(2, 2).to(E4M3), "y.scale": random()}, {}, "have one .'y.scale'"),
    "marker": ({"scaled_fp8": random(0).to(E4M3)}, {}, "have one .'scaled_fp8'"),
    "unknown": ({"x.weight_descale": random()}, {}, "'x.weight_descale' beside it is not known"),
    "second": (
        {"x.weight_scale": random(), "x.weight_scale_2": random()},
        {},
        "'x.weight_scale_2' beside it is not known",
    ),
    "two": ({"x.weight_scale": random(), "x.scale": random()}, {}, "which of them counts"),
    "tensor cores": (
        {"x.weight_scale": random(3, 1), "x.comfy_quant": text('{"format": "mxfp8"}')},
        {},
        "in the format 'mxfp8' of ComfyUI",
    ),
    "no JSON": ({"x.weight_scale": random(), "x.comfy_quant": text("[")}, {}, "not a JSON object"),
    "fp8 scale": ({"x.weight_scale": random(3, 1).to(E4M3)}, {}, "is F8_E4M3, expected floats"),
}


@pytest.mark.parametrize("case", LOST)
def test_codes_are_never_taken_for_weights(tmp_path, case):
    beside, config, message = LOST[case]
    tensors = {"x.weight": random(3, 4).to(E4M3), "plain": random(2), **beside}
    checkpoint = opened(tmp_path, tensors, config)
    assert "x.weight" in checkpoint.refused
    assert "x.weight" not in checkpoint.floats
    assert "plain" in checkpoint.floats
    for ask in (checkpoint.read, checkpoint.part):
        with pytest.raises(FileError, match=f"'x.weight' in .* is stored as fp8.*{message}"):
            ask("x.weight")


@pytest.mark.parametrize(
    ("shape", "scale_shape", "configured"),
    [
        ((6, 10), (5,), None),
        ((6, 10), (3, 5), None),
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
    with pytest.raises(FileError, match="its scale 'x.weight_scale_inv' of shape .* the shape"):
        checkpoint.read("x.weight")


@pytest.mark.parametrize("block", [None, "128", [0, 128], [1.5, 2], {}])
def test_odd_configured_blocks_are_passed_over(tmp_path, block):
    tensors = {"x.weight": random(2, 200).to(E4M3), "x.weight_scale_inv": random(1, 2)}
    checkpoint = opened(tmp_path, tensors, {"quantization_config": {"weight_block_size": block}})
    assert checkpoint.read("x.weight").shape == (2, 200)
