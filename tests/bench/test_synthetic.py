from __future__ import annotations

import numpy as np
import pytest

from tdecomp.errors import FileError
from tdecomp.files.checkpoint import open_checkpoint, pair
from tdecomp.files.delta import open_delta
from tests.bench.synthetic import DELTA, PRESETS, SHARES, Llama, Planted, write_pair

TINY = PRESETS["tiny"]
ROUNDING = 0.02 * 2**-8  # of a base weight of typical size, as bfloat16
NAMES = [
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.2.mlp.gate_proj.weight",
    "model.layers.2.mlp.down_proj.weight",
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_pair("tiny", tmp_path_factory.mktemp("pair") / "tiny")


def test_both_models_open_and_every_projection_is_a_site(written):
    delta = open_delta(written["base"], written["tuned"])
    sites = {site.tensor for group in delta.groups for site in group.sites}
    assert sites == {n for n in TINY.shapes if n.endswith("_proj.weight")}
    for path in written.values():
        checkpoint = open_checkpoint(path)
        assert {n: checkpoint.shape(n) for n in checkpoint.names} == TINY.shapes
        assert {checkpoint.dtype(n) for n in checkpoint.names} == {"BF16"}
        assert sum(file.stat().st_size for file in checkpoint.files) < 5_000_000


@pytest.mark.parametrize("name", NAMES)
def test_the_delta_on_disk_is_the_planted_one(written, name):
    found = pair(*map(open_checkpoint, written.values())).delta(name)
    assert np.abs(found - Planted(TINY).delta(name)).max() < 5 * ROUNDING
    assert found.std() == pytest.approx(DELTA, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_the_spectrum_is_the_planted_one_and_noise(name):
    """Weyl: no singular value moves by more than the norm of what is added."""
    planted = Planted(TINY)
    shape, energy = TINY.shapes[name], DELTA**2 * np.prod(TINY.shapes[name])
    s = np.linalg.svd(planted.delta(name), compute_uv=False)
    signal = np.linalg.svd(planted.core(name), compute_uv=False) * np.sqrt(energy)
    noise = np.sqrt(SHARES["noise"]) * DELTA * (np.sqrt(shape[0]) + np.sqrt(shape[1]))
    width = min(len(s), len(signal))
    assert np.abs(s[:width] - signal[:width]).max() < 1.2 * noise
    assert s[width:].max(initial=0) < 1.2 * noise
    assert (signal**2).sum() / energy == pytest.approx(SHARES["shared"] + SHARES["own"])


def test_layers_of_a_group_share_bases_and_nothing_else():
    planted, r = Planted(TINY), TINY.rank
    k, v, q = (
        planted.bases(f"model.layers.{layer}.self_attn.{proj}_proj.weight")
        for layer, proj in [(0, "k"), (2, "v"), (0, "q")]
    )
    for one, other in zip(k, v, strict=True):
        np.testing.assert_array_equal(one[:, :r], other[:, :r])
        assert np.abs(one[:, r:].T @ other[:, r:]).max() < 0.9
        np.testing.assert_allclose(one.T @ one, np.eye(2 * r), atol=1e-5)
    assert np.abs(k[1][:, :r].T @ q[1][:, :r]).max() < 0.9


def test_what_is_not_a_projection_does_not_change(written):
    both = pair(*map(open_checkpoint, written.values()))
    for name in TINY.shapes:
        assert name.endswith("_proj.weight") or not both.delta(name).any()


def test_an_existing_folder_is_refused(written):
    folder = written["base"].parent
    with pytest.raises(FileError, match="already exists"):
        write_pair("tiny", folder)
    write_pair("tiny", folder, overwrite=True)


def test_windows_longer_than_the_pool_go_around_it():
    planted = Planted(Llama(8, 1, heads=2, kv_heads=1, mlp=16, vocabulary=64, rank=2))
    pool = np.arange(5, dtype=np.float32)
    window = planted._window(pool, "any", (3, 4))
    steps = np.diff(window.reshape(-1)) % 5
    assert (steps == 1).all()
