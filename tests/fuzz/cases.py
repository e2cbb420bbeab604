"""One case: what is damaged, how, which command reads it, and what may come out."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz import worlds
from tests.fuzz.mutations import MUTATIONS, choose

SECONDS, MEGABYTES = 5.0, 500.0
"""What a case may take: processor time, memory."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case; `fault` is empty when that is among what may come."""

    number: int
    kind: str
    mutations: tuple[str, ...]
    words: tuple[str, ...]
    code: int = -1
    seconds: float = 0.0
    megabytes: float = 0.0
    fault: str = ""

    def line(self) -> str:
        """The fault and where it was."""
        where = f"{self.kind}; {', '.join(self.mutations)}; {' '.join(self.words)}"
        return f"case {self.number} ({where}): {self.fault}"


@dataclass(frozen=True)
class Case:
    """Everything of a case that follows from the seed and its number."""

    number: int
    kind: str
    mutations: tuple[str, ...]
    words: tuple[str, ...]
    rng: np.random.Generator

    @classmethod
    def draw(cls, seed: int, number: int, kinds: tuple[str, ...]) -> Case:
        """The kinds come in turn, with up to three mutations."""
        rng = np.random.default_rng([seed, number])
        kind = kinds[number % len(kinds)]
        count = choose(rng, (1, 1, 1, 1, 2, 3))  # most files with several faults are refused
        mutations = tuple(choose(rng, tuple(MUTATIONS)) for _ in range(count))
        return cls(number, kind, mutations, choose(rng, worlds.KINDS[kind].commands), rng)

    @property
    def blank(self) -> Outcome:
        """Its outcome before anything came out."""
        return Outcome(self.number, self.kind, self.mutations, self.words)

    def run(self, home: Path, place: Path, *, loud: bool = False) -> Outcome:
        """Damage a copy below the empty folder `place`, run the command, judge, clear up."""
        x = worlds.copy(worlds.KINDS[self.kind], home, place / "x")
        for name in self.mutations:
            files = [p for p in sorted((place / "x").rglob("*")) if not p.is_symlink()]
            files = [p for p in files if p.is_file() and p.stat().st_size < 10**7]
            if files:
                MUTATIONS[name](choose(self.rng, files), self.rng)
        where = {"{x}": x, "{home}": home, "{out}": place / "out"}
        words = [_filled(word, where) for word in self.words]
        if loud:
            print(self, *words, sep="\n")
        outs = [Path(word) for word in words if word.startswith(str(place / "out"))]
        inside = {"--overwrite", "--add-to", "--remove"} & {*words}
        allowed = x if inside else (*outs, place / "out")[0]
        try:
            return _judged(self.blank, words, allowed, loud)
        finally:
            shutil.rmtree(place)
            place.mkdir()


def _filled(word: str, where: Mapping[str, Path]) -> str:
    for mark, path in where.items():
        word = word.replace(mark, str(path))
    return word


def _judged(outcome: Outcome, words: list[str], allowed: Path, loud: bool) -> Outcome:
    out, err, crash, code = StringIO(), StringIO(), "", -1
    before, start = _reset_peak(), time.process_time()
    with _writes() as written, redirect_stdout(out), redirect_stderr(err):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                code = command(words)
        except BaseException as error:
            crash = f"{type(error).__name__}: {error} {_last_frames(error)}"
            if loud:
                traceback.print_exc(file=sys.__stderr__)
    seconds, megabytes = time.process_time() - start, _peak() - before
    if loud:
        print(code, out.getvalue(), err.getvalue(), sep="\n")
    outcome = replace(outcome, code=code, seconds=seconds, megabytes=megabytes)
    faults = (
        crash,
        *_told_faults(words, code, out.getvalue(), err.getvalue()),
        *(f"wrote {path}" for path in written if not _may_write(path, allowed)),
        *(f"left {path}" for path in allowed.parent.glob(f".{allowed.name}.*")),
        f"took {seconds:.1f} s" if seconds > SECONDS else "",
        f"took {megabytes:.0f} MB" if megabytes > MEGABYTES else "",
    )
    return replace(
        outcome, fault="; ".join(filter(None, faults)).encode("ascii", "replace").decode()
    )


