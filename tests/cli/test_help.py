"""What a person reads who does not know the command yet, or typed it wrong."""

from __future__ import annotations

import re
import shlex

import pytest
from rich.console import Console
from typer.main import get_command

from tdecomp.adapters import CATALOGUE
from tdecomp.cli.commands import app
from tdecomp.cli.shown.tables import name_cell, plain_table
from tdecomp.files import load_factors
from tdecomp.jobs.methods import EXPLORED, METHODS
from tests.cli import models

COMMANDS = {
    name: command
    for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
    if not command.hidden
}
PANELS = {
    "inspect": ("Which weights", "Output"),
    "decompose": ("How small", "Which weights", "Where it runs", "Output"),
    "explore": ("How small", "Which weights", "Where it runs", "Output"),
    "verify": ("Output",),
    "apply": ("Output",),
    "export": ("Output",),
    "info": ("Output",),
    "report": ("Output",),
    "adapters": ("Output",),
    "basis": ("How small", "Which weights", "Output"),
    "check": ("Output",),
    "merge": ("How they are merged", "Which weights", "How small", "Output"),
    "compare": ("Which weights", "Output"),
    "resize": ("How small", "Which weights", "Output"),
    "heal": ("Texts", "How it learns", "Where it runs", "Output"),
    "capture": ("Texts", "What is captured", "Which weights", "Where it runs", "Output"),
}


def test_every_command_is_in_the_table():
    assert set(PANELS) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_panels_and_examples(command, flag, done):
    text = done(command, flag).out
    panels = re.findall("─ (.*?) ─+╮", text)
    assert [name for name in panels if name not in ("Arguments", "Options")] == [*PANELS[command]]
    lines = [line.strip() for line in text.splitlines()]
    assert sum(line.startswith(f"tdecomp {command}") for line in lines) == 2
    assert "`" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_read(command):
    """Every word of an example is an argument or an option of the command."""
    for line in COMMANDS[command].epilog.splitlines()[1:]:
        words = shlex.split(line.partition("&&")[0])
        assert words[:2] == ["tdecomp", command]
        with COMMANDS[command].make_context(command, words[2:]):
            pass


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_one_sided_and_say_what_they_take(command):
    for option in (o for o in COMMANDS[command].params if not o.hidden):
        assert not option.secondary_opts, option.name
        is_flag = getattr(option, "is_flag", False)
        assert is_flag or re.fullmatch(r"[A-Z]+", option.metavar or ""), option.name
        assert option.help, option.name


@pytest.mark.parametrize(("command", "known"), [("decompose", METHODS), ("explore", EXPLORED)])
def test_choices_have_a_sentence_each(command, known, done):
    text = " ".join(done(command, "-h").out.split())
    for name, row in known.items():
        assert f"{name}: {row.sentence}." in text


def test_no_arguments_are_answered_by_the_help(call):
    for command in COMMANDS:
        if command != "adapters":  # which lists all
            result = call(command)
            assert (result.code, result.err) == (2, "")
            assert f"Usage: tdecomp {command}" in result.out


@pytest.mark.parametrize(
    ("words", "message", "tip"),
    [
        (
            ("decompose", "a", "b", "--ranks", "2"),
            "No such option: --ranks",
            "did you mean --rank ",
        ),
        (("decompose", "a", "b", "--ranks", "2"), "", "see 'tdecomp decompose --help'"),
        (("verify", "a", "b"), "Missing argument 'TUNED'", "see 'tdecomp verify --help'"),
        (("inspekt", "a"), "inspekt", "see 'tdecomp --help'"),
        (("decompose", "a", "b", "-o", "c"), "got none", "add --budget 60k"),
        (
            ("decompose", "a", "b", "-o", "c", "--rank", "1", "--lora-rank", "3"),
            "say how --lora is written",
            "add --lora",
        ),
        (("adapters", "lortr"), "no adapter 'lortr'", "there are lotr"),
        (("adapters", "lortr"), "", "see 'tdecomp adapters'"),
    ],
    ids=str,
)
def test_tips_say_what_to_type(words, message, tip, refused):
    line, _, advice = refused(list(words), message).partition("\n")
    assert message in line
    assert advice.startswith("  tip: ")
    assert tip in advice


def test_an_unknown_adapter_gets_the_nearest_three(refused):
    told = refused(["adapters", "lortr"]).split("there are ")[1].split(" and ")[0].split(", ")
    assert len(told) == 3
    assert set(told) <= set(CATALOGUE)
    assert "lotr" in told


