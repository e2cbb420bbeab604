"""What is written for a loader acts there, and adds what the adapter added."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tdecomp.errors import FileError
from tdecomp.files.loras import read_adapter
from tdecomp.jobs import FitReport, check, export_for
from tests.published import KV, PUBLISHED, D, E, F, X

P = "base_model.model."
TEXT, TOWER = "model.layers.", "language_model.model.layers."
LOADED = "model.language_model.layers."
Q = "0.self_attn.q_proj"
SIZES = {"q_proj": (D, D), "up_proj": (F, D), "qkv_proj": (2 * D, D), "q_b_proj": (D, 6)}
TEXTS = ("Llama", "Qwen2", "Qwen3", "Qwen3-MoE", "Mixtral", "gpt-oss")
RIGHT = {
    **{(model, loader): TEXT for model in TEXTS for loader in ("peft", "vllm")},
    **{(model, loader): TEXT for model in TEXTS[-3:-1] for loader in ("sglang", "llama.cpp")},
    **{(model, "peft"): LOADED for model in ("Qwen2.5-VL", "Gemma 3", "Mistral 3")},
    ("Qwen2.5-VL", "vllm"): TEXT,
    ("Qwen2.5-VL", "llama.cpp"): TEXT,
    **{(m, r): TOWER for m in ("Gemma 3", "Mistral 3") for r in ("vllm", "sglang", "llama.cpp")},
}
"""What stands before the number of a layer in what is written."""
WRONG = (
    *(
        "model.",
        "_orig_mod.model.",
        "module.model.",
        "base_model.model.model.",
        "",
        "language_model.",
    ),
    *("language_model.model.", "model.language_model.", "model.model."),
)


def adapter(folder: Path, stems: Mapping[str, tuple[int, int]], **config: Any) -> Path:
    """A PEFT folder of random pairs; of rank 2, or of what `rank_pattern` says."""
    folder.mkdir(parents=True)
    rng, arrays = np.random.default_rng(0), dict[str, np.ndarray]()
    ranks = config.get("rank_pattern", {})
    for stem, (out, in_) in stems.items():
        rank = next((r for name, r in ranks.items() if stem.endswith(name)), 2)
        wide = rank * E if stem.endswith((".experts", ".base_layer")) else rank
        arrays[f"{stem}.lora_A.weight"] = rng.standard_normal((wide, in_), np.float32)
        arrays[f"{stem}.lora_B.weight"] = rng.standard_normal((out, wide), np.float32)
    save_file(arrays, folder / "adapter_model.safetensors", {"format": "pt"})
    usual = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(usual | config))
    return folder


def exported(folder: Path, lora: Path, model: str, loader: str) -> tuple[FitReport, Path]:
    out = folder / f"out {loader}"
    base = PUBLISHED[model].write(folder.parent / model)
    report = export_for(lora, out, loader=loader, base=base)
    assert report.check.acts
    return report, out


def deltas(folder: Path) -> dict[str, np.ndarray]:
    return {site: np.asarray(pair.dense()) for site, pair in read_adapter(folder).pairs.items()}


@pytest.mark.parametrize(("model", "loader"), RIGHT)
def test_every_known_prefix_is_mended(model: str, loader: str, tmp_path: Path):
    many = model in ("Llama", "Gemma 3") and loader in ("peft", "vllm")
    for k, before in enumerate(WRONG if many else WRONG[:3]):
        lora = adapter(tmp_path / f"lora{k}", {f"{P}{before}layers.{Q}": (D, D)})
        report, out = exported(tmp_path / str(k), lora, model, loader)
        ((site, delta),) = deltas(out).items()
        assert site == f"{RIGHT[model, loader]}{Q}"
        assert np.allclose(delta, *deltas(lora).values(), atol=1e-6)
        assert bool(report.renamed) == (f"{P}{before}layers.{Q}" != f"{P}{site}")


def test_names_without_peft_s_prefix_keep_their_scale(tmp_path: Path):
    stem = f"module.{P}{TEXT}{Q}"
    lora = adapter(tmp_path / "lora", {stem: (D, D)})
    arrays = load_file(lora / "adapter_model.safetensors")
    dense = 2 * arrays[f"{stem}.lora_B.weight"] @ arrays[f"{stem}.lora_A.weight"]
    assert np.allclose(deltas(lora)[stem], dense, atol=1e-6)
    _, out = exported(tmp_path, lora, "Llama", "vllm")
    assert np.allclose(deltas(out)[TEXT + Q], dense, atol=1e-6)


@pytest.mark.parametrize("loader", ["peft", "vllm", "sglang", "llama.cpp"])
def test_ranks_and_scales_become_one(loader: str, tmp_path: Path):
    stems = {P + TEXT + Q: (D, D), f"{P}{TEXT}1.mlp.up_proj": (F, D)}
    lora = adapter(
        tmp_path / "lora",
        stems,
        rank_pattern={"up_proj": 3},
        alpha_pattern={"up_proj": 5},
        use_rslora=True,
    )
    report, out = exported(tmp_path, lora, "Llama", loader)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (report.rank, config["r"], config["lora_alpha"]) == (3, 3, 3)
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    assert config["use_rslora"] is False
    before, after = deltas(lora), deltas(out)
    assert before.keys() == after.keys()
    assert all(np.allclose(after[site], delta, atol=1e-5) for site, delta in before.items())


EACH = {"gate_proj": (X, D), "up_proj": (X, D), "down_proj": (D, X)}
SHORT = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
FUSED = {".base_layer": (2 * X, D), "": (D, X)}
CONTAINERS = {
    "Qwen3-MoE": "model.layers.{}.mlp.experts",
    "DeepSeek-V3": "model.layers.{}.mlp.experts",
    "Mixtral": "model.layers.{}.block_sparse_moe.experts",
    "gpt-oss": "model.layers.{}.mlp.experts",
}


def of_experts(folder: Path, model: str) -> dict[tuple[int, str], np.ndarray]:
    """(layer and expert, projection) -> what is added, whichever way the file has it.

    Fused pairs are read as vLLM's manager does: A is ``(expert, rank, in)``, B ``(out, rank,
    expert)``.
    """
    arrays = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    found: dict[tuple[int, str], np.ndarray] = {}
    longs = {short: long for long, short in SHORT.items()}
    for name, a in arrays.items():
        stem, _, half = name.partition(".lora_A")
        if not half:
            continue
        b = arrays[f"{stem}.lora_B{half}"]
        layer = int(stem.partition(".layers.")[2].partition(".")[0])
        last = stem.rpartition(".")[2]
        if last not in ("experts", "base_layer"):
            number = int(stem.partition(".experts.")[2].partition(".")[0])
            scale = config["lora_alpha"] / len(a)
            found[layer * E + number, longs.get(last, last)] = scale * b @ a
            continue
        rank = len(a) // E
        scale = config["lora_alpha"] / rank
        for k in range(E):
            delta = scale * b.reshape(len(b), rank, E)[:, :, k] @ a.reshape(E, rank, -1)[k]
            if last == "experts":
                found[layer * E + k, "down_proj"] = delta
            elif model == "gpt-oss":
                found[layer * E + k, "gate_proj"], found[layer * E + k, "up_proj"] = (
                    delta[::2],
                    delta[1::2],
                )
            else:
                found[layer * E + k, "gate_proj"], found[layer * E + k, "up_proj"] = (
                    delta[:X],
                    delta[X:],
                )
    return found


def experts(folder: Path, model: str, layout: str, *, some: bool = False) -> Path:
    """An adapter of experts of one layer, all or some of them."""
    container = P + CONTAINERS[model].format(1)
    if layout == "fused":
        parameters = [f"experts.{p}" for p in ("gate_up_proj", "down_proj")]
        stems = {f"{container}{ending}": size for ending, size in FUSED.items()}
        return adapter(folder, stems, target_modules=[], target_parameters=parameters)
    names = SHORT if model == "Mixtral" else dict(zip(SHORT, SHORT, strict=True))
    stems = {f"{container}.{k}.{names[p]}": s for k in range(E) for p, s in EACH.items()}
    if some:
        stems = {stem: s for stem, s in stems.items() if ".2." not in stem and "up" not in stem}
    return adapter(folder, stems)


@pytest.mark.parametrize("loader", ["peft", "vllm", "sglang", "llama.cpp"])
@pytest.mark.parametrize("model", CONTAINERS)
@pytest.mark.parametrize("layout", ["each", "fused", pytest.param("some", marks=pytest.mark.slow)])
def test_experts_get_the_layout_of_the_loader(layout: str, model: str, loader: str, tmp_path: Path):
    some = layout == "some"
    lora = experts(tmp_path / "lora", model, "each" if some else layout, some=some)
    if (model, loader) == ("gpt-oss", "llama.cpp"):
        base = PUBLISHED[model].write(tmp_path / "model")
        with pytest.raises(FileError, match="nothing that llama.cpp could adapt"):
            export_for(lora, tmp_path / "out", loader=loader, base=base)
        return
    _, out = exported(tmp_path, lora, model, loader)
    before, after = of_experts(lora, model), of_experts(out, model)
    assert before.keys() <= after.keys()
    for site, delta in after.items():
        expected = before.get(site, np.zeros_like(delta))
        assert np.allclose(delta, expected, atol=1e-5), site


def test_flux_is_written_for_diffusers_and_comfyui(tmp_path: Path):
    stems = {f"{P}transformer_blocks.{k}.attn.to_q": (D, D) for k in range(2)}
    lora = adapter(tmp_path / "lora", stems)
    base = PUBLISHED["Flux"].write(tmp_path / "model")
    for loader in ("diffusers", "comfyui"):
        out = tmp_path / f"{loader}.safetensors"
        report = export_for(lora, out, loader=loader, base=base)
        assert report.check.acts
        assert report.scheme == "diffusers"
        after = deltas(out)
        for site, delta in deltas(lora).items():
            assert np.allclose(after[f"transformer.{site}"], delta, atol=1e-6)


def test_what_has_no_place_is_named(tmp_path: Path):
    stems = {
        P + TEXT + Q: (D, D),
        P + "model.decoder.x_proj": (D, D),
        P + "model.layers.1.self_attn.q_proj": (D, D + 1),
    }
    report, out = exported(tmp_path, adapter(tmp_path / "lora", stems), "Llama", "vllm")
    assert check(out, report.model, loader="vllm").acts
    assert list(deltas(out)) == [TEXT + Q]
    assert {row.tensor for row in report.left_out} == {
        "model.decoder.x_proj",
        "model.layers.1.self_attn.q_proj",
    }


def test_bad_input_is_refused_and_nothing_is_written(tmp_path: Path):
    base = PUBLISHED["Llama"].write(tmp_path / "model")
    lora = adapter(tmp_path / "lora", {P + TEXT + Q: (D, D)})
    out = tmp_path / "out"
    with pytest.raises(FileError, match="does not say which model it is for: name the model"):
        export_for(lora, out, loader="vllm")
    with pytest.raises(FileError, match="takes no adapters for models of type whisper"):
        export_for(lora, out, loader="vllm", base=PUBLISHED["Whisper"].write(tmp_path / "w"))
    wide = adapter(tmp_path / "wide", {P + TEXT + Q: (D, D)}, r=600, rank_pattern={"q_proj": 600})
    with pytest.raises(FileError, match="at most 512: make it smaller first: tdecomp resize"):
        export_for(wide, out, loader="vllm", base=base)
    with pytest.raises(FileError, match="ends in .safetensors"):
        export_for(
            adapter(tmp_path / "f", {P + "x_embedder": (D, 4)}),
            out,
            loader="diffusers",
            base=PUBLISHED["Flux"].write(tmp_path / "flux"),
        )
    assert not out.exists()


def test_parts_are_put_together_where_the_model_holds_them_so(tmp_path: Path):
    """q, k and v for Phi-3, which has them in one; without k its rows are zero."""
    at = f"{P}model.layers.0."
    parts = {"q_proj": (D, D), "k_proj": (KV, D), "v_proj": (KV, D)}
    stems = {f"{at}self_attn.{p}": size for p, size in parts.items()}
    stems |= {f"{at}mlp.up_proj": (F, D)}
    for k, without in enumerate(("", "k_proj")):
        own = {stem: size for stem, size in stems.items() if not without or without not in stem}
        lora = adapter(tmp_path / f"lora{k}", own, rank_pattern={"q_proj": 3})
        _, out = exported(tmp_path / str(k), lora, "Phi-3", "vllm")
        before, after = deltas(lora), deltas(out)
        names = [f"model.layers.0.self_attn.{p}" for p in parts]
        rows = [before.get(n, np.zeros((KV, D))) for n in names]
        whole = after["model.layers.0.self_attn.qkv_proj"]
        assert np.allclose(whole, np.concatenate(rows), atol=1e-5)
        halves = after["model.layers.0.mlp.gate_up_proj"]
        assert not halves[:F].any()
        assert np.allclose(halves[F:], before["model.layers.0.mlp.up_proj"], atol=1e-5)


def test_what_is_held_together_is_taken_apart(tmp_path: Path):
    at = f"{P}_orig_mod.model.layers.1."
    stems = {f"{at}self_attn.qkv_proj": (D + 2 * KV, D), f"{at}mlp.gate_up_proj": (2 * F, D)}
    lora = adapter(tmp_path / "lora", stems)
    for loader in ("peft", "vllm", "llama.cpp"):
        _, out = exported(tmp_path / loader, lora, "Llama", loader)
        after = deltas(out)
        for stem, parts in (("self_attn.qkv", "qkv"), ("mlp.gate_up", ("gate_", "up_"))):
            whole = deltas(lora)[f"_orig_mod.model.layers.1.{stem}_proj"]
            block = stem.partition(".")[0]
            names = [f"model.layers.1.{block}.{p.rstrip('_')}_proj" for p in parts]
            assert np.allclose(np.concatenate([after[n] for n in names]), whole, atol=1e-5)


def test_names_in_memory_are_mended(tmp_path: Path):
    lora = adapter(tmp_path / "lora", {P + TEXT + Q: (D, D)})
    file = lora / "adapter_model.safetensors"
    arrays = {n.replace(".weight", ".default.weight"): a for n, a in load_file(file).items()}
    save_file(arrays, file, {"format": "pt"})
    base = PUBLISHED["Llama"].write(tmp_path / "model")
    assert {r: check(lora, base, loader=r).loads for r in ("peft", "vllm", "llama.cpp")} == {
        "peft": True,
        "vllm": False,
        "llama.cpp": False,
    }
    assert not check(lora, base, loader="peft").acts
    _, out = exported(tmp_path, lora, "Llama", "vllm")
    assert list(deltas(out)) == [TEXT + Q]


def test_flux_in_its_original_release(tmp_path: Path):
    """ComfyUI knows the modules of the release by their names in diffusers, too."""
    base = tmp_path / "flux.safetensors"
    names = {"double_blocks.0.img_attn.qkv": (3 * D, D), "double_blocks.0.img_attn.proj": (D, D)}
    save_file({f"{name}.weight": np.zeros(s, np.float16) for name, s in names.items()}, base)
    stems = {f"{P}transformer_blocks.0.attn.{x}": (D, D) for x in ("to_q", "to_out.0")}
    out = tmp_path / "out.safetensors"
    report = export_for(adapter(tmp_path / "lora", stems), out, loader="comfyui", base=base)
    assert report.check.acts
    assert report.scheme == "diffusers"


def test_an_index_is_enough_for_experts_and_strange_ones_are_left_out(tmp_path: Path):
    lora = experts(tmp_path / "lora", "gpt-oss", "each")
    stray = f"{P}{CONTAINERS['gpt-oss'].format(1)}.{E}.up_proj"
    arrays = load_file(lora / "adapter_model.safetensors")
    arrays |= {f"{stray}.lora_{x}.weight": np.ones(s) for x, s in (("A", (2, D)), ("B", (X, 2)))}
    save_file(arrays, lora / "adapter_model.safetensors")
    base = PUBLISHED["gpt-oss"].write(tmp_path / "model")
    (base / "model.safetensors").unlink()
    listed = {"weight_map": dict.fromkeys(PUBLISHED["gpt-oss"].shapes, "model.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(listed))
    report = export_for(lora, tmp_path / "out", loader="vllm", base=base)
    assert report.check.acts
    assert [row.reason for row in report.left_out] == [f"the model has {E} experts there"]
    after = of_experts(tmp_path / "out", "gpt-oss")
    before = of_experts(lora, "gpt-oss")
    assert all(np.allclose(after[site], before[site], atol=1e-5) for site in after)
