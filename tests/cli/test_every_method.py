"""Every decomposition that the command line runs by its name, from two models to a LoRA."""

from __future__ import annotations

import pytest

from tdecomp.decomposition.table import METHODS

RUN = [name for name, row in METHODS.items() if row.needs_nothing_else]


@pytest.mark.parametrize("target", [("--rank", "2"), ("--budget", "900")], ids=" ".join)
@pytest.mark.parametrize("method", RUN)
def test_a_method_goes_all_the_way(method, target, base, tuned, tmp_path, done, report):
    out = tmp_path / "out"
    told = report("decompose", base, tuned, "-o", out, "--method", method, *target)
    assert told["method"] == method
    assert 0 < told["error"] < 1
    assert report("verify", out, base, tuned)["agrees"] is True
    assert report("info", out)["error"] == pytest.approx(told["error"])
    done("export", out, "--lora", tmp_path / "lora")
    done("apply", out, base, "-o", tmp_path / "model")


def test_help_names_them_with_a_sentence(done):
    shown = " ".join(done("decompose", "--help").out.split())
    assert all(name in shown for name in RUN)


def test_those_that_need_more_are_not_offered():
    assert set(METHODS) - set(RUN) == {"mpo", "als"}
