"""Rows that PEFT does not have, against the formulas of their public code, written out densely."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from scipy.linalg import block_diag

from tdecomp._xp import tol
from tdecomp.adapters import Bound, Grid, bind, method

Arrays = Mapping[str, np.ndarray]
SHAPE = (24, 36)
RANKS: dict[str, Any] = {
    "lorta_public": {"r": 4, "h": 3},
    "svft": None,
    "quanta": None,
    "loretta_rep": {"r": 4, "t": 3},
}


def smallest(norms: np.ndarray, n: int) -> list[int]:
    return sorted(sorted(range(len(norms)), key=norms.__getitem__)[:n])


def shuffled(out: np.ndarray, n: int) -> np.ndarray:
    """Rows of (a, n) blocks as rows of (n, a) blocks."""
    return out.reshape(-1, n, out.shape[1]).swapaxes(0, 1).reshape(out.shape)


def monarch(f: Arrays, w: np.ndarray) -> np.ndarray:
    """Two block-diagonal matrices; before and after the second, rows are put in another order."""
    n = len(f["a"])
    first = block_diag(*f["a"])  # (n q, n y)
    second = block_diag(*f["b"])  # (q x, q r)
    return shuffled(second @ shuffled(first, n), len(w) // n)


def cara(f: Arrays, w: np.ndarray) -> np.ndarray:
    """A sum of outer products over ranks, (in, head, hd)."""
    whole = sum(
        f["lam"][k]
        * f["a_site"][k]
        * np.multiply.outer(np.outer(f["a"][:, k], f["a_head"][:, k]), f["a_hd"][:, k])
        for k in range(len(f["lam"]))
    )
    return np.asarray(whole).reshape(w.shape[::-1]).T


def lorta(f: Arrays, w: np.ndarray) -> np.ndarray:
    """Every head its own columns."""
    gates = f["c_head"] * f["c_proj"] * f["c_layer"]  # (h, r)
    return 4 * np.concatenate([f["a"] @ np.diag(gate) @ f["b"].T for gate in gates], 1)


def circuit(f: Arrays, w: np.ndarray, ending: str = "") -> np.ndarray:
    """Gates one after the other, on every unit vector, filled up and cut off."""
    n = len(f["g23"])
    columns = []
    for unit in np.eye(w.shape[1]):
        x = np.zeros(n**3)
        x[: w.shape[1]] = unit
        x = x.reshape(n, n, n)
        for gate, (first, second) in (("g23", (1, 2)), ("g13", (0, 2)), ("g12", (0, 1))):
            moved = np.moveaxis(x, (first, second), (0, 1)).reshape(n * n, n)
            moved = f[gate + ending].reshape(n * n, n * n) @ moved
            x = np.moveaxis(moved.reshape(n, n, n), (0, 1), (first, second))
        columns.append(x.ravel()[: len(w)])
    return np.stack(columns, 1)


def train(cores: list[np.ndarray]) -> np.ndarray:
    whole = cores[0]
    for core in cores[1:]:
        whole = np.tensordot(whole, core, 1)
    return whole


def loretta(f: Arrays, w: np.ndarray) -> np.ndarray:
    r = f["g4"].shape[1]
    a = train([f[f"g{k}"] for k in (1, 2, 3, 4)]).reshape(w.shape[1], r)
    b = train([f[f"h{k}"] for k in (1, 2, 3, 4)]).reshape(r, len(w))
    return (a @ b).T


def banded(f: Arrays, w: np.ndarray) -> np.ndarray:
    u, _, vh = np.linalg.svd(w, full_matrices=False)
    sign = np.sign((u * f["u"]).sum(0))  # of a pair of vectors it is free
    middle = np.diag(f["s"]) + np.diag(f["up"], 1) + np.diag(f["low"], -1)
    return (u * sign) @ middle @ (vh * sign[:, None])


def rasa(f: Arrays, w: np.ndarray) -> np.ndarray:
    b = np.concatenate([f["b"], f["b_shared"]], 1)
    d = np.concatenate([f["d"], f["d_shared"]])
    return b @ np.diag(d) @ np.concatenate([f["a"], f["a_shared"]])


def curlora(f: Arrays, w: np.ndarray) -> np.ndarray:
    columns = smallest((w**2).sum(0), len(f["core"]))
    rows = smallest((w**2).sum(1), len(f["core"]))
    return w[:, columns] @ f["core"] @ w[rows]


FORMULAS: dict[str, Callable[[Arrays, np.ndarray], np.ndarray]] = {
    "sharelora": lambda f, w: f["b"] @ f["a"],
    "tied_lora": lambda f, w: np.diag(f["v"]) @ f["b"] @ np.diag(f["u"]) @ f["a"],
    "rasa": rasa,
    "lora_sb": lambda f, w: f["b"] @ f["core"] @ f["a"],
    "svft": banded,
    "curlora": curlora,
    "lorma": lambda f, w: 2 * f["b"] @ (f["a"] @ w),
    "wegeft": lambda f, w: (w @ f["phi"].T) @ f["psi"],
    "abba": lambda f, w: 8 * (f["b1"] @ f["a1"]) * (f["b2"] @ f["a2"]),
    "surm": lambda f, w: np.kron(f["left"], f["right"]) / len(f["right"]),
    "more": monarch,
    "cara": cara,
    "lorta_public": lorta,
    "flora_core": lambda f, w: f["b"] @ f["core"] @ f["a"].T,
    "quanta": lambda f, w: circuit(f, w) - circuit(f, w, "_0"),
    "loretta_rep": loretta,
    "ffn_low_rank": lambda f, w: f["b"] @ f["a"] - w,
    "ffn_block_dense": lambda f, w: f["b"].reshape(len(w), -1) @ block_diag(*f["a"]) - w,
}
"""The change of a weight, of the factors of its site."""


def at_site(bound: Bound, arrays: Arrays, site: int) -> dict[str, np.ndarray]:
    """What of every factor belongs to a site, without the axes that say which."""
    modes = [mode for mode, _ in bound.grid.modes]
    place = dict(zip(modes, bound.grid.places[site], strict=True), site=site)
    return {
        f.name: arrays[f.name][tuple(place.get(n, slice(None)) for n in f.modes)]
        for f in bound.factors
    }


@pytest.mark.parametrize("name", FORMULAS)
def test_the_change_of_a_weight_is_that_of_the_public_formula(name):
    bound = bind(method(name), Grid.full(SHAPE, layer=3, proj=2, heads=4), RANKS.get(name, 4))
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((bound.grid.n_sites, *SHAPE))
    arrays = bound.start(weights.__getitem__)
    trained = {f.name for f in bound.factors if f.trainable}
    arrays |= {n: rng.standard_normal(bound.shapes[n]) for n in trained}
    for site, w in enumerate(weights):
        expected = FORMULAS[name](at_site(bound, arrays, site), w)
        found = bound.weight(w, arrays, site) - w
        scale = max(1.0, float(np.abs(expected).max()))
        assert np.abs(found - expected).max() <= 8 * tol("float64", 36 * 36) * scale
