"""The disk is full, Ctrl-C, the process is ended: what was there stays, nothing else is left."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import time

import pytest

from tests.cli import models
from tests.waiting import wait_until

SLOW = """
import importlib, sys, time
from pathlib import Path
from tdecomp.cli import main
place, name = sys.argv.pop(1).split(".")
mark = Path(sys.argv.pop(1))
job = importlib.import_module(f"tdecomp.jobs.{place}")
real = getattr(job, name)
def slow(*arguments, **named):
    answer = real(*arguments, **named)
    mark.touch()
    time.sleep(60)
    return answer
setattr(job, name, slow)
main()
"""
"""Does the whole job, leaves a mark, then never ends."""

STEPS = {
    "decompose": "decomposing.save_factors",
    "apply": "applying.write_model",
    "export": "exporting.write_lora",
}
SIGNALS = {
    signal.SIGINT: (130, "interrupted"),
    signal.SIGTERM: (143, "terminated"),
    signal.SIGHUP: (129, "hung up"),
}


@pytest.fixture
def commands(base, tuned, out):
    return {
        "decompose": ["decompose", base, tuned, "--rank", "2", "--lora", "-o"],
        "apply": ["apply", out, base, "-o"],
        "export": ["export", out, "--lora"],
    }


@pytest.fixture
def old(out, tmp_path):
    """An output of an earlier run."""
    return shutil.copytree(out, tmp_path / "old")


@pytest.fixture
def mark(tmp_path_factory):
    """File that says that the work is done and only the end is missing."""
    return tmp_path_factory.mktemp("mark") / "working"


def wait_for(mark, process: subprocess.Popen[str], folder) -> None:
    """Until the mark is there, when the temporary folder must be too."""
    assert wait_until(lambda: mark.exists() or process.poll() is not None), "it never ends"
    assert mark.exists(), process.communicate()
    assert any(p.is_file() for tmp in folder.glob(".*.tmp") for p in tmp.rglob("*"))


@pytest.mark.parametrize(
    ("number", "command"),
    [(signal.SIGINT, command) for command in STEPS]
    + [(signal.SIGTERM, "decompose"), (signal.SIGHUP, "apply")],
)
def test_signal_in_the_middle(number, command, commands, old, mark, tmp_path, spawn, check_line):
    code, text = SIGNALS[number]
    before = models.tree(tmp_path)
    arguments = [STEPS[command], mark, *commands[command], old, "--overwrite"]
    process = spawn(*arguments, program=SLOW)
    wait_for(mark, process, tmp_path)
    process.send_signal(number)
    printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed) == (code, "")
    check_line(said, text, "nothing half-written is left")
    assert models.tree(tmp_path) == before


UNDOING = """
import shutil, time
from tdecomp.cli import signals
remove, patience, seconds = shutil.rmtree, float(sys.argv.pop(1)), float(sys.argv.pop(1))
def rmtree(*arguments, **named):
    print("removing", flush=True)
    time.sleep(seconds)
    remove(*arguments, **named)
