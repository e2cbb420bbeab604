"""`merge`: words in, an adapter or a model out."""

from __future__ import annotations

import numpy as np
import pytest

from tdecomp.files.loras import read_adapter
from tests.collections.files import SITES, adapter

NAMES = ["one", "two"]


@pytest.fixture
def two(tmp_path):
    return [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2, rank=3)]


def test_a_merge_tells_what_it_has_of_every_adapter(two, tmp_path, done, report):
    out = tmp_path / "out"
    text = done("merge", *two, "-o", out, "--weights", "0.5,2", "--method", "weighted_sum").out
    for said in ("merged by weighted_sum", "cosine", " a ", " b ", f"written to {out}"):
        assert said in text
    words = ["--method", "ties", "--option", "density=0.4", "--rank", "4", "--names", "fr,de"]
    told = report("merge", *two, "-o", out, "--overwrite", *words)
    assert (told["method"], told["where"]) == ("ties", "dense")
    assert [row["name"] for row in told["members"]] == ["fr", "de"]
    assert "lost" not in told["members"][0]
    assert read_adapter(out).pairs.keys() == SITES.keys()
    assert max(read_adapter(out).pairs[site].rank for site in SITES) == 4


def test_a_model_is_written_where_it_is_asked_for(two, tmp_path, base, done):
    text = done("merge", *two, "--base", base, "--model", "-o", tmp_path / "model").out
    assert f"4 weights changed, model in {tmp_path / 'model'}" in text
    assert (tmp_path / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weights", "1"], "1 weights for 2 adapters"),
        (["--weights", "a,b"], "--weights a,b: write 0.5,0.5"),
        (["--option", "density"], "--option density: write density=0.3"),
        (["--method", "ties"], "dense deltas"),
        (["--method", "tie", "--rank", "2"], "'tie'"),
        (["--model"], "needs the base"),
        (["--rank", "2", "--error", "0.1"], "not both"),
        (["--missing", "skip"], "missing skip"),
    ],
)
def test_what_cannot_be_merged_is_refused(words, said, two, tmp_path, refused):
    refused(["merge", *two, "-o", tmp_path / "out", *words], said)


def test_a_sum_is_true_where_that_of_peft_is_not(tmp_path, done):
    """PEFT's "linear" adds A and B apart: ½ + ½ of two random adapters is as far as zero."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from torch import nn

    rng = np.random.default_rng(0)
    model = nn.ModuleDict({"q": nn.Linear(48, 64, bias=False)})
    model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=["q"]), "one")
    model.add_adapter("two", peft.LoraConfig(r=8, target_modules=["q"]))
    layer = model.base_model.model.q
    for name in NAMES:
        for part in (layer.lora_A[name], layer.lora_B[name]):
            drawn = rng.standard_normal(tuple(part.weight.shape))
            part.weight.data = torch.tensor(drawn, dtype=torch.float32)
    wanted = sum(0.5 * layer.get_delta_weight(name) for name in NAMES).detach().numpy()
    model.add_weighted_adapter(NAMES, [0.5, 0.5], "linear", combination_type="linear")
    theirs = layer.get_delta_weight("linear").detach().numpy()
    for name in NAMES:
        model.save_pretrained(tmp_path / "saved", selected_adapters=[name])
    saved = [tmp_path / "saved" / name for name in NAMES]
    done("merge", *saved, "-o", tmp_path / "ours", "--method", "mean", "-q")
    (pair,) = (read_adapter(tmp_path / "ours").pairs[s] for s in read_adapter(saved[0]).pairs)
    error = lambda x: float(np.linalg.norm(x - wanted) / np.linalg.norm(wanted))
    assert error(pair.dense()) < 1e-6
    assert 0.8 < error(theirs) < 1.2
