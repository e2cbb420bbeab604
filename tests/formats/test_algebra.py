"""The algebra of formats agrees with numpy on the dense tensors and stays in the format."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import to_numpy, tol
from tdecomp.formats import Sum, base, hadamard, mode_product, norms, to_lowrank, to_tt, to_tucker
from tdecomp.modes import Equation
from tests.formats.cases import CASES, agree, chain, dense, factor, is_split, like, space
from tests.tables import each, in_every_library

EACH = each("fmt", CASES)
SPACE = space()
CHAIN = chain(np.random.default_rng(3), (2,), (3, 4))
PAIRS = each("a, b", product(SPACE, SPACE))


@EACH
def test_a_network_of_every_format_is_exact(fmt):
    agree(fmt.to_network(), dense(fmt))


@PAIRS
def test_inner_products_of_all_pairs(a, b):
    scale = float(np.linalg.norm(dense(a)) * np.linalg.norm(dense(b)))
    expected = float(np.vdot(dense(a), dense(b)))
    assert abs(float(a.inner(b)) - expected) <= 100 * tol("float64", 1) * scale


@EACH
def test_norm_in_float64_whatever_the_dtype(fmt):
    single = fmt.with_arrays({k: a.astype("float32") for k, a in fmt.arrays.items()})
    exact = single.with_arrays({k: a.astype("float64") for k, a in single.arrays.items()})
    norm = single.norm()
    assert norm.dtype == np.float64
    assert norm.ndim == 0
    np.testing.assert_allclose(norm, np.linalg.norm(dense(exact)), rtol=tol("float64", 1000))


@PAIRS
def test_entrywise_products_of_all_pairs(a, b):
    agree(hadamard(a, b), dense(a) * dense(b))


@EACH
def test_products_within_one_format(fmt):
    other = like(fmt, seed=4)
    found = hadamard(fmt, other)
    agree(found, dense(fmt) * dense(other))
    agree(hadamard(fmt.to_network(), other.to_network()), dense(fmt) * dense(other))
    kept = td.CP | td.LowRank | td.Tucker | td.Tucker2 | td.TT
    parts = [(fmt, found)] if not isinstance(fmt, Sum) else []
    for one, product_ in parts:
        assert type(product_) is (type(one) if isinstance(one, kept) else td.Network)


def test_ranks_of_products_multiply():
    a, b = (next(c for c in CASES if isinstance(c, td.CP)) for _ in range(2))
    assert hadamard(a, b).rank == a.rank * b.rank
    svd = next(c for c in CASES if isinstance(c, td.LowRank))
    assert hadamard(svd, svd).ranks == tuple(r * r for r in svd.ranks)
    train = next(c for c in CASES if isinstance(c, td.TT))
    assert hadamard(train, train).rank == tuple(r * r for r in train.rank)


@EACH
@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_norms_of_huge_and_tiny_numbers(fmt, size):
    found = (fmt * size).norm()
    np.testing.assert_allclose(found, size * float(fmt.norm()), rtol=1e-12)


def test_extremes_that_cancel_between_arrays():
    fmt = next(c for c in CASES if isinstance(c, td.CP))
    arrays = dict(fmt.arrays)
    keys = list(arrays)
    arrays[keys[0]], arrays[keys[1]] = arrays[keys[0]] * 1e250, arrays[keys[1]] * 1e-250
    other = fmt.with_arrays(arrays)
    np.testing.assert_allclose(other.norm(), fmt.norm(), rtol=1e-12)
    np.testing.assert_allclose(other.inner(fmt), fmt.inner(fmt), rtol=1e-12)
    np.testing.assert_allclose((1e170 * fmt).inner(1e-170 * fmt), fmt.inner(fmt), rtol=1e-12)


def test_a_huge_part_beside_a_zero_and_a_tiny_one():
    fmt = next(c for c in CASES if isinstance(c, Sum))
    norms = [float(part.norm()) for part in fmt.parts]
    for k, n in enumerate(norms):
        for size in (1e-200, 1e200):
            scaled = Sum(tuple(p * (size if i == k else 0.0) for i, p in enumerate(fmt.parts)))
            np.testing.assert_allclose(scaled.norm(), size * n, rtol=1e-12)
    assert float((fmt * 0.0).norm()) == 0.0


@EACH
def test_sums_stay_in_the_format(fmt):
    other = like(fmt, seed=1)
    total = fmt + other
    assert type(total) is type(fmt)
    agree(total, dense(fmt) + dense(other))
    agree(fmt - other, dense(fmt) - dense(other))


def test_tucker_sums_open_what_one_of_them_does_not_compress():
    rng = np.random.default_rng(3)
    modes = ("layer", "out", "in")
    a = td.Tucker(modes, rng.normal(size=(4, 2, 3)), (None, rng.normal(size=(5, 2)), None))
    b = td.Tucker(
        modes, rng.normal(size=(2, 2, 3)), (rng.normal(size=(4, 2)), rng.normal(size=(5, 2)), None)
    )
    assert (a + b).rank == (4, 4, 3)
    agree(a + b, dense(a) + dense(b))


@EACH
def test_scaling_and_sign(fmt):
    for scaled in (2.5 * fmt, fmt * 2.5, np.float64(2.5) * fmt, fmt / 0.4, -fmt * -2.5):
        assert type(scaled) is type(fmt)
        agree(scaled, 2.5 * dense(fmt))


@EACH
def test_scaled_formats_keep_their_sites(fmt):
    np.testing.assert_allclose((-fmt).matrix(0), -fmt.matrix(0), atol=1e-12)


def indices(shape):
    """For each mode: its last index, a part of it, every second index backwards."""
    for k, n in enumerate(shape):
        for chosen in (n - 1, -n, slice(n // 2, None), slice(None, None, -2)):
            yield (*(slice(None),) * k, chosen)
    yield (0, ..., slice(0, 1))
    yield (..., 0)
    yield tuple(n // 2 for n in shape)
    yield ()


@EACH
def test_indexing_is_that_of_the_dense_tensor(fmt):
    full = dense(fmt)
    for index in indices(fmt.shape):
        agree(fmt[index], full[index])


@EACH
def test_selecting_by_name(fmt):
    part = fmt.select(**{fmt.modes[-1]: slice(0, 2), fmt.modes[0]: 0})
    agree(part, dense(fmt)[0, ..., :2])


def test_a_sliced_split_axis_keeps_its_name_and_is_no_longer_split():
    mpo = next(c for c in CASES if c.modes == ("(o1 o2)", "(i1 i2)"))
    assert mpo[:2].modes == mpo.modes
    assert isinstance(mpo[:2], td.Network)
    assert "o1" not in mpo[:2].equation.letters
    assert isinstance(mpo[1], td.TT)


def test_slices_of_a_long_split_axis_store_rows_of_the_factors(rng):
    fmt = td.Network(
        Equation.parse("h r, d r, in r -> (h d) in"),
        (rng.standard_normal((50, 2)), rng.standard_normal((60, 2)), rng.standard_normal((4, 2))),
    )
    part = fmt[100:103]
    agree(part, dense(fmt)[100:103])
    assert part.n_params == (3 + 3 + 4) * 2
    agree(fmt[::-700][::2], dense(fmt)[::-700][::2])


@each("fmt", [c for c in CASES if is_split(c)])
def test_a_split_axis_stays_the_same_mode_in_every_format(fmt):
    """Conversions and slices of all formats still add up, meet and multiply."""
    others = [to_tucker(fmt), to_lowrank(fmt), to_tt(fmt), fmt.to_network(), fmt.to_network()]
    k = next(k for k, m in enumerate(fmt.modes) if m.startswith("("))
    cut = (*(slice(None),) * k, slice(1, None, 2))
    full = dense(fmt)
    for other in others:
        agree(fmt + other, 2 * full)
        agree((fmt + other)[cut], 2 * full[cut])
        agree(fmt[cut] - other[cut] * 2.0, -full[cut])
        agree(hadamard(fmt, other), full * full)
        agree(hadamard(other[cut], fmt[cut]), full[cut] * full[cut])
        assert hadamard(other, fmt).modes == fmt.modes
        np.testing.assert_allclose(fmt.inner(other), np.vdot(full, full))
        np.testing.assert_allclose((fmt - other).norm(), 0, atol=1e-6)
        ones = np.ones((2, fmt.shape[k]))
        agree(mode_product(fmt + other, ones, k), 2 * np.stack([full.sum(k)] * 2, k))


def test_a_sum_is_sliced_where_a_rank_has_the_name_of_the_joined_axis(rng):
    first = td.Network(
        Equation.parse("o1 o1_o2, o2 o1_o2, in o1_o2 -> (o1 o2) in"),
        tuple(rng.standard_normal((n, 2)) for n in (2, 3, 4)),
    )
    total = td.Sum((first, td.TT((("o1",), ("o2", "in")), CHAIN, (("o1", "o2"), "in"))))
    agree(total[1:5], dense(total)[1:5])
    agree(total[:, 1][::2], dense(total)[::2, 1])


@pytest.mark.parametrize("ragged", [False, True])
def test_norms_of_many_sites_cost_what_their_ranks_cost(rng, ragged):
    """Sites meet only themselves: with (Σ ranks)² numbers this would need 29 GB."""
    ranks = tuple(int(r) for r in rng.integers(0, 60, 2000)) if ragged else (30,) * 2000
    width = sum(ranks)
    u, s, vh = rng.standard_normal((8, width)), np.ones(width), rng.standard_normal((width, 6))
    fmt = td.LowRank(("layer", "out", "in"), (2000,), ranks, u, s, vh)
    other = like(fmt, seed=5)[:, ::-1]
    np.testing.assert_allclose(fmt.norm(), np.linalg.norm(dense(fmt)))
    np.testing.assert_allclose(fmt.inner(other), np.vdot(dense(fmt), dense(other)))


@pytest.mark.parametrize("dtypes", [("complex128", "float64"), ("float32", "float64")])
@EACH
@in_every_library
def test_arrays_of_several_dtypes(fmt, dtypes, xp):
    kinds = {k: dtypes[i % 2] for i, k in enumerate(reversed(fmt.arrays))}
    arrays = {k: a.astype("float32").astype(kinds[k]) for k, a in fmt.arrays.items()}
    ours = fmt.with_arrays({k: xp.asarray(a) for k, a in arrays.items()})
    mixed = fmt.with_arrays(arrays)
    full, k = dense(mixed), len(fmt.modes) - 1
    vector = xp.asarray(np.ones(fmt.shape[-1]))
    for found, expected in [
        (ours, full),
        (ours + ours, 2 * full),
        (ours[0], full[0]),
        (to_tucker(ours), full),
        (to_lowrank(ours), full),
        (to_tt(ours), full),
        (mode_product(ours, vector, k), full.sum(k)),
        (hadamard(ours, ours), full * full),
    ]:
        np.testing.assert_allclose(dense(found), expected, atol=1e-4)
    matrices = full.reshape(-1, *full.shape[-2:])
    np.testing.assert_allclose(to_numpy(ours.matrix(0)), matrices[0], atol=1e-4)
    np.testing.assert_allclose(float(ours.norm()), np.linalg.norm(full), rtol=1e-5)


@EACH
def test_a_slice_stores_no_more_than_the_tensor(fmt):
    if not is_split(fmt):
        for k, n in enumerate(fmt.shape):
            assert fmt[(*(slice(None),) * k, slice(0, n, 2))].n_params <= fmt.n_params


@EACH
def test_permuting_modes(fmt):
    agree(fmt.permute(fmt.modes[::-1]), dense(fmt).transpose())
    order = (*range(1, len(fmt.modes)), 0)
    agree(fmt.permute(order), dense(fmt).transpose(order))
    agree(fmt.permute(" ".join(fmt.modes)), dense(fmt))


@EACH
def test_mode_products_with_a_matrix_and_a_vector(fmt, rng):
    for k, n in enumerate(fmt.shape):
        matrix, vector = rng.standard_normal((3, n)), rng.standard_normal(n)
        expected = np.moveaxis(np.tensordot(matrix, dense(fmt), (1, k)), 0, k)
        agree(mode_product(fmt, matrix, fmt.modes[k]), expected)
        agree(mode_product(fmt, vector, k), np.tensordot(vector, dense(fmt), (0, k)))


@EACH
@in_every_library
def test_every_library_and_inputs_stay_as_they_are(fmt, xp):
    arrays = {k: xp.asarray(a.tolist(), dtype=xp.float64) for k, a in fmt.arrays.items()}
    ours = fmt.with_arrays(arrays)
    full, n = dense(fmt), fmt.shape[-1]
    results = [
        (ours, full),
        (ours + ours, 2 * full),
        (ours - ours * 3, -2 * full),
        (ours[0], full[0]),
        (ours[..., 1:], full[..., 1:]),
        (ours[..., ::2], full[..., ::2]),
        (ours.permute(fmt.modes[::-1]), full.transpose()),
        (
            mode_product(ours, xp.ones((2, n), dtype=xp.float64), -1),
            np.stack([full.sum(-1)] * 2, -1),
        ),
        (hadamard(ours, ours), full * full),
    ]
    for found, expected in results:
        assert all(type(a) is type(arrays[next(iter(arrays))]) for a in found.arrays.values())
        agree(found, expected)
    assert abs(float(ours.norm()) - np.linalg.norm(full)) < 1e-10 * (1 + np.linalg.norm(full))
    for key, array in arrays.items():
        np.testing.assert_array_equal(to_numpy(array), fmt.arrays[key])


@pytest.mark.slow
@EACH
def test_differentiable_in_torch(fmt):
    torch = pytest.importorskip("torch")
    names = list(fmt.arrays)
    leaves = [torch.tensor(fmt.arrays[k] + 0.5, requires_grad=True) for k in names]

    def through(*arrays):
        ours = fmt.with_arrays(dict(zip(names, arrays, strict=True)))
        picked = (ours[0] * 2.0 + ours[0]).to_dense()
        vector = torch.ones(fmt.shape[-1], dtype=torch.float64)
        return ours.norm(), picked, mode_product(ours, vector, -1).to_dense()

    def pairwise(*arrays):
        ours = fmt.with_arrays(dict(zip(names, arrays, strict=True)))
        return ours.inner(ours.permute(range(len(ours.modes)))), hadamard(ours, ours).to_dense()

    dense_of = lambda *arrays: fmt.with_arrays(dict(zip(names, arrays, strict=True))).to_dense()
    assert torch.autograd.gradcheck(dense_of, leaves, fast_mode=True)
    assert torch.autograd.gradcheck(through, leaves, fast_mode=True)
    assert torch.autograd.gradcheck(pairwise, leaves, fast_mode=True)


def test_a_torch_number_scales_from_the_left():
    torch = pytest.importorskip("torch")
    fmt = td.CP(("out", "in"), torch.ones(1), (torch.ones(3, 1), torch.ones(4, 1)))
    scale = torch.tensor(2.0, requires_grad=True)
    (scale * fmt).to_dense().sum().backward()
    assert scale.grad is not None
    assert float(scale.grad) == 12.0


def test_split_axes_meet_plain_ones(rng):
    mpo = next(c for c in CASES if c.modes == ("(o1 o2)", "(i1 i2)"))
    plain = td.Tucker(("out", "in"), rng.standard_normal(mpo.shape), (None, None))
    expected = np.vdot(dense(mpo), dense(plain))
    np.testing.assert_allclose(mpo.inner(plain), expected)
    np.testing.assert_allclose(plain.inner(mpo), expected)
    agree(hadamard(plain, mpo), dense(mpo) * dense(plain))


@each("fmt", [*CASES, *space()])
def test_the_norm_of_a_difference_is_true_to_rounding(fmt):
    """Between forms of one tensor, and of one that is a little larger."""
    norm = float(fmt.norm())
    forms = [fmt, to_tt(fmt), to_tucker(fmt), fmt.to_network(), to_lowrank(fmt)]
    small = 100 * tol("float64", 1) * norm
    for other in forms:
        if not (is_split(fmt) and type(other) is not type(fmt)):  # one split, another or none
            assert float((fmt - other).norm()) <= small
            assert float((other - fmt).norm()) <= small
    near = (1 + 1e-9) * fmt
    assert float((near - fmt).norm()) == pytest.approx(1e-9 * norm, abs=small)


@each("fmt", CASES)
@in_every_library
def test_norms_of_differences_in_every_library(fmt, xp):
    own = fmt.with_arrays({k: xp.asarray(a.tolist()) for k, a in fmt.arrays.items()})
    norm = float(own.norm())
    assert norm == pytest.approx(float(fmt.norm()), rel=1e-6)
    assert float((own - own).norm()) <= 100 * tol("float64", 1) * norm


@pytest.mark.parametrize("sites", [3, 50])
def test_a_shared_tucker2_and_its_svds_meet_site_by_site(rng, sites, monkeypatch):
    monkeypatch.setattr(norms, "MOST_FLOPS", 0)
    shared = td.Tucker2("layer out in", *(factor(rng, *n) for n in ((sites, 2, 2), (9, 2), (8, 2))))
    nearly = to_lowrank((1 + 1e-9) * shared)
    norm = float(shared.norm())
    assert float((shared - nearly).norm()) == pytest.approx(1e-9 * norm, rel=1e-4)
    extreme = float((1e200 * (shared - nearly)).norm())
    assert extreme == pytest.approx(1e191 * norm, rel=1e-4)


def test_a_norm_that_qr_would_take_long_for_is_the_root_of_a_square(rng, monkeypatch):
    a, b = (like(CASES[10], seed=seed) for seed in (1, 2))
    expected = np.linalg.norm(dense(a) - dense(b))
    monkeypatch.setattr(norms, "MOST_FLOPS", 0)
    monkeypatch.setattr(base, "MOST_FLOPS", 0)
    assert float((a - b).norm()) == pytest.approx(expected, rel=1e-9)


def test_the_norm_of_a_train_takes_one_qr_a_core(rng, monkeypatch):
    train = td.TT([f"m{k}" for k in range(300)], chain(rng, *[(3,)] * 300))
    calls, qr = [], np.linalg.qr
    monkeypatch.setattr(np.linalg, "qr", lambda *a, **k: calls.append(a) or qr(*a, **k))
    difference = train - train
    assert float(difference.norm()) <= 1e-13 * float(train.norm())
    assert len(calls) <= 2 * 2 * 300


CP = next(c for c in CASES if isinstance(c, td.CP))
REFUSED = [
    (lambda: CP + CP[:2], "cannot add the modes"),
    (lambda: CP * CP, "hadamard"),
    (lambda: CP * np.ones(3), "mode_product"),
    (lambda: CP.inner(CP[:2]), "differ"),
    (lambda: CP.inner(CP.permute((1, 0, 2, 3))), "differ"),
    (lambda: CP[9], "no index 9 in the mode 'layer' of size 4"),
    (lambda: CP[2:2], "empty"),
    (lambda: CP[0, 0, 0, 0, 0], "5 indices"),
    (lambda: CP.select(head=0), "no mode 'head'"),
    (lambda: CP.permute("layer out"), "all modes"),
    (lambda: mode_product(CP, np.ones((2, 3)), "out"), "has size 7"),
    (lambda: CP + CP.permute((1, 0, 2, 3)), "cannot add"),
    (lambda: CP[0, 0, 0].pair(0), "the modes 'in' hold no matrix"),
    (lambda: CP.to_network()[0, 0, 0].matrix(0), "hold no matrix"),
    (lambda: CP[0, 0, 0, 0].n_sites, "the modes '' hold no matrix"),
    (lambda: CP.pair(99), "no site 99: this tensor has the sites 0-11"),
    (lambda: CP.inner(np.ones(2)), "expected a format, got a ndarray"),
    (lambda: hadamard(CP, np.ones(2)), "expected two formats, got CP and ndarray"),
    (lambda: CP[None], "no index None in the mode 'layer'"),
    (lambda: CP[[0, 1]], r"no index \[0, 1\] in the mode 'layer'"),
    (lambda: CP[True], "no index True"),
    (lambda: to_tt(CP[0, 0, 0, 0]), "without modes is not a TT"),
]


@pytest.mark.parametrize(("act", "message"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_refusals_say_what_to_do(act, message):
    with pytest.raises(td.ArgumentError, match=message):
        act()


def test_formats_are_not_iterated_by_accident():
    with pytest.raises(TypeError):
        iter(CP)
