"""Weights stored fused in one model and one by one in the other: read as slices, or refused."""

from __future__ import annotations

import numpy as np
import pytest

from tdecomp.errors import DataError
from tdecomp.files import checkpoint as ck
from tests.pairs import write_folder

EXPERTS, HIDDEN = 3, 6
AT = "model.layers.0.mlp.experts"


def draw(seed, ffn):
    rng = np.random.default_rng(seed)
    make = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    gate, up = (make(EXPERTS, ffn, HIDDEN) for _ in "gu")
    return {"gate": gate, "up": up, "down": make(EXPERTS, HIDDEN, ffn)}


def single(w, at=AT, names=("gate_proj", "up_proj", "down_proj")):
    return {
        f"{at}.{e}.{name}.weight": w[kind][e].copy()
        for e in range(EXPERTS)
        for name, kind in zip(names, w, strict=True)
    }


def fused(w, at=AT, turned=False, names=("gate_up_proj", "down_proj")):
    arrays = np.concatenate([w["gate"], w["up"]], axis=1), w["down"]
    return {
        f"{at}.{name}": np.ascontiguousarray(a.transpose(0, 2, 1) if turned else a)
        for name, a in zip(names, arrays, strict=True)
    }


def mixtral(w):
    return single(w, "model.layers.0.block_sparse_moe.experts", ("w1", "w3", "w2"))


def granite(w):
    names = ("input_linear.weight", "output_linear.weight")
    return fused(w, "model.layers.0.block_sparse_moe", names=names)


LAYOUTS = {
    "one by one": single,
    "w1 w3 w2": mixtral,
    "fused": fused,
    "fused, turned": lambda w: fused(w, turned=True),
    "fused, as linear layers": granite,
    "in a tower": lambda w: fused(w, "model.language_model.layers.0.mlp.experts"),
    "one by one, compiled": lambda w: single(w, f"_orig_mod.{AT}"),
}
# Of the feed-forward sizes 3 makes gate_up square and 6 makes down square.
FFN = (HIDDEN // 2, HIDDEN)


@pytest.fixture
def paired(tmp_path):
    def paired(base, tuned, config=None):
        more = {"model.layers.0.norm.weight": np.ones(HIDDEN, np.float32)}
        more["model.layers.1.norm.weight"] = np.ones(HIDDEN, np.float32)
        tower = any("language_model" in name for name in tuned)
        renamed = {n.replace("model.", "model.language_model."): a for n, a in more.items()}
        folders = (
            write_folder(tmp_path / "base", base | more, config=config),
            write_folder(tmp_path / "tuned", tuned | (renamed if tower else more)),
        )
        return ck.pair(*map(ck.open_checkpoint, folders))

    return paired


@pytest.mark.parametrize("ffn", FFN)
@pytest.mark.parametrize("tuned", LAYOUTS)
@pytest.mark.parametrize("base", [name for name in LAYOUTS if name != "in a tower"])
def test_experts_in_any_two_layouts(base, tuned, ffn, paired):
    """The delta is that of one layout, in the layout of the base, whole and by slices."""
    old, new = draw(1, ffn), draw(2, ffn)
    found = paired(LAYOUTS[base](old), LAYOUTS[tuned](new))
    assert found.only_base == found.only_tuned == found.reshaped == ()
    change = LAYOUTS[base]({kind: new[kind] - old[kind] for kind in old})
    for name, expected in change.items():
        np.testing.assert_array_equal(found.delta(name), expected)
        for index in ((1,), (slice(1, 3),), (2, slice(1, 4)), (slice(0, 2), slice(2, None))):
            part = found.delta(name, index)
            np.testing.assert_array_equal(part, expected[index])
            assert found.energy(name, index) == pytest.approx(np.sum(part**2.0), rel=1e-5)
        assert found.delta_and_rounding(name)[1] == found.rounding(name) == 0


MATRICES = {
    "self_attn.qkv_proj": (("q_proj", 6), ("k_proj", 2), ("v_proj", 2)),
    "mlp.gate_up_proj": (("gate_proj", 5), ("up_proj", 5)),
}


@pytest.mark.parametrize("kind", [".weight", ".bias"])
@pytest.mark.parametrize("which", MATRICES)
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_fused_matrices_and_biases(side, which, kind, paired):
    rng = np.random.default_rng(0)
    parent, name = which.split(".")
    at, parts = f"model.layers.0.{parent}", MATRICES[which]
    shape = lambda rows: (rows, HIDDEN) if kind == ".weight" else (rows,)
    alone = {f"{at}.{p}{kind}": rng.standard_normal(shape(n)).astype("f4") for p, n in parts}
    whole = {f"{at}.{name}{kind}": np.concatenate(list(alone.values()))}
    zero = lambda arrays: {n: 0 * a for n, a in arrays.items()}
    if side == "base":
        found, expected = paired(zero(whole), alone), whole
    else:
        found, expected = paired(zero(alone), whole), alone
    assert found.only_base == found.only_tuned == ()
    for n, array in expected.items():
        np.testing.assert_array_equal(found.delta(n), array)
        np.testing.assert_array_equal(found.delta(n, (slice(1, 2),)), array[1:2])


def square():
    """Gate and up alone, whose fused tensor is square."""
    w = draw(3, HIDDEN // 2)
    gate_up = lambda arrays: {n: a for n, a in arrays.items() if "down" not in n}
    return gate_up(single(w)), gate_up(fused(w))


def interleaved():
    """GPT-OSS: the rows of gate and up alternate, and there are biases."""
    w = draw(3, 4)
    bias = {f"{AT}.gate_up_proj_bias": np.zeros((EXPERTS, 8), np.float32)}
    return single(w), fused(w, turned=True) | bias


def more_experts():
    w = draw(3, 4)
    few = {n: a for n, a in single(w).items() if f"{AT}.2." not in n}
    return few, fused(w)


def unequal():
    """Experts of several sizes have no fused form."""
    w = draw(3, 4)
    alone = single(w)
    name = f"{AT}.1.down_proj.weight"
    return alone | {name: alone[name][:, :3].copy()}, fused(w)


REFUSED = {
    "square": (square, "either way round"),
    "interleaved": (interleaved, "alternate"),
    "more experts": (more_experts, ""),
    "unequal": (unequal, "do not fit"),
}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_known_is_not_paired(kind, swap, paired):
    make, why = REFUSED[kind]
    base, tuned = make()[::-1] if swap else make()
    found = paired(base, tuned)
    assert set(found.only_base) == set(base)
    assert set(found.only_tuned) >= {name for name in tuned if "bias" not in name}
    assert any(why in doubt for doubt in found.doubts.values()) or not why


def test_values_that_are_not_finite_are_named_in_the_file_that_has_them(paired):
    new = fused(draw(2, 4))
    new[f"{AT}.gate_up_proj"][1, 5, 2] = np.nan
    found = paired(single(draw(1, 4)), new)
    with pytest.raises(DataError) as caught:
        found.delta(f"{AT}.1.up_proj.weight")
    assert f"'{AT}.gate_up_proj' in " in str(caught.value)
    assert f"exclude={f'{AT}.1.up_proj'!r}" in str(caught.value)
    assert found.known_energy(f"{AT}.1.up_proj.weight") is None
    assert np.isfinite(found.delta(f"{AT}.1.gate_proj.weight")).all()
