"""`--device` and `--max-memory`."""

from __future__ import annotations

import pytest

from tests.pairs import make_pair


@pytest.fixture
def pair(tmp_path):
    return make_pair(tmp_path / "pair")


@pytest.fixture
def words(pair, tmp_path):
    return ["decompose", *pair, "-o", tmp_path / "out"]


@pytest.mark.parametrize("method", ["svd", "tucker2", "tucker", "tensor_train"])
@pytest.mark.parametrize("target", [("--rank", "3"), ("--error", "0.4"), ("--budget", "900")])
def test_a_torch_device_gives_numpys_answer(pair, tmp_path, report, method, target):
    pytest.importorskip("torch")
    given = ["decompose", *pair, "--method", method, *target, "--dtype", "bfloat16"]
    here = report(*given, "-o", tmp_path / "here")
    there = report(*given, "-o", tmp_path / "there", "--device", "cpu")
    assert there["error"] == pytest.approx(here["error"], rel=1e-2)
    assert report("verify", tmp_path / "there", *pair)["agrees"]


def test_a_device_that_is_not_there_is_refused(words, refused, tmp_path):
    pytest.importorskip("torch")
    refused([*words, "--rank", "2", "--device", "nonsense"], "nonsense")
    assert not (tmp_path / "out").exists()


def test_what_takes_more_memory_is_refused_before_it_begins(words, refused, tmp_path):
    refused(
        [*words, "--method", "tucker2", "--rank", "2", "--max-memory", "1kB"],
        "to work on it whole takes about",
        "the limit for work is",
    )
    assert not (tmp_path / "out").exists()


def test_independent_svds_need_no_room(words, report):
    assert report(*words, "--rank", "2", "--max-memory", "1kB")["error"] < 1


@pytest.mark.parametrize("word", ["2", "much", "-1GB", "2 GiB"])
def test_a_limit_that_is_none_is_refused(words, refused, word):
    refused([*words, "--rank", "2", f"--max-memory={word}"], "write 500MB or 2GB")


def test_explore_takes_both(pair, report, refused):
    here = report("explore", *pair, "--budget", "900")
    there = report("explore", *pair, "--budget", "900", "--device", "cpu", "--max-memory", "1GB")
    assert [w["name"] for w in here["winners"]] == [w["name"] for w in there["winners"]]
    refused(["explore", *pair, "--max-memory", "1kB"], "the limit for work is")
