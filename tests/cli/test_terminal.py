"""What files hold is read on the terminal, never obeyed by it."""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import pytest

from tdecomp.cli.screen import Screen, printable
from tdecomp.files.factors import load_factors
from tdecomp.jobs.commands import decompose_command
from tdecomp.stack import Selection
from tests.cli import models

ACTS = "\x1b]0;owned\x07\x1b[2J"
HOSTILE = {
    "escape": ACTS,
    "C1": "\x9b2J",
    "delete": "\x7f",
    "return": "\rtdecomp: all is well",
    "lines": "\n\x0b\x0c\u2028\u2029\x85",
    "tab": "\t",
    "turned": "\u202etxt.exe\u2066\u200f",
    "invisible": "\u200b\u200d\ufeff\U000e0041",
    "no-break": "\xa0\u3000",
    "markup": "[red]x[/red] :smile: [link=http://x]",
    "style": "\x1b[31mred\x1b[0m",
}
"""By kind; none but the markup may be seen as it is."""


def rename(folder, old, new):
    rows = {new if name == old else name: row for name, row in models.read(folder).items()}
    models.write(folder / "model.safetensors", rows)


def check(text):
    """Only what prints, line by line; colours come from us and not here."""
    assert all(line.isprintable() for line in text.split("\n")), repr(text)


@pytest.mark.parametrize("kind", HOSTILE)
def test_names_in_tables(kind, base, call):
    rename(base, models.NORM0, f"x{HOSTILE[kind]}y")
    result = call("inspect", base)
    assert (result.code, result.err) == (0, "")
    check(result.out)
    assert printable(HOSTILE[kind]) in result.out.replace("\n", "")


@pytest.mark.parametrize("kind", HOSTILE)
def test_names_in_reports(kind, base, report):
    rename(base, models.NORM0, name := f"x{HOSTILE[kind]}y")
    assert name in [row["tensor"] for row in report("inspect", base)["uncovered"]]


@pytest.mark.parametrize("kind", HOSTILE)
def test_names_in_errors(kind, base, tuned, call, tmp_path, check_line):
    (base / "config.json").write_text(json.dumps(models.config(model_type=HOSTILE[kind])))
    rows = {f"{HOSTILE[kind]}.q": ("F32", np.ones((2, 2)))}
    models.write(base / "model.safetensors", rows)
    index = {"weight_map": {"a": f"{HOSTILE[kind]}.safetensors"}}
    (tmp_path / "i.safetensors.index.json").write_text(json.dumps(index))
    for arguments in (
        ["inspect", base],
        ["decompose", base, tuned, "-o", tmp_path / "o", "--rank", "1"],
        ["inspect", tmp_path / "i.safetensors.index.json"],
        ["inspect", tmp_path / HOSTILE[kind].replace("/", "")],
        ["decompose", base, tuned, "-o", tmp_path / "o", "--rank", HOSTILE[kind]],
        ["inspect", base, "--targets", HOSTILE[kind]],
    ):
        result = call(*arguments)
        assert (result.code, result.out) == (2, "")
        check_line(result.err)
        check(result.err)


@pytest.mark.parametrize("kind", HOSTILE)
def test_dtypes_factors_and_paths(kind, base, tuned, tmp_path, call):
    place = tmp_path / f"o{HOSTILE[kind].replace('/', '')}"
    call("decompose", base, tuned, "-o", place, "--rank", "1")
    assert place.is_dir()
    file = place / "factors.safetensors"
    text = file.read_bytes()
    group = json.dumps(HOSTILE[kind])[1:-1].replace("\\", "\\\\").encode()
    file.write_bytes(text)  # the description is a JSON string inside a JSON header
    length = int.from_bytes(text[:8], "little")
    header = text[8 : 8 + length].rstrip().replace(b"attn_in.16x12", group)
    file.write_bytes(len(header).to_bytes(8, "little") + header + text[8 + length :])
    for arguments in (
        ["info", place],
        ["verify", place, base, tuned],
        ["verify", place, tuned, base],
        ["apply", place, base, "-o", tmp_path / "m"],
        ["export", place, "--lora", tmp_path / f"l{place.name}"],
    ):
        result = call(*arguments)
        assert result.code == (arguments[2:] == [tuned, base])
        check(result.out)
        check(result.err)
    assert printable(HOSTILE[kind]) in call("info", place).out.replace("\n", "")


def test_notes_are_one_line_each(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    Screen().note("a path " * 20 + HOSTILE["lines"])
    told = capsys.readouterr().err
    assert told == "a path " * 20 + printable(HOSTILE["lines"]) + "\n"


def test_very_long_texts_keep_their_ends(call):
    text = printable("a" * 10**6 + "\x1b")
    assert len(text) < 11_000
    assert (text[0], text[-4:]) == ("a", "\\x1b")
    assert "990,001 more" in text
    assert len(call("inspect", "/" + "b" * 10**6).err) < 11_000


@pytest.mark.parametrize("kind", HOSTILE)
def test_progress(kind, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with Screen().steps() as progress:
        progress(0.3, f"hashing {HOSTILE[kind]}")
    shown = capsys.readouterr().err
    assert printable(HOSTILE[kind]) in shown
    assert not any(
        mark in shown
        for mark in ("\x07", "\x1b[2J", "\x1b[31m", "\x9b", "\u202e", "\x7f", "\u200b")
    )


@pytest.mark.parametrize("kind", HOSTILE)
def test_commands_can_be_pasted(kind):
    words = [f"a{HOSTILE[kind]}", f"-b'\\{HOSTILE[kind]}\udcff"]
    chosen = Selection(patterns=[HOSTILE[kind]])
    line = decompose_command(*words, chosen, ["--method", "svd"])
    check(line)
    script = line.replace("tdecomp", "printf '%s\\0'", 1)
    back = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout
    read = back.decode("utf-8", "surrogateescape").split("\0")[:-1]
    expected = ["decompose", words[0], f"./{words[1]}", "-o", "OUT"]
    assert read == [*expected, f"--pattern={HOSTILE[kind]}", "--method", "svd"]
    assert decompose_command("a", "b c", Selection(), []) == "tdecomp decompose a 'b c' -o OUT"


def close(*numbers):
    def before():
        for number in numbers:
            os.close(number)

    return before


def fill(*numbers):
    def before():
        for number in numbers:
            os.dup2(os.open("/dev/full", os.O_WRONLY), number)

    return before


@pytest.mark.parametrize(
    ("before", "code", "told"),
    [
        (close(1), 0, ""),
        (close(0, 1, 2), 0, ""),
        (fill(1), 2, "tdecomp: cannot print, read or write: No space left on device\n"),
        (fill(1, 2), 2, ""),
    ],
    ids=["no output", "no stream", "full output", "both full"],
)
def test_streams_that_take_nothing(before, code, told, base, tuned, tmp_path, spawn):
    words = ("decompose", base, tuned, "-o", tmp_path / "out", "--rank", 1)
    process = spawn(*words, limit=before)
    assert process.communicate(timeout=60) == ("", told)
    assert process.returncode == code
    assert load_factors(tmp_path / "out").method == "svd"  # whole, whoever reads of it


def test_an_error_that_nobody_can_be_told(spawn):
    for before in (close(1, 2), fill(2)):
        process = spawn("inspect", "nowhere", limit=before)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 2
