"""One table of formats that every law in this folder is crossed with."""

from __future__ import annotations

import numpy as np

import tdecomp as td
from tdecomp._xp import to_numpy, tol
from tdecomp.formats import Sum
from tdecomp.modes import Equation


def factor(rng, *shape):
    return rng.standard_normal(shape)


def cases() -> list[td.Format]:
    return [*single_cases(), *sum_cases()]


def sum_cases() -> list[td.Format]:
    """Sums of different formats, of chains, of equations, with split axes, of one part."""
    rng = np.random.default_rng(2)
    modes = ("layer", "out", "in")
    svd = td.LowRank(modes, (4,), (1, 0, 2, 1), factor(rng, 7, 4), np.ones(4), factor(rng, 4, 5))
    parafac = td.CP(modes, factor(rng, 2), tuple(factor(rng, n, 2) for n in (4, 7, 5)))
    shared = td.Tucker2(modes, factor(rng, 4, 2, 2), factor(rng, 7, 2), factor(rng, 5, 2))
    tucker = td.Tucker(modes, factor(rng, 4, 1, 2), (None, factor(rng, 7, 1), factor(rng, 5, 2)))
    train = td.TT((("layer",), ("out",), ("in",)), chain(rng, (4,), (7,), (5,)))
    turned = td.TT((("out",), ("layer",), ("in",)), chain(rng, (7,), (4,), (5,)), modes)
    vera = network("layer out, out r, layer r, r in -> layer out in", rng)
    split = [
        network("layer o1 r, o2 r, in r -> layer (o1 o2) in", rng),
        td.TT(
            (("layer",), ("o1",), ("o2",), ("in",)),
            chain(rng, (4,), (2,), (3,), (5,)),
            ("layer", ("o1", "o2"), "in"),
        ),
    ]
    return [
        Sum((shared, svd)),
        Sum((parafac, tucker, train)),
        Sum((turned, train, vera)),
        Sum((network("layer proj out r, layer proj r in -> layer proj out in", rng),)),
        Sum((svd[0], parafac[2])),
        Sum(tuple(split)),
    ]


def single_cases() -> list[td.Format]:
    rng = np.random.default_rng(0)
    modes = ("layer", "proj", "out", "in")
    core = factor(rng, 2, 3, 2, 4)
    out, in_ = factor(rng, 7, 2), factor(rng, 5, 4)
    layer, proj = factor(rng, 4, 2), factor(rng, 3, 3)
    return [
        td.Tucker(modes, core, (layer, proj, out, in_)),
        td.Tucker(modes, core, (layer, None, out, in_)),
        td.Tucker(modes, core, (None, None, None, in_)),
        td.Tucker(modes, core, (None, None, out, None)),
        td.Tucker(modes, core, (layer, proj, None, None)),
        td.Tucker(("out", "in"), factor(rng, 2, 4), (out, in_)),
        td.Tucker2(modes, core, out, in_),
        td.Tucker2(("r", "s", "in"), factor(rng, 2, 3, 4), factor(rng, 6, 2), in_, ("r", "in")),
        td.LowRank(
            modes[1:],
            (3,),
            (2, 0, 1),
            factor(rng, 7, 3),
            np.abs(factor(rng, 3)),
            factor(rng, 3, 5),
        ),
        td.LowRank(("out", "in"), (), (2,), factor(rng, 3, 2), np.ones(2), factor(rng, 2, 5)),
        td.CP(modes, factor(rng, 3), tuple(factor(rng, n, 3) for n in (4, 3, 7, 5))),
        td.CP(modes[1:], factor(rng, 6), tuple(factor(rng, n, 6) for n in (1, 5, 4))),
        td.CP(("r", "in"), factor(rng, 1), (factor(rng, 4, 1), factor(rng, 3, 1))),
        td.TT((("layer",), ("out",), ("in",)), chain(rng, (4,), (7,), (5,))),
        td.TT((("out",), ("layer",), ("in",)), chain(rng, (7,), (4,), (5,)), modes[::3] + ("out",)),
        td.TT((("out",), ("layer", "proj"), ("in",)), chain(rng, (7,), (4, 1), (5,)), modes),
        td.TT(
            (("o1", "i1"), ("o2", "i2")), chain(rng, (2, 3), (3, 2)), (("o1", "o2"), ("i1", "i2"))
        ),
        td.TT(
            (("layer",), ("o1",), ("o2",), ("in",)),
            chain(rng, (3,), (2,), (4,), (5,)),
            ("layer", ("o1", "o2"), "in"),
        ),
        td.TT((("out", "in"),), chain(rng, (3, 4))),
        network("out r, layer proj r s, s in -> layer proj out in", rng),
        network("layer proj out r, layer proj r in -> layer proj out in", rng),
        network("layer out r, layer in r, layer r, r -> layer out in", rng),
        network("head r, hd r, layer r s, in s -> layer (head hd) in", rng),
        network("layer out in -> layer out in", rng),
    ]


