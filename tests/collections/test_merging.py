"""Every row of the merge table against a dense formula from its paper, or PEFT's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from tdecomp._xp import tol
from tdecomp.collections.merging import MERGES, MergeSite, merge_method
from tdecomp.errors import ArgumentError

OUT, IN = 9, 12
SIZE = OUT * IN
CASES = {
    "mixed ranks": ((2, 3, 1), (1.0, 0.5, 2.0)),
    "a missing site": ((2, 0, 2), (1.0, 1.0, 1.0)),
    "wider than out": ((5, 6, 4), (1.0, -0.5, 0.7)),
}
OPTIONS = {
    "weighted_sum": {"scale": 0.3},
    "ties": {"density": 0.4},
    "della": {"spread": 0.3},
    "breadcrumbs": {"smallest": 0.3, "largest": 0.1},
    "sce": {"density": 0.5, "scale": 2.0},
    "tsv": {"rank": 2},
    "lore": {"threshold": 0.2},
    "tucker": {"rank": 3, "task_rank": 2},
    "regmean": {"off_diagonal": 0.7},
    **{f"{name}_on_cores": {"density": 0.6} for name in ("ties", "dare", "magnitude_prune", "sce")},
    "knots": {"density": 0.6},
}
"""Where they are not left at their defaults."""


def site_of(ranks, weights, dtype=np.float64) -> MergeSite:
    rng = np.random.default_rng(7)
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype).astype(np.float64)
    moments = [draw(IN, 2 * IN) for _ in ranks]
    return MergeSite(
        name="layers.0.q_proj",
        pairs=tuple((draw(OUT, r), draw(r, IN)) for r in ranks),
        weights=weights,
        seed=3,
        fishers=tuple(np.abs(draw(OUT, IN)) for _ in ranks),
        inputs=tuple(x @ x.T for x in moments),
    )


def deltas_of(site: MergeSite) -> np.ndarray:
    return np.stack([b @ a for b, a in site.pairs])


# Dense references: (deltas (task, out, in), weights, site) -> (out, in)


def total(deltas, weights):
    return sum(w * d for w, d in zip(weights, deltas, strict=True))


def kept_largest(delta, density):
    """The `int(density · size)` largest entries, one by one."""
    order = sorted(np.ndindex(delta.shape), key=lambda at: -abs(delta[at]))
    out = np.zeros_like(delta)
    for at in order[: int(density * delta.size)]:
        out[at] = delta[at]
    return out


def disjoint_mean(deltas, weights):
    out = np.zeros(deltas[0].shape)
    for at in np.ndindex(out.shape):
        values = [d[at] for d in deltas]
        sign = 1 if sum(values) >= 0 else -1
        chosen = [w * v for w, v in zip(weights, values, strict=True) if np.sign(v) == sign]
        out[at] = sum(chosen) / max(len(chosen), 1)
    return out


def ties(deltas, weights, density):
    return disjoint_mean([kept_largest(d, density) for d in deltas], weights)


def sparsified(deltas, site, density):
    return np.where(site.uniform(deltas.shape) < density, deltas, 0) / density


def slerp_all(deltas, weights):
    """Unit directions averaged, at the averaged norm."""
    share = np.asarray(weights) / sum(weights)
    norms = np.array([np.linalg.norm(d) for d in deltas])
    units = [d / n if n else d for d, n in zip(deltas, norms, strict=True)]
    middle = total(units, share)
    return middle / np.linalg.norm(middle) * (norms @ share)


def karcher(deltas, weights):
    """The minimum of the weighted squared angles, by a general optimiser."""
    share = np.asarray(weights) / sum(weights)
    norms = np.array([np.linalg.norm(d) for d in deltas])
    units = np.stack(
        [d.ravel() / n if n else d.ravel() for d, n in zip(deltas, norms, strict=True)]
    )

    def cost(c):
        point = c @ units
        cosines = np.clip(units @ point / np.linalg.norm(point), -1, 1)
        return share @ np.arccos(cosines) ** 2

    found = minimize(cost, share, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-15})
    point = found.x @ units
    return (point / np.linalg.norm(point) * (norms @ share)).reshape(deltas[0].shape)


def model_stock(deltas, weights):
    angles = []
    for i, x in enumerate(deltas):
        for y in deltas[:i]:
            size = np.linalg.norm(x) * np.linalg.norm(y)
            angles.append(np.vdot(x, y) / size if size else 0.0)
    n, cosine = len(deltas), np.mean(angles)
    return n * cosine / (1 + (n - 1) * cosine) * np.mean(deltas, axis=0)


def tsv(deltas, weights, rank):
    columns, values, rows = [], [], []
    for w, d in zip(weights, deltas, strict=True):
        u, s, vh = np.linalg.svd(d)
        for k in range(min(rank, np.linalg.matrix_rank(d))):
            columns.append(u[:, k]), values.append(w * s[k]), rows.append(vh[k])
    x, y = np.stack(columns, axis=1), np.stack(rows, axis=1)
    white = lambda m: m @ np.linalg.inv(_root(m.T @ m))  # columns are independent here
    return white(x) @ np.diag(values) @ white(y).T


def _root(square):
    values, vectors = np.linalg.eigh(square)
    return vectors @ np.diag(np.sqrt(values)) @ vectors.T


def iso_c(deltas, weights):
    u, s, vh = np.linalg.svd(total(deltas, weights), full_matrices=False)
    rank = np.linalg.matrix_rank(total(deltas, weights))
    return s[:rank].mean() * u[:, :rank] @ vh[:rank]


def lore(deltas, weights, threshold):
    cut = threshold * max(np.linalg.norm(d, 2) for d in deltas)
    offset, rests = np.zeros(deltas[0].shape), list(deltas)
    for _ in range(400):
        for t, d in enumerate(deltas):
            u, s, vh = np.linalg.svd(d - offset, full_matrices=False)
            rests[t] = u @ np.diag(np.maximum(s - cut, 0)) @ vh
        offset = sum(d - r for d, r in zip(deltas, rests, strict=True)) / len(deltas)
    return offset + total(rests, np.asarray(weights) / sum(weights))


def tucker(deltas, weights, rank, task_rank):
    import tensorly.decomposition
    from tensorly import tucker_to_tensor

    shape = [min(n, m) for n, m in zip((task_rank, rank, rank), np.shape(deltas), strict=True)]
    fit = tensorly.decomposition.tucker(np.asarray(deltas), rank=shape, n_iter_max=300, tol=1e-14)
    return total(tucker_to_tensor(fit), weights)


def della(deltas, weights, site, density, spread):
    chance = np.empty_like(deltas)
    for t, out in np.ndindex(deltas.shape[:2]):
        order = sorted(range(IN), key=lambda i: -abs(deltas[t, out, i]))
        for rank, i in enumerate(order):
            dropped = (1 - density - spread / 2) + spread / IN * rank
            chance[t, out, i] = 1 - dropped
    kept = np.where(site.uniform(deltas.shape) < chance, deltas / chance, 0)
    return disjoint_mean(kept, weights)


def breadcrumbs(deltas, weights, smallest, largest):
    low, high = int(smallest * SIZE), int(largest * SIZE)
    kept = []
    for d in deltas:
        order = sorted(np.ndindex(d.shape), key=lambda at: abs(d[at]))
        kept.append(np.zeros_like(d))
        for at in order[low : SIZE - high]:
            kept[-1][at] = d[at]
    return total(kept, weights)


def sce(deltas, weights, density):
    variance = np.var(deltas, axis=0)
    mask = kept_largest(variance, density * np.count_nonzero(variance) / variance.size + 1e-12) > 0
    deltas = [d * mask for d in deltas]
    shares = [w * np.vdot(d, d) for w, d in zip(weights, deltas, strict=True)]
    out = np.zeros(deltas[0].shape)
    for at in np.ndindex(out.shape):
        sign = 1 if sum(d[at] for d in deltas) >= 0 else -1
        chosen = [(c, d[at]) for c, d in zip(shares, deltas, strict=True) if np.sign(d[at]) == sign]
        out[at] = sum(c * x for c, x in chosen) / (sum(c for c, _ in chosen) or 1)
    return out


def regmean(deltas, weights, inputs, off_diagonal):
    shrunk = [
        w * np.where(np.eye(IN) > 0, c, off_diagonal * c)
        for w, c in zip(weights, inputs, strict=True)
    ]
    return sum(d @ c for d, c in zip(deltas, shrunk, strict=True)) @ np.linalg.inv(sum(shrunk))


def fisher(deltas, weights, fishers):
    top = sum(w * f * d for w, f, d in zip(weights, fishers, deltas, strict=True))
    return top / sum(w * f for w, f in zip(weights, fishers, strict=True))


DENSE = {
    "mean": lambda d, w, s: total(d, w) / sum(w),
    "weighted_sum": lambda d, w, s, scale: scale * total(d, w),
    "task_arithmetic": lambda d, w, s: total(d, w),
    "difference": lambda d, w, s: w[0] * d[0] - total(d[1:], w[1:]),
    "multi_slerp": lambda d, w, s: slerp_all(d, w),
    "karcher": lambda d, w, s: karcher(d, w),
    "model_stock": lambda d, w, s: model_stock(d, w),
    "regmean": lambda d, w, s, **options: regmean(d, w, s.inputs, **options),
    "tsv": lambda d, w, s, **options: tsv(d, w, **options),
    "iso_c": lambda d, w, s: iso_c(d, w),
    "lore": lambda d, w, s, **options: lore(d, w, **options),
    "tucker": lambda d, w, s, **options: tucker(d, w, **options),
    "ties": lambda d, w, s, **options: ties(d, w, **options),
    "dare": lambda d, w, s: total(sparsified(d, s, 0.5), w),
    "dare_ties": lambda d, w, s: disjoint_mean(sparsified(d, s, 0.5), w),
    "della": lambda d, w, s, **options: della(d, w, s, 0.5, **options),
    "magnitude_prune": lambda d, w, s: total([kept_largest(x, 0.2) for x in d], w),
    "breadcrumbs": lambda d, w, s, **options: breadcrumbs(d, w, **options),
    "sce": lambda d, w, s, density, scale: scale * sce(d, w, density),
    "fisher": lambda d, w, s: fisher(d, w, s.fishers),
}
ITERATIVE = {"karcher": 1e-6, "tucker": 1e-3, "lore": 1e-9}
"""How near a reference comes that searches for a minimum itself."""


def relative(x, y):
    return np.linalg.norm(x - y) / np.linalg.norm(y)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", DENSE)
def test_a_merge_is_its_dense_formula(name, case):
    ranks, weights = CASES[case]
    if min(weights) < 0 and name in ("karcher", "fisher", "sce", "regmean"):
        weights = tuple(map(abs, weights))  # shares of something positive
    site, options = site_of(ranks, weights), OPTIONS.get(name, {})
    if name == "tsv" and case == "wider than out":
        options = {"rank": 3}
    expected = DENSE[name](deltas_of(site), weights, site, **options)
    row = MERGES[name]
    merged = row(site, row.with_options(**options))
    within = ITERATIVE.get(name, 100 * tol(np.float64, SIZE))
    assert relative(merged.dense(), expected) < within
    pair = merged.pair()
    assert relative(pair.dense(), expected) < within
    if row.where != "dense":
        assert pair.rank <= sum(ranks)  # nothing of size out × in was needed


def test_slerp_walks_along_the_arc(rng):
    x, y = (rng.standard_normal((OUT, IN)) for _ in range(2))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    pairs = ((x, np.eye(IN)), (y, np.eye(IN)))
    whole = np.arccos(np.vdot(x, y))
    for share in (0.0, 0.3, 1.0):
        site = MergeSite(name="w", pairs=pairs, weights=(1 - share, share))
        point = MERGES["slerp"](site).dense()
        assert np.isclose(np.linalg.norm(point), 1)
        assert np.isclose(np.arccos(np.clip(np.vdot(point, x), -1, 1)), share * whole, atol=1e-7)
        assert np.isclose(
            np.arccos(np.clip(np.vdot(point, y), -1, 1)), (1 - share) * whole, atol=1e-7
        )


CORE_ROWS = [name for name in MERGES if name.endswith("_on_cores")]


@pytest.mark.parametrize("name", [*CORE_ROWS, "knots"])
def test_entrywise_rules_in_common_bases(name):
    """The dense rule in coordinates of bases that are made here from the deltas alone."""
    site = site_of((2, 3, 1), (1.0, 0.5, 2.0))
    deltas, options = deltas_of(site), OPTIONS.get(name, {})
    if name == "knots":
        u, s, vh = np.linalg.svd(np.concatenate(deltas, axis=1), full_matrices=False)
        rank = np.linalg.matrix_rank(np.concatenate(deltas, axis=1))
        aligned = np.stack(np.split(vh[:rank], 3, axis=1))
        expected = u[:, :rank] @ np.diag(s[:rank]) @ ties(aligned, site.weights, 0.6)
    else:
        halves = [np.linalg.svd(d, full_matrices=False) for d in deltas]
        sides = np.concatenate([u * np.sqrt(s) for u, s, _ in halves], axis=1)
        below = np.concatenate([np.sqrt(s)[:, None] * vh for _, s, vh in halves])
        u = np.linalg.svd(sides)[0][:, :6]
        v = np.linalg.svd(below)[2][:6]
        cores = np.einsum("op,toi,qi->tpq", u, deltas, v)
        dense = MERGES[name.removesuffix("_on_cores")]
        rule = dense.with_options(**options)
        expected = u @ rule.merged(cores, site) @ v
    found = MERGES[name](site, MERGES[name].with_options(**options)).dense()
    assert relative(found, expected) < 1e-9


def test_every_row_has_a_reference_here():
    assert {*MERGES} == {*DENSE, *CORE_ROWS, "slerp", "knots"}


@pytest.mark.parametrize("density", [0.3, 0.9])
def test_rows_are_those_of_peft(density, monkeypatch):
    torch = pytest.importorskip("torch")
    merges = pytest.importorskip("peft.utils.merge_utils")
    site = site_of((2, 3, 1), (1.0, 0.5, 2.0))
    tensors, weights = list(torch.tensor(deltas_of(site))), torch.tensor(site.weights)
    draws = iter(torch.tensor(site.uniform((3, OUT, IN))).repeat(2, 1, 1))
    thinned = lambda x, density, rescale: torch.where(next(draws) < density, x, 0) / density
    monkeypatch.setattr(merges, "random_pruning", thinned)  # on the same draws
    published = {
        "weighted_sum": merges.task_arithmetic(tensors, weights),
        "ties": merges.ties(tensors, weights, density),
        "dare": merges.dare_linear(tensors, weights, density),
        "dare_ties": merges.dare_ties(tensors, weights, density),
        "magnitude_prune": merges.magnitude_prune(tensors, weights, density),
    }
    for name, expected in published.items():
        row = MERGES[name]
        options = {} if name == "weighted_sum" else {"density": density}
        found = row(site, row.with_options(**options)).dense()
        assert relative(found, expected.numpy()) < tol(np.float64, SIZE), name


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", ["weighted_sum", "tsv", "ties_on_cores", "ties"])
def test_how_a_delta_is_written_as_a_product_does_not_count(name, dtype):
    site = site_of((2, 3), (1.0, 2.0), dtype)
    mixed = tuple(
        (b @ g, np.linalg.solve(g, a)) for b, a in site.pairs for g in [_gauge(a.shape[0])]
    )
    other = MergeSite(name=site.name, pairs=mixed, weights=site.weights, seed=site.seed)
    assert relative(MERGES[name](other).dense(), MERGES[name](site).dense()) < 1e-9


def _gauge(rank):
    return np.eye(rank) + np.triu(np.ones((rank, rank)), 1) * 0.3


def test_random_rules_draw_by_seed_and_site():
    site = site_of((2, 3), (1.0, 1.0))
    same, other, elsewhere = (
        MergeSite(name=name, pairs=site.pairs, weights=site.weights, seed=seed)
        for name, seed in ((site.name, 3), (site.name, 4), ("layers.1", 3))
    )
    first = MERGES["dare"](site).dense()
    assert np.array_equal(MERGES["dare"](same).dense(), first)
    assert not np.array_equal(MERGES["dare"](other).dense(), first)
    assert not np.array_equal(MERGES["dare"](elsewhere).dense(), first)
    ones = MergeSite(name="w", pairs=((np.ones((40, 1)), np.ones((1, 50))),), weights=(1.0,))
    mean = MERGES["dare"](ones, MERGES["dare"].with_options(density=0.3)).dense().mean()
    assert abs(mean - 1) < 5 * np.sqrt(0.7 / 0.3 / 2000)


@pytest.mark.parametrize("name", MERGES)
def test_members_that_change_nothing_stay_nothing(name):
    site = site_of((2, 2), (1.0, 2.0))
    zeros = tuple((0 * b, a) for b, a in site.pairs)
    nothing = replace(site, pairs=zeros)
    found = MERGES[name](nothing)
    assert found.dense().shape == (OUT, IN)
    assert not found.dense().any()
    one = replace(site, pairs=(site.pairs[0], zeros[1]))
    assert np.isfinite(MERGES[name](one).dense()).all()


REFUSED = [
    (lambda: MERGES["model_stock"](opposite()), "members cancel"),
    (lambda: MERGES["lore"](site_of((1, 1), (1, -1))), "add up to 0"),
    (lambda: merge_method("tiess"), "'tiess'.*ties"),
    (lambda: MERGES["ties"].with_options(densty=0.2), "no option 'densty'.*density"),
    (lambda: MERGES["ties"].with_options(density=0.0), "density=0.0: expected a share"),
    (lambda: MERGES["della"].with_options(density=0.9, spread=0.5), "spread=0.5.*0.2 at most"),
    (lambda: MERGES["slerp"](site_of((1, 1, 1), (1, 1, 1))), "two members, got 3"),
    (lambda: MERGES["mean"](site_of((1, 1), (1, -1))), "add up to 0"),
    (lambda: MERGES["model_stock"](site_of((1,), (1,))), "two members"),
    (lambda: site_of((1, 1), (1.0,)), "1 weights for 2 members"),
    (lambda: MERGES["fisher"](bare((2, 2), (1, 1))), "needs the Fisher diagonal"),
    (lambda: MERGES["multi_slerp"](opposite()), "cancel"),
]


def bare(ranks, weights):
    site = site_of(ranks, weights)
    return MergeSite(name="w", pairs=site.pairs, weights=weights)


def opposite():
    b, a = np.ones((OUT, 1)), np.ones((1, IN))
    return MergeSite(name="w", pairs=((b, a), (-b, a)), weights=(1.0, 1.0))


@pytest.mark.parametrize(("act", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_cannot_be_merged_is_refused_in_a_line(act, said):
    with pytest.raises(ArgumentError, match=said) as caught:
        act()
    assert "\n" not in str(caught.value)