def command(words: list[str]) -> int:
    """Run one command in this process; returns its exit code."""
    if words[0] == worlds.ADAPTER:
        return _load_adapter(words[1])
    from tdecomp.cli import main

    _build_once()
    try:
        main(words)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else -1
    return -1


def _load_adapter(folder: str) -> int:
    from tdecomp.errors import TdecompError
    from tdecomp_torch import load_adapter

    try:
        load_adapter(worlds.network(), folder)
    except TdecompError as error:
        print("tdecomp:", ascii(str(error)), file=sys.stderr)
        return 2
    return 0


@cache
def _build_once() -> None:
    """Let Typer build its parser once, not 20 ms for every command."""
    import typer.main

    typer.main.get_command = cache(typer.main.get_command)


def _told_faults(words: list[str], code: int, out: str, err: str) -> Iterator[str]:
    """What is wrong with the exit code and with what was printed."""
    usual = (0, 1, 2) if words[0] in ("verify", "check", "export") else (0, 2)
    if code not in usual:
        yield f"exit code {code}"
    if code == 2 and not _reason(err).startswith("tdecomp: "):
        yield f"no reason for exit code 2 but {err!r}"
    if "out of memory" in err:
        yield "out of memory"
    for line in (out + err).split("\n"):
        if not line.isprintable():
            yield f"printed {line!r}"
    if "--json" in words and code < 2:
        try:
            json.loads(out, parse_constant=_refuse)
        except ValueError as error:
            yield f"printed no JSON: {error}"


def _reason(err: str) -> str:
    """The last line, or the one before a tip."""
    *_, before, last = ["", "", *err.removesuffix("\n").split("\n")]
    return before if last.startswith("  tip: ") else last


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _last_frames(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))


# ------------------------------------------------------------------------- writes and memory

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.rename",
    "os.truncate",
}
_changed: list[list[str]] = []


@cache
def _listen() -> None:
    """Have Python tell of everything in this process that changes a file."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not _changed:
            return
        if event in _CHANGES:
            paths = [os.fsdecode(a) for a in arguments if isinstance(a, str | bytes)]
            paths = [_resolved(path, arguments) for path in paths]
            _changed[-1] += [p for p in paths if event != "os.mkdir" or not Path(p).exists()]
        elif event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & _WRITING:
            _changed[-1].append(os.fsdecode(arguments[0]))

    sys.addaudithook(hook)


def _resolved(path: str, arguments: tuple[Any, ...]) -> str:
    """A path that may be relative to an open folder, the last of the arguments."""
    if not Path(path).is_absolute() and isinstance(arguments[-1], int) and arguments[-1] >= 0:
        return str(Path(f"/proc/self/fd/{arguments[-1]}").readlink() / path)
    return str(Path(path).absolute())


@contextmanager
def _writes() -> Iterator[list[str]]:
    """Collect the paths of all files that are written, made, moved or removed."""
    _listen()
    _changed.append([])
    try:
        yield _changed[-1]
    finally:
        _changed.pop()


def _may_write(path: str, allowed: Path) -> bool:
    """Whether it is the output, something in it, the temporary one beside it, or compiled code."""
    try:
        first = Path(path).relative_to(allowed.parent).parts[0]
    except (ValueError, IndexError):
        return path == os.devnull or "__pycache__" in Path(path).parts
    return first == allowed.name or first.startswith(f".{allowed.name}.")


def _status(key: str) -> float:
    """A number of megabytes from the process's status; 0 where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(row.split()[1]) / 1000 for row in lines if row.startswith(key)), 0.0)


def _reset_peak() -> float:
    """Forget the largest memory so far; returns what is held now."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return _peak()
    return _status("VmRSS")


def _peak() -> float:
    return _status("VmHWM")
