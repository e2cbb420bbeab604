"""Gradients by equation: symbolically those of sympy, in numbers those of torch."""

from __future__ import annotations

import numpy as np
import pytest
import sympy

from tdecomp._plan import contract
from tdecomp.adapters import CATALOGUE
from tdecomp.errors import ArgumentError
from tdecomp.modes import Equation
from tests.adapters.cases import bound, filled, fits
from tests.tables import each
from theory.gradients import factor_gradient, gradients, spec_gradient

NETWORKS = (
    "out r, r in -> out in",
    "out r, r s, s in -> out in",
    "out r, in r, layer r -> layer out in",
    "a i r, r j -> a (i j)",
    "out r q, r in -> out in",  # q is summed in one factor alone
    "out r, out s, in r, in s -> out in",
)


@pytest.mark.parametrize("text", NETWORKS)
def test_derivatives_of_sympy(text):
    """⟨G, X⟩ of arrays of symbols, differentiated entry by entry."""
    equation = Equation.parse(text)
    sizes = {n: 2 for n in equation.letters}

    def symbols(name, shape):
        return np.array(sympy.symbols(f"{name}0:{np.prod(shape)}")).reshape(shape)

    arrays = [symbols(f"f{k}_", [sizes[n] for n in t]) for k, t in enumerate(equation.terms)]
    cotangent = symbols("g", equation.shape(sizes))
    dense = np.einsum(equation.symbols, *arrays).reshape(cotangent.shape)
    loss = sympy.expand((cotangent * dense).sum())
    for k, array in enumerate(arrays):
        rule = factor_gradient(equation, k)
        others = [a for i, a in enumerate(arrays) if i != k]
        axes = [sizes[n] for n in rule.terms[-1]]
        found = np.einsum(rule.symbols, *others, cotangent.reshape(axes))
        along = [sizes[n] if n in rule.output else 1 for n in equation.terms[k]]
        found = np.broadcast_to(found.reshape(along), array.shape)
        for entry, said in zip(array.flat, found.flat, strict=True):
            assert sympy.expand(sympy.diff(loss, entry) - said) == 0


@pytest.mark.parametrize("text", NETWORKS)
def test_gradients_of_torch(text):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    equation = Equation.parse(text)
    sizes = {n: k + 2 for k, n in enumerate(equation.letters)}
    arrays = [rng.standard_normal([sizes[n] for n in term]) for term in equation.terms]
    cotangent = rng.standard_normal(equation.shape(sizes))
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    (contract(equation, leaves) * torch.tensor(cotangent)).sum().backward()
    for leaf, said in zip(leaves, gradients(equation, arrays, cotangent), strict=True):
        np.testing.assert_allclose(leaf.grad.numpy(), said, rtol=1e-12, atol=1e-12)


def test_no_equation_for_what_is_divided_by_its_norm():
    with pytest.raises(ArgumentError, match="'b' of 'delora' has norm 1"):
        spec_gradient(bound("delora", "tall"), "a")


CONTRACTIONS = [name for name, spec in CATALOGUE.items() if not any(f.unit for f in spec.factors)]


@each("name", CONTRACTIONS)
def test_gradients_of_every_row(name):
    torch = pytest.importorskip("torch")
    grid = "tall" if fits(name, "tall") else "heads along in"
    b, site = bound(name, grid), 1
    arrays = filled(b)
    cotangent = np.random.default_rng(1).standard_normal(b.grid.shape)
    leaves = {n: torch.tensor(a, requires_grad=True) for n, a in arrays.items()}
    (b.delta(leaves, site, step=7) * torch.tensor(cotangent)).sum().backward()
    padded = np.zeros([int(np.prod([b.sizes[n] for n in side])) for side in b.sides])
    rows, columns = b.matrix_shape
    padded[:rows, :columns] = cotangent.T if b.turned else cotangent
    for factor in b.spec.factors:
        said = np.zeros(arrays[factor.name].shape)
        places = [(t, k) for t in b.spec.terms for k in range(len(t.operands))]
        places = [(t, k) for t, k in places if t.operands[k].factor == factor.name]
        parts = spec_gradient(b, factor.name, step=7)
        assert len(parts) == len(places)
        for part, (term, k) in zip(parts, places, strict=True):
            others = [o for i, o in enumerate(term.operands) if i != k]
            given = [arrays[o.factor][b.where(o, site)] for o in others]
            opened = padded.reshape([b.sizes[n] for n in part.equation.terms[-1]])
            gradient = part.coefficient * contract(part.equation, [*given, opened])
            said[b.where(term.operands[k], site)] += gradient
        found = leaves[factor.name].grad.numpy()
        np.testing.assert_allclose(found, said, rtol=1e-9, atol=1e-9 * np.abs(said).max())


def test_a_factor_that_is_not_there():
    with pytest.raises(ArgumentError, match="no factor 2"):
        factor_gradient("out r, r in -> out in", 2)
