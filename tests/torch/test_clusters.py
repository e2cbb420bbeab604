"""Layers that share more and more of their factors while they train (ASLoRA)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tdecomp import ArgumentError
from tdecomp.adapters import Spec, method
from tdecomp_torch import Adapter, attach, load_adapter
from tdecomp_torch.training.clusters import join_closest
from tests.torch.cases import assert_close, inputs, seeded

SIZES = {"r": 2, "left": 2, "T": 1, "every": 2}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.v_proj(x) * self.q_proj(x).sigmoid()


def deep() -> nn.Sequential:
    return seeded(lambda: nn.Sequential(*(Block() for _ in range(5)))).double()


def adapted(model: nn.Module, heights: dict[str, list[float]] | None = None) -> Adapter:
    """With B of every projection and layer at a height of its own."""
    adapter = attach(model, "aslora", targets=["q_proj", "v_proj"], rank=SIZES)
    (b,) = (f for key, f in adapter.factors().items() if key.endswith("__b"))
    heights = heights or {"q": [0.0, 5.0, 6.0, 9.0, 9.5], "v": [3.0, 1.0, 1.1, 8.0, 0.0]}
    with torch.no_grad():
        b.copy_(torch.tensor([heights["q"], heights["v"]])[:, :, None, None].expand(b.shape))
    return adapter


def assigned(adapter: Adapter) -> list[list[int]]:
    """Label of every layer, per projection."""
    (found,) = (b for key, b in adapter.pool.named_buffers() if key.endswith("__assign"))
    assert torch.equal(found.sum(-1), torch.ones(found.shape[:-1], dtype=found.dtype))
    return found.argmax(-1).tolist()


def test_the_closest_join_first_and_the_first_of_two_gives_way():
    adapter = adapted(deep())
    own = [0, 1, 2, 3, 4]
    expected = {
        1: [own, own],
        2: [own, own],
        3: [[0, 1, 2, 4, 4], [0, 2, 2, 3, 4]],
        5: [[0, 2, 2, 4, 4], [0, 4, 4, 3, 4]],
        7: [[0, 4, 4, 4, 4], [4, 4, 4, 3, 4]],
        9: [[0, 4, 4, 4, 4], [4, 4, 4, 3, 4]],
    }
    for step in range(1, 10):
        adapter.step(step)
        if step in expected:
            assert assigned(adapter) == expected[step]


def test_layers_in_one_cluster_act_and_train_as_one():
    model = deep()
    adapter = adapted(model)
    for step in range(1, 8):
        adapter.step(step)
    deltas = [adapter.delta(f"{layer}.q_proj") for layer in range(5)]
    assert not torch.equal(deltas[0], deltas[1])
    assert all(torch.equal(deltas[1], other) for other in deltas[2:])
    model(inputs(3, 6)).square().sum().backward()
    (b,) = (f for key, f in adapter.factors().items() if key.endswith("__b"))
    used = b.grad.flatten(2).any(-1).tolist()
    assert used == [[True, False, False, False, True], [False, False, False, True, True]]


def test_distances_are_of_the_means_over_the_steps():
    adapter = adapted(deep(), {"q": [0.0, 10.0, 20.0, 30.0, 40.0], "v": [0.0, 1, 20, 30, 40]})
    (b,) = (f for key, f in adapter.factors().items() if key.endswith("__b"))
    adapter.step(1)
    with torch.no_grad():  # the mean of layers 0 and 1 is now the same, of 3 and 4 it is 1 apart
        b[0, 0], b[0, 1], b[0, 3], b[0, 4] = 20.0, 10.0, 60.0, 48.0
        adapter.step(2)
        b[0, 0], b[0, 1], b[0, 3], b[0, 4] = 10.0, 10.0, 45.0, 45.0
    adapter.step(3)
    assert assigned(adapter)[0] == [1, 1, 2, 3, 4]


def test_a_cluster_is_saved_and_merges(tmp_path):
    model, x = deep(), inputs(3, 6)
    plain = copy.deepcopy(model)
    adapter = adapted(model)
    before = adapter.delta("0.v_proj")
    for step in range(1, 8):
        adapter.step(step)
    assert not torch.equal(adapter.delta("0.v_proj"), before)
    found = model(x)
    adapter.save(tmp_path / "mine")
    again = load_adapter(plain, tmp_path / "mine")
    assert assigned(again) == assigned(adapter)
    assert torch.equal(plain(x), found)
    again.merge()
    assert_close(plain(x), found)


def test_kept_products_follow_a_join():
    model, x = deep(), inputs(3, 6)
    adapter = adapted(model)
    with torch.no_grad():
        before = model(x)
        for step in range(1, 8):
            adapter.step(step)
        after = model(x)
    assert not torch.equal(before, after)
    assert torch.equal(after, model(x))


def test_one_label_is_always_left():
    assign, features = torch.eye(3), torch.tensor([[0.0], [1.0], [5.0]])
    join_closest(assign, features, 1)
    assert assign.argmax(-1).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("clusters", "init", "message"),
    [
        ({"b": "2"}, {}, "that is for a constant that starts as one_hot"),
        ({"assign": "2"}, {"assign": "cyclic"}, "that is for a constant that starts as one_hot"),
        ({"assing": "2"}, {}, "clusters names 'assing', did you mean 'assign'?"),
        ({"assign": "stop"}, {}, "the clusters of assign = stop of 'mine' names 'stop'"),
    ],
)
def test_clusters_that_are_none_are_refused(clusters: Any, init: Any, message: str):
    with pytest.raises(ArgumentError) as caught:
        Spec.parse(
            "mine",
            "b: g out r, *assign: layer g, a: r in",
            {"b": "zeros", "assign": "one_hot", "a": "normal"} | init,
            clusters=clusters,
        )
    assert message in str(caught.value)


@pytest.mark.parametrize("clusters", ["0", "layer / 2", "0 - 1", "1e400", "step"])
def test_a_number_of_clusters_is_whole_and_positive(clusters: str):
    mine = Spec.parse(
        "mine",
        "b: g out r, *assign: layer g, a: r in",
        {"b": "zeros", "assign": "one_hot", "a": "normal"},
        where={"g": "layer"},
        clusters={"assign": clusters},
    )
    with pytest.raises(ArgumentError, match="clusters of assign = .* must be a positive whole"):
        attach(deep(), mine, targets=["q_proj"], rank=2)


def test_a_spec_with_clusters_is_written_and_read():
    assert Spec.from_json(method("aslora").to_json()) == method("aslora")
