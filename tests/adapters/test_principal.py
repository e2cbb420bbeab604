"""Principal directions of adapters span what the adapters span."""

from __future__ import annotations

import numpy as np
import pytest

from tdecomp import ArgumentError
from tdecomp.adapters import LoRAModule, principal_directions


def pairs(rng, *, rank=2, modules=("q", "v")):
    return [
        LoRAModule(
            module=m,
            a=rng.standard_normal((rank, 5)),
            b=rng.standard_normal((7, rank)),
            transpose=False,
            departure=0.0,
            energy=0.0,
        )
        for m in modules
    ]


@pytest.mark.parametrize(("k", "extra"), [(1, 0), (4, 0), (4, 1), (3, 2)])
def test_directions_are_orthonormal(rng, k, extra):
    found = principal_directions([pairs(rng), pairs(rng)], k, extra=extra)
    for module in ("q", "v"):
        out, in_ = found["directions_out"][module], found["directions_in"][module]
        assert (out.shape, in_.shape) == ((7, k + extra), (k + extra, 5))
        np.testing.assert_allclose(out.T @ out, np.eye(k + extra), atol=1e-12)
        np.testing.assert_allclose(in_ @ in_.T, np.eye(k + extra), atol=1e-12)


def test_all_directions_hold_every_adapter(rng):
    adapters = [pairs(rng), pairs(rng)]
    found = principal_directions(adapters, 4, extra=1)
    for pair in (p for adapter in adapters for p in adapter):
        out, in_ = found["directions_out"][pair.module], found["directions_in"][pair.module]
        delta = pair.b @ pair.a
        np.testing.assert_allclose(out @ (out.T @ delta @ in_.T) @ in_, delta, atol=1e-12)


def test_fewer_directions_lose_the_least(rng):
    adapters = [pairs(rng), pairs(rng)]
    rows = np.concatenate([adapter[0].a for adapter in adapters])
    tail = np.linalg.svd(rows, compute_uv=False)[2:]
    in_ = principal_directions(adapters, 2)["directions_in"]["q"]
    assert np.linalg.norm(rows - rows @ in_.T @ in_) == pytest.approx(np.linalg.norm(tail))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 5}, "k=5 and extra=0 directions of q: the adapters have 4 of 7"),
        ({"k": 0}, "k=0"),
        ({"extra": 6}, "extra=6"),
        ({"adapters": []}, "one adapter or more"),
    ],
    ids=["too many", "none", "no room", "no adapters"],
)
def test_what_cannot_be_had_is_refused(rng, change, message):
    given = {"adapters": [pairs(rng), pairs(rng)], "k": 2, "extra": 0} | change
    with pytest.raises(ArgumentError, match=message):
        principal_directions(given["adapters"], given["k"], extra=given["extra"])


def test_adapters_of_other_modules_are_refused(rng):
    with pytest.raises(ArgumentError, match="v is not in all of them"):
        principal_directions([pairs(rng), pairs(rng, modules=("q",))], 2)
