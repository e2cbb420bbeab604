"""Lazy stacks: slices in C order, dense equals the slices, in the library of the arrays."""

import numpy as np
import pytest
import torch

from tdecomp.errors import ArgumentError, DataError
from tdecomp.stack import Stack, find_sites, group_sites


@pytest.fixture
def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        f"h.{i}.att.{p}.weight": rng.standard_normal((6, 4)).astype(np.float32)
        for i in (1, 0, 2)
        for p in ("q", "k")
    }


def test_dense_holds_the_slices_in_order(arrays):
    (stack,) = Stack.from_arrays(arrays)
    assert (stack.modes, stack.shape, stack.n_sites) == (
        ("layer", "proj", "out", "in"),
        (3, 2, 6, 4),
        6,
    )
    assert stack.labels == ((0, 1, 2), ("q", "k"))
    dense = stack.dense()
    assert dense.dtype == np.float32
    assert dense.flags.c_contiguous
    np.testing.assert_array_equal(dense[1, 1], arrays["h.1.att.k.weight"])
    np.testing.assert_array_equal(np.stack(list(stack)), dense.reshape(6, 6, 4))
    np.testing.assert_array_equal(stack.slice(3), arrays["h.1.att.k.weight"])


def test_slices_are_views(arrays):
    (stack,) = Stack.from_arrays(arrays)
    assert np.shares_memory(stack.slice(0), arrays["h.0.att.q.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_tensors_stay_torch(arrays, dtype: torch.dtype):
    tensors = {name: torch.from_numpy(a).to(dtype) for name, a in arrays.items()}
    (stack,) = Stack.from_arrays(tensors)
    dense = stack.dense()
    assert dense.dtype == dtype
    assert torch.equal(dense[2, 0], tensors["h.2.att.q.weight"])


def test_any_library_with_the_array_standard(arrays, xp):
    (stack,) = Stack.from_arrays({name: xp.asarray(a) for name, a in arrays.items()})
    dense = stack.dense()
    assert type(dense) is type(xp.asarray(arrays["h.0.att.q.weight"]))
    np.testing.assert_array_equal(np.asarray(dense[2, 1, :, :]), arrays["h.2.att.k.weight"])


def test_selection_and_share_are_handed_on(arrays):
    stacks = Stack.from_arrays(arrays, targets=["q"], layers=[0, 2], share=["layer"])
    assert [s.shape for s in stacks] == [(2, 6, 4)]
    (one,) = Stack.from_arrays(arrays, patterns=["h.{layer}.att.k"], exclude=r".*\.0\..*")
    assert one.shape == (2, 6, 4)


def test_every_matrix_alone(arrays):
    stacks = Stack.from_arrays(arrays, share=())
    assert [s.shape for s in stacks] == [(6, 4)] * 6
    np.testing.assert_array_equal(stacks[0].dense(), arrays["h.0.att.q.weight"])


def test_reads_only_what_is_asked_for(arrays):
    (group,) = group_sites(find_sites({n: a.shape for n, a in arrays.items()}, {}).sites)
    asked = []

    def read(site):
        asked.append(site.tensor)
        return arrays[site.tensor]

    stack = Stack(group, read)
    assert asked == []
    stack.slice(2)
    next(stack.slices())
    assert asked == ["h.1.att.q.weight", "h.0.att.q.weight"]


def test_wrong_shape_is_told(arrays):
    (group,) = group_sites(find_sites({n: a.shape for n, a in arrays.items()}, {}).sites)
    with pytest.raises(DataError, match=r"h\.0\.att\.q .*\(4, 6\).*\(6, 4\)"):
        Stack(group, lambda site: arrays[site.tensor].T).dense()


@pytest.mark.parametrize("i", [-1, 6])
def test_no_such_slice(arrays, i: int):
    (stack,) = Stack.from_arrays(arrays)
    with pytest.raises(ArgumentError, match="0-5"):
        stack.slice(i)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([np.zeros((2, 3))], "got a list"),
        (None, "got a NoneType"),
        ("layers.0.q_proj.weight", "got a str"),
        (np.zeros((2, 3)), "got a ndarray"),
        ({"layers.0.q_proj.weight": [[1.0]]}, "got a list for 'layers.0.q_proj.weight'"),
        ({"layers.0.q_proj.weight": None}, "got a NoneType for 'layers.0.q_proj.weight'"),
        ({3: np.zeros((2, 3))}, "got a ndarray for 3"),
    ],
)
def test_what_is_no_arrays_by_name_is_refused(given, told):
    with pytest.raises(ArgumentError, match="takes arrays by their names") as caught:
        Stack.from_arrays(given)
    assert str(caught.value).endswith(told)
