"""Kill commands at every step and at random moments: the old output or the new one is there.

``python -m tests.kills 200`` kills 200 times over decompose, explore, apply and export, half of the
times at a call to the file system, half of them at a moment; ``--seed`` chooses other ones. Each
kill happens in a fork, so that nothing is imported anew. After each the output must be, byte for
byte, what was there or what the command makes, and after the command has run again nothing else
may be left beside it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import forks

Tree = dict[str, bytes | None] | bytes | None
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def tree(path: Path) -> Tree:
    """Everything below a folder, the bytes of a file, None where there is nothing."""
    if not path.is_dir():
        return path.read_bytes() if path.exists() else None
    return {
        str(p.relative_to(path)): p.read_bytes() if p.is_file() else None
        for p in sorted(path.rglob("*"))
    }


def fork(job: Callable[[], None]) -> int:
    """Start a job in a process of its own; returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = forks.fork()
    if child:
        return child
    code = 70
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # before and after the command: an end
        job()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 71
    finally:
        os._exit(code)
    raise AssertionError("not reached")


def ended(child: int) -> int:
    """Exit code of a process; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(step: int, root: Path) -> None:
    """End this process at a call that changes something below `root`; 0 is the first."""
    left, start = step, str(root)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in _CHANGES and _changes(event, arguments, start):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _changes(event: str, arguments: tuple[object, ...], start: str) -> bool:
    path = arguments[0]
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITING):
        return False
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    below_open_folder = event != "open" and arguments[-1] not in (-1, None)
    return below_open_folder or os.fsdecode(path).startswith(start)


@dataclass(frozen=True)
class Case:
    """A job that writes `target`, and what it may find and make there."""

    name: str
    job: Callable[[], None]
    target: Path
    old: Tree
    new: Tree

    def prepare(self) -> None:
        """Put the old output in its place, and nothing beside it."""
        shutil.rmtree(self.target.parent, ignore_errors=True)
        self.target.parent.mkdir()
        put(self.target, self.old)

    def check(self, how: str, *, done: bool = False, between: bool = False) -> str:
        """Say which output is there; `between`: none at all is right as well."""
        found = tree(self.target)
        if found == self.new:
            which = "new"
        elif not done and found == self.old:
            which = "old"
        elif not done and between and found is None:
            which = "none"
        else:
            raise AssertionError(f"{self.name}, {how}: neither the old output nor the new one")
        beside = [p.name for p in self.target.parent.iterdir() if p != self.target]
        if done and beside:
            raise AssertionError(f"{self.name}, {how}: {beside} left after the next run")
        return which

    def finish(self, how: str) -> None:
        """Run the job to its end: its output is there and nothing else."""
        code = ended(fork(self.job))
        if code:
            raise AssertionError(f"{self.name}, {how}: the next run ends with code {code}")
        self.check(how, done=True)

    def every_step(self, *, between: bool = False) -> Counter[str]:
        """Kill at each call to the file system in turn; counts what was there."""
        seen: Counter[str] = Counter()
        for step in range(10_000):
            how = f"killed at step {step}"
            if not self.at_step(step, how, seen, between=between):
                return seen
            self.finish(how)
        raise AssertionError(f"{self.name} never ends")

    def at_step(self, step: int, how: str, seen: Counter[str], *, between: bool = False) -> bool:
        """Kill once; False if the job ended before."""
        self.prepare()

        def job() -> None:
            kill_at(step, self.target.parent)
            self.job()

        code = ended(fork(job))
        if code not in (0, -signal.SIGKILL):
            raise AssertionError(f"{self.name}, {how}: code {code}")
        seen[self.check(how, between=between)] += 1
        return code != 0

    def at_moment(self, seconds: float, number: signal.Signals, seen: Counter[str]) -> None:
        """Send a signal after some time."""
        self.prepare()
        how = f"{number.name} after {1000 * seconds:.1f} ms"
        child = fork(self.job)
        time.sleep(seconds)
        os.kill(child, number)
        code = ended(child)
        if code not in (0, -number, 128 + number):
            raise AssertionError(f"{self.name}, {how}: code {code}")
        seen[self.check(how)] += 1
        if number != signal.SIGKILL and code == 128 + number:
            beside = [p.name for p in self.target.parent.iterdir() if p != self.target]
            if beside:
                raise AssertionError(f"{self.name}, {how}: {beside} left")
        self.finish(how)


def put(path: Path, content: Tree) -> None:
    """Write what `tree` read."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
        for name, inner in content.items():
            put(path / name, {} if inner is None else inner)