def test_tips_name_flags_that_help(base, tuned, out, refused, done):
    command = ["decompose", base, tuned, "-o", out, "--rank", "2"]
    assert "tip: add --overwrite" in refused(command, "already exists")
    done(*command, "--overwrite")
    told = refused([*command, "--overwrite", "--targets", "q_prj"], "--targets q_prj")
    assert "tip: did you mean --targets q_proj?" in told
    told = refused([*command, "--overwrite", "--layers", "5,6,9"], "--layers 5-6,9")
    assert "--pattern 'blocks.{layer}.{proj}'" in told


# --------------------------------------------------------------------------------- what is shown


def test_adapters_are_three_aligned_columns(done):
    title, *lines = done("adapters").out.splitlines()
    assert title.split() == ["name", "equation", "source"]
    at = title.index("equation")
    for line, (name, spec) in zip(lines, CATALOGUE.items(), strict=True):
        assert line[:at].strip() == name
        assert line[at:].startswith(str(spec).removeprefix(f"{name}: "))
        assert line.rstrip().endswith(spec.source)


def test_the_old_name_of_adapters_is_known(call, done):
    result = call("methods", "lotr")
    assert result.code == 0
    assert result.out == done("adapters", "lotr").out
    assert "'tdecomp adapters'" in result.err


def test_verify_says_one_line_when_all_agree(out, base, tuned, done):
    assert done("verify", out, base, tuned).out.startswith("All 14 sites agree: relative error 0.")
    whole = done("verify", out, base, tuned, "--all").out
    assert whole.count("self_attn.q_proj") == 2
    assert whole.splitlines()[-1].startswith("All 14 sites agree")


def test_verify_shows_the_rows_that_differ(out, base, tuned, call):
    models.spoil(out, "0.u", models.put(7.0))
    text = call("verify", out, base, tuned).out
    assert text.count("self_attn.") == 1
    assert text.splitlines()[-1].startswith("13 of 14 sites agree")


def test_equal_models_are_said_to_be_equal(base, tmp_path, done):
    text = done("decompose", base, base, "-o", tmp_path / "out", "--rank", "2").out
    assert text.splitlines()[0].startswith("BASE and TUNED are equal")
    assert "%" not in text
    assert (tmp_path / "out" / "factors.safetensors").is_file()
    text = done("explore", base, base, "-o", tmp_path / "table.json").out
    assert text.splitlines()[0].startswith("BASE and TUNED are equal")
    assert (tmp_path / "table.json").is_file()


def test_what_was_typed_is_what_is_shown(base, tuned, tmp_path, done):
    words = ("decompose", base, tuned, "-o", tmp_path / "out", "--rank", "2")
    assert "svd, bfloat16" in done(*words, "--dtype", "bfloat16").out
    assert "float32" in done("inspect", base).out


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_names_are_not_broken_where_there_is_room(columns, base, done, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = done("inspect", base).out
    assert "model.layers.*.input_layernorm.weight" in text
    assert "attn_in.16x12" in text


def test_a_name_without_room_is_broken_and_not_cut(base, done, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    assert "…" not in done("inspect", base).out


def test_factors_are_drawn(base, tuned, tmp_path, done):
    done(
        "decompose", base, tuned, "-o", tmp_path / "out", "--method", "tucker", "--rank", "2", "-q"
    )
    picture = tmp_path / "factors.svg"
    groups = done("info", tmp_path / "out", "--picture", picture).out
    drawn = picture.read_text(encoding="utf-8")
    names = {group.name for group in load_factors(tmp_path / "out").groups}
    assert names
    assert all(f"{name}: Tucker" in drawn and name in groups for name in names)


def test_numbers_beside_long_names_are_whole():
    table = plain_table("resized", "site", right=["was", "rank", "of ‖ΔW‖²", "error"])
    name = name_cell("model.layers.*.self_attn.q_proj.weight")
    table.add_row(name, "128", "4..32", "100.0%", "0.7563")
    console = Console(width=60)
    with console.capture() as shown:
        console.print(table)
    assert "…" not in shown.get()
    assert {"128", "4..32", "100.0%", "0.7563"} <= set(shown.get().split())


def test_one_command_for_a_winner_of_several_budgets(base, tuned, done):
    text = done("explore", base, tuned, "--budget", "300", "--budget", "400", "--method", "svd").out
    assert text.count("tdecomp decompose") == 1
    assert "--method svd --budget BUDGET" in text
    text = done("explore", base, tuned, "--budget", "300", "--method", "svd").out
    assert "--method svd --budget 300" in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(shell, spawn, monkeypatch):
    monkeypatch.setenv("_TDECOMP_COMPLETE", f"complete_{shell}")
    for name, value in {
        "COMP_WORDS": "tdecomp decompose --met",
        "COMP_CWORD": "2",
        "_TYPER_COMPLETE_ARGS": "tdecomp decompose --met",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }.items():
        monkeypatch.setenv(name, value)
    process = spawn()
    printed, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert "--method" in printed
