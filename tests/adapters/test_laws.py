"""Laws of every method on every grid of weights; an einsum over all sites at once is the oracle."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tdecomp._xp import to_numpy, tol
from tdecomp.adapters import Bound, Spec, bind
from tdecomp.adapters.wraps import WRAPS
from tdecomp.modes import flatten
from tests.tables import each

from .cases import GRIDS, METHODS, bound, cases, filled, methods, start, weights

STEP = 4
"""Where a schedule is neither at its start nor at its end."""

RANDOM = ("normal", "uniform", "orthogonal", "mask", "pick", "cos", "sin", "haar")


def close(a, b, n: int = 1) -> bool:
    """Equal up to what rounding does in a sum of n products."""
    scale = max(1.0, float(np.abs(b).max(initial=0)))
    return (
        np.shape(a) == np.shape(b) and np.abs(a - b).max(initial=0) <= 8 * tol(a.dtype, n) * scale
    )


def n_terms(b: Bound) -> int:
    """Products that one number of ΔW is summed of, at most."""
    summed = {*b.spec.letters} - {*b.spec.weight_modes}
    return len(b.spec.terms) * math.prod(b.sizes[n] for n in summed)


def dense(b: Bound, arrays: dict[str, np.ndarray], step: float = 0) -> np.ndarray:
    """ΔW of all sites, ``(site, out, in)``; one-hot rows pick the place of a site in a mode."""
    places = np.array(b.grid.places)
    picks = {
        mode: np.eye(len(labels))[places[:, k]] for k, (mode, labels) in enumerate(b.grid.modes)
    }
    number = {n: k for k, n in enumerate(("site", *picks, *b.spec.letters))}
    number["site"] = 0
    total = np.zeros((b.grid.n_sites, *b.grid.shape))
    rows, columns = b.grid.shape[::-1] if b.turned else b.grid.shape
    for term in b.spec.terms:
        args = [np.ones(b.grid.n_sites), [0]]
        for mode in picks.keys() & {*term.letters}:
            args += [picks[mode], [0, number[mode]]]
        for o in term.operands:
            whole = arrays[o.factor]
            if unit := b.spec.factor(o.factor).unit:
                along = tuple(o.letters.index(n) for n in unit)
                squares = np.square(whole).sum(axis=along, keepdims=True)
                whole = whole / np.maximum(np.sqrt(squares), 1e-4)
            args += [whole[tuple(slice(b.sizes[n]) for n in o.letters)]]
            args += [[number[n] for n in o.letters]]
        axes = [tuple(b.sizes[n] for n in flatten((axis,))) for axis in b.spec.output]
        found = np.einsum(*args, [0, *(number[n] for n in b.spec.weight_modes)], optimize=True)
        found = found.reshape(-1, math.prod(axes[0]), math.prod(axes[1]))[:, :rows, :columns]
        found = found * term.sign * (b.scale(step) if term.scaled else 1)
        total += found.swapaxes(1, 2) if b.turned else found
    return total


def deltas(b: Bound, arrays, step: float = 0) -> np.ndarray:
    return np.stack([to_numpy(b.delta(arrays, s, step)) for s in range(b.grid.n_sites)])


def adapted(b: Bound, arrays, step: float = 0) -> np.ndarray:
    w = weights(b)
    return np.stack([b.weight(w[s], arrays, s, step) for s in range(b.grid.n_sites)])


@methods()
def test_every_delta_and_their_tensor_are_the_equation(method, grids):
    for grid in grids:
        b = bound(method, grid)
        arrays = filled(b)
        expected, whole = dense(b, arrays, STEP), b.tensor(arrays, STEP)
        assert close(deltas(b, arrays, STEP), expected, n_terms(b)), grid
        assert close(whole.to_dense(), expected, n_terms(b)), grid
        assert whole.shape == (b.grid.n_sites, *b.grid.shape)


MATRICES = [name for name, case in GRIDS.items() if min(case.shape) > 1]
"""Grids whose weights have a direction that a norm wrap can change."""


@methods(*MATRICES)
def test_the_weight_is_w_at_the_start_exactly_where_the_inits_say_so(method, grids):
    for grid in grids:
        b, spec = bound(method, grid), METHODS[method]
        moved = np.abs(adapted(b, start(b)) - weights(b)).max()
        at_rest = moved <= tol("float64", n_terms(b)) * np.abs(weights(b)).max()
        if spec.base not in ("truncate", "replace"):
            assert at_rest == spec.starts_at_zero, grid
            assert b.spec.starts_at_zero == spec.starts_at_zero  # its base rule written out
        else:
            assert not spec.starts_at_zero


@each("method", METHODS)
def test_a_method_is_what_its_json_says(method):
    spec = METHODS[method]
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@each(("method", "grid"), cases("tall"))
def test_a_seed_is_a_start(method, grid):
    b = bound(method, grid)
    first, second = start(b, seed=3), start(b, seed=3)
    assert all(np.array_equal(first[name], second[name]) for name in first)


@each(("method", "grid"), cases("tall"))
def test_another_seed_changes_exactly_what_is_random(method, grid):
    b = bound(method, grid)
    one, other = start(b, seed=3), start(b, seed=4)
    source = {f.name: str(f.init.args[0]) for f in b.factors if f.init.kind == "copy"}
    for factor in b.factors:
        init = b.spec.factor(source[factor.name]).init if factor.name in source else factor.init
        same = np.array_equal(one[factor.name], other[factor.name])
        assert same == (init.kind not in RANDOM), factor.name


@each(("method", "grid"), cases("tall"))
def test_another_group_has_random_factors_of_its_own(method, grid):
    b = bound(method, grid)
    one, other = start(b), start(bound(method, grid, name="another"))
    for factor in b.spec.factors:
        if factor.init.kind in RANDOM:
            same = np.array_equal(one[factor.name], other[factor.name])
            assert same == factor.across, factor.name


@each(("method", "grid"), cases("tall"))
def test_no_two_random_factors_start_alike(method, grid):
    b = bound(method, grid)
    arrays = start(b)
    flat = [
        arrays[f.name].ravel()
        for f in b.spec.factors
        if f.init.kind in ("normal", "uniform", "orthogonal")
    ]
    for k, x in enumerate(flat):
        for y in flat[:k]:
            n = min(x.size, y.size)
            ratio = x[:n] / y[:n]
            assert n == 1 or np.ptp(ratio) > 1e-6


@methods("tall", "wide", "gaps")
def test_the_counts_are_those_of_the_arrays(method, grids):
    for grid in grids:
        b = bound(method, grid)
        arrays = start(b)
        trained = {f.name for f in b.factors if f.trainable}
        assert b.n_trainable == sum(a.size for name, a in arrays.items() if name in trained), grid
        assert b.n_frozen == sum(a.size for name, a in arrays.items() if name not in trained), grid
        assert all(a.dtype == np.float64 and np.isfinite(a).all() for a in arrays.values())


@each(("method", "grid"), cases("gaps"))
def test_a_factor_is_shared_by_exactly_the_sites_whose_letters_it_carries(method, grid):
    b = bound(method, grid)
    arrays = filled(b)
    before = deltas(b, arrays, STEP)
    column = {mode: k for k, (mode, _) in enumerate(b.grid.modes)}
    place = [dict(zip(column, p, strict=True), site=s) for s, p in enumerate(b.grid.places)]
    for factor in b.spec.factors:
        uses = {o for term in b.spec.terms for o in term.operands if o.factor == factor.name}
        on_sites = [k for k, n in enumerate(factor.modes) if n in place[0]]
        shape = b.shapes[factor.name]
        for where in np.ndindex(*(shape[k] for k in on_sites)):
            index = [0] * len(shape)
            for k, at in zip(on_sites, where, strict=True):
                index[k] = at
            changed = arrays[factor.name].copy()
            changed[tuple(index)] += 1
            after = deltas(b, arrays | {factor.name: changed}, STEP)
            expected = [
                any(
                    all(p.get(n, at) == at for n, at in zip(o.letters, index, strict=True))
                    for o in uses
                )
                for p in place
            ]
            found = np.abs(after - before).max(axis=(1, 2)) > 1e-12
            assert list(found) == expected, (factor.name, index)


@each(("method", "grid"), cases("gaps", where=lambda spec: bool(spec.wrap)))
def test_a_norm_belongs_to_one_site(method, grid):
    b = bound(method, grid)
    arrays = filled(b)
    for name, *_ in WRAPS[b.spec.wrap].factors:
        changed = arrays[name].copy()
        changed[1] += 1
        moved = np.abs(adapted(b, arrays | {name: changed}) - adapted(b, arrays)).max(axis=(1, 2))
        assert list(moved > 1e-12) == [s == 1 for s in range(b.grid.n_sites)]


@each(("method", "grid"), cases("gaps", "heads along in"))
def test_torch_and_numpy_agree(method, grid):
    torch = pytest.importorskip("torch")
    b = bound(method, grid)
    arrays = filled(b)
    tensors = {name: torch.asarray(a) for name, a in arrays.items()}
    oracle = dense(b, arrays, STEP)
    assert close(deltas(b, tensors, STEP), oracle, n_terms(b))
    assert close(to_numpy(b.tensor(tensors, STEP).to_dense()), oracle, n_terms(b))


@each(("method", "grid"), cases("wide"))
def test_the_gradient_of_torch_is_the_difference_quotient(method, grid):
    torch = pytest.importorskip("torch")
    b = bound(method, grid)
    arrays = filled(b)
    rng = np.random.default_rng(5)
    w, towards = weights(b)[0], rng.standard_normal(b.grid.shape)
    ways = {name: rng.standard_normal(a.shape) for name, a in arrays.items()}
    tensors = {name: torch.tensor(a, requires_grad=True) for name, a in arrays.items()}
    (b.weight(torch.asarray(w), tensors, 0, STEP) * torch.asarray(towards)).sum().backward()
    slope = sum(
        (t.grad.numpy() * ways[name]).sum() for name, t in tensors.items() if t.grad is not None
    )

    def loss(t: float) -> float:
        moved = {name: a + t * ways[name] for name, a in arrays.items()}
        return float((b.weight(w, moved, 0, STEP) * towards).sum())

    quotients = [(loss(h) - loss(-h)) / (2 * h) for h in (1e-3, 5e-4)]
    better = (4 * quotients[1] - quotients[0]) / 3  # the error falls with h**4
    assert better == pytest.approx(slope, rel=1e-5, abs=1e-5)


@each(("method", "grid"), cases("tall", where=lambda spec: spec.sides == ("long", "short")))
def test_long_and_short_turn_with_the_weight(method, grid):
    tall, wide = bound(method, grid), bound(method, "wide")
    arrays = filled(tall)
    assert all(tall.shapes[f.name] == wide.shapes[f.name] for f in tall.spec.factors)
    turned = deltas(wide, arrays, STEP).swapaxes(1, 2)
    assert close(deltas(tall, arrays, STEP), turned, n_terms(tall))


@each(("method", "grid"), cases("wide", where=lambda spec: "head" in spec.weight_modes))
def test_heads_along_in_are_those_of_the_turned_weight(method, grid):
    along_in = bound(method, grid)
    flipped = replace(along_in.grid, shape=along_in.grid.shape[::-1], heads_in=True)
    rank = GRIDS[grid].rank if METHODS[method].open_ranks() else None
    turned = bind(METHODS[method], flipped, rank=rank)
    arrays = filled(along_in)
    assert turned.turned != along_in.turned
    assert close(
        deltas(turned, arrays, STEP).swapaxes(1, 2), deltas(along_in, arrays, STEP), n_terms(turned)
    )
