"""Adapter files of every naming scheme: what is read is what was meant, and is written again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tdecomp._xp import tol
from tdecomp.collections import AdapterPair
from tdecomp.errors import DataError, FileError, TdecompError
from tdecomp.files import safetensors
from tdecomp.files.loras import SCHEMES, AdapterFile, read_adapter, write_adapter
from tdecomp.files.loras.adapter_file import HeldPair
from tdecomp.files.loras.schemes import scheme_of

NETWORKS = {
    "peft": "",
    "lycoris": "",
    "bare": "",
    "bare_down_up": "",
    "kohya": "unet.",
    "comfyui": "unet.",
    "ai_toolkit": "unet.",
}
BY_NAME = {scheme.name: scheme for scheme in SCHEMES}


def made(network: str, rng: np.random.Generator, dtype: str) -> AdapterFile:
    """An adapter of mixed ranks and scales, with a convolution."""

    def pair(out: int, in_: int, rank: int, scale: float, kernel: tuple[int, ...] = ()):
        b, a = rng.standard_normal((out, rank)), rng.standard_normal((rank, in_))
        stored = [safetensors.rounded(x.astype(np.float32), dtype) for x in (b, a)]
        return HeldPair(AdapterPair(b=stored[0], a=stored[1], scale=scale, kernel=kernel), dtype)

    sites = {
        "blocks.0.attn.to_q": pair(7, 5, 2, 1.0),
        "blocks.0.attn.to_out.0": pair(5, 7, 3, 1 / 3),
        "blocks.10.ff.proj_in": pair(4, 4, 49, 1 / 49),
        "blocks.10.conv": pair(6, 3 * 9, 2, 0.7, (3, 3)),
    }
    stored = {f"{network}{site}": held for site, held in sites.items()}
    return AdapterFile(path=Path("made"), name="made", scheme=None, stored=stored)


def written(adapter: AdapterFile, place: Path, scheme: str) -> AdapterFile:
    """What is read again of an adapter that was written."""
    row = BY_NAME[scheme]
    if row.in_folder:
        place.mkdir()
    write_adapter(place, adapter, scheme=row)
    return read_adapter(place)


def assert_same_bits(one: AdapterFile, two: AdapterFile) -> None:
    assert one.shapes == two.shapes
    assert one.dtype == two.dtype
    for site, pair in one.pairs.items():
        other = two.pairs[site]
        assert np.array_equal(pair.b, other.b), site
        assert np.array_equal(pair.a, other.a), site
        assert (pair.scale, pair.kernel) == (other.scale, other.kernel), site


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("scheme", BY_NAME)
def test_a_round_trip_keeps_every_bit(scheme: str, dtype: str, tmp_path: Path, rng):
    adapter = made(NETWORKS.get(scheme, "transformer."), rng, dtype)
    once = written(adapter, tmp_path / "once.safetensors", scheme)
    twice = written(once, tmp_path / "twice.safetensors", scheme)
    assert once.scheme is BY_NAME[scheme]
    assert not once.not_covered
    assert_same_bits(once, twice)
    for site, pair in once.pairs.items():  # kohya's names are those of the model without dots
        meant = next(
            p for s, p in adapter.pairs.items() if s.replace(".", "_") in site + _plain(site)
        )
        assert np.array_equal(pair.b, meant.b)
        assert pair.scale == pytest.approx(meant.scale, rel=1e-7)  # alpha is a float32


def _plain(site: str) -> str:
    return " " + site.replace(".", "_")


SDXL, FLUX = "mid_block_resnets_0_conv1", "single_transformer_blocks.0.attn.to_q"
CLIP = "text_model.encoder.layers.0.self_attn.k_proj"
PUBLISHED = [
    ("peft", "base_model.model.", "", "model.layers.0.q_proj", ".lora_A.weight", "a"),
    ("peft", "base_model.model.", "", "model.embed_tokens", ".lora_embedding_B", "b"),
    ("kohya", "lora_unet_", "unet.", "double_blocks_0_img_attn_qkv", ".lora_down.weight", "a"),
    ("kohya", "lora_unet_", "unet.", "single_blocks_37_linear2", ".lora_up.weight", "b"),
    ("kohya", "lora_te1_", "te1.", "text_model_encoder_layers_0_mlp_fc1", ".alpha", "alpha"),
    ("kohya", "lora_te_", "te.", "text_model_encoder_layers_0_mlp_fc1", ".lora_up.weight", "b"),
    ("kohya", "lora_unet_", "unet.", SDXL, ".hada_t1", "t1"),
    ("kohya", "lora_unet_", "unet.", SDXL, ".dora_scale", "magnitude"),
    ("lycoris", "lycoris_", "", "layers_0_attn", ".lokr_w2_a", "w2_a"),
    ("diffusers", "transformer.", "transformer.", FLUX, ".lora_A.weight", "a"),
    ("diffusers", "text_encoder_2.", "text_encoder_2.", "encoder.q", ".lora_B.weight", "b"),
    ("diffusers_old", "unet.", "unet.", "mid.attn1.processor.to_q", "_lora.down.weight", "a"),
    (
        "diffusers_linear",
        "text_encoder.",
        "text_encoder.",
        CLIP,
        ".lora_linear_layer.up.weight",
        "b",
    ),
    ("comfyui", "diffusion_model.", "unet.", "blocks.0.cross_attn.k", ".lora_down.weight", "a"),
    ("ai_toolkit", "diffusion_model.", "unet.", "blocks.0.attn.qkv", ".lora_A.weight", "a"),
    ("bare", "", "", "transformer_blocks.0.img_mod.1", ".lora_A.weight", "a"),
    ("bare", "", "", "blocks.0.self_attn.q", ".lora_B.default.weight", "b"),
    ("bare_down_up", "", "", "blocks.0.self_attn.q", ".lora_up.weight", "b"),
]
"""Names as they are in public files, taken apart: scheme, prefix, network, module, ending, part."""


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row[0]}{row[4]}")
def test_published_names_are_known(row: tuple[str, ...]):
    scheme, prefix, network, module, ending, part = row
    name, known = prefix + module + ending, BY_NAME[scheme]
    found = known.part(name)
    assert found is not None
    assert (found.site, found.part) == (network + module, part)
    if found.kind:
        assert scheme_of([name]) is known
        if ".default." not in name:
            assert known.key(found.site, found.kind, part) == name


PARTS = {
    "lora": {"lora_down.weight": (2, 5), "lora_up.weight": (6, 2)},
    "conv": {"lora_down.weight": (2, 5, 3, 3), "lora_up.weight": (6, 2, 1, 1)},
    "tucker conv": {
        "lora_down.weight": (2, 5, 1, 1),
        "lora_mid.weight": (3, 2, 3, 3),
        "lora_up.weight": (6, 3, 1, 1),
    },
    "loha": {"hada_w1_a": (6, 2), "hada_w1_b": (2, 5), "hada_w2_a": (6, 2), "hada_w2_b": (2, 5)},
    "wide loha": {
        "hada_w1_a": (6, 3),
        "hada_w1_b": (3, 5),
        "hada_w2_a": (6, 3),
        "hada_w2_b": (3, 5),
    },
    "tucker loha": {
        **{"hada_w1_a": (2, 6), "hada_w1_b": (2, 5), "hada_t1": (2, 2, 3, 3)},
        **{"hada_w2_a": (2, 6), "hada_w2_b": (2, 5), "hada_t2": (2, 2, 3, 3)},
    },
    "lokr": {"lokr_w1": (3, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5)},
    "lokr of pairs": {
        **{"lokr_w1_a": (3, 2), "lokr_w1_b": (2, 4)},
        **{"lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5)},
    },
    "whole lokr": {"lokr_w1": (2, 3), "lokr_w2": (4, 5)},
    "conv lokr": {"lokr_w1": (3, 2), "lokr_w2": (4, 5, 3, 3)},
    "tucker lokr": {
        **{"lokr_w1": (3, 2), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 5)},
        "lokr_t2": (2, 2, 3, 3),
    },
}
"""Parts as LyCORIS stores them."""
SCALES = {"wide loha": 1.0, "whole lokr": 1.0, "conv lokr": 1.0}
"""Where alpha 3 is not over rank 2: over rank 3, and not at all where both factors are whole."""


def dense(kind: str, w: dict[str, np.ndarray]) -> np.ndarray:
    """ΔW of the parts, from the papers: flat to (out, in · kernel)."""
    tucker = lambda t, a, b: np.einsum("ijkl,ip,jr->prkl", t, a, b)
    if "lora_mid.weight" in w:
        up, down = w["lora_up.weight"][:, :, 0, 0], w["lora_down.weight"][:, :, 0, 0]
        whole = np.einsum("oi,ijkl,jp->opkl", up, w["lora_mid.weight"], down)
    elif "lora_up.weight" in w:
        up, down = w["lora_up.weight"], w["lora_down.weight"]
        whole = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    elif "hada_t1" in w:
        one, two = (
            tucker(*(w[f"hada_{p}"] for p in (f"t{k}", f"w{k}_a", f"w{k}_b"))) for k in "12"
        )
        whole = one * two
    elif "hada_w1_a" in w:
        whole = (w["hada_w1_a"] @ w["hada_w1_b"]) * (w["hada_w2_a"] @ w["hada_w2_b"])
    else:
        one = w["lokr_w1"] if "lokr_w1" in w else w["lokr_w1_a"] @ w["lokr_w1_b"]
        if "lokr_t2" in w:
            two = tucker(w["lokr_t2"], w["lokr_w2_a"], w["lokr_w2_b"])
        else:
            two = w["lokr_w2"] if "lokr_w2" in w else w["lokr_w2_a"] @ w["lokr_w2_b"]
        whole = np.kron(one.reshape(*one.shape, *(1 for _ in two.shape[2:])), two)
    return whole.reshape(len(whole), -1)


@pytest.mark.parametrize("kind", PARTS)
def test_every_kind_of_pair_is_its_formula(kind: str, tmp_path: Path, rng):
    parts = {p: rng.standard_normal(shape).astype(np.float32) for p, shape in PARTS[kind].items()}
    arrays = {f"lora_unet_mid.{p}": w for p, w in parts.items()}
    arrays["lora_unet_mid.alpha"] = np.array(3.0, np.float32)
    save_file(arrays, tmp_path / "x.safetensors")
    adapter = read_adapter(tmp_path / "x.safetensors")
    pair = adapter.pairs["unet.mid"]
    wide = {p: w.astype(np.float64) for p, w in parts.items()}
    expected = dense(kind, wide) * SCALES.get(kind, 3.0 / 2)
    assert pair.shape == adapter.shapes["unet.mid"] == expected.shape
    assert pair.rank <= max(2, min(pair.shape))
    assert np.allclose(pair.dense(), expected, rtol=0, atol=tol("float32", 50) * 10)
    again = written(adapter, tmp_path / "y.safetensors", "kohya").pairs["unet.mid"]
    assert np.allclose(again.dense(), expected, rtol=0, atol=tol("float32", 50) * 10)
    assert again.kernel == pair.kernel


def save(folder: Path, arrays: dict[str, np.ndarray], **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(arrays, folder / "adapter_model.safetensors")
    if config:
        said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config}
        (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


P = "base_model.model."
A, B = np.ones((2, 5), np.float32), np.ones((6, 2), np.float32)
PAIR = {f"{P}x.lora_A.weight": A, f"{P}x.lora_B.weight": B}
KOHYA = {"lora_unet_x.lora_down.weight": A, "lora_unet_x.lora_up.weight": B}
NAN = np.array(np.nan, np.float32)

REFUSED = {
    "no configuration": (PAIR, {}, "adapter_config.json"),
    "another method": (PAIR, {"peft_type": "LOHA"}, "LOHA"),
    "alpha that is text": (PAIR, {"lora_alpha": "8"}, "lora_alpha"),
    "rank 0": (PAIR, {"r": 0}, "whole number of 1 or more"),
    "a pattern that never ends": (PAIR, {"rank_pattern": {"(a+)+b": 2}}, "too involved"),
    "a broken pattern": (PAIR, {"alpha_pattern": {"(": 2}}, "no pattern"),
    "a rank that is not there": (PAIR, {"r": 4}, "its rank is 2"),
    "copied layers": (PAIR, {"layer_replication": [[0, 2]]}, "replicates layers"),
    "one half": ({f"{P}x.lora_A.weight": A}, {"bias": "none"}, "incomplete pair"),
    "halves of two ranks": (
        {f"{P}x.lora_A.weight": A, f"{P}x.lora_B.weight": B[:, :1]},
        {"bias": "none"},
        "do not fit each other",
    ),
    "nothing in it": (
        {"lora_unet_x.lora_down.weight": A[:0], "lora_unet_x.lora_up.weight": B[:, :0]},
        {},
        "without numbers",
    ),
    "DoRA without the base": (
        PAIR | {f"{P}x.lora_magnitude_vector": B[:, 0]},
        {"use_dora": True},
        "name the base",
    ),
    "an unknown scheme": ({"x.adapter_down": A, "x.adapter_up": B}, {}, "x.adapter_down"),
    "a small file of a huge matrix": (
        {f"lora_unet_x.lokr_w{k}": np.zeros((400, 400), np.float32) for k in (1, 2)},
        {},
        "larger than what is read",
    ),
    "alpha that is no number": (KOHYA | {"lora_unet_x.alpha": NAN}, {}, "alpha must be one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named(case: str, tmp_path: Path):
    arrays, config, words = REFUSED[case]
    folder = save(tmp_path / "it", arrays, **config)
    with pytest.raises(TdecompError, match=words.replace("(", "\\(")):
        read_adapter(folder)


def test_numbers_that_are_none_are_named_with_their_tensor(tmp_path: Path):
    broken = KOHYA | {"lora_unet_y.lora_down.weight": A * NAN, "lora_unet_y.lora_up.weight": B}
    adapter = read_adapter(save(tmp_path / "it", broken))
    assert adapter.pairs["unet.x"].rank == 2
    with pytest.raises(DataError, match=r"lora_unet_y\.lora_down\.weight.*NaN"):
        adapter.pairs["unet.y"]


def test_pickles_are_refused(tmp_path: Path):
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(FileError, match="pickles"):
        read_adapter(tmp_path)
    with pytest.raises(FileError, match="pickle"):
        read_adapter(tmp_path / "adapter_model.bin")


def test_everything_else_is_listed_key_by_key(tmp_path: Path):
    more = {
        f"{P}x.lora_B.bias": B[:, 0],
        f"{P}y.bias": B[:, 0],
        f"{P}head.weight": A,
        f"{P}z.lora_embedding_A": A,
        "strange": A,
    }
    adapter = read_adapter(save(tmp_path / "it", PAIR | more, bias="all"))
    assert list(adapter.shapes) == ["x"]
    assert {name for name, _ in adapter.not_covered} == set(more)
    reasons = dict(adapter.not_covered)
    assert "lora_bias" in reasons[f"{P}x.lora_B.bias"]
    assert "modules_to_save" in reasons[f"{P}head.weight"]
    assert reasons["strange"] == "no known name"


def test_alpha_0_is_said_and_a_missing_one_is_scale_1(tmp_path: Path):
    zero = KOHYA | {"lora_unet_x.alpha": np.array(0, np.float32)}
    silent = read_adapter(save(tmp_path / "zero", zero))
    assert silent.pairs["unet.x"].scale == 0
    assert "alpha is 0" in silent.notes[0]
    assert read_adapter(save(tmp_path / "none", KOHYA)).pairs["unet.x"].scale == 1
    whole = read_adapter(save(tmp_path / "whole", KOHYA | {"lora_unet_x.alpha": np.array(4)}))
    assert whole.pairs["unet.x"].scale == 2


def test_eight_bits_are_read_and_written_as_bfloat16(tmp_path: Path):
    codes = np.arange(0, 60, 6, dtype=np.uint8).reshape(2, 5)
    parts = {"lora_unet_x.lora_down.weight": codes, "lora_unet_x.lora_up.weight": codes.T.copy()}
    entries = [(name, "F8_E4M3", array.shape) for name, array in parts.items()]
    path = tmp_path / "x.safetensors"
    safetensors.write(path, entries, lambda name: parts[name].reshape(-1))
    adapter = read_adapter(path)
    again = written(adapter, tmp_path / "y.safetensors", "kohya")
    assert again.dtype == "BF16"
    assert_same_bits(adapter, again)


def test_diffusers_configuration_in_the_metadata_says_the_scale(tmp_path: Path):
    arrays = {"transformer.x.lora_A.weight": A, "transformer.x.lora_B.weight": B}
    said = {"transformer.r": 2, "transformer.lora_alpha": 6}
    text = {"lora_adapter_metadata": json.dumps(said)}
    save_file(arrays, tmp_path / "x.safetensors", metadata=text)
    adapter = read_adapter(tmp_path / "x.safetensors")
    assert adapter.pairs["transformer.x"].scale == 3
    again = written(adapter, tmp_path / "y.safetensors", "diffusers")
    assert_same_bits(adapter, again)
    assert "lora_adapter_metadata" not in again.metadata  # diffusers takes it or alphas, not both


def test_metadata_stays_but_for_what_it_says_of_the_old_tensors(tmp_path: Path):
    said = {
        "ss_network_dim": "64",
        "ss_network_alpha": "1.0",
        "sshs_model_hash": "0",
        "ss_tag": "a",
    }
    save_file(KOHYA, tmp_path / "x.safetensors", metadata=said)
    again = written(read_adapter(tmp_path / "x.safetensors"), tmp_path / "y.safetensors", "kohya")
    kept = {key: text for key, text in again.metadata.items() if key.startswith("ss")}
    assert kept == {"ss_network_dim": "2", "ss_network_alpha": "2", "ss_tag": "a"}


CONVERTED = [
    ("peft", "", "diffusers", "transformer", "transformer."),
    ("peft", "", "kohya", "unet", "unet."),
    ("peft", "transformer.", "bare", "", "transformer."),  # the first segment of GPT-2's modules
    ("diffusers", "transformer.", "peft", "", ""),
    ("diffusers", "transformer.", "comfyui", "", "unet."),
    ("ai_toolkit", "unet.", "kohya", "", "unet."),
    ("kohya", "unet.", "lycoris", "", ""),
]


@pytest.mark.parametrize("row", CONVERTED, ids=lambda row: f"{row[0]}-{row[2]}")
def test_a_file_of_one_scheme_is_written_in_another(row, tmp_path: Path, rng):
    scheme, before, other, network, after = row
    adapter = written(made(before, rng, "BF16"), tmp_path / "a.safetensors", scheme)
    place = tmp_path / "b"
    if BY_NAME[other].in_folder:
        place.mkdir()
    write_adapter(place, adapter, scheme=BY_NAME[other], network=network)
    again = read_adapter(place)
    for site, pair in adapter.pairs.items():
        name = after + site.removeprefix(before).replace(".", BY_NAME[other].joint)
        assert np.array_equal(pair.b, again.pairs[name].b)
        assert pair.scale == pytest.approx(again.pairs[name].scale, rel=1e-7)


def test_a_scheme_of_networks_asks_which_it_is(tmp_path: Path, rng):
    adapter = written(made("", rng, "F32"), tmp_path / "a", "peft")
    with pytest.raises(TdecompError, match="network=: unet, te"):
        write_adapter(tmp_path / "b.safetensors", adapter, scheme=BY_NAME["kohya"])
    assert not (tmp_path / "b.safetensors").exists()
