"""``python -m tests.bench.peer_tests``: tests of TensorLy, pyttb and torchTT against this code.

The peers' source distributions are fetched by pip and unpacked into a folder; nothing of theirs is
kept here. Their functions are replaced by ours (`tests.bench.shims`), then their own tests run. A
test that failed is explained below, or the command fails. A test may never reach us: what it tests
is not here, or is left to the peer with an option that we do not have. The table counts these.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.tables import Printer, printing, say

__all__ = ["PEERS", "Outcome", "Peer", "main", "rows_of", "unexplained"]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, eq=False)
class Peer:
    """A library, and which of its tests concern us.

    Attributes
    ----------
    distribution, module
        Its name where pip looks, and as it is imported.
    tests
        Files or folders, from the top of the source distribution.
    needs
        What it imports beyond what this project has.
    explained
        Tests that fail, by file and name, with or without parameters, and why that is right.
    """

    distribution: str
    module: str
    tests: tuple[str, ...]
    needs: tuple[str, ...]
    explained: dict[str, str]


PEERS = (
    Peer(
        "tensorly",
        "tensorly",
        ("tensorly/decomposition/tests", "tensorly/metrics/tests"),
        (),
        {},
    ),
    Peer(
        "pyttb",
        "pyttb",
        ("tests/test_hosvd.py", "tests/test_cp_als.py"),
        ("numpy_groupies",),
        {
            "test_cp_als.py::test_cp_als_incorrect_init": "a wrong start is an ArgumentError here,"
            " in our words; there it is an AssertionError in theirs"
        },
    ),
    Peer(
        "torchTT",
        "torchtt",
        ("tests/test_decomposition.py", "tests/test_linalg.py", "tests/test_algebra_2.py"),
        (),
        {
            "test_linalg.py::test_mult": "0 times a train keeps its bonds here, so that shapes do"
            " not depend on values; there it gets bonds of 1"
        },
    ),
)


@dataclass(frozen=True)
class Outcome:
    """How one test went.

    Attributes
    ----------
    name
        File and name, with parameters.
    outcome
        ``"passed"``, ``"failed"`` or ``"skipped"``.
    ours
        Calls that reached us, by function.
    left
        Calls left to the peer, by reason.
    message
        Why it failed.
    """

    name: str
    outcome: str
    ours: dict[str, int]
    left: dict[str, int]
    message: str


def main() -> int:
    """Print the tables; 1 where a failure has no explanation."""
    parser = argparse.ArgumentParser(description="Tests of peers against this code.")
    parser.add_argument("--folder", type=Path, help="where to unpack and to find what is unpacked")
    parser.add_argument("--peers", nargs="+", choices=[p.module for p in PEERS], metavar="NAME")
    parser.add_argument("--select", help="only tests whose names match, as pytest -k does")
    printing(parser)
    given = parser.parse_args()
    peers = [p for p in PEERS if given.peers is None or p.module in given.peers]
    printer = Printer(given.markdown)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        ran = {peer: _run(peer, folder, given.select) for peer in peers}
    columns = ("peer", "file", "passed", "failed", "skipped", "never reached us", "calls of ours")
    printer.table("Tests of peers", columns, [r for p, o in ran.items() for r in rows_of(p, o)])
    failed = [_failure(p, outcome) for p, o in ran.items() for outcome in o if _is_failed(outcome)]
    printer.table("Failures", ("peer", "test", "what happened", "why that is right"), failed)
    left = sum((Counter(outcome.left) for o in ran.values() for outcome in o), Counter())
    rows = [(reason, str(n)) for reason, n in left.most_common()]
    printer.table("Left to the peer", ("what", "calls"), rows)
    return 1 if any(unexplained(peer, outcomes) for peer, outcomes in ran.items()) else 0


def rows_of(peer: Peer, outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """Counts by file, and all together."""
    files = sorted({o.name.partition("::")[0] for o in outcomes})
    groups = {file: [o for o in outcomes if o.name.startswith(f"{file}::")] for file in files}
    counted = [_counted(peer, file, group) for file, group in groups.items()]
    return [*counted, _counted(peer, "all", outcomes)]


def _counted(peer: Peer, file: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    by = Counter(outcome.outcome for outcome in outcomes)
    unreached = sum(not outcome.ours for outcome in outcomes)
    calls = sum(sum(outcome.ours.values()) for outcome in outcomes)
    numbers = (by["passed"], by["failed"], by["skipped"], unreached, calls)
    return (peer.distribution, file, *map(str, numbers))


def unexplained(peer: Peer, outcomes: Sequence[Outcome]) -> list[str]:
    """Failed tests without an explanation."""
    return [o.name for o in outcomes if _is_failed(o) and not _explanation(peer, o.name)]


def _is_failed(outcome: Outcome) -> bool:
    return outcome.outcome == "failed"


def _explanation(peer: Peer, name: str) -> str:
    return peer.explained.get(name) or peer.explained.get(name.partition("[")[0], "")


def _failure(peer: Peer, outcome: Outcome) -> tuple[str, ...]:
    why = _explanation(peer, outcome.name) or "UNEXPLAINED"
    return (peer.distribution, outcome.name, outcome.message[:120], why)


def _run(peer: Peer, folder: Path, select: str | None) -> list[Outcome]:
    """Unpack a peer and run its tests in a process of their own."""
    source, needs = _unpacked(peer, folder), folder / "needs"
    if peer.needs:
        _pip("install", "--no-deps", "--target", needs, *peer.needs)
    report = (folder / f"{peer.module}.json").resolve()
    path = os.pathsep.join(map(str, (source, ROOT, needs.resolve())))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    command += ["-p", "tests.bench.shims.plugin", "--shim", peer.module, "--shim-report"]
    command += [str(report), *peer.tests, *(["-k", select] if select else [])]
    say(f"{source.name}: {' '.join(peer.tests)}")
    done = subprocess.run(
        command, cwd=source, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    if done.returncode not in (0, 1) or not report.exists():
        raise SystemExit(f"the tests of {peer.distribution} did not run:\n{done.stdout[-2000:]}")
    return [_outcome(name, row) for name, row in json.loads(report.read_text()).items()]


def _outcome(name: str, row: dict[str, Any]) -> Outcome:
    path, _, rest = name.partition("::")
    return Outcome(f"{Path(path).name}::{rest}", **row)


def _unpacked(peer: Peer, folder: Path) -> Path:
    """Folder of a peer's sources, fetched where they are not there yet."""
    pattern = f"{peer.module}-*"
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob(f"{pattern}.tar.gz")):
        _pip(
            *("download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"),
            *("--dest", folder, peer.distribution),
        )
    archive = max(folder.glob(f"{pattern}.tar.gz"))
    unpacked = folder / archive.name.removesuffix(".tar.gz")
    if not unpacked.exists():
        with tarfile.open(archive) as held:
            held.extractall(folder, filter="data")
    return unpacked.resolve()


def _pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
