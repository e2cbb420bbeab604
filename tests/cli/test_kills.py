"""Commands that are killed leave the old output or the new one; see `tests.kills`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_killed_commands_leave_the_old_or_the_new_output():
    """`make kills` does it 200 times."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", "24"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert done.stdout.startswith("24 kills in ")
    assert {"old", "new"} <= set(done.stdout.replace(",", "").split())


def test_another_content_is_found(tmp_path):
    """So that the kills can fail: a job that writes its output in place is told."""
    program = (
        "import sys; from pathlib import Path; from tests.kills import Case\n"
        "place = Path(sys.argv[1]) / 'place' / 'out'\n"
        "def job():\n"
        "    place.write_bytes(b'half')\n"
        "    place.write_bytes(b'new')\n"
        "Case('in place', job, place, b'old', b'new').every_step()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert "neither the old output nor the new one" in done.stderr
