"""How far the first step from a zero start moves the output, and the scale that keeps it there.

One weight gets ``ΔW = s · network(F₁, .., F_K)``. One factor Z starts as zeros, so only it moves at
first; the others have independent entries of mean 0. One token x comes in, ``δ = ∂loss/∂y`` is the
gradient at the output, so ``∂loss/∂ΔW = δ xᵀ``, and a step of rate η makes Z

- ``-η s g`` under SGD, and
- ``-η sign(g)`` under sign descent, which is also the first step of Adam,

where ``g = ∂⟨δ xᵀ, network⟩/∂Z``. Both move the output by ``ΔW x``. The *response*
``-⟨δ, ΔW x⟩ / η`` is the fall of the loss per unit of rate: ``s² ‖g‖²`` or ``s ‖g‖₁``. Here x, δ
and the factors have normal entries of variance 1; a factor of another variance v multiplies
``‖g‖²`` and ``‖ΔW x‖`` of SGD by v, ``‖g‖₁`` and ``‖ΔW x‖`` of a sign step by √v.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import sympy

from tdecomp.errors import ArgumentError
from tdecomp.modes import Equation, flatten
from theory.formulas import size_of, volume
from theory.moments import Copy, expected

__all__ = [
    "lora_sign_mean_square",
    "ranks_of",
    "sgd_mean_square",
    "sgd_response",
    "sgd_scale",
    "sign_mean_square",
    "sign_response",
    "sign_scale",
    "unrelated_mean_square",
]

HALF_NORMAL = 2 / sympy.pi
"""``(E|z|)²`` of a standard normal z."""


def ranks_of(equation: Equation | str) -> tuple[str, ...]:
    """Letters of an equation over ``out in`` that are summed.

    >>> ranks_of("out r, r s, s in -> out in")
    ('r', 's')
    """
    equation = _read(equation)
    output = flatten(equation.output)
    return tuple(n for n in equation.letters if n not in output)


def sgd_response(equation: Equation | str, zero: int) -> sympy.Expr:
    """``E‖g‖²``: whichever factor is zero, the product of all ranks and of both sides.

    Every entry of g is a sum over the letters that Z does not have, of products of different
    entries of the others: no two summands are alike, so the squares add up.

    >>> sgd_response("out r, r s, s in -> out in", 1)
    in*out*r*s
    """
    equation = _read(equation)
    first, second = ({n: f"{n}.{k}" for n in equation.letters} for k in "ab")
    second |= {n: first[n] for n in flatten(equation.terms[zero])}
    copies = _gradient(equation, zero, first) + _gradient(equation, zero, second)
    return expected(copies, _sizes(first, second))


def sgd_mean_square(equation: Equation | str, zero: int) -> sympy.Expr:
    """``E‖ΔW x‖² / (η² s⁴)`` after an SGD step, exact.

    >>> sympy.factor(sgd_mean_square("out r, r in -> out in", 0))
    in*out*r*(in + 2)*(r + 2)
    >>> sympy.factor(sgd_mean_square("out r, r in -> out in", 1))
    in*out*r*(in + 2)*(out + r + 1)

    So a zero up factor moves the output by ``r``, a zero down factor by ``√(r · out)`` as long as
    the rank is smaller than the side, of which only ``r`` is along the gradient.
    """
    equation = _read(equation)
    a, b, c, d = ({n: f"{n}.{k}" for n in equation.letters} for k in "abcd")
    for n in flatten(equation.terms[zero]):  # the step of Z stands where Z stood
        b[n], d[n] = a[n], c[n]
    output, _ = _sides(equation)
    joined = {c[n]: a[n] for n in output}  # the square of each output
    copies = [
        (name, tuple(joined.get(n, n) for n in letters))
        for here, there in ((a, b), (c, d))
        for name, letters in (*_output(equation, zero, here), *_gradient(equation, zero, there))
    ]
    return expected(
        copies, _sizes(*({n: joined.get(v, v) for n, v in m.items()} for m in (a, b, c, d)))
    )


def sgd_scale(equation: Equation | str, zero: int = 0) -> sympy.Expr:
    """Scale, as a product of powers of the ranks, that keeps an SGD step independent of them.

    ``s² E‖g‖²`` is constant in the ranks: ``s ∝ (r₁ r₂ ..)^(-1/2)``, at fixed variance of the
    entries and whichever factor is zero. For LoRA that is the rank-stable scale.

    Source: Kalajdzievski [kalajdzievski2023] for LoRA; the others are derived here.

    >>> sgd_scale("out r, r in -> out in")
    1/sqrt(r)
    >>> sgd_scale("out r, r s, s in -> out in")
    1/(sqrt(r)*sqrt(s))
    """
    sides = volume(flatten(_read(equation).output))
    return sympy.sqrt(sympy.cancel(sides / sgd_response(equation, zero)))


def sign_response(equation: Equation | str, zero: int) -> sympy.Expr:
    """``E‖g‖₁`` for many summed letters: those of Z count once, all others by their root.

    Z has ``Π n`` entries over its own letters, each of variance ``Π n`` over all others. Without Z
    the network, x and δ fall into parts; g is the product of what they give, each close to normal
    where much is summed inside it, with ``E|z| = √(2/π)`` of its root mean square. Exact where
    every part is one factor; the root mean square itself (no ``2/π``) is always an upper bound.

    >>> sign_response("out r, r s, s in -> out in", 1)
    2*sqrt(in)*sqrt(out)*r*s/pi
    >>> sign_response("out r, r s, s in -> out in", 0)
    2*sqrt(in)*out*r*sqrt(s)/pi
    """
    equation = _read(equation)
    own = flatten(equation.terms[zero])
    size = math.prod(size_of(n) if n in own else sympy.sqrt(size_of(n)) for n in equation.letters)
    return size * sympy.sqrt(HALF_NORMAL) ** _parts(equation, zero)


def sign_scale(equation: Equation | str, zero: int) -> sympy.Expr:
    """Scale, as a product of powers of the ranks, that keeps a sign step independent of them.

    ``s E‖g‖₁`` is constant in the ranks: a rank of the zero factor counts with ``r⁻¹``, any other
    with ``r^(-1/2)``. This is for inputs like the one that was trained on: `lora_sign_mean_square`
    says what many tokens change.

    >>> sign_scale("out r, r in -> out in", 0)
    1/r
    >>> sign_scale("out r, r s, s in -> out in", 0)
    1/(r*sqrt(s))
    """
    equation = _read(equation)
    own = flatten(equation.terms[zero])
    powers = (size_of(n) if n in own else sympy.sqrt(size_of(n)) for n in ranks_of(equation))
    return 1 / sympy.Mul(*powers)


def sign_mean_square(equation: Equation | str, zero: int) -> sympy.Expr:
    """``E‖ΔW x‖² / (η² s²)`` after a sign step, exact, where Z holds every rank.

    The output is a sum over the entries of Z. Two of them agree in some letters; a factor all of
    whose ranks agree contributes its mean square, any other ``2/π`` of it. The factor of ``out`` is
    ``L sign(Lᵀδ)``: a column contributes ``out``, two different ones have only their parts along δ
    in common, ``2/π``.

    Raises
    ------
    ArgumentError
        Where a rank joins two other factors, or a side is divided among factors.

    Examples
    --------
    >>> sign_mean_square("out r, r in -> out in", 0)
    out*(2*in*r*(r - 1)/pi + in*r)
    """
    equation = _read(equation)
    own = flatten(equation.terms[zero])
    output, _ = _sides(equation)
    met = _met(equation, zero)
    letters = [n for n in own if n not in output]
    total = sympy.Integer(0)
    for count in range(len(letters) + 1):
        for agree in combinations(letters, count):
            pairs = math.prod(size_of(n) * (1 if n in agree else size_of(n) - 1) for n in letters)
            total += pairs * math.prod(
                same if ranks <= {*agree} else different for ranks, same, different in met
            )
    return volume(n for n in output if n in own) * total


def unrelated_mean_square(equation: Equation | str) -> sympy.Expr:
    """``E‖ΔW x‖² / (η² s²)`` where the signs of the step have nothing to do with x.

    So it is for a batch of more tokens than there are ranks: each agrees with few signs. ΔW is then
    a network of independent entries whichever factor was zero, and this the product of all sizes,
    up to a share of one over the ranks that lie between Z and ``in``. With
    ``s ∝ (r₁ r₂ ..)^(-1/2)`` it does not depend on the ranks, as under SGD. After a step from one
    token any other input is unrelated, too, but what stands for the weight (a row over layers)
    still agrees with the signs of its own step.

    >>> unrelated_mean_square("out r, r s, s in -> out in")
    in*out*r*s
    """
    return volume(_read(equation).letters)


def lora_sign_mean_square(tokens: sympy.Expr | int) -> sympy.Expr:
    """``E‖ΔW x‖² / (η² s²)`` of LoRA after a sign step on a batch, up factor zero, x one of it.

    ``out · in · r (1 + (r - 1) (2/π) / tokens)`` for orthogonal tokens of length ``√in``, since
    they share the signs. Up to about as many ranks as tokens the output moves by ``√r``, and the
    rank-stable scale ``1/√r`` is the right one for Adam, too; beyond that it moves by ``r``.

    >>> r = size_of("r")
    >>> sympy.limit(lora_sign_mean_square(sympy.oo) / r, r, sympy.oo)
    in*out
    """
    m, n, r = map(size_of, ("out", "in", "r"))
    return m * n * r * (1 + (r - 1) * HALF_NORMAL / tokens)


def _read(equation: Equation | str) -> Equation:
    return Equation.parse(equation) if isinstance(equation, str) else equation


def _sides(equation: Equation) -> tuple[tuple[str, ...], tuple[str, ...]]:
    out, inp = equation.output
    return flatten((out,)), flatten((inp,))


def _gradient(equation: Equation, zero: int, name: Mapping[str, str]) -> list[Copy]:
    """The tensors of g: the factors but Z, x and δ."""
    output, _ = _sides(equation)
    return [*_output(equation, zero, name), ("δ", tuple(name[n] for n in output))]


def _output(equation: Equation, zero: int, name: Mapping[str, str]) -> list[Copy]:
    """The tensors of ``ΔW x`` besides the step of Z: the factors but Z, and x."""
    _, inp = _sides(equation)
    others = [(k, flatten(t)) for k, t in enumerate(equation.terms) if k != zero]
    factors = [(f"F{k}", tuple(name[n] for n in letters)) for k, letters in others]
    return [*factors, ("x", tuple(name[n] for n in inp))]


def _sizes(*names: Mapping[str, str]) -> dict[str, str]:
    return {letter: n for name in names for n, letter in name.items()}


def _parts(equation: Equation, zero: int) -> int:
    """Parts into which the factors, x and δ fall without Z and its letters."""
    own = {*flatten(equation.terms[zero])}
    groups: list[set[str]] = []
    parts = 0
    for _, letters in _gradient(equation, zero, {n: n for n in equation.letters}):
        rest = {*letters} - own
        joined = [g for g in groups if g & rest]
        groups = [g for g in groups if not g & rest]
        parts += 1 - len(joined)
        groups.append(rest.union(*joined))
    return parts


Meeting = tuple[set[str], sympy.Expr, sympy.Expr]
"""Letters of Z that a factor has, and what it contributes where they agree and where not."""


def _met(equation: Equation, zero: int) -> list[Meeting]:
    own = {*flatten(equation.terms[zero])}
    output, inp = _sides(equation)
    met: list[Meeting] = []
    if own & {*inp}:
        met.append(({*inp}, sympy.Integer(1), HALF_NORMAL))
    for k, term in enumerate(equation.terms):
        letters = {*flatten(term)}
        side = letters - own
        if k == zero:
            continue
        if side and side not in ({*output}, {*inp}):
            raise ArgumentError(
                f"'{' '.join(flatten(term))}' of '{equation}' has letters that neither the zero"
                " factor has nor make up a whole side: only the response is known there"
            )
        size = volume(side)
        met.append((letters & own, size, HALF_NORMAL * (1 if side == {*output} else size)))
    return met
