"""Files that are written load in diffusers, with the ΔW that was written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdecomp import jobs
from tdecomp.collections import AdapterPair
from tdecomp.files.loras import SCHEMES, AdapterFile, read_adapter, write_adapter
from tdecomp.files.loras.adapter_file import HeldPair

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]
BY_NAME = {scheme.name: scheme for scheme in SCHEMES}


def flux() -> Any:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=2,
    )


def load_flux(model: Any, file: Path) -> None:
    from diffusers.loaders import FluxLoraLoaderMixin

    found, alphas = FluxLoraLoaderMixin.lora_state_dict(
        str(file.parent), weight_name=file.name, return_alphas=True
    )
    FluxLoraLoaderMixin.load_lora_into_transformer(found, network_alphas=alphas, transformer=model)


def load_unet(model: Any, file: Path) -> None:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    found, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(
        str(file.parent), weight_name=file.name, unet_config=model.config
    )
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(found, network_alphas=alphas, unet=model)


FLUX = (
    *("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_out.0"),
    *("transformer_blocks.0.ff.net.0.proj", "single_transformer_blocks.0.proj_out"),
    *("single_transformer_blocks.0.attn.to_k", "x_embedder"),
)
_INSIDE = "attentions.0.transformer_blocks.0"
UNET = (
    *("down_blocks.1.attentions.0.proj_in", f"down_blocks.1.{_INSIDE}.attn1.to_q"),
    *(f"down_blocks.1.{_INSIDE}.attn2.to_out.0", "down_blocks.1.resnets.0.conv1"),
    f"mid_block.{_INSIDE}.ff.net.2",
)
MODELS = {"transformer": (flux, FLUX, load_flux), "unet": (unet, UNET, load_unet)}


def written(model: Any, sites: tuple[str, ...], network: str, scheme: str, folder: Path) -> Path:
    """A LoRA of mixed ranks and scales."""
    rng, stored = np.random.default_rng(0), {}
    for k, site in enumerate(sites):
        weight = model.get_submodule(site).weight
        out, in_, rank = weight.shape[0], weight[0].numel(), 3 + k % 2
        b, a = rng.standard_normal((out, rank)), rng.standard_normal((rank, in_))
        kernel = tuple(weight.shape[2:])
        stored[f"{network}.{site}"] = HeldPair(AdapterPair(b=b, a=a, scale=0.5, kernel=kernel))
    file = folder / "big.safetensors"
    adapter = AdapterFile(path=file, name="big", scheme=None, stored=stored)
    write_adapter(file, adapter, scheme=BY_NAME[scheme])
    return file


def departures(model: Any, network: str, load: Any, file: Path) -> dict[str, float]:
    """How far what diffusers adds is from ΔW as it is read here, by site."""
    loaded = copy.deepcopy(model)
    load(loaded, file)
    loaded.fuse_lora()
    pairs, found = read_adapter(file).pairs, {}
    known = {site.replace(".", "_"): site for site in MODELS[network][1]}
    for name, pair in pairs.items():
        site = known[name.removeprefix(f"{network}.").replace(".", "_")]
        module = loaded.get_submodule(site)
        change = getattr(module, "base_layer", module).weight - model.get_submodule(site).weight
        delta = np.asarray(pair.dense())
        found[site] = float(
            np.linalg.norm(change.detach().numpy().reshape(delta.shape) - delta)
            / np.linalg.norm(delta)
        )
    return found


@pytest.mark.parametrize(
    ("network", "scheme", "options"),
    [
        ("transformer", "diffusers", {"error": 0.2}),
        ("unet", "diffusers", {"error": 0.2}),
        ("unet", "kohya", {"rank": 2}),
    ],
    ids=["flux", "unet", "unet in kohya's names"],
)
def test_a_resized_file_adds_in_diffusers_what_it_says(network, scheme, options, tmp_path):
    make, sites, load = MODELS[network]
    model = make()
    file = written(model, sites, network, scheme, tmp_path)
    jobs.resize(file, tmp_path / "small.safetensors", **options)
    found = departures(model, network, load, tmp_path / "small.safetensors")
    assert set(found) == set(sites)
    assert max(found.values()) < 1e-5  # float32


def test_mixed_ranks_in_kohyas_names_are_what_diffusers_misreads_in_attentions(tmp_path):
    """Stated in the guide: it looks for the alphas of these modules under a name they lack."""
    model = unet()
    file = written(model, UNET, "unet", "kohya", tmp_path)
    found = departures(model, "unet", load_unet, file)
    wrong = [site for site, departure in found.items() if departure > 1e-5]
    assert wrong == [f"down_blocks.1.{_INSIDE}.attn1.to_q"]
