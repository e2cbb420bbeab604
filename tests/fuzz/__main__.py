"""Run cases in processes, watch them, and print what came of them."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from tests.fuzz.cases import Outcome
from tests.fuzz.mutations import MUTATIONS
from tests.fuzz.running import run_all, run_here


def main() -> int:
    """0 if every case came out as it may."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases to run here, loudly")
    given = parser.parse_args()
    if given.only is not None:
        outcomes = [run_here(given.seed, number) for number in given.only]
    else:
        outcomes = run_all(given.seed, given.cases, given.processes)
        print(table(outcomes))
    bad = [outcome for outcome in outcomes if outcome.fault]
    for outcome in bad[:100]:
        print(outcome.line())
    print(
        f"{len(outcomes)} cases of seed {given.seed}, {len(bad)} faults; the slowest took "
        f"{max(o.seconds for o in outcomes):.2f} s of processor time, the largest "
        f"{max(o.megabytes for o in outcomes):.0f} MB"
    )
    return bool(bad)


def table(outcomes: Sequence[Outcome]) -> str:
    """Rows are mutations, columns are kinds; a cell is how many were done / refused / at fault."""
    kinds = list(dict.fromkeys(outcome.kind for outcome in outcomes))
    counts = Counter[tuple[str, str, str]]()
    for outcome in outcomes:
        result = "fault" if outcome.fault else "refused" if outcome.code == 2 else "done"
        for mutation in set(outcome.mutations):
            counts[mutation, outcome.kind, result] += 1
        counts["all cases", outcome.kind, result] += 1

    def cell(mutation: str, kind: str) -> str:
        done, refused, fault = (counts[mutation, kind, r] for r in ("done", "refused", "fault"))
        return f"{done}/{refused}" + (f"/{fault} FAULTS" if fault else "")

    rows = [["done/refused", *kinds]]
    rows += [[name, *(cell(name, kind) for kind in kinds)] for name in (*MUTATIONS, "all cases")]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
