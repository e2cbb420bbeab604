"""Gradients of adapted layers: by the chain rule, by difference quotients, and of nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tdecomp.adapters import CATALOGUE
from tdecomp.adapters.wraps import WRAPS
from tests.torch.cases import (
    HEAD,
    HEADS,
    HIDDEN,
    METHODS,
    adapted,
    arrays_of,
    assert_close,
    dense_copy,
    inputs,
    random_factors,
    tiny,
)

STEP = 4
"""Where a schedule is neither at its start nor at its end."""

every_method = pytest.mark.parametrize("name", METHODS)


def x_of() -> torch.Tensor:
    return inputs(2, 5, HIDDEN)


@pytest.mark.parametrize("name", CATALOGUE)
def test_gradients_are_those_of_a_dense_computation(name):
    """By the chain rule: the gradient of every W', through the ΔW that autograd forms alone."""
    plain = tiny()
    changed, adapter = adapted(name, step=STEP)
    x = x_of().requires_grad_()
    changed(x).square().sum().backward()
    found = [p.grad for p in random_factors(adapter)] + [x.grad]

    dense = dense_copy(adapter, plain)
    other = x_of().requires_grad_()
    dense(other).square().sum().backward()
    hooks = {t.path: (t.module, t.hook) for t in adapter.targets}
    modules = dict(dense.named_modules())
    total = sum(
        (
            hook.adapted_weight(module, place) * modules[path].weight.grad[place.start : place.stop]
        ).sum()
        for path, (module, hook) in hooks.items()
        for place in hook.places
    )
    expected = [
        *torch.autograd.grad(total, random_factors(adapter), materialize_grads=True),
        other.grad,
    ]
    assert all(g is not None for g in found)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("name", [n for n in METHODS if CATALOGUE[n].wrap in ("", "whole")])
def test_gradients_are_those_of_finite_differences(name):
    """Not for wraps whose norms are constants to the gradient."""
    changed, adapter = adapted(name, step=STEP)
    keys, layer = list(adapter.factors()), changed.layers[1].self_attn

    def run(x, *factors):
        named = {f"tdecomp_default.{k}": f for k, f in zip(keys, factors, strict=True)}
        with torch.nn.utils.stateless._reparametrize_module(changed, named):
            return layer.o_proj(layer.q_proj(x))

    x = inputs(3, HIDDEN).requires_grad_()
    factors = tuple(p.detach().clone().requires_grad_() for p in random_factors(adapter))
    assert torch.autograd.gradcheck(run, (x, *factors), fast_mode=True)


@pytest.mark.parametrize("name", [n for n in METHODS if CATALOGUE[n].wrap not in ("", "whole")])
def test_gradients_are_those_of_finite_differences_at_constant_norms(name):
    """Norms that are out of the gradient stay at their values; all by the numpy core alone."""
    changed, adapter = adapted(name, step=STEP)
    target = next(t for t in adapter.targets if t.path.endswith("1.self_attn.q_proj"))
    (place,), layer = target.hook.places, target.module
    rng = np.random.default_rng(5)
    x, weights = rng.standard_normal((3, HIDDEN)), rng.standard_normal((3, HEADS * HEAD))
    (layer(torch.as_tensor(x)) * torch.as_tensor(weights)).sum().backward()
    member = adapter.pool.members[place.member]
    gradients = {n: getattr(adapter.pool, key).grad for n, key in member.keys.items()}

    arrays, bound = arrays_of(adapter, place.member), member.bound
    w, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
    norms: list[Any] = []

    def loss(arrays, detach):
        wrap = WRAPS[bound.spec.wrap]
        own = {n: arrays[n][place.site] for n, *_ in wrap.factors}
        new = wrap.apply(w, bound.delta(arrays, place.site, STEP), own, detach)
        return ((x @ new.T + bias) * weights).sum()

    loss(arrays, lambda norm: (norms.append(norm), norm)[1])
    h = 1e-5
    for name, gradient in gradients.items():
        if gradient is None:
            continue
        way = rng.standard_normal(gradient.shape)
        ends = []
        for sign in (1, -1):
            constant = iter(norms)
            moved = arrays | {name: arrays[name] + sign * h * way}
            ends.append(loss(moved, lambda _, constant=constant: next(constant)))
        slope = (gradient.numpy() * way).sum()
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(slope, rel=1e-7, abs=1e-8)


@every_method
def test_only_factors_get_a_gradient(name):
    changed, adapter = adapted(name, step=STEP)
    changed(x_of()).sum().backward()
    own = {id(p) for p in random_factors(adapter)}
    assert {id(p) for p in changed.parameters() if p.grad is not None} == own
