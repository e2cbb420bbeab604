"""Small adapters on disk, of mixed ranks, scales, dtypes and naming schemes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tdecomp.collections import AdapterPair
from tdecomp.files import safetensors
from tdecomp.files.loras import SCHEMES, AdapterFile, write_adapter
from tdecomp.files.loras.adapter_file import HeldPair
from tests.cli import models

SITES = {
    f"model.layers.{layer}.{name}": models.SHAPES[name]
    for layer in range(2)
    for name in ("self_attn.q_proj", "mlp.down_proj")
}
"""Sites of the models of `tests.cli.models`."""


def adapter(
    place: Path,
    seed: int,
    *,
    rank: int = 2,
    scale: float = 1.0,
    dtype: str = "F32",
    sites: dict[str, tuple[int, int]] = SITES,
    base: str = "base",
    scheme: str = "peft",
) -> Path:
    """Write one; the last site has one rank more."""
    rng, pairs = np.random.default_rng(seed), {}
    for number, (site, (out, in_)) in enumerate(sites.items()):
        r = rank + (number == len(sites) - 1)
        pairs[site] = rng.standard_normal((out, r)), rng.standard_normal((r, in_))
    return write(place, pairs, scale=scale, dtype=dtype, base=base, scheme=scheme)


def related(
    place: Path,
    seed: int,
    *,
    directions: int = 3,
    rank: int = 2,
    sites: dict[str, tuple[int, int]] = SITES,
) -> Path:
    """Write one of a collection that lives in few common directions, but for a little noise."""
    common, own = np.random.default_rng(0), np.random.default_rng(seed)
    pairs = {}
    for site, (out, in_) in sites.items():
        left = common.standard_normal((out, directions))
        right = common.standard_normal((directions, in_))
        noise = 0.02 * own.standard_normal((out, rank))
        b = left @ own.standard_normal((directions, rank)) + noise
        pairs[site] = b, own.standard_normal((rank, directions)) @ right
    return write(place, pairs)


def write(
    place: Path,
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    scale: float = 1.0,
    dtype: str = "F32",
    base: str = "base",
    scheme: str = "peft",
) -> Path:
    """Write pairs in a naming scheme."""
    stored = {}
    for site, parts in pairs.items():
        b, a = (safetensors.rounded(x.astype(np.float32), dtype) for x in parts)
        stored[site] = HeldPair(AdapterPair(b=b, a=a, scale=scale), dtype)
    row = next(row for row in SCHEMES if row.name == scheme)
    made = AdapterFile(path=place, name=place.stem, scheme=None, stored=stored, base=base)
    if row.in_folder:
        place.mkdir()
    write_adapter(place, made, scheme=row)
    return place
