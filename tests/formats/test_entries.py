"""Single entries, one and many, against the dense tensor."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import to_numpy, tol
from tdecomp.formats import at_indices
from tests.formats.cases import CASES, chain, dense, ids

EACH = pytest.mark.parametrize("fmt", CASES, ids=ids)


def everywhere(shape) -> np.ndarray:
    return np.stack(np.indices(shape), axis=-1)


@EACH
def test_entries_at_index_arrays(fmt, monkeypatch):
    expected, small = dense(fmt), 100 * tol("float64", 1) * max(1.0, abs(dense(fmt)).max())
    index = everywhere(fmt.shape)
    np.testing.assert_allclose(fmt.entries(index), expected, atol=small)
    np.testing.assert_allclose(fmt.entries(index - np.asarray(fmt.shape)), expected, atol=small)
    assert fmt.entries(index[:0]).shape == (0, *fmt.shape[1:])
    assert fmt.entries(index.reshape(-1, len(fmt.shape))[-1].tolist()).shape == ()
    monkeypatch.setattr(at_indices, "_BLOCK", 7)
    np.testing.assert_allclose(fmt.entries(index.astype(np.int8)), expected, atol=small)


@EACH
def test_one_entry_by_whole_numbers(fmt):
    expected = dense(fmt)
    for index in (tuple(n - 1 for n in fmt.shape), (np.int64(0),) * expected.ndim):
        number = fmt[index]
        assert (number.modes, number.shape) == ((), ())
        np.testing.assert_allclose(number.to_dense(), expected[index], atol=1e-12)


def test_entries_in_every_library(xp):
    for fmt in CASES:
        own = fmt.with_arrays({k: xp.asarray(a.tolist()) for k, a in fmt.arrays.items()})
        index = xp.asarray([[0] * len(fmt.shape), [n - 1 for n in fmt.shape]])
        found = to_numpy(own.entries(index))
        first, last = dense(fmt)[(0,) * len(fmt.shape)], dense(fmt)[(-1,) * len(fmt.shape)]
        np.testing.assert_allclose(found, [first, last], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("d", [20, 400])
def test_an_entry_of_a_train_takes_one_product_a_core(d, rng, monkeypatch):
    train = td.TT([f"m{k}" for k in range(d)], chain(rng, *[(2,)] * d))
    calls, product = [], at_indices.contract_two
    monkeypatch.setattr(at_indices, "contract_two", lambda *a: calls.append(a[1]) or product(*a))
    index = rng.integers(0, 2, (5, d))
    found = train.entries(index)
    assert len(calls) == d - 1
    assert all(x.shape == (5, x.shape[1]) for x, _ in calls[1:])  # rows, not matrices
    for row, value in zip(index, found, strict=True):
        expected = np.ones((1, 1))
        for core, i in zip(train.cores, row, strict=True):
            expected = expected @ core[:, i, :]
        assert value == pytest.approx(expected.item(), rel=1e-9)
        assert float(train[tuple(row)].to_dense()) == pytest.approx(value)


def test_entries_have_gradients():
    torch = pytest.importorskip("torch")
    factors = tuple(torch.ones(n, 2, requires_grad=True) for n in (3, 4))
    td.CP("a b", torch.ones(2), factors).entries([[0, 1], [0, 2]]).sum().backward()
    assert factors[0].grad.tolist() == [[2.0, 2.0], [0.0, 0.0], [0.0, 0.0]]


CP = CASES[10]
REFUSED = [
    (
        [0, 0, 0],
        r"whole numbers of shape \(\.\., 4\).*layer proj out in; got int64 of shape \(3,\)",
    ),
    ([[0, 0, 0, 0.5]], "got float64"),
    ([[True] * 4], "got bool"),
    (3, r"of shape \(\)"),
    ([[0, 0, 7, 0]], "no index 7 in the mode 'out' of size 7"),
    ([[0, 0, 0, 0], [-5, 0, 0, 0]], "no index -5 in the mode 'layer' of size 4"),
    ("abcd", "got <U4"),
]


@pytest.mark.parametrize(("indices", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_indices_that_are_none_are_refused(indices, text):
    with pytest.raises(td.ArgumentError, match=text):
        CP.entries(indices)


def test_a_number_has_no_entries():
    with pytest.raises(td.ArgumentError, match="without modes"):
        CP[0, 0, 0, 0].entries(np.zeros((1, 0), int))


@pytest.mark.parametrize("kind", [td.TT, td.CP])
def test_a_slice_of_many_modes_is_made_at_once(kind, monkeypatch):
    tensor = kind.random((2,) * 300, 3, random_state=1)
    made, check = [], kind.__post_init__
    monkeypatch.setattr(kind, "__post_init__", lambda self: made.append(self) or check(self))
    index = tuple(k % 2 for k in range(298))
    matrix = tensor[index]
    assert len(made) == 1
    assert matrix.modes == ("m298", "m299")
    every = [[(*index, i, j) for j in range(2)] for i in range(2)]
    expected = tensor.entries(every)
    np.testing.assert_allclose(matrix.to_dense(), expected, atol=1e-12 * np.abs(expected).max())
    assert len(tensor.select(**{f"m{k}": 1 for k in range(0, 300, 2)}).modes) == 150
