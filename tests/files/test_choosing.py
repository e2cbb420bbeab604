"""Which weights of a folder are taken, and what is said of the others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tdecomp.errors import FileError
from tdecomp.files import checkpoint as ck

INDEX = ".safetensors.index.json"


def fill(folder, names):
    """Write files whose one tensor says in which of them it lies; indexes list the shards."""
    folder.mkdir()
    for number, name in enumerate(names):
        if name.endswith(INDEX):
            stem = name.removesuffix(INDEX)
            shards = [other for other in names if other.startswith(f"{stem}-0")]
            listed = {f"{stem}.{names.index(shard)}": shard for shard in shards}
            (folder / name).write_text(json.dumps({"weight_map": listed}))
        else:
            stem = name.partition("-0")[0].removesuffix(".safetensors")
            (folder / name).parent.mkdir(exist_ok=True)
            save_file({f"{stem}.{number}": torch.ones(2)}, folder / name)
    return folder


TWO = ("{}-00001-of-00002.safetensors", "{}-00002-of-00002.safetensors")


def shards(stem):
    return [name.format(stem) for name in TWO]


# Files in the folder, which of them are taken, and which are named as left aside.
CHOSEN = {
    "mistral": (["consolidated.safetensors", "model.safetensors"], [1], [0]),
    "shards and consolidated": ([*shards("model"), "consolidated.safetensors"], [0, 1], [2]),
    "index before all": ([*shards("model"), f"model{INDEX}", "model.safetensors"], [0, 1], [3]),
    "single before shards": (["model.safetensors", *shards("model")], [0], [1]),
    "variant": (["model.fp16.safetensors", "model.safetensors"], [1], [0]),
    "diffusers": (
        [f"diffusion_pytorch_model{v}.safetensors" for v in ("", ".fp16", ".non_ema")],
        [0],
        [1, 2],
    ),
    "variant of another name": (["weights.fp16.safetensors", "weights.safetensors"], [1], [0]),
    "average": (["ema.safetensors", "weights.safetensors"], [1], [0]),
    "adapter": (["adapter_model.safetensors", "consolidated.safetensors"], [1], [0]),
    "optimizer": (["optimizer.safetensors", "model.safetensors"], [1], [0]),
    "two indexes": (
        [*shards("consolidated"), f"consolidated{INDEX}", *shards("model"), f"model{INDEX}"],
        [3, 4],
        [2],
    ),
    "one index": ([*shards("other"), f"other{INDEX}", "stale.safetensors"], [0, 1], [3]),
    "alone": (["adapter_model.safetensors"], [0], []),
    "a file per tensor": (
        ["layers.0.weight.safetensors", "layers.1.weight.safetensors"],
        [0, 1],
        [],
    ),
    "numbered": (["layer_1.safetensors", "layer_2.safetensors"], [0, 1], []),
    "sub-folder": (["model.safetensors", "original/consolidated.safetensors"], [0], []),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_one_set_is_taken_and_the_others_are_named(tmp_path, case):
    names, taken, aside = CHOSEN[case]
    folder = fill(tmp_path / "model", names)
    opened = ck.open_checkpoint(folder)
    assert [str(file.relative_to(folder)) for file in opened.files] == [names[i] for i in taken]
    assert len(opened.names) == len(taken)
    told = " ".join(opened.notes)
    assert bool(told) == bool(aside)
    for i in aside:
        assert names[i] in told.partition("left aside")[2]
    (tmp_path / "copy").mkdir()
    ck.write_model(opened, tmp_path / "copy", {opened.names[0]: lambda x: x + 1})
    written = {str(f.relative_to(tmp_path / "copy")) for f in (tmp_path / "copy").rglob("*.safe*")}
    index = {opened.index_file.name} if opened.index_file else set()
    assert written == {*(names[i] for i in taken), *index}


# Files in the folder, and what is said.
UNDECIDED = {
    "student and teacher": (["student.safetensors", "teacher.safetensors"], "name one, e.g. .*stu"),
    "two indexes": (
        [*shards("a"), f"a{INDEX}", *shards("b"), f"b{INDEX}"],
        f"a{INDEX}, b{INDEX}; name one, e.g. .*/a{INDEX}",
    ),
    "only averages": (["ema.safetensors", "ema_2.safetensors"], "ema.safetensors, ema_2"),
    "a shard is missing": ([shards("model")[1]], "1 of the 2 shards of 'model'.*download"),
}


@pytest.mark.parametrize("case", UNDECIDED)
def test_where_no_rule_decides_the_user_has_to(tmp_path, case):
    names, message = UNDECIDED[case]
    folder = fill(tmp_path / "model", names)
    with pytest.raises(FileError, match=message) as caught:
        ck.open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    for name in names:
        if name.endswith(INDEX) or "-0" not in name:
            assert ck.open_checkpoint(folder / name).notes == ()


# First names of the weights and of their copy, and of other tensors.
COPIES = {
    "teacher": ("student.", "teacher.", ()),
    "average of a model": ("model.", "ema.", ("head.weight",)),
    "average of bare names": ("", "ema_model.module.", ()),
    "momentum": ("encoder_q.", "encoder_k.", ("queue",)),
    "no copy: another shape": (None, "teacher.", ("student.0.weight",)),
    "no copy: a tower": ("text_model.", "vision_model.", ()),
}


@pytest.mark.parametrize("case", COPIES)
def test_copies_inside_a_file_are_left_aside(tmp_path, case):
    own, second, others = COPIES[case]
    tensors = {f"{second}{i}.weight": torch.full((2, 3), 1.0 * i) for i in range(3)}
    if own is not None:
        tensors |= {f"{own}{i}.weight": torch.full((2, 3), 5.0 + i) for i in range(3)}
    tensors |= {name: torch.ones(4, 4) for name in others}
    save_file(tensors, tmp_path / "model.safetensors")
    opened = ck.open_checkpoint(tmp_path)
    if case.startswith("no copy"):
        assert set(opened.names) == set(tensors)
        assert opened.notes == ()
        return
    kept = {name for name in tensors if not name.startswith(second)}
    assert set(opened.names) == kept
    assert f"3 tensors of {second.partition('.')[0]}.* are a copy of " in opened.notes[0]
    (tmp_path / "copy").mkdir()
    ck.write_model(opened, tmp_path / "copy", {f"{own}0.weight": lambda x: x + 1})
    written = load_file(tmp_path / "copy" / "model.safetensors")
    assert set(written) == kept
    np.testing.assert_array_equal(written[f"{own}0.weight"], np.full((2, 3), 6.0))
