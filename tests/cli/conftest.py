"""The command line, run in this process or as one of its own, on two tiny models."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main

from tdecomp.cli import main
from tests.cli import models
from tests.forks import forking


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Call = Callable[..., Result]
Report = Callable[..., dict[str, Any]]
Refused = Callable[..., str]


@pytest.fixture(autouse=True, scope="session")
def built_once():
    """Let Typer build its parser once, not 20 ms for every command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Make lines long enough to hold any path, so that texts can be looked for."""
    monkeypatch.setenv("COLUMNS", "400")


@pytest.fixture
def base(tmp_path) -> Path:
    return models.write_base(tmp_path / "base", models.base_arrays())


@pytest.fixture
def tuned(tmp_path) -> Path:
    return models.write_tuned(tmp_path / "tuned", models.tuned_arrays(models.base_arrays()))


@pytest.fixture
def call(capsys) -> Call:
    """Run a command in this process."""

    def run(*arguments: Any) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        assert isinstance(left.value.code, int)
        return Result(left.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def done(call: Call) -> Call:
    """Run a command that succeeds and has nothing to complain about."""

    def run(*arguments: Any) -> Result:
        result = call(*arguments)
        assert (result.code, result.err) == (0, "")
        return result

    return run


@pytest.fixture
def report(done: Call) -> Report:
    """Run a command with --json; its standard output is one JSON document."""

    def run(*arguments: Any) -> dict[str, Any]:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(done(*arguments, "--json").out, parse_constant=refuse)

    return run


@pytest.fixture
def refused(call: Call, tmp_path) -> Refused:
    """Run a command that must be refused: one line with the texts, and nothing touched."""

    def run(arguments: list[Any], *texts: Any) -> str:
        before = models.tree(tmp_path)
        result = call(*arguments)
        assert (result.code, result.out) == (2, ""), result
        check_line(result.err, *texts)
        assert models.tree(tmp_path) == before
        return result.err

    return run


@pytest.fixture
def out(tmp_path, base, tuned, done) -> Path:
    """Make factors of the two models."""
    folder = tmp_path / "out"
    done("decompose", base, tuned, "-o", folder, "--rank", 2, "-q")
    return folder


def _signals_as_usual() -> None:
    """Not ignored, as they are where the tests themselves run under nohup or in the background."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command line in a process of its own, ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: Any, program: str = "", limit: Callable[[], None] | None = None):
        program = program or "from tdecomp.cli import main; main()"
        words = [sys.executable, "-B", "-c", program, *map(str, arguments)]
        pipe = subprocess.PIPE
        before = limit or _signals_as_usual
        with forking():
            process = subprocess.Popen(
                words, stdout=pipe, stderr=pipe, text=True, preexec_fn=before
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def check_line(text: str, *texts: Any) -> None:
    """One line, and perhaps a tip in another, that hold the texts."""
    assert text.startswith("tdecomp: "), text
    assert text.endswith("\n"), text
    line, *tips = text.splitlines()
    assert len(tips) <= 1, text
    assert all(tip.startswith("  tip: ") for tip in tips), text
    assert "Traceback" not in text
    for wanted in texts:
        assert str(wanted) in text, f"{wanted!r} is not in {text!r}"


@pytest.fixture(name="check_line")
def _check_line() -> Callable[..., None]:
    return check_line
