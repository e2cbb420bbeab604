import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tdecomp.errors import DataError, SiteError
from tdecomp.files import checkpoint as ck

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def models(tmp_path):
    """Return a function that saves two models and pairs them."""

    def save(side, tensors, config=None):
        (tmp_path / side).mkdir(exist_ok=True)
        save_file(tensors, tmp_path / side / "model.safetensors")
        if config is not None:
            (tmp_path / side / "config.json").write_text(json.dumps(config))
        return ck.open_checkpoint(tmp_path / side)

    def models(base, tuned, base_config=None, tuned_config=None):
        return ck.pair(save("base", base, base_config), save("tuned", tuned, tuned_config))

    return models


def layers(count=3, prefix="", seed=0, shape=(3, 5)):
    return {f"{prefix}layers.{i}.weight": random(*shape, seed=seed + i) for i in range(count)}


def test_equal_names(models):
    base, tuned = layers(), layers(seed=10)
    found = models(base, tuned)
    assert found.common == tuple(base)
    assert (
        found.only_base == found.only_tuned == found.reshaped == found.tied == found.ignored == ()
    )
    for name in base:
        assert (found.tuned_names(name), found.base_name(name)) == ((name,), name)
        np.testing.assert_array_equal(found.delta(name), (tuned[name] - base[name]).numpy())


@pytest.mark.parametrize("tuned_dtype", DTYPES)
@pytest.mark.parametrize("base_dtype", DTYPES)
def test_the_delta_is_subtracted_after_widening(models, base_dtype, tuned_dtype):
    base, tuned = random(4, 3, dtype=base_dtype), random(4, 3, dtype=tuned_dtype, seed=1)
    found = models({"x": base}, {"x": tuned})
    wide = torch.float64 if torch.float64 in (base_dtype, tuned_dtype) else torch.float32
    expected = (tuned.to(wide) - base.to(wide)).numpy()
    assert found.delta("x").dtype == expected.dtype
    np.testing.assert_array_equal(found.delta("x"), expected)
    for index in [(slice(1, 3),), (2,), (slice(None), slice(0, 3, 2)), (1, 1)]:
        np.testing.assert_array_equal(found.delta("x", index), expected[index])


def test_sharding_may_differ(models, tmp_path):
    base, tuned = layers(), layers(seed=10)
    found = models(base, tuned)
    (tmp_path / "tuned" / "model.safetensors").unlink()
    for i, (name, tensor) in enumerate(tuned.items(), 1):
        shard = f"model-{i:05d}-of-{len(tuned):05d}.safetensors"
        save_file({name: tensor}, tmp_path / "tuned" / shard)
    again = ck.pair(found.base, ck.open_checkpoint(tmp_path / "tuned"))
    assert again.common == found.common
    for name in base:
        np.testing.assert_array_equal(again.delta(name), (tuned[name] - base[name]).numpy())


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_prefix_on_one_side(models, side):
    short, long = layers(4), layers(4, prefix="bert.", seed=10)
    short["pooler.bias"], long["classifier.weight"] = random(2), random(2, 3)
    base, tuned = (short, long) if side == "tuned" else (long, short)
    found = models(base, tuned)
    assert found.common == tuple(name for name in base if "layers" in name)
    lone = (("pooler.bias",), ("classifier.weight",))
    assert (found.only_base, found.only_tuned) == (lone if side == "tuned" else lone[::-1])
    for name in found.common:
        expected = tuned[found.tuned_names(name)[0]] - base[name]
        np.testing.assert_array_equal(found.delta(name), expected.numpy())


def test_a_prefix_does_not_hide_equal_names(models):
    base = layers(4) | {"lm_head.weight": random(7, 5)}
    tuned = layers(4, prefix="model.text.") | {"lm_head.weight": random(7, 5)}
    found = models(base, tuned)
    assert found.common == tuple(base)
    assert found.tuned_names("lm_head.weight") == ("lm_head.weight",)


def test_two_tensors_never_take_one_partner(models):
    base = layers(4)
    tuned = layers(4, prefix="m.") | {"layers.0.weight": random(3, 5, seed=5)}
    found = models(base, tuned)
    assert found.tuned_names("layers.0.weight") == ("m.layers.0.weight",)
    assert found.only_tuned == ("layers.0.weight",)


def test_equal_names_are_kept_when_a_prefix_matches_no_better(models):
    found = models(layers(6), layers(2) | {"x.layers.5.weight": random(3, 5)})
    assert found.common == ("layers.0.weight", "layers.1.weight")


def test_what_is_not_paired_is_listed(models):
    base = layers() | {"gone": random(2), "embed": random(7, 4), "ids": torch.arange(3)}
    tuned = layers() | {"new": random(2), "embed": random(9, 4), "ids": torch.arange(3)}
    base |= {"packed": random(2, 3), "lone_ids": torch.arange(2)}
    tuned |= {"packed": torch.zeros(2, 3, dtype=torch.int8)}
    found = models(base, tuned)
    assert found.common == tuple(layers())
    assert (found.only_base, found.only_tuned) == (("gone",), ("new",))
    assert found.reshaped == (("embed", (7, 4), (9, 4)),)
    assert set(found.ignored) == {"ids", "packed", "lone_ids"}
    for name in ("gone", "new", "embed", "ids", "nonsense"):
        with pytest.raises(SiteError, match=f"'{name}' is not paired"):
            found.delta(name)


