"""Commands in processes of their own: their wall time and the most memory they held."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Child", "run_child"]

_LOOK = 0.02  # seconds between two looks at its memory


@dataclass(frozen=True)
class Child:
    """How a command went.

    Attributes
    ----------
    seconds
        Wall time, start of the interpreter included; resolved to 0.02 s.
    rss
        Peak resident memory in bytes, mapped parts of files included.
    anonymous
        Its peak without files: what the machine cannot take back.
    output
        What it printed.
    """

    seconds: float
    rss: int
    anonymous: int
    output: str


def run_child(command: Sequence[str]) -> Child:
    """Run a command and watch its memory through ``/proc`` (Linux).

    The kernel's own maximum (``getrusage``) begins with the size of the parent, so it is not used.

    Raises
    ------
    RuntimeError
        If the command fails.
    """
    peaks = {"VmHWM": 0, "RssAnon": 0}
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        status = Path(f"/proc/{child.pid}/status")
        while child.poll() is None:
            for key, value in _memory(status).items():
                peaks[key] = max(peaks[key], value)
            time.sleep(_LOOK)
        seconds = time.perf_counter() - start
        assert child.stdout is not None
        output = child.stdout.read()
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {child.returncode}")
    return Child(seconds, peaks["VmHWM"], peaks["RssAnon"], output)


def _memory(status: Path) -> dict[str, int]:
    """Bytes of the two counters; nothing when the process has just ended."""
    try:
        lines = status.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    rows = (line.split(":") for line in lines if line.startswith(("VmHWM", "RssAnon")))
    return {key: int(value.split()[0]) * 1024 for key, value in rows}
