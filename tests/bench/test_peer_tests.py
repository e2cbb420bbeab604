"""The script that runs the peers' tests: its stand-ins, its counts, and what makes it fail."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from tests.bench.peer_tests import ROOT, Outcome, Peer, rows_of, unexplained
from tests.bench.shims.stand_ins import LEFT, OURS, LeftToPeer, ours, stand_in

PEER = Peer("Peer", "peer", (), (), {"test_a.py::test_x": "why", "test_a.py::test_y[1]": "why"})

TESTS = """
import tensorly as tl
from tensorly.cp_tensor import cp_to_tensor
from tensorly.decomposition import parafac

X = tl.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])

def test_reaches_us():
    cp = parafac(X, rank=3, init="random", random_state=0)
    assert tl.norm(cp_to_tensor(cp) - X) < 1e-2 * tl.norm(X)

def test_never_reaches_us():
    assert tl.norm(X) > 0

def test_is_left_to_the_peer():
    assert parafac(X, rank=1, orthogonalise=True).rank == 1

def test_fails():
    assert parafac(X, rank=1).rank == 2
"""


def test_a_stand_in_keeps_the_signature_counts_and_leaves_the_rest():
    def power(x, of=2):
        return x**of

    def square(given):
        if given.of != 2:
            raise LeftToPeer("other powers")
        return ours(np.square, given.x)

    call = stand_in(power, square)
    OURS.clear()
    LEFT.clear()
    assert inspect.getfullargspec(call) == inspect.getfullargspec(power)
    assert (call(3), call(3, of=3), call(x=2)) == (9, 27, 4)
    assert OURS == {"square": 2}
    assert LEFT == {"power: other powers": 1}


def test_failures_need_an_explanation():
    names = ("test_x[0]", "test_y[1]", "test_y[2]", "test_z")
    outcomes = [Outcome(f"test_a.py::{name}", "failed", {"cp": 2}, {}, "") for name in names]
    outcomes.append(Outcome("test_b.py::test_x", "passed", {}, {}, ""))
    assert unexplained(PEER, outcomes) == ["test_a.py::test_y[2]", "test_a.py::test_z"]
    assert rows_of(PEER, outcomes) == [
        ("Peer", "test_a.py", "0", "4", "0", "0", "8"),
        ("Peer", "test_b.py", "1", "0", "0", "1", "0"),
        ("Peer", "all", "1", "4", "0", "1", "8"),
    ]


@pytest.mark.slow
def test_tests_of_an_archive_run_against_us(tmp_path):
    folder = tmp_path / "tensorly-0"
    for part in ("decomposition", "metrics"):
        (folder / "tensorly" / part / "tests").mkdir(parents=True)
        (folder / "tensorly" / part / "tests" / f"test_{part}.py").write_text(TESTS)
    with tarfile.open(tmp_path / "tensorly-0.tar.gz", "w:gz") as archive:
        archive.add(folder, "tensorly-0")
    command = [sys.executable, "-m", "tests.bench.peer_tests", "--markdown", "--peers", "tensorly"]
    command += ["--folder", str(tmp_path / "unpacked")]
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "tensorly-0.tar.gz").rename(tmp_path / "unpacked" / "tensorly-0.tar.gz")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    assert ["tensorly", "all", "6", "2", "0", "4", "6"] in rows
    assert ["parafac: orthogonalise is not here", "2"] in rows
    assert sum(row[-1:] == ["UNEXPLAINED"] for row in rows) == 2