SIZES = {"layer": 4, "proj": 1, "out": 7, "in": 5, "head": 2, "hd": 3, "r": 2, "s": 3}
SIZES |= {"o1": 2, "o2": 3}


def chain(rng, *sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """TT cores with bonds of 2 and 3 by turns."""
    bonds = (1, *(2 + k % 2 for k in range(len(sizes) - 1)), 1)
    return tuple(
        factor(rng, a, *n, b) for a, n, b in zip(bonds[:-1], sizes, bonds[1:], strict=True)
    )


def network(text: str, rng) -> td.Network:
    equation = Equation.parse(text)
    shapes = [[SIZES[str(n)] for n in term] for term in equation.terms]
    return td.Network(equation, tuple(factor(rng, *shape) for shape in shapes))


CASES = cases()


def ids(value) -> str:
    return f"{type(value).__name__}{value.shape}".replace(" ", "")


def is_split(fmt: td.Format) -> bool:
    return any(m.startswith("(") for m in fmt.modes)


def like(fmt: td.Format, *, seed: int) -> td.Format:
    """The same format and shape with other numbers, positive where singular values are."""
    rng = np.random.default_rng(seed)
    arrays = {k: np.asarray(rng.standard_normal(a.shape)) for k, a in fmt.arrays.items()}
    return fmt.with_arrays({k: abs(a) if k.endswith("s") else a for k, a in arrays.items()})


def dense(fmt: td.Format) -> np.ndarray:
    return to_numpy(fmt.to_dense())


def agree(fmt: td.Format, expected: np.ndarray) -> None:
    """The format is this dense tensor, to rounding."""
    assert fmt.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    bound = 100 * tol("float64", expected.size) * scale
    np.testing.assert_allclose(dense(fmt), expected, atol=bound)


def space() -> list[td.Format]:
    """One tensor of every format over the same modes, chains and splits of several kinds."""
    rng = np.random.default_rng(7)
    modes, (layer, out, in_) = ("layer", "out", "in"), (4, 6, 5)
    return [
        td.Tucker(
            modes, factor(rng, 2, 3, 4), (factor(rng, 4, 2), factor(rng, 6, 3), factor(rng, 5, 4))
        ),
        td.Tucker2(modes, factor(rng, 4, 2, 2), factor(rng, 6, 2), factor(rng, 5, 2)),
        td.LowRank(modes, (4,), (1, 0, 2, 1), factor(rng, 6, 4), np.ones(4), factor(rng, 4, 5)),
        td.CP(modes, factor(rng, 3), tuple(factor(rng, n, 3) for n in (layer, out, in_))),
        td.TT((("out",), ("layer",), ("in",)), chain(rng, (out,), (layer,), (in_,)), modes),
        td.TT(
            (("layer",), ("o1",), ("o2", "in")),
            chain(rng, (layer,), (2,), (3, in_)),
            ("layer", ("o1", "o2"), "in"),
        ),
        td.Network(
            Equation.parse("layer h r, d r, in r -> layer (h d) in"),
            (factor(rng, 4, 2, 2), factor(rng, 3, 2), factor(rng, 5, 2)),
        ),
        Sum(
            (
                td.Tucker2(modes, factor(rng, 4, 2, 1), factor(rng, 6, 2), factor(rng, 5, 1)),
                td.LowRank(
                    modes, (4,), (1, 0, 0, 1), factor(rng, 6, 2), np.ones(2), factor(rng, 2, 5)
                ),
            )
        ),
    ]
