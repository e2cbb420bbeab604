"""Our errors against TensorLy's on the same inputs; `tests/bench/against_tensorly.py` has times."""

from __future__ import annotations

import itertools
import warnings

import pytest

from tests.bench.against_tensorly import DATA, KINDS, case

ALLOWED = {"Tucker": 1.0001, "TT": 1.0001, "CP": 1.01}


def rows():
    for data, kind in itertools.product(DATA, KINDS):
        marks = [pytest.mark.slow] if data.startswith("MiniLM") else []
        yield pytest.param(data, kind, id=f"{kind}, {data}", marks=marks)


@pytest.mark.parametrize(("data", "kind"), list(rows()))
def test_the_error_is_no_larger_than_tensorlys(data, kind):
    row = case(data, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        theirs = row.error(row.theirs(row.x))
    assert row.error(row.ours(row.x)) <= ALLOWED[kind] * theirs
