"""Every layout is read as if it were dense, or refused by name: no code is taken for a weight."""

from __future__ import annotations

import itertools
import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tdecomp.errors import FileError, SiteError
from tdecomp.files import checkpoint as ck
from tdecomp.files import safetensors
from tdecomp.files.delta import open_delta
from tdecomp.files.packed import LAYOUTS, layout, layouts_table
from tdecomp.stack import Selection
from tests.files.packed.cases import CASES, REFUSED, draw

INDICES = [
    (),
    (slice(1, 5),),
    (slice(None, None, 2), slice(1, None)),
    (slice(None, None, -1),),
    (slice(4, 4),),
    (0,),
    (-1, slice(2, 3)),
]


OPTIONAL = {"x.weight_format", "x.input_global_scale"}


def write(folder, tensors, settings, model_type="llama"):
    """Write a model in two shards, so that codes and scales lie in different files."""
    folder.mkdir()
    everything = {**tensors, "norm.weight": draw(3).bfloat16()}
    places = {}
    for i in (0, 1):
        part = {n: t.contiguous() for k, (n, t) in enumerate(everything.items()) if k % 2 == i}
        save_file(part, folder / f"{i}.safetensors")
        places |= dict.fromkeys(part, f"{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    config = {"model_type": model_type, "dtype": "bfloat16", "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def weight_of(tensors):
    return "experts.up" if "experts.up_blocks" in tensors else "x.weight"


@pytest.mark.parametrize("case", CASES)
def test_weights_are_read_as_if_they_were_dense(tmp_path, case, monkeypatch):
    tensors, dense, settings = CASES[case]()
    dense, name = dense.float().numpy(), weight_of(tensors)
    opened = ck.open_checkpoint(write(tmp_path / "model", tensors, settings))
    assert set(opened.names) == {name, "norm.weight"} == set(opened.floats)
    assert opened.companions == set(tensors) - {opened.packed[name].stored.name}
    assert opened.shape(name) == dense.shape
    scale = np.abs(dense).max()
    for block, index in itertools.product((layout._BLOCK, 100), INDICES):
        monkeypatch.setattr(layout, "_BLOCK", block)
        part = opened.read(name, index)
        assert part.dtype == np.float32
        assert part.shape == dense[index].shape
        np.testing.assert_allclose(part, dense[index], rtol=1e-6, atol=1e-6 * scale)
        np.testing.assert_array_equal(opened.part(name, index).whole(), part)


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("case", CASES)
def test_either_side_of_a_pair_may_be_packed(tmp_path, case, side):
    tensors, dense, settings = CASES[case]()
    name = weight_of(tensors)
    write(tmp_path / "packed", tensors, settings)
    write(tmp_path / "plain", {name: draw(*dense.shape, seed=5)}, {})
    places = [tmp_path / "packed", tmp_path / "plain"]
    both = ck.pair(*map(ck.open_checkpoint, places if side == "base" else places[::-1]))
    assert set(both.common) == {name, "norm.weight"}
    delta = draw(*dense.shape, seed=5).numpy() - dense.float().numpy()
    delta = delta if side == "base" else -delta
    atol = 1e-6 * np.abs(delta).max()
    np.testing.assert_allclose(both.delta(name), delta, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("case", CASES)
def test_a_packed_base_is_written_only_when_cast(tmp_path, case):
    tensors, dense, settings = CASES[case]()
    name = weight_of(tensors)
    base = ck.open_checkpoint(write(tmp_path / "model", tensors, settings))
    for folder in ("refused", "copy", "cast"):
        (tmp_path / folder).mkdir()
    with pytest.raises(FileError, match=rf"{name}.* is stored as .*dtype='bfloat16'"):
        ck.write_model(base, tmp_path / "refused", {name: lambda x: x})
    ck.write_model(base, tmp_path / "copy", {"norm.weight": lambda x: x})
    for file in ("0.safetensors", "1.safetensors", "config.json"):
        assert (tmp_path / "copy" / file).read_bytes() == (tmp_path / "model" / file).read_bytes()
    ck.write_model(base, tmp_path / "cast", {name: lambda x: x + 1}, dtype="F32")
    cast = ck.open_checkpoint(tmp_path / "cast")
    stored = {n: t for file in cast.files for n, t in load_file(file).items()}
    assert set(stored) == {name, "norm.weight"}
    assert cast.config == {"model_type": "llama", "dtype": "float32"}
    atol = 1e-6 * float(dense.abs().max() + 1)
    torch.testing.assert_close(stored[name], dense.float() + 1, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("case", CASES)
def test_a_lost_or_cut_companion_is_told(tmp_path, case):
    tensors, dense, settings = CASES[case]()
    own = ck.open_checkpoint(write(tmp_path / "whole", tensors, settings)).packed
    (weight,) = own.values()
    optional = OPTIONAL | ({"x.g_idx"} if settings.get("desc_act") is False else set())
    for number, lost in enumerate(sorted(weight.companions - optional)):
        rest = {n: t for n, t in tensors.items() if n != lost}
        opened = ck.open_checkpoint(write(tmp_path / f"lost{number}", rest, settings))
        assert weight.name not in opened.floats, lost
        message = opened.refused[weight.name]
        assert f"{weight.name!r} in " in message
        assert " is stored as " in message
        if tensors[lost].ndim:
            cut = {**rest, lost: torch.cat([tensors[lost], tensors[lost][:1]])}
            opened = ck.open_checkpoint(write(tmp_path / f"cut{number}", cut, settings))
            with pytest.raises(FileError, match="is stored as .* but "):
                opened.read(weight.name)


@pytest.mark.parametrize("layout", REFUSED)
def test_other_layouts_are_refused_by_name(tmp_path, layout):
    folder = write(tmp_path / "model", REFUSED[layout], {})
    opened = ck.open_checkpoint(folder)
    assert set(opened.refused) == {"x.weight"}
    assert set(opened.names) == {"x.weight", "norm.weight"}
    assert set(opened.floats) == {"norm.weight"}  # which is not kept from being used
    assert opened.read("norm.weight").shape == (3,)
    with pytest.raises(FileError, match=rf"'x.weight' in .* stored as {re.escape(layout)}"):
        opened.read("x.weight")
    (tmp_path / "out").mkdir()
    with pytest.raises(FileError, match="'x.weight'"):
        ck.write_model(opened, tmp_path / "out", {}, dtype="F32")
    ck.write_model(opened, tmp_path / "out", {"norm.weight": lambda x: x})
    copied = {n for file in (tmp_path / "out").glob("*.safetensors") for n in load_file(file)}
    assert copied == {*REFUSED[layout], "norm.weight"}


def test_a_conv1d_is_as_the_model_keeps_it(tmp_path):
    """GPT-2 keeps (in, out); these layouts are made from the transposed weight, (out, in)."""
    for case in ("gptq 4", "bitsandbytes int8", "nf4"):
        tensors, dense, settings = CASES[case]()
        module = {n: t for n, t in tensors.items() if not n.startswith("x.input")}
        for name, turned in (("h.0.mlp.c_fc", True), ("h.0.mlp.other", False)):
            renamed = {name + n.removeprefix("x"): t for n, t in module.items()}
            folder = write(tmp_path / f"{case} {turned}", renamed, settings, "gpt2")
            opened = ck.open_checkpoint(folder)
            expected = dense.float().numpy()
            expected = expected.T if turned else expected
            for index in INDICES:
                part = opened.read(f"{name}.weight", index)
                atol = 1e-6 * np.abs(expected).max()
                np.testing.assert_allclose(part, expected[index], rtol=1e-6, atol=atol)


def sites(folder, tensors, settings):
    """Write two projections, of which one is packed."""
    names = {f"model.layers.0.mlp.up_proj{n.removeprefix('x')}": t for n, t in tensors.items()}
    return write(folder, {**names, "model.layers.0.self_attn.q_proj.weight": draw(4, 8)}, settings)


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("layout", ["HQQ", "integers without a known scale"])
def test_a_refused_weight_blocks_only_who_asks_for_it(tmp_path, layout, side):
    sites(tmp_path / "packed", REFUSED[layout], {})
    sites(tmp_path / "plain", {"x.weight": draw(4, 8)}, {})
    places = [tmp_path / "packed", tmp_path / "plain"]
    places = places if side == "base" else places[::-1]
    name = "model.layers.0.mlp.up_proj.weight"
    message = rf"'{name}' in .* stored as {layout} .*which is not read"
    for chosen in (Selection(), Selection(targets=["up_proj", "q_proj"])):
        with pytest.raises(SiteError, match=f"{message}.*exclude"):
            open_delta(*places, chosen)
    delta = open_delta(*places, Selection(targets=["q_proj"]))
    assert [site.path for group in delta.groups for site in group.sites] == [
        "model.layers.0.self_attn.q_proj"
    ]
    (row,) = [row for row in delta.uncovered() if row.tensor == name]
    assert row.energy is None  # unknown is not zero
    assert re.search(message, " ".join(delta.survey.notes))


def test_what_decoding_needs_beside_the_result_does_not_grow(tmp_path):
    extra = {}
    for rows in (1024, 4096):
        tensors = {
            "x.weight": torch.zeros(rows * 256, 1, dtype=torch.uint8),
            "x.weight.absmax": torch.zeros(rows * 8, dtype=torch.uint8),
            "x.weight.quant_map": draw(16),
            "x.weight.nested_absmax": draw(rows // 32),
            "x.weight.nested_quant_map": draw(256),
        }
        state = {"shape": [rows, 512], "blocksize": 64, "nested_blocksize": 256}
        state = json.dumps({**state, "nested_offset": 0.5}).encode()
        mark = "x.weight.quant_state.bitsandbytes__nf4"
        tensors[mark] = torch.frombuffer(bytearray(state), dtype=torch.uint8)
        opened = ck.open_checkpoint(write(tmp_path / str(rows), tensors, {}))
        tracemalloc.start()
        size = opened.read("x.weight").nbytes
        extra[rows] = tracemalloc.get_traced_memory()[1] - size
        tracemalloc.reset_peak()
        held = tracemalloc.get_traced_memory()[0]
        opened.read("x.weight", (slice(8, 9),))
        assert (
            tracemalloc.get_traced_memory()[1] - held < 400_000
        )  # one row is no reason to read all
        tracemalloc.stop()
    assert extra[4096] < 1.1 * extra[1024]


def test_small_floats_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    safetensors.write(file, [("x.weight", "F4", (4, 8))], lambda name: np.zeros(16, np.uint8))
    with pytest.raises(FileError, match="'x.weight' in .* is stored as floats of other kinds .F4"):
        ck.open_checkpoint(file).read("x.weight")


def test_every_layout_has_a_case(tmp_path):
    read = set()
    for number, case in enumerate(CASES):
        tensors, _, settings = CASES[case]()
        opened = ck.open_checkpoint(write(tmp_path / str(number), tensors, settings))
        read |= {weight.layout for weight in opened.packed.values()}
    assert read == {layout.name for layout in LAYOUTS if layout.open}
    refused = {layout.name for layout in LAYOUTS if not layout.open}
    assert refused - set(REFUSED) == {"floats of other kinds"}


def test_the_guide_has_the_table_of_the_code():
    guide = (Path(__file__).parents[3] / "docs" / "guide.md").read_text(encoding="utf-8")
    assert layouts_table() in guide