shutil.rmtree, signals._PATIENCE = rmtree, patience
main()
"""
"""Takes its time to remove what is half-written."""


def test_further_signals_wait_until_all_is_removed(commands, old, mark, tmp_path, spawn):
    before = models.tree(tmp_path)
    program = SLOW.replace("main()\n", UNDOING)
    words = [STEPS["export"], mark, 60, 0.3, *commands["export"], old, "--overwrite"]
    process = spawn(*words, program=program)
    wait_for(mark, process, tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "removing\n"
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (
        130,
        "tdecomp: interrupted: nothing half-written is left\n",
    )
    assert models.tree(tmp_path) == before


def test_what_is_left_is_said_and_removed_later(
    commands, old, mark, tmp_path, spawn, check_line, done
):
    """By a signal that comes long after the first one, while the undoing hangs."""
    program = SLOW.replace("main()\n", UNDOING)
    words = [STEPS["export"], mark, 0, 60, *commands["export"], old, "--overwrite"]
    process = spawn(*words, program=program)
    wait_for(mark, process, tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "removing\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    (folder,) = tmp_path.glob(".*.tmp")
    assert process.returncode == 143
    check_line(said, "terminated", f"{folder} is left")
    done(*commands["export"], old, "--overwrite")
    assert not folder.exists()


AT_IMPORT = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    ("number", "name"),
    [*((number, "numpy") for number in SIGNALS), (signal.SIGINT, "tdecomp.cli.commands")],
)
def test_signal_while_modules_are_loaded(number, name, base, spawn, check_line):
    run = "import runpy; runpy.run_module('tdecomp', run_name='__main__', alter_sys=True)"
    program = AT_IMPORT.format(name=name, number=int(number)) + run
    printed, said = spawn("inspect", base, program=program).communicate(timeout=60)
    check_line(said, SIGNALS[number][1], "nothing half-written is left")
    assert printed == ""


def test_signal_at_the_very_end(base, spawn):
    program = (
        "import atexit, os, signal\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "from tdecomp.cli import main; main()"
    )
    process = spawn("inspect", base, "-q", program=program)
    assert (process.communicate(timeout=60), process.returncode) == (("", ""), 0)


def test_nohup_is_respected(commands, mark, tmp_path, spawn):
    arguments = [STEPS["export"], mark, *commands["export"], tmp_path / "new"]
    process = spawn(
        *arguments,
        program=SLOW.replace("60", "0.5"),
        limit=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for(mark, process, tmp_path)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "new" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("command", "overwrite"), [*((command, True) for command in STEPS), ("decompose", False)]
)
def test_disk_full(overwrite, command, commands, old, tmp_path, spawn, check_line):
    target = old if overwrite else tmp_path / "deep" / "new"
    more = ["--overwrite"] if overwrite else []
    before = models.tree(tmp_path)
    process = spawn(
        *commands[command],
        target,
        *more,
        limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed) == (2, "")
    check_line(said, f"cannot write {target}", "File too large")
    assert models.tree(tmp_path) == before


def test_signals_are_as_before_afterwards(done):
    before = {n: signal.getsignal(n) for n in SIGNALS}
    done("--version")
    assert {n: signal.getsignal(n) for n in SIGNALS} == before


def test_module_runs_the_same_command(base, tmp_path, spawn):
    process = spawn("inspect", base, "--json", program="import runpy; runpy.run_module('tdecomp')")
    assert process.communicate(timeout=60)[0] == ""  # not run as __main__: nothing happens
    program = "import runpy; runpy.run_module('tdecomp', run_name='__main__')"
    printed, said = spawn("inspect", base, "--json", program=program).communicate(timeout=60)
    assert (json.loads(printed)["family"], said) == ("llama", "")


def test_a_reader_that_leaves_early(base, spawn):
    process = spawn("inspect", base, "--json")
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(20), said) == (141, "")


def test_full_standard_output(base, spawn, check_line):
    program = (
        "import sys; sys.stdout = open('/dev/full', 'w'); from tdecomp.cli import main; main()"
    )
    process = spawn("inspect", base, program=program)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    check_line(said, "No space left on device")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_screen_without_greek(encoding, base, tuned, tmp_path, spawn):
    place = tmp_path / "öut"
    program = f"import sys; sys.stdout.reconfigure(encoding={encoding!r}); " + (
        "from tdecomp.cli import main; main()"
    )
    words = ("decompose", base, tuned, "-o", place, "--rank", "1", "--lora")
    process = spawn(*words, program=program)
    printed, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert "Written to" in printed


def test_no_torch(out, base, tuned, spawn):
    program = (
        "import sys\n"
        "from tdecomp.cli import _run\n"
        "assert _run(sys.argv[1:]) == 0\n"
        "print(sorted({'torch', 'jax', 'peft', 'transformers'} & set(sys.modules)))"
    )
    process = spawn("verify", out, base, tuned, "-q", program=program)
    assert process.communicate(timeout=60) == ("[]\n", "")
