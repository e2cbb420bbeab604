"""Starts from data: published rules against closed forms, ours against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tdecomp import ArgumentError, SiteError
from tdecomp.adapters import CATALOGUE, method
from tdecomp.starts import RULES
from tdecomp.starts.metric import damped
from tdecomp_torch import activations, attach, capture, captured, gradients, load_adapter
from tests.torch.cases import HIDDEN, assert_close, inputs, set_random, tiny
from tests.torch.test_capture import BATCHES, gradients_of, loss

QKV = ["q_proj", "k_proj", "v_proj"]
WIDTHS = (("lora", False), ("lora", True), ("lotr", False))
ANY_ROW = (
    ("lora", 2),
    ("lotr", 2),
    ("tenslora_qkv_depth", 2),
    ("tenslora_att_qkv_depth_cp", 2),
    ("lorta", 2),
    ("tt_lora", 2),
    ("fact_tt", 2),
    ("metatt", 2),
)


def started(row: str, start: object, **options: object) -> tuple[nn.Module, object]:
    model = tiny()
    return model, attach(model, row, **{"rank": 2, "tokens": 64, "start": start, **options})


def mean_gradients(model: nn.Module) -> dict[str, np.ndarray]:
    """Over all batches, by module path, (out, in)."""
    each = gradients_of(model, BATCHES)
    return {path: torch.stack([g[path] for g in each]).mean(0).numpy() for path in each[0]}


def total(model: nn.Module) -> float:
    with torch.no_grad():
        return float(sum(loss(model, x) for x in BATCHES)) / len(BATCHES)


# -- what every rule promises ---------------------


@pytest.mark.parametrize("rule", ["zero", "offset"])
@pytest.mark.parametrize(("row", "rank"), ANY_ROW)
def test_nothing_changes_at_the_start(row, rank, rule):
    before = tiny()(inputs(2, 5, HIDDEN))
    model, adapter = started(row, gradients(BATCHES, loss, rule=rule), rank=rank)
    assert_close(model(inputs(2, 5, HIDDEN)), before)
    model(inputs(2, 5, HIDDEN)).square().mean().backward()
    assert any(f.grad.abs().max() > 0 for f in adapter.factors().values())


@pytest.mark.parametrize(("row", "rank"), ANY_ROW)
def test_a_step_is_minus_the_fitted_gradient(row, rank):
    """Its size is the one asked for, and the loss falls by ``η ⟨G, Ĝ⟩`` to first order."""
    plain, size = tiny(), 1e-6
    g = mean_gradients(plain)
    model, adapter = started(row, gradients(BATCHES, loss, rule="step", size=size), rank=rank)
    energies = {}
    for grid in adapter.grids:
        deltas = [adapter.delta(site.path).detach().numpy() for site in grid.sites]
        energies[grid.grid.name] = np.mean(np.square(deltas))
    assert np.sqrt(list(energies.values())) == pytest.approx(size, rel=1e-3)
    first_order = sum(
        float(np.sum(g[site.path] * adapter.delta(site.path).detach().numpy()))
        for grid in adapter.grids
        for site in grid.sites
    )
    assert first_order < 0
    assert total(model) - total(plain) == pytest.approx(first_order, rel=1e-2)


@pytest.mark.parametrize("row", ["lora", "lotr"])
def test_a_step_of_full_rank_is_the_gradient_itself(row):
    g = mean_gradients(tiny())
    _, adapter = started(row, gradients(BATCHES, loss, rule="step"), rank=12)
    for grid in adapter.grids:
        paths = [site.path for site in grid.sites]
        whole = np.stack([g[path] for path in paths])
        delta = np.stack([adapter.delta(path).detach().double().numpy() for path in paths])
        expected = -whole * (1e-3 / np.sqrt(np.mean(whole**2)))
        assert np.allclose(delta, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_step_in_the_metric_of_the_inputs_is_the_one_whose_outputs_are_nearest():
    """``G A^½`` truncated, times ``A^-½``; the batches are looked at once for both."""
    start = gradients(BATCHES, loss, rule="step", metric="inputs", passes=6)
    _, adapter = started("lora", start)
    g, seen = mean_gradients(tiny()), capture(tiny(), BATCHES, inputs="whole")
    for grid in adapter.grids:
        best = {}
        for site in grid.sites:
            root = np.linalg.cholesky(damped(seen.inputs_of(site.path).second_moment()))
            u, s, vh = np.linalg.svd(g[site.path] @ root, full_matrices=False)
            best[site.path] = (u[:, :2] * s[:2]) @ vh[:2] @ np.linalg.inv(root)
        eta = 1e-3 / np.sqrt(np.mean(np.square([*best.values()])))
        for path, own in best.items():
            delta = adapter.delta(path).detach().double().numpy()
            assert np.allclose(delta, -eta * own, rtol=0, atol=1e-3 * eta * np.abs(own).max())


@pytest.mark.parametrize("row", ["lora", "lotr", "tenslora_qkv_depth"])
def test_nothing_changes_at_the_start_in_the_metric_of_the_inputs(row):
    before = tiny()(BATCHES[0])
    for rule in ("zero", "offset"):
        model, _ = started(row, gradients(BATCHES, loss, rule=rule, metric="inputs"))
        assert_close(model(BATCHES[0]).float(), before.float())


def test_bases_are_those_of_the_stack_and_as_long_as_the_methods_own():
    own = attach(tiny(), "lotr", rank=2, targets=QKV)
    model, adapter = started("lotr", gradients(BATCHES, loss), targets=QKV)
    g = mean_gradients(tiny())
    stack = np.stack([g[site.path] for site in adapter.grids[0].sites])
    stack /= np.linalg.norm(stack, axis=(1, 2), keepdims=True)
    left, right = (
        next(f for key, f in adapter.factors().items() if key.endswith(name)).detach().numpy()
        for name in ("left", "right")
    )
    ql, qr = np.linalg.qr(left)[0], np.linalg.qr(right.T)[0]
    held = np.linalg.norm(ql.T @ stack @ qr) ** 2
    best = held
    for _ in range(100):  # by turns, from where it stands
        u, *_ = np.linalg.svd(np.hstack(list(stack @ qr)))
        ql = u[:, :2]
        u, *_ = np.linalg.svd(np.hstack([s.T @ ql for s in stack]))
        qr = u[:, :2]
        best = np.linalg.norm(ql.T @ stack @ qr) ** 2
    assert held >= (1 - 1e-3) * best
    for (key, started_at), at in zip(
        adapter.factors().items(), own.factors().values(), strict=True
    ):
        both = float(started_at.detach().norm()), float(at.detach().norm())
        assert both[0] == pytest.approx(both[1], rel=1e-4), key


def test_pairs_are_sketched_for_their_own_rank_and_hold_the_energy_of_the_best():
    seen = [RULES["step"].rank_seen(method(row), 3, metric=metric) for row, metric in WIDTHS]
    assert seen == [3, 6, 6]
    assert RULES["lora_ga"].rank_seen(method("lora"), 3, metric=False) == 6
    u, v = (torch.linalg.qr(inputs(n, 50, seed=n))[0] for n in (60, 50))
    s = 0.8 ** torch.arange(50)
    gradient = (u * s) @ v.T  # (in, out)
    linear = lambda model, batch: (model[0](torch.eye(60).double()) * gradient).sum() * batch
    model = nn.Sequential(nn.Linear(60, 50, bias=False)).double()
    start = gradients([torch.tensor(1.0).double()], linear, rule="step", size=1.0)
    adapter = attach(model, "lora", targets=["0"], rank=8, start=start)
    change = adapter.delta("0").detach().double()
    kept = -float((change * gradient.T).sum() / change.norm())
    assert kept**2 >= (1 - 1e-3) * float((s[:8] ** 2).sum())


def test_a_factor_that_groups_share_is_one_and_the_others_follow():
    model, adapter = started("lorta", gradients(BATCHES, loss, rule="step"))
    assert len(adapter.grids) == 2
    keys = list(adapter.factors())
    assert sum(key.startswith("all__") for key in keys) == 4
    g = mean_gradients(tiny())
    for grid in adapter.grids:
        paths = [site.path for site in grid.sites]
        assert sum(np.sum(g[p] * adapter.delta(p).detach().numpy()) for p in paths) < 0


# -- published rules against their formulas ---------------------


def pairs_of(adapter) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """B and A of every weight of a LoRA."""
    found = {}
    for m, grid in enumerate(adapter.grids):
        factors = adapter.pool.factors(m)
        for k, site in enumerate(grid.sites):
            b, a = (factors[n][k].detach().double().numpy() for n in ("b", "a"))
            found[site.path] = b, a
    return found


def same_up_to_signs(a: np.ndarray, b: np.ndarray) -> None:
    """Columns equal up to their signs."""
    signs = np.sign(np.sum(a * b, axis=0))
    assert np.allclose(a, b * signs, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_lora_ga():
    start = gradients(BATCHES, loss, rule="lora_ga", gamma=9.0)
    _, adapter = started("lora", start, rank=1)
    g = mean_gradients(tiny())
    for path, (b, a) in pairs_of(adapter).items():
        u, _, vh = np.linalg.svd(g[path])
        c = len(g[path]) ** 0.25 / 3
        same_up_to_signs(b, c * u[:, 1:2])
        same_up_to_signs(a.T, c * vh[:1].T)


def test_lora_one():
    _, adapter = started("lora", gradients(BATCHES, loss, rule="lora_one", passes=6))
    g = mean_gradients(tiny())
    for path, (b, a) in pairs_of(adapter).items():
        u, s, vh = np.linalg.svd(g[path], full_matrices=False)
        expected = -(u[:, :2] * s[:2] / s[0]) @ vh[:2] / 128
        assert np.allclose(b @ a, expected, rtol=1e-3, atol=1e-7)
        assert np.linalg.norm(b) == pytest.approx(np.linalg.norm(a), rel=1e-5)


def test_gora():
    own = attach(tiny(), "lora", rank=2)
    _, adapter = started("lora", gradients(BATCHES, loss, rule="gora", size=1e-2))
    g = mean_gradients(tiny())
    for path, (b, a) in pairs_of(adapter).items():
        assert np.allclose(a, pairs_of(own)[path][1])
        nearest = g[path] @ np.linalg.pinv(a)
        assert np.allclose(b / np.linalg.norm(b), -nearest / np.linalg.norm(nearest), atol=1e-5)
        delta = adapter.delta(path).detach().numpy()
        assert np.sqrt(np.mean(delta**2)) == pytest.approx(1e-2, rel=1e-4)


def test_lora_sb():
    _, adapter = started("lora_xs", gradients(BATCHES, loss, rule="lora_sb", size=1e-2))
    g = mean_gradients(tiny())
    for grid in adapter.grids:
        for site in grid.sites:
            u, s, vh = np.linalg.svd(-1e-2 * np.sign(g[site.path]), full_matrices=False)
            expected = (u[:, :2] * s[:2]) @ vh[:2]
            found = adapter.delta(site.path).detach().numpy()
            assert np.allclose(found, expected, atol=1e-5)


def test_eva():
    _, adapter = started("lora", activations(BATCHES))
    x = torch.cat(BATCHES).reshape(-1, HIDDEN).numpy()
    _, _, vh = np.linalg.svd(x, full_matrices=False)
    for p in QKV:
        b, a = pairs_of(adapter)[f"layers.0.self_attn.{p}"]
        same_up_to_signs(a.T, vh[:2].T)
        assert not b.any()


def test_corda():
    """The optimum of its weighted problem: ``(W - B A) C`` is what the leading part leaves."""
    found = capture(tiny(), BATCHES, inputs="whole")
    _, adapter = started("lora", captured(found, "corda"), alpha=6.0)
    for path, (b, a) in pairs_of(adapter).items():
        w = tiny().get_submodule(path).weight.detach().numpy()
        c = found.inputs_of(path).second_moment()
        c = c + 0.01 * np.mean(np.diagonal(c)) * np.eye(len(c))
        left = np.linalg.svd(w @ c, compute_uv=False)[2:]
        assert np.linalg.norm((w - 3 * b @ a) @ c) == pytest.approx(np.linalg.norm(left), rel=1e-4)
        assert np.allclose(b.T @ b, np.diag(np.diagonal(b.T @ b)), atol=1e-5)


@pytest.mark.parametrize("rule", ["pissa", "weights"])
def test_pissa_and_its_generalisation(rule):
    model, adapter = started("lora", rule, alpha=6.0)
    for path, (b, a) in pairs_of(adapter).items():
        w = tiny().get_submodule(path).weight.detach().numpy()
        u, s, vh = np.linalg.svd(w, full_matrices=False)
        assert np.allclose(3 * b @ a, (u[:, :2] * s[:2]) @ vh[:2], atol=1e-5)
        assert np.linalg.norm(b) == pytest.approx(np.linalg.norm(a), rel=1e-5)
    assert_close(model(BATCHES[0]).float(), tiny()(BATCHES[0]).float())


def test_olora():
    model, adapter = started("lora", "olora")
    for path, (b, a) in pairs_of(adapter).items():
        q, r = np.linalg.qr(tiny().get_submodule(path).weight.detach().numpy())
        same_up_to_signs(b, q[:, :2])
        assert np.allclose(b @ a, q[:, :2] @ r[:2], atol=1e-5)
    assert_close(model(BATCHES[0]).float(), tiny()(BATCHES[0]).float())


def test_lotr_starts_from_the_stack_of_weights():
    """Which its public code does without taking it off again."""
    model, adapter = started("lotr", "weights", targets=QKV, rank=5)
    stack = np.stack([tiny().get_submodule(s.path).weight.detach() for s in adapter.grids[0].sites])
    from tensorly.decomposition import partial_tucker

    (core, factors), _ = partial_tucker(stack, [5, 5], modes=[1, 2], n_iter_max=100)
    ours = np.stack(
        [
            adapter.pool.members[0].bound.delta(
                {
                    k: v.detach().double().numpy()
                    for k, v in adapter.pool.factors(0).items()
                    if not k.endswith("_0")
                }
                | {
                    k: np.zeros(v.shape)
                    for k, v in adapter.pool.factors(0).items()
                    if k.endswith("_0")
                },
                k,
            )
            for k in range(6)
        ]
    )
    left = np.linalg.norm(stack - ours)
    theirs = np.sqrt(max(np.linalg.norm(stack) ** 2 - np.linalg.norm(core) ** 2, 0))
    assert left <= theirs * (1 + 1e-4)
    assert_close(model(BATCHES[0]).float(), tiny()(BATCHES[0]).float())


# -- how it is used ---------------------


def test_captured_once_several_are_started():
    found = capture(tiny(), BATCHES, loss=loss, gradients=8, inputs="whole")
    for row, rule in (("lora", "lora_one"), ("lotr", "zero"), ("lora", "eva")):
        model, _ = started(row, captured(found, rule))
        assert torch.isfinite(model(BATCHES[0])).all()
    other = tiny()
    with torch.no_grad():
        other.layers[0].self_attn.q_proj.weight.mul_(2)
    with pytest.raises(ArgumentError, match=r"q_proj has changed since"):
        attach(other, "lora", rank=2, start=captured(found, "zero"))
    for rank, rule, options, text in (
        (2, "zero", {"inputs": "whole"}, r"hold no gradient of layers\.0"),
        (2, "zero", {"gradients": 2, "targets": ["q_proj"]}, "do not know the weight"),
        (12, "lora_one", {"gradients": 1}, "12 singular vectors .* larger rank"),
        (2, "step", {"gradients": 2, "inputs": None}, r"hold no inputs of layers\.0"),
    ):
        metric = "inputs" if rule == "step" else None
        few = captured(capture(tiny(), BATCHES, loss=loss, **options), rule, metric=metric)
        with pytest.raises(ArgumentError, match=text):
            attach(tiny(), "lora", rank=rank, start=few)


@pytest.mark.parametrize("rule", ["zero", "step", "offset"])
def test_saved_and_loaded_merged_and_folded(tmp_path, rule):
    model, adapter = started("lotr", gradients(BATCHES, loss, rule=rule))
    set_random(adapter)
    expected = model(BATCHES[0])
    adapter.save(tmp_path / "saved")
    again = tiny()
    load_adapter(again, tmp_path / "saved")
    assert_close(again(BATCHES[0]), expected)
    adapter.merge()
    assert_close(model(BATCHES[0]), expected)


def test_a_start_that_is_taken_off_can_be_folded_into_the_weights():
    before = tiny()(BATCHES[0])
    model, adapter = started("lora", gradients(BATCHES, loss, rule="lora_ga"), fold=True)
    assert_close(model(BATCHES[0]).float(), before.float())
    adapter.detach()
    assert_close(model(BATCHES[0]), before)


def test_bfloat16_weights_do_not_change_where_the_start_is_taken_off():
    x = BATCHES[0].bfloat16()
    before = tiny(torch.bfloat16)(x)
    model = tiny(torch.bfloat16)
    start = gradients([b.bfloat16() for b in BATCHES], loss, rule="offset")
    attach(model, "lotr", rank=2, start=start)
    gap = (model(x) - before).float().norm() / before.float().norm()
    assert gap < 2 * torch.finfo(torch.bfloat16).eps


def test_progress_rises_to_one():
    seen: list[float] = []
    model = tiny()
    attach(model, "lotr", rank=2, start=gradients(BATCHES, loss), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)


REFUSED = [
    (dict(rule="zerro"), "did you mean 'zero'"),
    (dict(rule="eva"), "'eva' is not made of gradients"),
    (dict(size=0), "size=0 must be a positive number"),
    (dict(steps=0), "batches is empty"),
    (dict(rule="pissa"), "not made of gradients"),
    (dict(rule="lora_ga", metric="inputs"), "is for starts that fit: zero, step, offset"),
    (dict(metric="outputs"), "metric='outputs' must be 'inputs' or None"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED, ids=range(len(REFUSED)))
def test_refusals_of_a_start(options, text):
    with pytest.raises(ArgumentError, match=text):
        gradients(BATCHES, loss, **options)


@pytest.mark.parametrize(
    ("row", "rule", "text"),
    [
        ("lotr", "lora_one", "is for 'lora' and its kin"),
        ("lora", "lora_sb", "is for 'lora_xs' and its kin"),
        ("lora_xs", "zero", "no factor that starts as zeros"),
        ("svfit", "zero", "a start of its own"),
        ("hira", "zero", "one product of factors"),
        ("delora", "zero", "has a factor whose norm is 1"),
        ("nola", "step", "is a sum of 2 terms"),
        ("singlora", "step", "uses one factor twice"),
    ],
)
def test_adapters_that_a_rule_is_not_for(row, rule, text):
    model = tiny()
    with pytest.raises(ArgumentError, match=text):
        attach(model, row, rank=2, start=gradients(BATCHES, loss, rule=rule))
    assert not any(hasattr(m, "tdecomp_default") for m in model.modules())


@pytest.mark.parametrize("start", ["zero", 3, "pisa"])
def test_a_start_that_is_none(start):
    text = {"zero": "made of gradients: give start=gradients", 3: "start=3 must be"}
    with pytest.raises(ArgumentError, match=text.get(start, "did you mean 'pissa'")):
        attach(tiny(), "lora", rank=2, start=start)


def test_weights_that_no_gradient_reaches_are_named_and_nothing_is_attached():
    model = tiny()
    first = lambda model, x: model.layers[0](x).sum()
    with pytest.raises(SiteError, match=r"layers\.1\.self_attn\.q_proj and 3 more"):
        attach(model, "lotr", rank=2, start=gradients(BATCHES, first))
    assert not hasattr(model, "tdecomp_default")


def test_every_row_is_started_or_refused_in_words():
    """No row of the catalogue fails in another way; those that start lose as little as they say."""
    refused = []
    for row in CATALOGUE:
        spec = method(row)
        for name in ("zero", "step"):
            try:
                RULES[name].check(name, spec)
            except ArgumentError as error:
                refused.append((row, str(error)))
    assert all("start" in text for _, text in refused)
    assert {"lora", "lotr", "lorta", "tt_lora"}.isdisjoint({row for row, _ in refused})
