"""``python -m tests.bench.als_success``: how often `als` finds planted networks from random starts.

Planted standard normal factors, four data sets per equation, no noise; a start succeeds when the
relative error is below 1e-9. Takes some minutes; names of equations as arguments choose rows.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.table import Table

from tdecomp.decomposition._als.als import als
from tdecomp.decomposition._als.parse import parse
from tdecomp.plan import contract

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


def success(case: Case, **options) -> tuple[int, float, float]:
    """Starts that succeed, worst error among all, seconds per start."""
    errors, began = [], time.perf_counter()
    for seed in range(STARTS):
        x, arrays = planted(case, seed % 4)
        frozen = {k: arrays[k] for k in case.frozen}
        fit = als(
            x,
            case.equation,
            rank=case.rank,
            sizes=case.splits,
            frozen=frozen,
            tied=case.tied,
            random_state=seed,
            **options,
        )
        errors.append(fit.error)
    seconds = (time.perf_counter() - began) / STARTS
    return sum(e < EXACT for e in errors), float(np.median(errors)), seconds


def main(chosen: list[str]) -> None:
    """Print the table."""
    table = Table("equation", "random", "random, 5 starts", "auto", "numbers / data", "s per start")
    for name, case in HARD.items():
        if chosen and name not in chosen:
            continue
        x, arrays = planted(case)
        one = success(case, init="random")
        five = success(case, init="random", n_restarts=5)
        auto = success(case)
        share = sum(a.size for a in arrays) / math.prod(x.shape)
        cells = [f"{n}/{STARTS}" for n, _, _ in (one, five, auto)]
        table.add_row(f"{name}: {case.equation}", *cells, f"{share:.2f}", f"{one[2]:.2f}")
    Console(width=150).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
