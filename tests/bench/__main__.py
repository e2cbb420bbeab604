"""``python -m tests.bench``: small stacks against the peers, in less than a minute.

The full sizes take many minutes: ``python -m tests.bench.in_memory`` and the other scripts that
docs/benchmarks.md lists.
"""

from __future__ import annotations

import argparse

from tests.bench.in_memory import DATA, RANK, table
from tests.bench.tables import Printer, printing

CASES = [
    ((6, 3, 384, 384), "shared"),
    ((4, 1024, 1024), "shared"),
    ((6, 3, 384, 384), "components"),
]
RUNS = 3


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Small stacks against other libraries.")
    printing(parser)
    printer = Printer(parser.parse_args().markdown)
    for shape, data in CASES:
        table(printer, data, DATA[data](shape, RANK), RUNS, peers=True)


if __name__ == "__main__":
    main()
