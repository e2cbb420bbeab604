"""No step of its size falls more."""

from __future__ import annotations

import numpy as np
import pytest

from theory.steepest import along_entries, along_frobenius, along_spectrum


def test_steps_and_falls_of_a_diagonal_are_exact():
    g = np.diag([2.0, -1.0, 2.0])
    for along, step, fall in (
        (along_frobenius, g / -3, 3),
        (along_entries, -np.sign(g), 5),
        (along_spectrum, np.diag([-1.0, 1.0, -1.0]), 5),
    ):
        found = along(g)
        np.testing.assert_array_equal(found[0], step)
        assert found[1] == fall


@pytest.mark.parametrize(
    ("along", "norm"),
    [
        (along_frobenius, np.linalg.norm),
        (along_entries, lambda x: np.abs(x).max()),
        (along_spectrum, lambda x: np.linalg.norm(x, 2)),
    ],
)
def test_no_step_of_size_one_falls_more(along, norm, rng):
    g = rng.standard_normal((6, 4))
    step, fall = along(g)
    assert norm(step) == pytest.approx(1)
    assert -np.sum(g * step) == pytest.approx(fall)
    for _ in range(50):
        other = rng.standard_normal((6, 4))
        assert -np.sum(g * other) <= fall * norm(other) * (1 + 1e-12)
