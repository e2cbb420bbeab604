"""Gradients of a pair ``ΔW = s B A`` made into changes of ΔW: LoRA-Pro's and the Riemannian map.

G is ``∂loss/∂ΔW``, ``(out, in)``; the raw gradients of the pair are ``g_A = s Bᵀ G`` and
``g_B = s G Aᵀ``. P and Q are the orthogonal projections on the columns of B and on the rows of A.
Matrices are sympy's, so that whole numbers stay exact.
"""

from __future__ import annotations

from typing import NamedTuple

from sympy import Expr, Matrix, eye, linsolve, symbols

__all__ = [
    "PairStep",
    "change",
    "lora_pro",
    "preconditioned",
    "projections",
    "sylvester",
    "tangent",
]


class PairStep(NamedTuple):
    """Directions for both factors: ``(out, r)`` and ``(r, in)``."""

    b: Matrix
    a: Matrix


def projections(b: Matrix, a: Matrix) -> tuple[Matrix, Matrix]:
    """P = B (BᵀB)⁻¹ Bᵀ and Q = Aᵀ (A Aᵀ)⁻¹ A."""
    return b * (b.T * b).inv() * b.T, a.T * (a * a.T).inv() * a


def change(b: Matrix, a: Matrix, step: PairStep, scale: Expr) -> Matrix:
    """First-order change of ΔW: ``s (dB A + B dA)``."""
    return scale * (step.b * a + b * step.a)


def tangent(b: Matrix, a: Matrix, g: Matrix) -> Matrix:
    """Riemannian gradient: G projected on the tangent space of the matrices of rank r at ``B A``.

    ``P G + G Q - P G Q``, the closest to G of all changes that a pair can make. What is left over
    is ``(1 - P) G (1 - Q)``.

    Source: Vandereycken [vandereycken2013].
    """
    p, q = projections(b, a)
    return p * g + g * q - p * g * q


def lora_pro(
    b: Matrix, a: Matrix, g_b: Matrix, g_a: Matrix, scale: Expr, x: Matrix | None = None
) -> PairStep:
    """Directions whose change of ΔW is closest to G, from the raw gradients of the pair.

    ``dA = s⁻² (BᵀB)⁻¹ g_A + X A`` and ``dB = s⁻² (1 - P) g_B (A Aᵀ)⁻¹ - B X``. The change is
    `tangent` of G whatever X is, since ``s (B X A - B X A) = 0``: X only chooses the gauge.

    Source: Wang, Liang, He, Wang and Tan [wang2025]; `sylvester` gives their X.
    """
    p, _ = projections(b, a)
    x = Matrix.zeros(a.rows, a.rows) if x is None else x
    inner = (b.T * b).inv()
    return PairStep(
        b=(eye(b.rows) - p) * g_b * (a * a.T).inv() / scale**2 - b * x,
        a=inner * g_a / scale**2 + x * a,
    )


def sylvester(b: Matrix, a: Matrix, g_a: Matrix, scale: Expr) -> Matrix:
    """The X that keeps `lora_pro` closest to the raw directions of equal size.

    Solves ``BᵀB X + X A Aᵀ = -s⁻² (BᵀB)⁻¹ g_A Aᵀ``.

    Source: Wang, Liang, He, Wang and Tan [wang2025].
    """
    r = a.rows
    x = Matrix(r, r, symbols(f"x0:{r * r}"))
    right = -(b.T * b).inv() * g_a * a.T / scale**2
    (values,) = linsolve(list(b.T * b * x + x * a * a.T - right), *x)
    return Matrix(r, r, values)


def preconditioned(
    b: Matrix, a: Matrix, g_b: Matrix, g_a: Matrix, ridge: Expr | int = 0
) -> PairStep:
    """Riemannian preconditioning: ``g_B (A Aᵀ + λ)⁻¹`` and ``(BᵀB + λ)⁻¹ g_A``.

    At λ = 0 the change of ΔW is ``s² (P G + G Q)``, the same for every pair with one product: it
    counts ``P G Q`` twice, so it is not the projection, and is invariant where the raw gradients
    are not.

    Source: Zhang and Pilanci [zhang2024].
    """
    return PairStep(
        b=g_b * (a * a.T + ridge * eye(a.rows)).inv(),
        a=(b.T * b + ridge * eye(b.cols)).inv() * g_a,
    )
