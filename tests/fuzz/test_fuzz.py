"""A share of `make fuzz`, and that what it looks for would be found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fuzz import cases, running, worlds
from tests.waiting import PATIENCE, wait_until


@pytest.mark.slow
def test_damaged_files():
    words = [sys.executable, "-m", "tests.fuzz", "--cases", "1200", "--processes", "1"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | _ONE_THREAD)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.findall(r"(\d+)/(\d+)", done.stdout.split("all cases")[1])
    assert len(counts) == len(worlds.KINDS)
    for read, refused in counts:
        assert int(read) + int(refused) == pytest.approx(1200 / len(counts), abs=1)
    assert sum(int(read) for read, _ in counts) > 200  # not all are refused at the door


_ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def _print(text):
    print(text, file=sys.stderr)
    return 2


def _write_beside(words):
    Path(words[-1]).with_name("beside").write_text("x")
    return 0


def _leave(words):
    Path(words[-1]).with_name(".out.1234.tmp").mkdir()
    return 0


def _work(words):
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    return 0


def _hold(words):
    return len(bytearray(30_000_000)) and 0


def _crash(words):
    raise KeyError(words[0])


FAULTS = {
    "crash": (_crash, "KeyError: 'apply' .* exit code -1"),
    "exit code": (lambda words: 3, "exit code 3"),
    "no reason": (lambda words: 2, "no reason for exit code 2"),
    "escape": (lambda words: _print("tdecomp: \x1b[2J"), r"printed .tdecomp: .x1b"),
    "memory": (lambda words: _print("tdecomp: out of memory"), "out of memory"),
    "no JSON": (lambda words: print("NaN") or 0, "printed no JSON"),
    "write": (_write_beside, "wrote .*/beside"),
    "left": (_leave, r"left .*\.out\.1234\.tmp"),
    "slow": (_work, r"took \d+\.\d s"),
    "large": (_hold, "took .* MB"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_looked_for_is_found(fault, tmp_path, monkeypatch):
    command, message = FAULTS[fault]
    monkeypatch.setattr(cases, "command", command)
    monkeypatch.setattr(cases, "SECONDS", 0.04)
    monkeypatch.setattr(cases, "MEGABYTES", 20.0)
    words = ["apply", "--json", str(tmp_path / "out")]
    blank = cases.Case.draw(0, 0, tuple(worlds.KINDS)).blank
    assert re.search(message, cases._judged(blank, words, tmp_path / "out", False).fault)


def test_what_may_be_is_no_fault(tmp_path, monkeypatch):
    def write(words):
        Path(words[-1]).mkdir()
        Path(words[-1], "file").write_text("x")
        return 0

    monkeypatch.setattr(cases, "command", write)
    blank = cases.Case.draw(0, 0, tuple(worlds.KINDS)).blank
    outcome = cases._judged(blank, ["apply", str(tmp_path / "out")], tmp_path / "out", False)
    assert outcome.fault == ""


def is_gone(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_process_that_dies_or_hangs_costs_one_case(tmp_path, monkeypatch):
    """Time stands still until one hangs and the other is done: a busy machine kills nobody."""
    other, hanging = tmp_path / "other", tmp_path / "hanging"

    def run(case, home, place):
        if case.number == 3:
            os._exit(1)
        if case.number == 5:
            assert wait_until(lambda: other.exists() and is_gone(int(other.read_text())))
            hanging.touch()
            time.sleep(PATIENCE)
        if case.number == 8:
            other.with_suffix(".new").write_text(str(os.getpid()))
            other.with_suffix(".new").replace(other)
        return case.blank

    monkeypatch.setattr(cases.Case, "run", run)
    clock = SimpleNamespace(monotonic=lambda: 2 * running.HANGS * hanging.exists())
    monkeypatch.setattr(running, "time", clock)
    monkeypatch.setattr(worlds, "build", lambda home, command: tuple(worlds.KINDS))
    outcomes = running.run_all(0, 9, 2)
    assert [outcome.number for outcome in outcomes] == list(range(9))
    faults = {outcome.number: outcome.fault for outcome in outcomes if outcome.fault}
    assert faults.keys() == {3, 5}
    assert faults[3].startswith("the process died")
    assert faults[5].startswith("no outcome after")


def test_a_case_follows_from_the_seed_and_its_number():
    kinds = tuple(worlds.KINDS)
    drawn = [cases.Case.draw(1, number, kinds).blank for number in range(50)]
    assert drawn == [cases.Case.draw(1, number, kinds).blank for number in range(50)]
    assert drawn != [cases.Case.draw(2, number, kinds).blank for number in range(50)]
