"""How factors start: every rule against its definition, on arrays and on weights."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.linalg import circulant

from tdecomp._xp import tol
from tdecomp.adapters import Grid, Spec, bind
from tdecomp.adapters.inits import INITS, Init
from tdecomp.adapters.seeded import SEEDED, Request
from tdecomp.errors import ArgumentError

TOL = tol("float64", 4096)


def made(text: str, *shape: int, seed: int = 0, name: str = "a") -> np.ndarray:
    """The array of a seeded rule."""
    init = Init.parse(text)
    stream = lambda word: np.random.default_rng([seed, *word.encode()])
    return SEEDED[init.kind].make(
        Request(shape=shape, args=tuple(float(a({})) for a in init.args), stream=stream, name=name)
    )


def on_weights(
    equation: str, init, shape, *, layer: int = 1, proj: int = 1, rank=None, places=None, **options
):
    """Start factors on random weights, and the weights by site."""
    spec = Spec.parse("m", equation, init, **options)
    if places is None:
        grid = Grid.full(shape, layer=layer, proj=proj)
    else:
        modes = (("layer", tuple(range(layer))), ("proj", tuple(range(proj))))
        grid = Grid(name="gaps", shape=shape, modes=modes, places=places)
    w = np.random.default_rng(1).standard_normal((grid.n_sites, *shape))
    return bind(spec, grid, rank).start(w.__getitem__), w


# -- seeded rules -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("zeros", 0.0), ("ones", 1.0), ("constant", 1.0), ("constant(-0.5)", -0.5)],
)
def test_constants(text, value):
    assert np.array_equal(made(text, 3, 1, 2), np.full((3, 1, 2), value))


@pytest.mark.parametrize(("text", "std"), [("normal", 1.0), ("normal(0.02)", 0.02)])
def test_normal_numbers_have_the_deviation_asked_for(text, std):
    x = made(text, 200, 200)
    assert abs(x.mean()) < 5 * std / 200
    assert abs(x.std() / std - 1) < 5 / 200


def test_uniform_numbers_fill_the_interval_asked_for():
    x = made("uniform(1 / sqrt(16))", 200, 200)
    assert -0.25 <= x.min() < -0.249
    assert 0.249 < x.max() <= 0.25
    assert abs(x.mean()) < 5 * 0.25 / 200


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (4, 4), (1, 5), (5, 1), (2, 3, 7, 3)])
def test_orthogonal_matrices_have_orthonormal_columns_or_rows(shape):
    x = made("orthogonal(2)", *shape) / 2
    n, m = shape[-2:]
    gram = np.swapaxes(x, -1, -2) @ x if m <= n else x @ np.swapaxes(x, -1, -2)
    assert np.abs(gram - np.eye(min(n, m))).max() < TOL


def test_an_orthogonal_vector_is_a_unit_vector():
    assert abs(np.linalg.norm(made("orthogonal", 9)) - 1) < TOL


def test_matrices_of_different_sites_are_different_draws():
    first, second = made("orthogonal", 2, 6, 3)
    assert np.abs(first - second).max() > 0.1


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4), (2, 3, 4)])
def test_eye_is_the_identity_of_every_site(shape):
    x = made("eye", *shape).reshape(-1, *shape[-2:])
    assert all(np.array_equal(matrix, np.eye(*shape[-2:])) for matrix in x)


def test_one_hot_rows_are_equal_runs():
    assert made("one_hot", 6, 3).argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    assert made("one_hot", 5, 2).argmax(1).tolist() == [0, 0, 0, 1, 1]
    assert np.array_equal(made("one_hot", 5, 2).sum(1), np.ones(5))


def test_cyclic_rows_are_the_identity_over_and_over():
    assert np.array_equal(made("cyclic", 5, 2), np.eye(2)[[0, 1, 0, 1, 0]])
    assert np.array_equal(made("cyclic", 2, 4), np.eye(2, 4))


def test_banded_rows_see_themselves_and_those_just_before():
    assert np.array_equal(made("banded(2)", 5, 5), np.tri(5) - np.tri(5, k=-3))
    assert np.array_equal(made("banded", 4, 4), np.tri(4) - np.tri(4, k=-2))
    assert np.array_equal(made("banded(0)", 3, 3), np.eye(3))


@pytest.mark.parametrize(("text", "share"), [("mask", 1 / 2), ("mask(1/8)", 1 / 8), ("mask(0)", 0)])
def test_a_mask_has_its_share_of_ones(text, share):
    x = made(text, 8, 6)
    assert set(np.unique(x)) <= {0.0, 1.0}
    assert x.sum() == round(48 * share)


def test_circulant_places_one_vector_along_diagonals(rng):
    c = rng.standard_normal(5)
    found = np.einsum("z,zxy->xy", c, made("circulant", 5, 5, 5))
    assert np.array_equal(found, circulant(c).T)


def test_rotations_are_powers_of_the_first():
    turn = made("rotation", 4, 6, 6)
    assert np.array_equal(turn[0], np.eye(6))
    assert np.abs(turn[1] @ turn[1].T - np.eye(6)).max() < TOL
    assert np.abs(turn[1] @ turn[2] - turn[3]).max() < TOL


def test_picked_places_are_as_many_of_each():
    picked = made("pick(3)", 5, 6, 4)
    assert set(picked.sum(-1).ravel()) == {3}
    assert set((picked == 3).sum((0, 1))) == {7, 8}  # of 30 numbers
    assert np.count_nonzero(picked) == 30


def test_all_wavelets_of_an_even_grid_are_an_orthonormal_basis():
    rows, columns = made("haar(6, 4, 0)", 6, 24), made("haar(6, 4, 1)", 24, 4)
    basis = np.einsum("ok,ki->koi", rows, columns).reshape(24, 24)
    assert np.abs(basis @ basis.T - np.eye(24)).max() < TOL


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 5)])
def test_waves_sum_to_the_inverse_fourier_transform(shape, rng):
    n, m = shape
    k = 4
    waves = {
        (wave, axis): made(f"{wave}({n}, {m}, {axis})", *((n, k) if axis == 0 else (k, m)))
        for wave in ("cos", "sin")
        for axis in (0, 1)
    }
    c = rng.standard_normal(k)
    found = np.einsum("k,ok,ki->oi", c, waves["cos", 0], waves["cos", 1])
    found -= np.einsum("k,ok,ki->oi", c, waves["sin", 0], waves["sin", 1])
    spectrum = np.fft.fft2(found)
    spread = np.abs(spectrum) > 1e-9 * n * m  # each frequency and, the matrix being real, its twin
    twins = np.roll(spectrum[::-1, ::-1], (1, 1), (0, 1))
    assert k <= spread.sum() <= 2 * k
    assert np.abs(spectrum - twins.conj()).max() < 1e-9
    assert np.abs(spectrum.imag).max() < 1e-9


def test_frequencies_are_drawn_without_repetition():
    rows = np.angle(made("cos(3, 4, 0)", 3, 12) + 1j * made("sin(3, 4, 0)", 3, 12))[1]
    columns = np.angle(made("cos(3, 4, 1)", 12, 4) + 1j * made("sin(3, 4, 1)", 12, 4))[:, 1]
    pairs = {(round(3 * a, 6), round(4 * b, 6)) for a, b in zip(rows, columns, strict=True)}
    assert len(pairs) == 12


# -- rules that read the weights ------------------------------------------------------------------


def best(w: np.ndarray, rank: int, first: int = 0) -> np.ndarray:
    """The part of a matrix that has `rank` of its singular values, from number `first` on."""
    u, s, vh = np.linalg.svd(w, full_matrices=False)
    which = slice(first, first + rank)
    return u[:, which] * s[which] @ vh[which]


PAIRS = {
    "balanced": ("svd_u(1/2)", "svd_vh(1/2)", 0),
    "all in u": ("svd_u(1)", "svd_vh", 0),
    "all in vh": ("svd_u(0)", "svd_vh(1)", 0),
    "the smallest": ("svd_u(1/2, short - r)", "svd_vh(1/2, short - r)", 3),
}


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
@pytest.mark.parametrize("pair", PAIRS)
def test_singular_vectors_make_the_best_matrix_of_their_rank(pair, shape):
    u, vh, first = PAIRS[pair]
    found, w = on_weights("u: site out r, v: site r in", [u, vh], shape, layer=3, rank=2)
    for site in range(3):
        assert np.abs(found["u"][site] @ found["v"][site] - best(w[site], 2, first)).max() < TOL


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_singular_values_stand_apart_where_asked(shape):
    found, w = on_weights(
        "u: site out r, s: site r, v: site r in",
        ["svd_u", "svd_s", "svd_vh"],
        shape,
        layer=2,
        rank=3,
    )
    for site in range(2):
        product = found["u"][site] * found["s"][site] @ found["v"][site]
        assert np.abs(product - best(w[site], 3)).max() < TOL


WHOLE = {
    "qr": ("q: site out r, p: site r in", ["qr_q", "qr_r"], "or,ri->oi"),
    "ldu": ("l: site out r, d: site r, u: site r in", ["ldu_l", "ldu_d", "ldu_u"], "or,r,ri->oi"),
    "svd": ("u: site out r, s: site r, v: site r in", ["svd_u", "svd_s", "svd_vh"], "or,r,ri->oi"),
    "the weight": ("w: site out in", ["weight"], "oi->oi"),
    "turned axes": ("w: in site out", ["weight"], "io->oi"),
}


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (1, 3), (3, 1)])
@pytest.mark.parametrize("rule", WHOLE)
def test_at_full_rank_the_factors_make_the_weight(rule, shape):
    equation, init, einsum = WHOLE[rule]
    rank = min(shape) if Spec.parse("m", equation, init).open_ranks() else None
    found, w = on_weights(equation, init, shape, layer=2, rank=rank)
    for site in range(2):
        own = [
            np.take(array, site, axis=1 if rule == "turned axes" else 0) for array in found.values()
        ]
        assert np.abs(np.einsum(einsum, *own) - w[site]).max() < TOL * 10


def test_ldu_factors_are_unit_triangular_after_a_permutation():
    found, _ = on_weights(*WHOLE["ldu"][:2], (4, 7), rank=4)
    assert np.abs(np.diag(found["u"][0]) - 1).max() < TOL
    assert np.abs(np.tril(found["u"][0], -1)).max() < TOL
    assert np.allclose(np.sort(np.abs(found["l"][0]).max(0)), 1)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_skeletons_are_columns_and_rows_of_the_weight(shape):
    found, w = on_weights(
        "c: site out r, m: site r s, w: site s in",
        ["cur_columns", "zeros", "cur_rows"],
        shape,
        layer=2,
        rank=3,
    )
    for site in range(2):
        columns, rows = found["c"][site].T.tolist(), found["w"][site].tolist()
        assert all(column in w[site].T.tolist() for column in columns)
        assert all(row in w[site].tolist() for row in rows)
        assert len({*map(tuple, columns)}) == len({*map(tuple, rows)}) == 3


def test_the_columns_and_rows_of_least_norm_are_taken():
    found, (w,) = on_weights(
        "c: site out r, m: site r s, w: site s in",
        ["least_columns", "zeros", "least_rows"],
        (7, 4),
        rank=3,
    )
    lengths, heights = (np.linalg.norm(w, axis=axis) for axis in (1, 0))
    assert np.array_equal(found["c"][0], w[:, heights < heights.max()])
    assert np.array_equal(found["w"][0], w[lengths <= np.sort(lengths)[2]])


def test_skeletons_of_a_weight_of_low_rank_span_it(rng):
    left, right = rng.standard_normal((6, 2)), rng.standard_normal((2, 5))
    left[1], right[:, 1] = left[0], right[:, 0]  # the first two rows and columns are not enough
    w = left @ right
    spec = Spec.parse("m", "c: site out r, r in, d: site r in", ["cur_columns", "ones", "cur_rows"])
    found = bind(spec, Grid.full((6, 5), layer=1), 2).start(lambda site: w)
    assert np.linalg.matrix_rank(found["c"][0]) == np.linalg.matrix_rank(found["d"][0]) == 2


@pytest.mark.parametrize(
    ("equation", "axis"),
    [("n: site out, a: in", 2), ("n: site in, a: out", 1), ("n: site, a: out, b: in", (1, 2))],
)
def test_a_norm_is_taken_over_what_the_factor_lacks(equation, axis):
    found, w = on_weights(equation, ["norm"] + ["ones"] * equation[9:].count(":"), (5, 3), layer=2)
    assert np.abs(found["n"] - np.sqrt((w**2).sum(axis))).max() < TOL


MPO = {
    2: "a: site o1 i1 x, b: site x o2 i2 -> (o1 o2) (i1 i2)",
    3: "a: site o1 i1 x, b: site x o2 i2 y, c: site y o3 i3 -> (o1 o2 o3) (i1 i2 i3)",
}


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
@pytest.mark.parametrize("order", MPO)
def test_matrix_product_cores_make_the_weight_when_the_bonds_are_free(order, shape):
    where = {
        f"{side[0]}{k}": f"part({side}, {order}, {k})"
        for side in ("out", "in")
        for k in range(1, order + 1)
    }
    spec = Spec.parse("m", MPO[order], [f"mpo({k + 1})" for k in range(order)], where=where)
    b = bind(spec, Grid.full(shape, layer=2), rank=24)
    w = np.random.default_rng(1).standard_normal((2, *shape))
    arrays = b.start(w.__getitem__)
    assert all(np.abs(b.delta(arrays, site) - w[site]).max() < 10 * TOL for site in range(2))


def side_by_side(w: np.ndarray, axis: int) -> np.ndarray:
    return np.concatenate(list(w), axis=axis)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_a_basis_of_all_weights_is_that_of_the_weights_side_by_side(shape):
    found, w = on_weights(
        "u: out r, core: site r s, v: s in", ["svd_u", "zeros", "svd_vh"], shape, layer=2, rank=2
    )
    for basis, joined in (
        (found["u"], side_by_side(w, 1)),
        (found["v"].T, side_by_side(w, 0).T),
    ):
        u = np.linalg.svd(joined, full_matrices=False)[0][:, :2]
        assert np.abs(basis @ basis.T - u @ u.T).max() < TOL


def test_a_basis_per_layer_is_that_of_the_weights_of_the_layer():
    found, w = on_weights(
        "u: layer out r, core: site r s, v: proj s in",
        ["svd_u", "zeros", "svd_vh"],
        (6, 4),
        layer=2,
        proj=3,
        rank=2,
    )
    by_cell = w.reshape(2, 3, 6, 4)
    for layer in range(2):
        u = np.linalg.svd(side_by_side(by_cell[layer], 1), full_matrices=False)[0][:, :2]
        basis = found["u"][layer]
        assert np.abs(basis @ basis.T - u @ u.T).max() < TOL
    for proj in range(3):
        vh = np.linalg.svd(side_by_side(by_cell[:, proj], 0), full_matrices=False)[2][:2]
        basis = found["v"][proj]
        assert np.abs(basis.T @ basis - vh.T @ vh).max() < TOL


def test_cells_without_a_weight_start_as_zeros():
    found, w = on_weights(
        "s: layer proj r, u: out r, v: r in",
        ["svd_s", "normal", "normal"],
        (5, 4),
        layer=2,
        proj=2,
        rank=2,
        places=((1, 0), (0, 1)),
    )
    values = [np.linalg.svd(x, compute_uv=False)[:2] for x in w]
    assert np.abs(found["s"][1, 0] - values[0]).max() < TOL
    assert np.abs(found["s"][0, 1] - values[1]).max() < TOL
    assert not found["s"][[0, 1], [0, 1]].any()


def test_a_turned_method_reads_the_turned_weight():
    found, w = on_weights(
        "u: site long r, v: site r short -> long short", ["svd_u(1)", "svd_vh"], (3, 8), rank=3
    )
    assert np.abs(found["u"][0] @ found["v"][0] - w[0].T).max() < TOL


def test_a_copy_is_the_start_of_its_source_and_not_the_same_array():
    found, _ = on_weights("a: site out r, *b: site out r, c: r in",
                          ["svd_u", "copy(a)", "normal"], (5, 4), rank=2)  # fmt: skip
    assert np.array_equal(found["a"], found["b"])
    assert found["a"] is not found["b"]


def test_weights_are_not_changed():
    w = np.random.default_rng(0).standard_normal((1, 6, 4))
    kept = w.copy()
    spec = Spec.parse(
        "m", "w: site out in, u: site out r, n: site out, v: r in",
        ["weight", "svd_u", "norm", "normal"],
    )  # fmt: skip
    arrays = bind(spec, Grid.full((6, 4), layer=1), 2).start(w.__getitem__)
    for array in arrays.values():
        array[...] = 0
    assert np.array_equal(w, kept)


# -- errors ---------------------------------------------------------------------------------------


ARGUMENTS = {"cos": "(out, in, 0)", "sin": "(out, in, 1)", "haar": "(out, in, 0)"}
ARGUMENTS |= {"mpo": "(1)", "copy": "(a)"}


@pytest.mark.parametrize("kind", INITS)
def test_a_rule_is_read_and_written(kind):
    text = kind + ARGUMENTS.get(kind, "")
    assert str(Init.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("normel(0.02)", "did you mean 'normal'"),
        ("svd_v", "did you mean 'svd_vh'"),
        ("", "expected one of"),
        ("normal(1", "expected one of"),
        (0, "expected one of"),
        ("zeros(1)", "zeros takes 0 arguments"),
        ("normal(1, 2)", "normal takes 0 to 1 arguments"),
        ("cos(out, in)", "cos takes 3 arguments"),
        ("mpo", "mpo takes 1 arguments"),
        ("uniform(1/)", "cannot read the formula '1/'"),
    ],
)
def test_what_is_no_rule_is_refused(text, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        Init.parse(text)


ORDERS = {
    "eye": ("a: r, b: out in", "'a' (r) cannot start as eye: that takes 2 axes or more"),
    "one_hot": ("a: r, b: out in", "that takes 2 axes or more"),
    "cyclic": ("a: site out in", "that takes 2 axes"),
    "banded": ("a: out, b: in", "that takes 2 axes"),
    "circulant": ("a: out in", "that takes 3 axes"),
    "rotation": ("a: out in", "that takes 3 axes"),
    "cos(out, in, 0)": ("a: site out in", "that takes 2 axes"),
}


@pytest.mark.parametrize("text", ORDERS)
def test_a_rule_refuses_a_factor_of_another_order(text):
    equation, message = ORDERS[text]
    init = {"a": text, "b": "ones"} if "b:" in equation else {"a": text}
    with pytest.raises(ArgumentError, match=re.escape(message)):
        Spec.parse("m", equation, init)


FAILS = {
    "more singular vectors than there are": (
        "u: site out r, v: site r in", ["svd_u", "zeros"], (5, 3), 4,
        "'u' needs 4 singular vectors from number 0 on, a weight of (5, 3) has 3",
    ),
    "more of the smallest than there are": (
        "u: site out r, v: site r in", ["svd_u(0, short - r)", "zeros"], (5, 3), 4,
        "from number -1 on",
    ),
    "more columns of Q than there are": (
        "u: site out r, v: site r in", ["qr_q", "zeros"], (5, 3), 4, "choose a smaller rank",
    ),
    "one weight for many": (
        "w: out in", ["weight"], (5, 3), None, "give the factor the site modes",
    ),
    "axes of the other side": (
        "u: site in r, v: site r out", ["svd_u", "zeros"], (5, 3), 2,
        "'u' (in r) cannot start this way: that gives the axes out r",
    ),
    "no cores of an unsplit weight": (
        "w: site out in", ["mpo(1)"], (5, 3), None, "'w' cannot be core 1 of an MPO",
    ),
    "rotations of an odd size": (
        "a: site out, *t: r s in", ["zeros", "rotation"], (5, 3), {"r": 2, "s": 3},
        "rotation needs square blocks of an even size, 't' is (2, 3, 3)",
    ),
    "more frequencies than there are": (
        "a: k, *c: out k, *d: k in", ["zeros", "cos(out, in, 0)", "cos(out, in, 1)"], (2, 3), 7,
        "'c' asks for 7 frequencies, a grid of 2 x 3 has 6",
    ),
    "a copy of another shape": (
        "a: site out r, *b: site r in", ["normal", "copy(a)"], (5, 3), 2,
        "the factor 'b' is site r in of sizes (2, 2, 3), given was an array of (2, 5, 2)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FAILS)
def test_a_start_that_cannot_be_made_is_refused(what):
    equation, init, shape, rank, message = FAILS[what]
    with pytest.raises(ArgumentError, match=re.escape(message)):
        on_weights(equation, init, shape, layer=2, rank=rank)


def test_a_singular_weight_has_no_ldu():
    spec = Spec.parse("m", *WHOLE["ldu"][:2])
    with pytest.raises(ArgumentError, match="singular"):
        bind(spec, Grid.full((3, 3), layer=1), 2).start(lambda site: np.zeros((3, 3)))


# -- few of many: sketches ----------------------------------------------------------------------


def decaying(n, m, *, sharp=0.7):
    rng = np.random.default_rng(5)
    left, right = (np.linalg.qr(rng.standard_normal((k, 60)))[0] for k in (n, m))
    return left * sharp ** np.arange(60) @ right.T


@pytest.mark.parametrize("shape", [(900, 700), (700, 900)])
def test_few_singular_vectors_of_a_large_weight_are_the_leading_ones(shape):
    spec = Spec.parse("m", "u: site out r, v: site r in", ["svd_u(1/2)", "svd_vh(1/2)"])
    w = decaying(*shape)
    found = bind(spec, Grid.full(shape, layer=1), 8).start(lambda site: w)
    u, s, vh = np.linalg.svd(w)
    best = u[:, :8] * s[:8] @ vh[:8]
    assert np.linalg.norm(found["u"][0] @ found["v"][0] - best) < 1e-3 * np.linalg.norm(best)


def test_few_pivots_of_a_large_weight_span_as_well_as_all_of_its_rows_say():
    spec = Spec.parse(
        "m", "c: site out r, m: site r s, v: site s in", ["cur_columns", "zeros", "cur_rows"],
        where={"s": "r"},
    )  # fmt: skip
    w = decaying(300, 200)
    found = bind(spec, Grid.full((300, 200), layer=1), 10).start(lambda site: w)
    q = np.linalg.qr(found["c"][0])[0]
    tail = np.linalg.svd(w, compute_uv=False)[10:]
    assert np.linalg.norm(w - q @ (q.T @ w)) < 4 * np.linalg.norm(tail)


def test_the_leading_part_of_a_qr_needs_no_more_than_its_columns():
    spec = Spec.parse("m", "q: site out r, v: site r in", ["qr_q", "qr_r"])
    w = np.random.default_rng(6).standard_normal((9, 7))
    found = bind(spec, Grid.full((9, 7), layer=1), 3).start(lambda site: w)
    q, r = np.linalg.qr(w)
    np.testing.assert_allclose(found["q"][0] @ found["v"][0], q[:, :3] @ r[:3], atol=1e-12)