def commands(folder: Path) -> Iterator[Case]:
    """The commands that write, each over an output of its own with other options."""
    from tests.cli import models

    base = models.write_base(folder / "base", models.base_arrays())
    tuned = models.write_tuned(folder / "tuned", models.tuned_arrays(models.base_arrays()))
    for rank in ("1", "2"):
        _run("decompose", base, tuned, "-o", folder / f"out{rank}", "--rank", rank)
    one, two = folder / "out1", folder / "out2"
    rows = {
        "decompose": (
            ["decompose", base, tuned, "--rank", "1", "--lora", "-o"],
            ["decompose", base, tuned, "--rank", "2", "--lora", "-o"],
        ),
        "explore": (
            ["explore", base, tuned, "--method", "svd", "--budget", "300", "-o"],
            ["explore", base, tuned, "--method", "svd", "--budget", "500", "-o"],
        ),
        "apply": (["apply", one, tuned, "-o"], ["apply", two, tuned, "-o"]),
        "export": (["export", one, "--lora"], ["export", two, "--lora"]),
    }
    place = folder / "place" / "output"
    for name, (before, after) in rows.items():
        made = [folder / "made" / f"{name}-{which}" for which in ("old", "new")]
        _run(*before, made[0])
        _run(*after, made[1])

        def job(words: list[object] = after) -> None:
            _main(*words, place, "--overwrite")

        yield Case(name, job, place, tree(made[0]), tree(made[1]))
        yield Case(f"{name}, nothing there", job, place, None, tree(made[1]))


def _main(*words: object) -> None:
    from tdecomp.cli import main

    main([*map(str, words), "-q"])


def _run(*words: object) -> None:
    code = ended(fork(lambda: _main(*words)))
    if code:
        raise AssertionError(f"{words[0]} ends with code {code}")


def kill_commands(folder: Path, kills: int, seed: int) -> Counter[str]:
    """Kill the commands `kills` times; counts what was there afterwards."""
    rng, seen = random.Random(seed), Counter[str]()
    cases = list(commands(folder))
    steps, seconds = {}, {}
    for case in cases:
        case.prepare()
        start = time.perf_counter()
        case.finish("not killed")
        seconds[case.name] = time.perf_counter() - start
        steps[case.name] = _steps(case)
    for k in range(kills):
        case = cases[k % len(cases)]
        if k // len(cases) % 2:
            moment = rng.uniform(0, 1.1 * seconds[case.name])
            case.at_moment(moment, rng.choice(SIGNALS), seen)
        else:
            step = rng.randrange(steps[case.name])
            case.at_step(step, f"killed at step {step}", seen)
            case.finish(f"killed at step {step}")
    return seen


def _steps(case: Case) -> int:
    """How many calls change something."""
    case.prepare()
    ours, theirs = os.pipe()

    def job() -> None:
        count, start = 0, str(case.target.parent)

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            count += event in _CHANGES and _changes(event, arguments, start)

        sys.addaudithook(hook)
        try:
            case.job()
        except SystemExit:
            os.write(theirs, str(count).encode())

    ended(fork(job))
    os.close(theirs)
    with os.fdopen(ours) as file:
        return int(file.read())


def main() -> None:
    """Kill as often as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    import tdecomp.cli.commands  # noqa: F401 - so that the forks need not

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        seen = kill_commands(Path(folder), given.kills, given.seed)
    text = ", ".join(f"{count} {which}" for which, count in sorted(seen.items()))
    print(f"{sum(seen.values())} kills in {time.perf_counter() - start:.0f} s: {text}, no other")


if __name__ == "__main__":
    main()
