"""The jobs from Python: what the commands do, typed, and nothing printed."""

from __future__ import annotations

import json
import shlex
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tdecomp as td
from tdecomp import jobs
from tdecomp.cli import main
from tdecomp.files.factors import load_factors
from tdecomp.jobs.commands import decompose_command
from tdecomp.stack import parse_layers, parse_targets
from tdecomp.stack.select import Chooser
from tests.pairs import make_pair

CHOSEN = {"targets": "q_proj,k_proj,v_proj", "layers": "0-1", "share": "layer"}
SELECTION = jobs.Selection(
    targets=["q_proj", "k_proj", "v_proj"], layers=range(2), share=("layer",)
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def printed(capsys):
    """Run a command; its JSON report."""

    def run(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([*map(str, words), "--json"])
        assert left.value.code == 0
        return json.loads(capsys.readouterr().out)

    return run


def options(**given):
    return [f"--{name}={value}" for name, value in given.items()]


def as_json(report):
    return json.loads(json.dumps(report.to_json()))


def test_reports_are_those_of_the_commands(pair, tmp_path, printed):
    base, tuned = pair
    chosen = options(**CHOSEN)
    seen = jobs.inspect(base, selection=SELECTION)
    assert as_json(seen) == printed("inspect", base, *chosen)
    found = jobs.explore(*pair, budgets=[300, 600], methods=["svd", "tucker2"], selection=SELECTION)
    words = ("--budget=300", "--budget=600", "--method=svd,tucker2")
    assert as_json(found) == printed("explore", *pair, *words, *chosen)
    out = tmp_path / "out"
    made = jobs.decompose(
        *pair, out, method="tucker2", budget=600, selection=SELECTION, lora=jobs.LoraOptions()
    )
    assert as_json(made) == json.loads((out / "report.json").read_text())
    words = ("decompose", *pair, "-o", tmp_path / "again", "--method=tucker2", "--budget=600")
    assert as_json(made) == printed(*words, "--lora", *chosen)
    assert as_json(jobs.info(out)) == printed("info", out)
    assert as_json(jobs.verify(out, *pair)) == printed("verify", out, *pair)
    again = jobs.export(out, tmp_path / "lora", lora=jobs.LoraOptions(max_rank=2))
    words = ("export", out, "--lora", tmp_path / "lora2", "--lora-rank=2")
    assert as_json(again) == printed(*words)


def test_a_delta_goes_round(pair, tmp_path):
    base, tuned = pair
    out, model = tmp_path / "out", tmp_path / "model"
    made = jobs.decompose(*pair, out, error=1e-4)
    assert made.error <= 1e-4
    assert jobs.verify(out, *pair).agrees
    applied = jobs.apply(out, base, model)
    assert set(applied.changed) == set(load_factors(out).shapes)
    assert (applied.model, applied.unknown) == (str(model), ())
    assert jobs.verify(out, base, model).measured < 1e-2


def test_nothing_is_printed_and_progress_is_told(pair, tmp_path, capfd):
    told: dict[str, list[float]] = {}

    def progress(fraction: float, step: str) -> None:
        told.setdefault(step, []).append(fraction)

    base, tuned = pair
    out = tmp_path / "out"
    jobs.inspect(base)
    jobs.explore(*pair, progress=progress)
    jobs.decompose(*pair, out, rank=2, progress=progress)
    jobs.verify(out, *pair, progress=progress)
    jobs.apply(out, base, tmp_path / "model", progress=progress)
    jobs.export(out, tmp_path / "lora")
    assert capfd.readouterr() == ("", "")
    assert list(told) == [
        "exploring",
        "decomposing",
        "measuring what is not covered",
        f"hashing {base} and {tuned}",
        "measuring",
        "writing",
    ]
    for step, fractions in told.items():
        if not step.startswith("hashing"):  # by two jobs
            assert fractions == sorted(fractions), step
        assert min(fractions) >= 0, step
        assert max(fractions) == pytest.approx(1), step


def test_without_hashes_files_are_known_by_their_sizes(pair, tmp_path):
    base, _ = pair
    steps = set[str]()
    progress = lambda fraction, step: steps.add(step)
    jobs.decompose(*pair, tmp_path / "out", rank=2, hashes=False, progress=progress)
    assert jobs.verify(tmp_path / "out", *pair, progress=progress).changed_files == ()
    assert not any(step.startswith("hashing") for step in steps)
    file = base / "model.safetensors"
    save_file(load_file(file), file, metadata={"longer": "than before"})
    told = jobs.verify(tmp_path / "out", *pair)
    assert (told.agrees, told.changed_files) == (True, ("base/model.safetensors",))


def test_reports_are_frozen_and_rows_are_typed(pair):
    report = jobs.inspect(pair[0])
    assert report.groups[0].modes[-2:] == ("out", "in")
    with pytest.raises(FrozenInstanceError):
        report.family = "other"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mpo", "rank": 2}, "method='mpo'.*svd, tucker2, tucker, hosvd, tensor_train"),
        ({"dtype": "F32", "rank": 2}, "dtype='F32'.*float32, bfloat16, float16"),
        ({"modes": ("in",), "rank": 2}, "tucker or tucker2, not svd"),
        ({}, "exactly one of rank, error and budget"),
        ({"rank": 2, "error": 0.1}, "exactly one"),
    ],
    ids=str,
)
def test_wrong_options_write_nothing(options, message, pair, tmp_path):
    with pytest.raises(td.ArgumentError, match=message):
        jobs.decompose(*pair, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_claim_that_is_not_true_is_no_exception(pair, tmp_path):
    base, tuned = pair
    jobs.decompose(*pair, tmp_path / "out", rank=2)
    told = jobs.verify(tmp_path / "out", tuned, base)
    assert not told.agrees
    assert not all(row.agrees for row in told.sites)
    assert all(name.startswith(("base/", "tuned/")) for name in told.changed_files)


@pytest.mark.parametrize(
    "selection",
    [
        SELECTION,
        jobs.Selection(targets=r".*[qk]_proj", exclude=["o_proj"], layers=(5, 0, 1)),
        jobs.Selection(targets="all-linear", share=()),
        jobs.Selection(targets="q_proj"),  # from Python a regex, typed a name
        jobs.Selection(targets=["odd name", "b[0]"], patterns=["a.{layer}", "b c.{proj}"]),
    ],
    ids=str,
)
def test_a_selection_is_typed_as_it_is_read(selection):
    """The options in a command mean the same sites."""
    words = shlex.split(decompose_command("a", "b", selection, []))[6:]
    given = [word.removeprefix("--").split("=", 1) for word in words]
    found = dict(given)
    for name in ("targets", "exclude"):
        wanted = getattr(selection, name)
        if wanted is None or wanted == "all-linear":
            assert found.get(name) == wanted
            continue
        read = Chooser.of(parse_targets(found[name]))
        for path in ("q_proj", "x.q_proj", "x.o_proj", "odd name", "x.b[0]", "xb[0]", "k_proj"):
            assert read(path) == Chooser.of(wanted)(path), path
    if selection.layers is not None:
        assert parse_layers(found["layers"]) == tuple(sorted(selection.layers))
    assert [value for name, value in given if name == "pattern"] == list(selection.patterns)
    assert found.get("share") == (
        None if selection.share is None else ",".join(selection.share) or "none"
    )


def test_options_of_the_file_are_plain(pair, tmp_path):
    chosen = jobs.Selection(targets=("q_proj",), layers=np.arange(2).tolist())
    jobs.decompose(*pair, tmp_path / "out", rank=1, selection=chosen)
    asked = load_factors(tmp_path / "out").options
    assert asked["targets"] == ["q_proj"]
    assert asked["layers"] == [0, 1]
    assert list(asked) == [
        *("rank", "error", "budget", "targets", "exclude", "layers", "patterns", "share")
    ]
