"""Tables of the benchmarks: on the screen, or as markdown with machine, date and versions."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

__all__ = ["Printer", "installed", "printing", "say"]

_PACKAGES = ("numpy", "torch", "tensorly", "pyttb", "torchTT")


def installed(module: str) -> bool:
    """Whether a peer can be imported; says so where not."""
    found = importlib.util.find_spec(module) is not None
    if not found:
        say(f"{module} is not installed: its rows are left out (docs/benchmarks.md says how)")
    return found


def say(text: str) -> None:
    """One line about what is being done, on stderr, so that tables can be piped."""
    Console(stderr=True).print(text, highlight=False, markup=False)


def printing(parser: argparse.ArgumentParser) -> None:
    """Add ``--markdown`` to a script's options."""
    parser.add_argument("--markdown", action="store_true", help="print tables as markdown")


@dataclass
class Printer:
    """Prints the tables of one script.

    Attributes
    ----------
    markdown
        As markdown, headed once by the machine, the date and the versions.
    """

    markdown: bool = False
    _headed: bool = field(default=False, repr=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print one table."""
        if not self.markdown:
            table = Table(*columns, title=title, title_justify="left")
            for row in rows:
                table.add_row(*row)
            console = Console()
            Console(width=max(console.width, 150)).print(table)
            return
        if not self._headed:
            self._headed = True
            print(_machine())
        lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
        print(f"\n{title}\n")
        print("\n".join(f"| {' | '.join(line)} |" for line in lines), flush=True)


def _machine() -> str:
    """Processor, cores, memory, threads, date and versions, as one line of markdown."""
    import threadpoolctl

    blas = threadpoolctl.threadpool_info()
    threads = ", ".join(sorted({f"{one['internal_api']} {one['num_threads']}" for one in blas}))
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    today = datetime.datetime.now(datetime.UTC).date()
    return (
        f"{_processor()}, {os.cpu_count()} cores, {gib:.0f} GiB; threads: {threads}; "
        f"{today.isoformat()}; {', '.join(versions)}."
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
