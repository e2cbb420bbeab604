"""``python -m tests.bench.als_success``: how often `als` finds planted networks.

Planted standard normal factors, four data sets per equation, no noise; a start succeeds when the
relative error is below 1e-9. Takes about two minutes; names as arguments choose rows, and only they
bring the slow ones: ``python -m tests.bench.als_success "LoHa, rank 3"``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tdecomp._plan import contract
from tdecomp.decomposition.methods.network.als import als
from tdecomp.decomposition.methods.network.parse import parse
from tests.bench.tables import Printer, printing

STARTS = 20
EXACT = 1e-9


@dataclass(frozen=True)
class Case:
    """An equation and the sizes of its names."""

    equation: str
    sizes: Mapping[str, int]
    frozen: tuple[int, ...] = ()
    tied: tuple[tuple[int, ...], ...] = ()
    rank: Mapping[str, int] = field(init=False)

    def __post_init__(self):
        letters = parse(self.equation).letters
        object.__setattr__(self, "rank", {n: self.sizes[n] for n in letters})

    @property
    def splits(self) -> dict[str, int]:
        """Sizes of the parts of split modes."""
        axes = [axis for axis in parse(self.equation).output if not isinstance(axis, str)]
        return {n: self.sizes[n] for axis in axes for n in axis}

    @property
    def used(self) -> dict[str, int]:
        """Size of every name of the equation."""
        names = dict.fromkeys(n for term in parse(self.equation).terms for n in term)
        return {n: self.sizes[n] for n in names}


MODES = {"layer": 5, "proj": 3, "out": 9, "in": 10, "head": 3, "hd": 4}
HARD = {
    "CP": Case("layer r, out r, in r -> layer out in", MODES | {"r": 4}),
    "CP, rank above a mode": Case("layer r, out r, in r -> layer out in", MODES | {"r": 6}),
    "LoRTA": Case(
        "hd r, head r, in r, proj r, layer r -> layer proj (head hd) in", MODES | {"r": 4}
    ),
    "LoHa": Case("out r, r in, out s, s in -> out in", {"out": 16, "in": 18, "r": 2, "s": 2}),
    "LoHa, rank 3": Case(
        "out r, r in, out s, s in -> out in", {"out": 24, "in": 24, "r": 3, "s": 3}
    ),
    "LoHa, rank 3, larger": Case(
        "out r, r in, out s, s in -> out in", {"out": 40, "in": 36, "r": 3, "s": 3}
    ),
    "LoHa, layers": Case(
        "layer out r, layer r in, out s, s in -> layer out in", MODES | {"r": 2, "s": 2}
    ),
    "mixed": Case("layer out, out r, layer r s, s in -> layer out in", MODES | {"r": 2, "s": 2}),
    "VeRA, all free": Case("out r, r in, layer out, layer r -> layer out in", MODES | {"r": 3}),
    "VeRA": Case(
        "out r, r in, layer out, layer r -> layer out in", MODES | {"r": 3}, frozen=(0, 1)
    ),
    "ring": Case("layer r s, out s t, in t r -> layer out in", MODES | {"r": 2, "s": 2, "t": 2}),
    "sum": Case(
        "out r, r in + out a, layer a b, b in -> layer out in", MODES | {"r": 2, "a": 2, "b": 2}
    ),
    "LoRA + CP": Case(
        "layer out a, layer a in + layer r, out r, in r -> layer out in", MODES | {"r": 3, "a": 1}
    ),
    "SingLoRA": Case("out r, in r -> out in", {"out": 9, "in": 9, "r": 3}, tied=((0, 1),)),
}
SLOW = {
    ("LoHa, rank 3", "auto"),
    ("LoHa, rank 3", "random"),
    ("LoHa, rank 3, larger", "random"),
    ("LoHa, layers", "random"),
}


def planted(case: Case, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """Dense array of random factors, and the factors of the written terms."""
    ansatz, rng = parse(case.equation), np.random.default_rng([seed, 91])
    arrays = [rng.standard_normal([case.sizes[n] for n in term]) for term in ansatz.terms]
    for k in range(len(arrays)):
        if k not in ansatz.written:
            arrays[k] = np.ones_like(arrays[k])
    for group in case.tied:
        for k in group:
            arrays[ansatz.written[k]] = arrays[ansatz.written[group[0]]]
    pairs = zip(ansatz.addends, ansatz.blocks, strict=True)
    x = sum(contract(equation, [arrays[k] for k in block]) for equation, block in pairs)
    return np.asarray(x), [arrays[k] for k in ansatz.written]


def success(case: Case, **options) -> tuple[int, float]:
    """Starts that succeed, and the median of their seconds."""
    n, seconds = 0, []
    for seed in range(STARTS):
        x, arrays = planted(case, seed % 4)
        began = time.perf_counter()
        fit = als(
            x,
            case.equation,
            rank=case.rank,
            sizes=case.splits,
            frozen={k: arrays[k] for k in case.frozen},
            tied=case.tied,
            random_state=seed,
            **options,
        )
        seconds.append(time.perf_counter() - began)
        n += fit.error < EXACT
    return n, float(np.median(seconds))


def main() -> None:
    """Print the table: the rows named, or all but the slow ones."""
    parser = argparse.ArgumentParser(description="How often als finds planted networks.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of: {'; '.join(HARD)}")
    printing(parser)
    given = parser.parse_args()
    if unknown := set(given.rows) - set(HARD):
        sys.exit(f"no such row: {', '.join(sorted(unknown))}; there are: {'; '.join(HARD)}")
    rows = []
    for name, case in HARD.items():
        for start in ("auto", "random"):
            if name in given.rows or (not given.rows and (name, start) not in SLOW):
                n, seconds = success(case, init=start)
                sizes = " ".join(f"{k}={v}" for k, v in case.used.items())
                rows.append([f"{name}: {case.equation}", sizes, start, str(n), f"{seconds:.2f}"])
    columns = ("equation", "sizes", "start", f"successes of {STARTS}", "median seconds")
    Printer(given.markdown).table("td.als from random and informed starts", columns, rows)


if __name__ == "__main__":
    main()