TIED = [
    ("lm_head.weight", "model.embed_tokens.weight"),
    ("lm_head.weight", "transformer.wte.weight"),
    ("output.weight", "tok_embeddings.weight"),
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ("lm_head.weight", "shared.weight"),
]


@pytest.mark.parametrize(("head", "source"), TIED)
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_tied_head_is_paired_with_the_embedding(models, head, source, side):
    base = layers() | {source: random(7, 4)}
    tuned = layers(seed=10) | {source: random(7, 4, seed=1)}
    full = base if side == "base" else tuned
    full[head] = random(7, 4, seed=2)
    found = models(base, tuned)
    assert found.tied == ((head, source),)
    assert head not in found.common
    assert source in found.common
    assert found.only_base == found.only_tuned == ()
    old, new = (base[head], tuned[source]) if side == "base" else (base[source], tuned[head])
    np.testing.assert_array_equal(found.delta(head), (new - old).numpy())
    names = (found.base_name(head), *found.tuned_names(head))
    assert names == ((head, source) if side == "base" else (source, head))


@pytest.mark.parametrize(
    ("embedding", "head", "extra"),
    [
        ("model.embed_tokens.weight", (9, 4), {}),  # the vocabulary was resized
        ("position_embeddings.weight", (7, 4), {}),  # not what heads are tied to
        ("embed_tokens.weight", (7, 4), {"old.lm_head.weight": random(7, 4)}),  # has its own
    ],
)
def test_heads_that_are_not_tied(models, embedding, head, extra):
    base = layers() | {embedding: random(7, 4)}
    found = models(base | extra, base | {"lm_head.weight": random(*head)})
    assert found.tied == ()
    assert found.only_tuned == ("lm_head.weight",)


def test_nothing_in_common(models, tmp_path):
    with pytest.raises(SiteError) as caught:
        models(layers(), {"h.0.w": random(2)}, {"model_type": "bert"}, {"model_type": "gpt2"})
    for text in ("base (bert)", "tuned (gpt2)", "no tensor in common", "different architectures?"):
        assert text in str(caught.value)
    with pytest.raises(SiteError, match="3 names agree, but no shape does"):
        models(layers(), layers(shape=(5, 3)))
    with pytest.raises(SiteError, match="no tensor in common"):
        models(layers(), {"ids": torch.arange(3)})
    with pytest.raises(SiteError, match="no tensor in common"):
        models({}, {})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_name_the_tensor_and_the_file(models, value, side, dtype):
    tensors = {s: layers() | {"x.weight": random(3, 4, dtype=dtype)} for s in ("base", "tuned")}
    tensors[side]["x.weight"][1, 2] = value
    found = models(tensors["base"], tensors["tuned"])
    with pytest.raises(DataError, match=rf"'x.weight' in .*{side}.model.safetensors has 1 NaN or"):
        found.delta("x.weight")
    assert np.isfinite(found.delta("x.weight", (slice(0, 1),))).all()


def test_the_same_inf_in_both_is_found(models):
    tensor = torch.full((2, 3), torch.inf)
    with pytest.raises(DataError, match=r"in .*base.model.safetensors has 6 NaN"):
        models({"x": tensor}, {"x": tensor}).delta("x")


def test_large_values_are_not_an_error_unless_the_difference_overflows(models):
    big = torch.full((3, 2), 3e38)
    np.testing.assert_array_equal(models({"x": 0 * big}, {"x": big}).delta("x"), big.numpy())
    with pytest.raises(DataError, match="tuned minus base is too large"):
        models({"x": -big}, {"x": big}).delta("x")


# ------------------------------------------------------------------------------------- rounding


def ulp(value, dtype):
    """Distance to the next larger magnitude, by stepping one code."""
    bits = value.abs().view(torch.int16)
    return ((bits + 1).view(dtype).double() - value.abs().double()).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_counts_one_ulp_per_changed_entry(models, dtype):
    values = [0.0, -0.0, 1.0, -1.99, 2.0, 3e-5, -6e-8, 1e-40, 6e-5, 1e4, -0.3, 0.7]
    tuned = torch.tensor(values).to(dtype).reshape(3, 4)
    base = tuned.float() + 1
    base[0, 2], base[2, 3] = tuned[0, 2], tuned[2, 3]  # two entries did not move
    found = models({"x": base}, {"x": tuned})
    expected = sum(
        ulp(entry, dtype) ** 2 / 12
        for entry, old in zip(tuned.flatten(), base.flatten(), strict=True)
        if entry.float() != old
    )
    assert found.rounding("x") == pytest.approx(expected, rel=1e-12)
    parts = [found.rounding("x", (row,)) for row in range(3)]
    assert sum(parts) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_the_error_that_storing_made(models, dtype):
    exact, base = random(200, 300, seed=1), torch.zeros(200, 300)
    found = models({"x": base}, {"x": exact.to(dtype)})
    made = (exact.to(dtype).double() - exact.double()).square().sum().item()
    assert found.rounding("x") == pytest.approx(made, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_dtypes_have_no_rounding(models, dtype):
    assert models({"x": random(3, 4)}, {"x": random(3, 4, seed=1, dtype=dtype)}).rounding("x") == 0


def test_rounding_leaves_infinities_to_delta(models):
    tensor = torch.tensor([1.0, torch.inf, 2.0], dtype=torch.bfloat16)
    assert not np.isfinite(models({"x": tensor + 1}, {"x": tensor}).rounding("x"))
