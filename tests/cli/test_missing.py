"""What has no partner, or cannot be compared, is said first and everywhere, never counted as 0."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

from tests.cli import models

GONE = models.Q0
RANK = ("--rank", "2")
ALLOW = "--allow-missing"


@pytest.fixture
def without(base, tuned, tmp_path):
    """The two models, one of which lacks a matrix."""

    def without(side, tensor=GONE):
        before, after = models.base_arrays(), models.tuned_arrays(models.base_arrays())
        del {"base": before, "tuned": after}[side][tensor]
        return (
            models.write_base(tmp_path / "less", before),
            models.write_tuned(tmp_path / "other", after),
        )

    return without


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("command", ["decompose", "explore"])
def test_a_missing_site_is_an_error_that_names_it_and_the_way_on(
    command, side, without, tmp_path, refused, done
):
    there = "tuned model" if side == "base" else "base"
    out = ("-o", tmp_path / "out", *RANK) if command == "decompose" else ()
    arguments = [command, *without(side), *out]
    refused(arguments, GONE, f"only in the {there}", "unknown", "--exclude", ALLOW)
    text = done(*arguments, ALLOW).out
    assert text.startswith("Unknown: what changed in 1 targeted tensor is in no figure")
    assert f"{GONE} (only in the {there})" in text.splitlines()[0]
    if command == "decompose":
        done(*arguments, "--overwrite", "--exclude", GONE.removesuffix(".weight"))


def test_what_is_unknown_stays_with_the_factors(without, tmp_path, report, done, call):
    """The report has it first, and no share of the measured rest stands for the whole."""
    base, tuned = without("tuned")
    out = tmp_path / "out"
    told = report("decompose", base, tuned, "-o", out, *RANK, ALLOW)
    row = {"tensor": GONE, "reason": "only in the base", "site": True}
    assert told["unknown"] == [row]
    assert next(iter(json.loads((out / "report.json").read_text()))) == "unknown"
    assert told["uncovered_share"] is None
    assert 0 < told["uncovered_share_of_measured"] < 1
    shares = {u["tensor"]: u["energy_share"] for u in told["uncovered"]}
    assert shares.pop(GONE) is None
    assert sum(shares.values()) == pytest.approx(told["uncovered_share_of_measured"])
    again = done("decompose", base, tuned, "-o", out, *RANK, ALLOW, "--overwrite").out
    assert "of what is known of ‖Δ‖²" in again
    assert "share of what is known of" in again
    assert report("verify", out, base, tuned)["unknown"] == [row]
    assert report("info", out)["unknown"] == [row]
    for command in (["verify", out, base, tuned], ["info", out]):
        assert done(*command).out.startswith("Unknown: ")
    for command in (
        ["apply", out, base, "-o", tmp_path / "model"],
        ["export", out, "--lora", tmp_path / "lora"],
    ):
        result = call(*command)
        assert (result.code, result.err.startswith("Unknown: ")) == (0, True)


def test_two_equal_models_with_a_gap_are_not_identical(without, tmp_path, report):
    base, _ = without("base")
    whole = models.write_base(tmp_path / "whole", models.base_arrays())
    told = report("decompose", base, whole, "-o", tmp_path / "out", *RANK, ALLOW)
    assert told["zero_delta"] is False
    assert report("explore", base, whole, ALLOW)["zero_delta"] is False


@pytest.mark.parametrize("tensor", [models.NORM0, models.EMBEDDING])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_what_nobody_targeted_blocks_nothing(side, tensor, base, tuned, tmp_path, report):
    models.spoil({"base": base, "tuned": tuned}[side], tensor, models.put(np.nan))
    told = report("decompose", base, tuned, "-o", tmp_path / "out", *RANK)
    (row,) = told["unknown"]
    assert (row["tensor"], row["site"]) == (tensor, False)
    assert told["uncovered_share"] is None


def test_the_same_infinity_in_both_is_no_change(base, tuned, tmp_path, report):
    for folder in (base, tuned):
        models.spoil(folder, models.NORM0, models.put(-np.inf))
    told = report("decompose", base, tuned, "-o", tmp_path / "out", *RANK)
    assert told["unknown"] == []
    assert 0 < told["uncovered_share"] < 1


def test_the_commands_that_explore_prints_work(without, tmp_path, report, done):
    """With the flag, the selection and a tensor that nobody asked for and that is not finite."""
    base, tuned = without("tuned")
    models.spoil(tuned, models.NORM0, models.put(np.nan))
    chosen = ("--exclude", r".*\.mlp\..*", "--layers", "0-5", ALLOW)
    told = report("explore", base, tuned, *chosen, "--budget", "400")
    line = told["winners"][0]["command"]
    words = shlex.split(line.replace(" OUT ", f" {tmp_path / 'out'} "))
    assert ALLOW in words
    done(*words[1:])
