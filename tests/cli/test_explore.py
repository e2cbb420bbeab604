"""`explore`: a table of formats and budgets, and commands that make its rows."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

from tests.cli import models
from tests.pairs import make_pair, write_folder

MODES = [("tucker", "in"), ("tucker", "-1"), ("tucker", "out,in"), ("tucker2", "layer,in")]


@pytest.fixture
def pair(tmp_path):
    return make_pair(tmp_path / "pair")


def test_the_table_is_complete(pair, report):
    told = report("explore", *pair)
    names = [row["name"] for row in told["rows"]]
    assert names[0] == "svd"
    assert names[-3:] == ["tucker2", "tucker", "tensor_train"]
    shared = [
        f"{s} shared over {m}" for m in ("layer", "proj", "layer proj") for s in ("in", "out")
    ]
    assert names[1:-3] == shared
    assert told["numbers"] == sum(np.prod(g["shape"]) for g in told["groups"])
    assert told["budgets"] == sorted(told["budgets"])
    assert all(len(row["cells"]) == len(told["budgets"]) for row in told["rows"])
    for at, winner in enumerate(told["winners"]):
        errors = {r["name"]: r["cells"][at]["error"] for r in told["rows"] if r["cells"][at]}
        assert winner["error"] == errors[winner["name"]]
        assert winner["error"] <= min(errors.values()) * 1.001


def test_help_and_silence(pair, done):
    assert "Usage: tdecomp explore" in done("explore", "--help").out
    assert done("explore", *pair, "--quiet").out == ""


def test_it_prints_a_table_and_commands(pair, done, report):
    text = done("explore", *pair, "--budget", "300").out
    for wanted in ("relative error", "svd", "in shared over proj", "tucker2", "300"):
        assert wanted in text
    assert "tdecomp decompose" in text
    passes = report("explore", *pair, "--budget", "300")["passes"]
    assert f"Every matrix was read {passes} times" in text
    assert text.count("*0.") == 1


@pytest.mark.parametrize(
    "chosen",
    [
        (),
        ("--targets", "q_proj,k_proj,v_proj"),
        *(
            pytest.param(chosen, marks=pytest.mark.slow)
            for chosen in (
                ("--exclude", "mlp.down_proj", "--layers", "0-1"),
                ("--share", "layer"),
                ("--share", "none"),
            )
        ),
        ("--pattern", "layers.{layer}.mlp.{proj:gate_proj|up_proj}"),
        ("--share", "layer,head", "--targets", "q_proj,k_proj,v_proj"),
    ],
    ids=" ".join,
)
def test_commands_of_all_rows_give_their_errors(chosen, base, tuned, tmp_path, report):
    """Also those that `decompose` needs --modes or another --share for."""
    budgets = ("--budget", "400", "--budget", "900")
    told = report("explore", base, tuned, *budgets, *chosen)
    made = 0
    for row in told["rows"]:
        for budget, cell in zip(told["budgets"], row["cells"], strict=True):
            if row["options"] is None or cell is None:
                continue
            words = [*chosen, *row["options"]]
            if "--share" in row["options"] and "--share" in chosen:
                at = words.index("--share")
                del words[at : at + 2]
            out = tmp_path / f"out{made}"
            fit = report("decompose", base, tuned, "-o", out, *words, "--budget", budget)
            made += 1
            assert fit["n_params"] <= budget
            assert cell["error"] == pytest.approx(fit["error"], rel=0.01, abs=1e-3), row["name"]
    assert made >= len(told["budgets"])


@pytest.mark.parametrize("chosen", [(), ("--share", "layer,proj", "--layers", "1-2")], ids=" ".join)
def test_the_printed_command_runs(chosen, pair, tmp_path, report, done):
    told = report("explore", *pair, *chosen)
    text = done("explore", *pair, *chosen).out
    for at, winner in enumerate(told["winners"]):
        assert winner["command"].rpartition(" ")[0] in text
        words = shlex.split(winner["command"])
        assert words[0] == "tdecomp"
        words[words.index("OUT")] = str(tmp_path / f"out{at}")
        fit = report(*words[1:])
        assert fit["error"] == pytest.approx(winner["error"], rel=0.01)
        assert fit["n_params"] <= winner["budget"]


def test_shared_data_show(tmp_path, report):
    """One `in` basis per layer, planted, is found and beats everything else."""
    rng = np.random.default_rng(0)
    old = {
        f"model.layers.{i}.mlp.{p}_proj.weight": rng.standard_normal((40, 30)).astype("float32")
        for i in range(3)
        for p in ("gate", "up")
    }
    right = {name.split(".")[2]: rng.standard_normal((2, 30)) for name in old}
    new = {
        name: (a + rng.standard_normal((40, 2)) @ right[name.split(".")[2]]).astype("float32")
        for name, a in old.items()
    }
    base, tuned = write_folder(tmp_path / "base", old), write_folder(tmp_path / "tuned", new)
    told = report("explore", base, tuned, "--budget", 3 * 2 * (2 * 40 + 30))
    (winner,) = told["winners"]
    assert winner["name"] == "in shared over proj"
    assert "--method tucker --modes=in --share proj" in winner["command"]
    assert winner["error"] < 1e-4 < winner["runner_up_error"]


def test_formats_and_file(pair, tmp_path, report, done):
    file = tmp_path / "table.json"
    told = report("explore", *pair, "--method", "cp,svd", "--budget", "500", "-o", file)
    assert [row["name"] for row in told["rows"]] == ["svd", "cp"]
    assert told["rows"][1]["options"] == ["--method", "cp"]
    assert json.loads(file.read_text()) == told
    assert f"Written to {file}." in done("explore", *pair, "-o", file, "--overwrite").out


def test_the_old_name_of_method_is_known(pair, report):
    words = ("explore", *pair, "--budget", "500")
    assert report(*words, "--formats", "svd") == report(*words, "--method", "svd")


def test_without_a_command_there_is_the_call(pair, report, done, monkeypatch):
    monkeypatch.setattr("tdecomp.jobs.exploring.METHODS", {})
    told = report("explore", *pair, "--method", "cp", "--budget", "500")
    (winner,) = told["winners"]
    assert winner["command"] is None
    assert winner["python"] == "td.decompose(stacks, td.cp, budget=500)"
    assert winner["python"] in done("explore", *pair, "--method", "cp", "--budget", "500").out


def test_zero_delta(base, done, report):
    told = report("explore", base, base)
    assert told["zero_delta"] is True
    assert all(w["error"] == 0 for w in told["winners"])
    assert "BASE and TUNED are equal" in done("explore", base, base).out


@pytest.mark.parametrize(
    ("more", "texts"),
    [
        (("--budget", "5"), ("budget 5", "rank 1", "smallest possible")),
        (("--budget", "lots"), ("--budget lots", "60k")),
        (("--budget", "0"), ("budget 0",)),
        (("--method", "qr"), ("--method qr", "svd, tucker2, tucker, tensor_train, cp")),
        (("--formats", ""), ("--method ''",)),
        (("--share", "expert"), ("share", "'expert'")),
        (("--layers", "7"), ("no site",)),
        (("--targets", "qproj"), ("--targets qproj", "q_proj")),
    ],
    ids=str,
)
def test_refusals(more, texts, base, tuned, refused):
    refused(["explore", base, tuned, *more], *texts)


def test_an_old_file_is_not_replaced(base, tuned, tmp_path, refused):
    (tmp_path / "old.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    explore = ["explore", base, tuned, "-o"]
    refused([*explore, tmp_path / "old.json"], "old.json", "already exists")
    refused(
        [*explore, tmp_path / "old.json", "--overwrite"], "old.json", "not an output of tdecomp"
    )
    refused([*explore, tmp_path / "folder", "--overwrite"], "is a folder")


def test_no_file_of_an_input_is_replaced(base, tuned, tmp_path, refused):
    index, shard = tuned / "model.safetensors.index.json", next(tuned.glob("*-of-*"))
    single = base / "model.safetensors"
    (tmp_path / "link").symlink_to(shard)
    for arguments, places in [
        ([base, tuned], [base, single, base / "new.json", tuned / "config.json", shard]),
        ([base, index], [index, shard, tmp_path / "link", tuned / "new" / "x.json"]),
        ([single, tuned], [single, base / ".." / "base" / single.name, base / "config.json"]),
    ]:
        for place in places:
            refused(["explore", *arguments, "-o", place, "--overwrite"], "the input")


# ---------------------------------------------------------------------------- decompose --modes


@pytest.mark.parametrize(("method", "modes"), MODES)
def test_modes_of_decompose(method, modes, base, tuned, tmp_path, report):
    told = report(
        "decompose", base, tuned, "-o", tmp_path / "out", "--method", method, f"--modes={modes}",
        "--budget", 900,
    )  # fmt: skip
    assert told["n_params"] <= 900
    assert told["options"]["modes"] == [int(m) if m == "-1" else m for m in modes.split(",")]
    stored = models.read(tmp_path / "out" / "factors.safetensors")
    assert told["n_params"] == sum(a.size for _, a in stored.values())
    assert report("verify", tmp_path / "out", base, tuned)["agrees"] is True


@pytest.mark.parametrize(
    ("more", "texts"),
    [
        (("--method", "svd", "--modes", "in"), ("--modes", "tucker or tucker2", "svd")),
        (("--method", "tensor_train", "--modes", "in"), ("--modes", "not tensor_train")),
        (("--method", "tucker", "--modes", "inp"), ("'inp'", "layer proj out in")),
        (("--method", "tucker", "--modes", "in,"), ("--modes in,",)),
        (("--method", "tucker2", "--modes", "in"), ("two modes", "'in'")),
    ],
    ids=str,
)
def test_bad_modes(more, texts, base, tuned, tmp_path, refused):
    out = tmp_path / "new" / "out"
    refused(["decompose", base, tuned, "-o", out, "--rank", "2", *more], *texts)


@pytest.mark.parametrize("target", [("--rank", "2"), ("--error", "0.3"), ("--budget", "900")])
def test_tensor_trains_are_written_and_used(target, base, tuned, tmp_path, report, done):
    out, model = tmp_path / "out", tmp_path / "model"
    told = report(
        "decompose", base, tuned, "-o", out, "--method", "tensor_train", *target, "--lora"
    )
    assert {g["format"] for g in told["groups"]} == {"TT"}
    assert report("verify", out, base, tuned)["agrees"] is True
    done("apply", out, base, "-o", model)
    changed, before = models.read(model), models.read(base)
    for name, delta in models.decoded(out).items():
        assert np.allclose(changed[name][1] - before[name][1], delta, atol=1e-5)
