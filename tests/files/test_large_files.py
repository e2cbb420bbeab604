"""Files of very many or very long names: the work grows with their size, not faster."""

from __future__ import annotations

import numpy as np
import pytest

from tdecomp.files import safetensors
from tdecomp.files.checkpoint import open_checkpoint, pair
from tdecomp.files.delta import open_delta
from tests.waiting import cpu_seconds

MANY = 10_000
ROW = np.zeros((1, 2), np.float32)


@pytest.fixture
def model(tmp_path):
    """Write tensors of one small shape, or of given ones, and open the file."""

    def write(side, names, shapes=None):
        rows = [(name, "F32", (shapes or {}).get(name, ROW.shape)) for name in names]
        sizes = {name: safetensors.size_in_bytes("F32", shape) for name, _, shape in rows}
        file = tmp_path / f"{side}.safetensors"
        safetensors.write(file, rows, lambda name: np.zeros(sizes[name], np.uint8))
        return file

    return write


def test_partly_covered_tensors_are_found_in_one_look(model):
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(MANY)]
    delta = open_delta(model("base", names), model("tuned", names))
    with cpu_seconds(8):  # 30 where every tensor lists all shapes
        assert delta._partly_covered() == []


def test_a_name_of_very_many_segments(model):
    name = "a" + ".b" * 20 * MANY
    pairs = open_checkpoint(model("base", [name])), open_checkpoint(model("tuned", [f"x.{name}"]))
    with cpu_seconds(8):
        assert pair(*pairs).common == (name,)


@pytest.mark.parametrize("ending", ["lm_head.weight", "embed_tokens.weight", "weight"])
def test_unpaired_tensors_are_not_compared_pair_by_pair(model, ending):
    base = ["same", *(f"old{i}.{ending}" for i in range(MANY))]
    tuned = ["same", *(f"new{i}.{ending}" for i in range(MANY))]
    pairs = open_checkpoint(model("base", base)), open_checkpoint(model("tuned", tuned))
    with cpu_seconds(8):
        found = pair(*pairs)
    assert (found.common, found.tied) == (("same",), ())
    assert len(found.only_base) == len(found.only_tuned) == MANY


def test_reshaped_tensors_are_looked_up(model):
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(4000)]
    others = [f"other{i}" for i in range(4000)]
    base = model("base", [*names, *others])
    tuned = model("tuned", [*names, *others], dict.fromkeys(others, (2, 1)))
    with cpu_seconds(8):
        assert len(open_delta(base, tuned).unpaired) == 4000


@pytest.mark.parametrize(("side", "ahead"), [(8, False), (255, False), (256, True), (600, True)])
def test_slices_are_read_ahead_where_that_is_worth_a_thread(side, ahead, model):
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)]
    shapes = dict.fromkeys(names, (side, side))
    delta = open_delta(model("base", names, shapes), model("tuned", names, shapes))
    (stack,) = delta.stacks
    assert stack.ahead == ahead
    assert [matrix.shape for matrix in stack] == [(side, side)] * 2
