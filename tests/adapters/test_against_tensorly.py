"""Tucker, CP and tensor-train rows against TensorLy's reconstructions of the same factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tensorly as tl

from tdecomp._xp import tol
from tdecomp.adapters import Bound, Grid, bind, method
from tdecomp.modes import flatten
from tests.tables import each

Whole = tuple[np.ndarray, tuple[str, ...]]  # an array and the modes of its axes
Factors = dict[str, Whole]

SIZES = {"r": 2, "s": 3, "t": 4, "u": 2, "v": 3, "r1": 2, "r2": 3, "r3": 4, "r4": 3, "r5": 2}
SITE_MODES = {"site", "layer", "proj"}
STACKINGS = ("att", "qkv", "depth", "att_qkv", "att_depth", "qkv_depth", "att_qkv_depth")


def arranged(whole: Whole, modes: tuple[str, ...]) -> np.ndarray:
    return whole[0].transpose([whole[1].index(n) for n in modes])


def tucker(factors: Factors) -> Whole:
    """A mode of the core that no factor shares has the identity as its factor."""
    core, ranks = factors.pop("core")
    matrices, modes = [], []
    for size, rank in zip(core.shape, ranks, strict=True):
        whole = next((w for w in factors.values() if rank in w[1]), None)
        mode = next(n for n in whole[1] if n != rank) if whole else rank
        modes.append(mode)
        matrices.append(arranged(whole, (mode, rank)) if whole else np.eye(size))
    return tl.tucker_to_tensor((core, matrices)), tuple(modes)


def cp(factors: Factors) -> Whole:
    modes = tuple(next(n for n in letters if n != "r") for _, letters in factors.values())
    pairs = zip(factors.values(), modes, strict=True)
    return tl.cp_to_tensor((None, [arranged(whole, (n, "r")) for whole, n in pairs])), modes


def tt(factors: Factors) -> Whole:
    """In the order of the row: two neighbours share a bond."""
    wholes = list(factors.values())
    bonds = [(), *((set(a[1]) & set(b[1])).pop() for a, b in pairwise(wholes)), ()]
    modes, cores = [], []
    for k, whole in enumerate(wholes):
        (mode,) = set(whole[1]) - {bonds[k], bonds[k + 1]}
        core = arranged(whole, tuple(n for n in (bonds[k], mode, bonds[k + 1]) if n))
        core = core[None] if k == 0 else core[..., None] if k == len(wholes) - 1 else core
        modes.append(mode)
        cores.append(core)
    return tl.tt_to_tensor(cores), tuple(modes)


ROWS: dict[str, Callable[[Factors], Whole]] = {
    "lotr": tucker,
    "lotr_narrow": tucker,
    "fact_tk": tucker,
    **{f"tenslora_{stacking}": tucker for stacking in STACKINGS},
    **{f"tenslora_{stacking}_cp": cp for stacking in STACKINGS},
    "lorta": cp,
    "fact_tt": tt,
    "tt_lora": tt,
    "metatt": tt,
    "metatt_heads": tt,
}


def pick(whole: Whole, bound: Bound, site: int) -> np.ndarray:
    """The weight of a site, ``(out, in)``, in a tensor over weight and site modes."""
    array, modes = whole
    rows = bound.grid.rows
    array = array[tuple(rows[n][site] if n in rows else slice(None) for n in modes)]
    rest = tuple(n for n in modes if n not in rows)
    inside = tuple(n for n in flatten(bound.spec.output) if n not in blocks(bound))
    return arranged((array, rest), inside).reshape(bound.grid.shape)


def of_site(bound: Bound, arrays: Mapping[str, Any], site: int) -> Factors:
    """The factors of the tensor that a site lies in: modes that all factors have count tensors."""
    rows = bound.grid.rows
    counts = SITE_MODES.intersection(*(f.modes for f in bound.spec.factors))
    place = {n: rows[n][site] for n in counts} | dict.fromkeys(blocks(bound), 0)
    return {
        f.name: (
            arrays[f.name][tuple(place.get(n, slice(None)) for n in f.modes)],
            tuple(n for n in f.modes if n not in place),
        )
        for f in bound.spec.factors
    }


def blocks(bound: Bound) -> set[str]:
    """Parts of a weight of size 1, which are no modes of the tensor: FacT's single squares."""
    return {n for n in flatten(bound.spec.output) if bound.sizes[n] == 1}


@pytest.mark.parametrize("shape", [(24, 36), (36, 24)], ids=["wide", "tall"])
@each("row", ROWS)
def test_every_weight_is_a_slice_of_tensorlys_tensor(row, shape, rng):
    spec = method(row)
    rank = {n: size for n, size in SIZES.items() if n in spec.letters and n not in dict(spec.where)}
    bound = bind(spec, Grid.full(shape, heads=4, layer=3, proj=2), rank)
    arrays = {name: rng.standard_normal(size) for name, size in bound.shapes.items()}
    scale = bound.scale()
    with tl.backend_context("numpy", local_threadsafe=True):
        for site in range(bound.grid.n_sites):
            expected = scale * pick(ROWS[row](of_site(bound, arrays, site)), bound, site)
            found = bound.delta(arrays, site)
            atol = np.abs(expected).max() * tol("float64", 36 * 36)
            np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
