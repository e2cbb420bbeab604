"""Singular values and vectors of matrices and unfoldings: exact, and by sketches.

Exact: float32 data go through Gram matrices accumulated in float64; float64 data through LAPACK's
SVD, because a Gram matrix would lose everything below 1e-8 of the largest singular value.

Every `Svd` takes ``(matrix, rank)`` and returns ``u, s, vh``, so that any of them can be passed as
``svd=``; options are bound with `functools.partial`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, SupportsIndex

import numpy as np

from tdecomp._threads import threads_by_size
from tdecomp._xp import (
    Array,
    adjoint,
    double,
    floor,
    namespace,
    quick_sum_of_squares,
    to_numpy,
    tol,
)
from tdecomp.errors import ArgumentError
from tdecomp.tensor import gram, unfold

__all__ = [
    "SETTLED",
    "Svd",
    "Triplets",
    "completed",
    "excess",
    "is_cheap",
    "krylov_steps",
    "left_basis",
    "left_out",
    "negligible",
    "orthonormal",
    "power_steps",
    "random_matrix",
    "range_basis",
    "singular_values",
    "sketched_rows",
    "sparse_sketch",
    "still_to_win",
    "svd_auto",
    "svd_full",
    "svd_gram",
    "svd_qr",
    "svd_randomized",
    "svd_settled",
    "svd_to_error",
    "truncated_svd",
]

Triplets = tuple[Array, Array, Array]
Svd = Callable[[Array, int], Triplets]
"""``(matrix (out, in), rank) -> u (out, rank), s (rank,), vh (rank, in)``."""

_EXACT_FLOPS = 2e9  # svd_auto: about 0.1 s in float64 on two cores
SETTLED = 1e-3  # of the energy left out: what is not worth another power step
_FINE = 1e-7  # of the energy: smaller changes are not worth a step in any precision
_KRYLOV_STEPS = 8  # svd_settled: at most
_NEAR = 1 << 17  # numbers of a sparse sketch that are added to together, so that they stay near
_WIDER = 2  # times the width: the sketch that block Krylov steps begin with
_CHANCE = 4  # columns of a start that are random whatever was seen
_CONDITION = 1e-10  # of a float64 Gram matrix: what keeps 1e-6 of its inverse root


@threads_by_size
def left_basis(x: Array, mode: int) -> tuple[Array, Array]:
    """Left singular vectors and singular values of the mode-`mode` unfolding.

    Returns
    -------
    u : ``(n, k)``
        Orthonormal columns, strongest first, ``k = min(n, product of the other sizes)``.
    s : ``(k,)``
        Singular values, float64 for float32 input.

    Notes
    -----
    Every leading part of ``u`` minimises ``‖X − u uᴴ X‖`` over bases of its width: the HOSVD factor
    of this mode ([delathauwer2000svd]). An unfolding taller than wide is reduced by QR first, so
    that no Gram matrix is larger than its shorter side.
    """
    xp = namespace(x)
    order = len(x.shape)
    if not order or not isinstance(mode, (int, SupportsIndex)) or not -order <= mode < order:
        raise ArgumentError(f"no mode {mode!r} in an array of shape {tuple(x.shape)}: count from 0")
    n = x.shape[mode]
    width = min(n, max(1, math.prod(x.shape) // n))
    if _is_double(x):
        u, s, _ = _svd(_reduce(unfold(x, mode)))
        return u[:, :width], s[:width]
    if width < n:
        rows = unfold(x, mode)
        q = orthonormal(rows)  # (n, width)
        u, s = left_basis(adjoint(q) @ rows, 0)
        return q @ u, s
    values, u = _eigh(gram(x, mode))
    s = xp.sqrt(xp.clip(xp.flip(values), min=0.0))
    return xp.astype(xp.flip(u, axis=1), x.dtype), s


@threads_by_size
def singular_values(x: Array) -> Array:
    """Singular values of a matrix, largest first, in float64."""
    xp = namespace(x)
    _check_matrix(x)
    if _is_double(x):
        return xp.linalg.svdvals(x)
    values = _eigvalsh(gram(x, 0 if x.shape[0] <= x.shape[1] else 1))
    return xp.sqrt(xp.clip(xp.flip(values), min=0.0))


def truncated_svd(x: Array, rank: int) -> Triplets:
    """Best rank-`rank` approximation ``u · diag(s) · vh`` of a matrix: the exact `Svd`.

    Parameters
    ----------
    x
        ``(out, in)``.
    rank
        Between 0 and ``min(out, in)``.

    Returns
    -------
    u, s, vh : ``(out, rank)``, ``(rank,)``, ``(rank, in)``
        In the dtype of `x`; signs are LAPACK's.

    Notes
    -----
    Optimal by [eckart1936]. `svd_gram` for float32 below a quarter of full rank, else `svd_full`.

    >>> import numpy as np
    >>> u, s, vh = truncated_svd(np.diag([3.0, 2.0, 1.0]), 2)
    >>> s.tolist()
    [3.0, 2.0]
    """
    _check_rank(x, rank)
    if _is_double(x) or 4 * rank > min(x.shape):
        return svd_full(x, rank)
    return svd_gram(x, rank)


def svd_full(x: Array, rank: int) -> Triplets:
    """Truncated SVD from LAPACK's SVD of the whole matrix.

    Parameters and result as in `truncated_svd`. About ``6 · long · short²`` flops and a second copy
    of `x`; backward stable: singular values to ``eps · s[0]`` in the dtype of `x`.

    >>> import numpy as np
    >>> svd_full(np.diag([3.0, 2.0, 1.0]), 2)[1].tolist()
    [3.0, 2.0]
    """
    _check_rank(x, rank)
    if rank == 0:
        return _nothing(x)
    u, s, vh = _svd(x)
    return u[:, :rank], s[:rank], vh[:rank, :]


def svd_gram(x: Array, rank: int) -> Triplets:
    """Truncated SVD from the Gram matrix of the shorter side, accumulated in float64.

    Parameters and result as in `truncated_svd`. The basis comes from the eigenvectors, the singular
    values and the other side from a ``(rank, long)`` matrix. About ``2 · long · short²`` flops as
    matrix products, the fastest exact way for float32.

    Notes
    -----
    Sees singular values down to 1e-7 of the largest for float32 data, but only to 1e-8 for float64
    data, where `svd_qr` and `svd_full` reach 1e-16.

    >>> import numpy as np
    >>> svd_gram(np.diag([3.0, 2.0, 1.0]), 2)[1].round(12).tolist()
    [3.0, 2.0]
    """
    xp = namespace(x)
    _check_rank(x, rank)
    if rank == 0:
        return _nothing(x)
    if x.shape[0] > x.shape[1]:
        return _flipped(svd_gram(x.T, rank))
    _, u = _eigh(gram(x, 0))
    basis = xp.astype(xp.flip(u, axis=1)[:, :rank], x.dtype)  # (out, rank)
    return _from_basis(basis, adjoint(basis) @ x, rank)


def svd_qr(x: Array, rank: int) -> Triplets:
    """Truncated SVD by QR of the longer side and LAPACK's SVD of the triangle.

    Parameters and result as in `truncated_svd`. About ``4 · long · short²`` flops, stable as
    `svd_full`, and cheaper where one side is much the longer.

    >>> import numpy as np
    >>> svd_qr(np.diag([3.0, 2.0, 1.0]), 2)[1].round(12).tolist()
    [3.0, 2.0]
    """
    xp = namespace(x)
    _check_rank(x, rank)
    if rank == 0:
        return _nothing(x)
    if x.shape[0] < x.shape[1]:
        return _flipped(svd_qr(x.T, rank))
    q, r = xp.linalg.qr(x, mode="reduced")  # (out, in), (in, in)
    u, s, vh = svd_full(r, rank)
    return q @ u, s, vh


def svd_randomized(
    x: Array,
    rank: int,
    *,
    n_oversamples: int = 10,
    n_power_iter: int = 1,
    random_state: int | np.random.Generator | None = None,
) -> Triplets:
    """Truncated SVD of a random sketch with power steps.

    ``Q = orth(X Ω)``, then ``n_power_iter`` times ``Q = orth(X orth(Xᴴ Q))``, then the SVD of
    ``Qᴴ X``.

    Parameters
    ----------
    x
        ``(out, in)``.
    rank
        Between 0 and ``min(out, in)``.
    n_oversamples
        Columns of Ω beyond `rank`.
    n_power_iter
        Power steps; each costs two products with `x` and multiplies the decay of the spectrum.
    random_state
        Seed or generator of Ω; None means the seed 0. Ω is drawn in numpy for every library.

    Returns
    -------
    u, s, vh : ``(out, rank)``, ``(rank,)``, ``(rank, in)``
        In the dtype of `x`.

    Notes
    -----
    [halko2011], algorithms 4.4 and 5.1; both sides are orthonormalised in every step, or float32
    would lose what lies below ``eps^(1 / (2q + 1))``. Theorem 10.5 bounds the expected error of
    ``q = 0`` by ``√(1 + rank / (n_oversamples - 1))`` times the best.

    >>> import numpy as np
    >>> svd_randomized(np.diag([3.0, 2.0, 1.0]), 2)[1].round(12).tolist()
    [3.0, 2.0]
    """
    _check_rank(x, rank)
    if n_oversamples < 0 or n_power_iter < 0:
        raise ArgumentError(
            f"n_oversamples={n_oversamples} and n_power_iter={n_power_iter} must be 0 or more"
        )
    if rank == 0:
        return _nothing(x)
    width = min(rank + n_oversamples, *x.shape)
    steps = power_steps(x, width, np.random.default_rng(random_state or 0))
    q, b = next(steps)
    for _ in range(n_power_iter):
        q, b = next(steps)
    return _from_basis(q, b, rank)


def svd_settled(
    x: Array,
    rank: int,
    *,
    n_oversamples: int = 10,
    random_state: int | np.random.Generator | None = None,
    energy: float | None = None,
) -> Triplets:
    """Truncated SVD in a block Krylov space, grown until the captured energy settles.

    All that `krylov_steps` has seen is kept, so a step does what several power steps do; eight at
    most are made, until more are expected to save less than 2e-3 of the energy left out: by
    `excess`, or as the last step fell behind the one before it (`still_to_win`). The error is then
    about 1e-3 of itself above the least. Parameters and result as in `svd_randomized`; `energy` is
    ``‖x‖²`` where that is known.

    >>> import numpy as np
    >>> svd_settled(np.diag([3.0, 2.0, 1.0]), 2)[1].round(12).tolist()
    [3.0, 2.0]
    """
    _check_rank(x, rank)
    if rank == 0:
        return _nothing(x)
    width = min(rank + n_oversamples, *x.shape)
    energy = quick_sum_of_squares(x) if energy is None else energy
    steps = krylov_steps(x, width, np.random.default_rng(random_state or 0))
    found, wide = (x, x), _starts_wide(x, width)
    captured = won = 0.0
    for step, found in enumerate(islice(steps, 1 + _KRYLOV_STEPS)):
        values = to_numpy(singular_values(found[1])).astype(np.float64)
        captured, before = float(np.sum(values[:rank] ** 2)), captured
        won, gain = captured - before, won
        lost = max(0.0, energy - captured)
        if won <= negligible(x.dtype) * captured:
            break
        if step > 1 - wide and still_to_win(won, won / gain) <= 2 * SETTLED * lost:
            break
        outside = left_out(energy, values[:width], min(x.shape), x.dtype)
        if step and excess(values[:width], rank, outside, 2 * step + 1, x.dtype) <= SETTLED:
            break
    return _from_basis(*found, rank)


def still_to_win(won: float, ratio: float) -> float:
    """What more steps save, each `ratio` of the one before, which is taken to be 0.05 to 0.75.

    >>> still_to_win(1.0, 0.5), still_to_win(1.0, 1.0)
    (1.0, 3.0)
    """
    ratio = min(max(ratio, 0.05), 0.75)
    return won * ratio / (1 - ratio)


def negligible(dtype: Any) -> float:
    """Share of the energy below which a change is rounding, or not worth another step."""
    return max(_FINE, floor(dtype))


def left_out(energy: float, s: np.ndarray, size: int, dtype: Any) -> float:
    """Energy outside a sketch, also where it is less than the rounding of the energies.

    ``energy - Σ s²`` where that is more than rounding; else what the directions that the sketch
    does not see hold at most if each is as strong as the weakest one seen.

    Parameters
    ----------
    energy
        ``‖X‖²``.
    s : ``(width,)``
        Singular values that the sketch sees.
    size
        Smaller side of the matrix.
    dtype
        Of the matrix.

    >>> left_out(13.0, np.array([3.0, 1.0]), 5, "float64")
    3.0
    >>> left_out(9.0 + 1e-15, np.array([3.0, 1e-12]), 5, "float64") < 1e-23
    True
    """
    outside, noise = energy - float(np.sum(s**2)), tol(dtype, 1) * energy
    return outside if outside > noise else min(noise, (size - len(s)) * float(s[-1]) ** 2)


def excess(
    s: np.ndarray, rank: int, outside: float, power: int, dtype: Any, columns: int | None = None
) -> float:
    """Energy that a sketched subspace is expected to miss, per energy that the best one leaves out.

    ``Σ_j Σ_i (σ_j² - σ_i²) (σ_i / σ_j)^(2 power) / (columns - rank - 1)`` over the directions ``j``
    kept and those weaker ``i`` that may be taken in their place, with those outside the sketch as
    strong as its weakest one: theorem 10.5 of [halko2011] for the singular values to that power,
    direction by direction. Directions kept that are only rounding, of data of a lower rank, have
    nothing to miss.

    Parameters
    ----------
    s : ``(width,)``
        Singular values that the sketch sees.
    rank
        How many of them are kept.
    outside
        Energy outside the sketch, as `left_out` tells it.
    power
        1 for a plain sketch, 2 more for each power step.
    dtype
        Of the data: what its rounding is.
    columns
        Of the sketch, where it was wider than what was kept of it.
    """
    kept, rest, weakest = s[:rank], s[rank:], float(s[-1])
    kept = kept[kept > tol(dtype, 1) * s[0]]
    lost = float(np.sum(rest**2)) + outside
    if lost == 0 or len(kept) == 0:
        return 0.0
    weaker = np.append(rest, weakest)
    counts = np.append(np.ones(len(rest)), outside / weakest**2 if weakest > 0 else 0.0)
    apart = np.maximum(kept[:, None] ** 2 - weaker[None, :] ** 2, 0.0)
    missed = apart * (weaker[None, :] / kept[:, None]) ** (2 * power) @ counts
    return float(np.sum(missed)) / (max(1, (columns or len(s)) - rank - 1) * lost)


def svd_auto(
    x: Array,
    rank: int,
    *,
    n_oversamples: int = 10,
    random_state: int | np.random.Generator | None = None,
) -> Triplets:
    """Truncated SVD, exact where that is cheap (`is_cheap`), else `svd_settled`.

    Parameters and result as in `svd_randomized`.

    >>> import numpy as np
    >>> svd_auto(np.diag([3.0, 2.0, 1.0]), 2)[1].tolist()
    [3.0, 2.0]
    """
    _check_rank(x, rank)
    if is_cheap(tuple(x.shape), rank + n_oversamples):
        return truncated_svd(x, rank)
    return svd_settled(x, rank, n_oversamples=n_oversamples, random_state=random_state)


def is_cheap(shape: tuple[int, ...], width: int, *, many: bool = False) -> bool:
    """Whether a matrix gets an exact SVD where a sketch of this width would do.

    Up to 2·10⁹ flops, counted as ``long · short² + 10 · short³``, half of that for one of many
    matrices, or where the sketch would be wider than a quarter of the shorter side.
    """
    short, long = min(shape), max(shape)
    flops = long * short**2 + 10 * short**3
    return 4 * width > short or flops <= _EXACT_FLOPS / (1 + many)


@threads_by_size
def orthonormal(y: Array) -> Array:
    """Orthonormal basis of the columns of a tall matrix, ``(n, k)``, at the speed of products.

    ``Y (Yᴴ Y)^(-1/2)`` in float64, and where that is not yet orthonormal to the precision of `y`
    once more, in the manner of Cholesky QR ([yamamoto2015]); Householder QR where the columns
    depend on each other too much (a condition number above 1e5) or are hardly fewer than the rows.

    >>> import numpy as np
    >>> q = orthonormal(np.arange(24.0).reshape(12, 2))
    >>> bool(abs(q.T @ q - np.eye(2)).max() < 1e-14)
    True
    """
    xp = namespace(y)
    _check_matrix(y)
    if y.shape[0] < 4 * y.shape[1]:
        return xp.linalg.qr(y, mode="reduced")[0]
    wide = double(y)  # in float32 the products would let strong directions leak out of the span
    while True:
        products = adjoint(wide) @ wide  # (k, k)
        norms = xp.sqrt(_real(xp.linalg.diagonal(products)))
        if not 0 < float(xp.min(norms)) <= float(xp.max(norms)) < math.inf:
            return xp.linalg.qr(y, mode="reduced")[0]
        values, vectors = xp.linalg.eigh(products / norms[:, None] / norms[None, :])
        least = float(values[0]) / float(values[-1])
        if not least > _CONDITION:
            return xp.linalg.qr(y, mode="reduced")[0]
        wide = wide @ (vectors / xp.sqrt(values)[None, :] @ adjoint(vectors) / norms[:, None])
        if least > (0.5 if _is_double(y) else 1e-8):
            return xp.astype(wide, y.dtype)


def completed(basis: Array, width: int) -> Array:
    """Orthonormal columns ``(n, width)`` that begin with those given; as given if they are enough.

    >>> import numpy as np
    >>> q = completed(np.eye(4)[:, :2], 3)
    >>> bool(np.allclose(q.T @ q, np.eye(3)) and np.array_equal(q[:, :2], np.eye(4)[:, :2]))
    True
    """
    n, k = basis.shape
    if k >= width:
        return basis
    xp = namespace(basis)
    drawn = np.random.default_rng(0).standard_normal((n, width - k))
    more = xp.asarray(drawn, dtype=basis.dtype, device=basis.device)
    for _ in range(2):  # once more for what rounding brought back
        more = more - basis @ (adjoint(basis) @ more)
        more = xp.linalg.qr(more, mode="reduced")[0]
    return xp.concat([basis, more], axis=1)


def random_matrix(rng: np.random.Generator, shape: tuple[int, int], like: Array) -> Array:
    """Random matrix to sketch with, in the library, dtype and device of `like`.

    Independent ±1, which cost a bit each to draw and do what Gaussian numbers do; those for small
    matrices, where signs could well be singular.
    """
    if max(shape) < 64:
        drawn = rng.standard_normal(shape)
    else:
        numbers = math.prod(shape)
        drawn = np.frombuffer(rng.bytes(-(-numbers // 8)), dtype=np.uint8)
        drawn = 2 * np.unpackbits(drawn, count=numbers).astype(np.int8).reshape(shape) - 1
        drawn = drawn.astype(np.float32)
    return namespace(like).asarray(drawn, dtype=like.dtype, device=like.device)


def sparse_sketch(x: Array, width: int, rng: np.random.Generator) -> Array:
    """``Ω X`` with a random Ω that adds each row of X, or less the row, to one of the sketch's.

    A wide sketch for less work than a narrow one of dense signs, which would need a product
    ([martinsson2020], section 9.2, with one sign for a row). Rows meet that are a multiple of
    `width` apart: where it is odd, those at the same place in each head or block do not.

    Parameters
    ----------
    x
        ``(out, in)``.
    width
        Rows of the sketch.
    rng
        Of the signs.

    Returns
    -------
    Array
        ``(min(width, out), in)``.

    >>> import numpy as np
    >>> sparse_sketch(np.eye(200), 101, np.random.default_rng(0)).shape
    (101, 200)
    """
    xp, (n, across) = namespace(x), x.shape
    width, signs = min(width, n), random_matrix(rng, (n, 1), x)
    total = x[:width, :] * signs[:width, :]
    if type(x) is not np.ndarray:
        for start in range(width, n, width):
            k = min(width, n - start)
            rows = x[start : start + k, :] * signs[start : start + k, :]
            total = xp.concat([total[:k, :] + rows, total[k:, :]], axis=0)
        return total
    step = max(1, _NEAR // across)
    room = np.empty((min(step, width), across), total.dtype)
    for first in range(0, width, step):
        near = total[first : first + step]
        for start in range(first + width, n, width):
            rows = slice(start, min(start + near.shape[0], n))
            part = np.multiply(x[rows], signs[rows], out=room[: rows.stop - start])
            near[: part.shape[0]] += part
    return total


def sketched_rows(sketch: Array, width: int, rng: np.random.Generator) -> Array:
    """Orthonormal basis ``(in, width)`` to begin with: the leading rows of a wide sketch.

    Four of its columns are random, so that no direction of the data is out of reach of the steps
    that follow, whatever the sketch has missed.
    """
    xp, chance = namespace(sketch), min(_CHANCE, width - 1)
    u = left_basis(sketch, 0)[0][:, : width - chance]
    rows = orthonormal(adjoint(sketch) @ u)  # (in, width less some)
    if rows.shape[1] == width:
        return rows
    other = random_matrix(rng, (rows.shape[0], width - rows.shape[1]), rows)
    return orthonormal(xp.concat([rows, other - rows @ (adjoint(rows) @ other)], axis=1))


def range_basis(
    x: Array,
    *,
    error: float,
    block: int = 16,
    n_power_iter: int = 1,
    random_state: int | np.random.Generator | None = None,
) -> Array:
    """Orthonormal basis ``Q`` with ``‖X − Q Qᴴ X‖ ≤ error · ‖X‖``, grown until it holds.

    Blocks of sketched vectors are taken from what the basis so far leaves of `x`; the residual is
    that remainder itself, not a difference of norms.

    Parameters
    ----------
    x
        ``(out, in)``.
    error
        Relative Frobenius error, between 0 and 1.
    block
        Columns added at a time: the result has at most a block more than the sketch needs.
    n_power_iter
        Power steps of every block.
    random_state
        Seed or generator; None means the seed 0.

    Returns
    -------
    Array
        ``(out, width)``; width 0 for a zero matrix, ``min(out, in)`` at most.

    Raises
    ------
    ArgumentError
        If the error is not between 0 and 1 or is below what the precision of `x` can reach.

    Notes
    -----
    Algorithm randQB_b of [martinsson2016]. One copy of `x` is held.

    >>> import numpy as np
    >>> range_basis(np.diag([4.0, 3.0, 1e-3, 1e-4]), error=0.01, block=1).shape
    (4, 2)
    """
    return _range(x, error, block, n_power_iter, random_state)[0]


def svd_to_error(
    x: Array,
    error: float,
    *,
    block: int = 16,
    n_power_iter: int = 1,
    random_state: int | np.random.Generator | None = None,
) -> Triplets:
    """Truncated SVD of the smallest rank that the basis of `range_basis` needs for an error.

    The squared residual of the basis and the squared tail cut from ``Qᴴ X`` add up to at most
    ``(error · ‖X‖)²``, exactly, because the two are orthogonal.

    Parameters, exceptions and cost as in `range_basis`.

    Returns
    -------
    u, s, vh : ``(out, rank)``, ``(rank,)``, ``(rank, in)``
        In the dtype of `x`.

    >>> import numpy as np
    >>> svd_to_error(np.diag([4.0, 3.0, 1e-3, 1e-4]), 0.01)[1].round(6).tolist()
    [4.0, 3.0]
    """
    q, left = _range(x, error, block, n_power_iter, random_state)
    if q.shape[1] == 0:
        return _nothing(x)
    u, s, vh = _from_basis(q, adjoint(q) @ x, q.shape[1])
    values = np.array([float(v) for v in s])
    tails = np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0)
    rank = int(np.argmax(tails <= max(0.0, error**2 * quick_sum_of_squares(x) - left)))
    return u[:, :rank], s[:rank], vh[:rank, :]


def _range(
    x: Array,
    error: float,
    block: int,
    n_power_iter: int,
    random_state: int | np.random.Generator | None,
) -> tuple[Array, float]:
    """Basis of `range_basis` and the squared residual it leaves."""
    xp = namespace(x)
    _check_matrix(x)
    least = floor(x.dtype)
    if not least <= error < 1:
        raise ArgumentError(f"error={error!r} must lie between {least:g}, the precision, and 1")
    if block < 1 or n_power_iter < 0:
        raise ArgumentError(
            f"block={block} must be 1 or more, n_power_iter={n_power_iter} 0 or more"
        )
    rng = np.random.default_rng(random_state or 0)
    basis, rest = x[:, :0], x
    left = quick_sum_of_squares(x)
    allowed = error**2 * left
    while left > allowed and basis.shape[1] < min(x.shape):
        steps = power_steps(rest, min(block, min(x.shape) - basis.shape[1]), rng)
        for _ in range(n_power_iter):
            next(steps)
        new = next(steps)[0]
        new = new - basis @ (adjoint(basis) @ new)  # what rounding brought back
        new = xp.linalg.qr(new, mode="reduced")[0]
        rest = rest - new @ (adjoint(new) @ rest)
        basis = xp.concat([basis, new], axis=1)
        left = quick_sum_of_squares(rest)
    return basis, left


def power_steps(x: Array, width: int, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Bases ``Q (out, width)`` with ``Qᴴ X``, after 0, 1, 2, ... power steps."""
    _check_matrix(x)
    y = x @ random_matrix(rng, (x.shape[1], width), x)  # (out, width)
    while True:
        q = orthonormal(y)
        b = adjoint(q) @ x  # (width, in)
        yield q, b
        y = x @ orthonormal(adjoint(b))


def krylov_steps(
    x: Array, width: int, rng: np.random.Generator, start: Array | None = None
) -> Iterator[tuple[Array, Array]]:
    """Bases ``Q (out, width)``, ``(out, 2 width)``, ... of a block Krylov space, with ``Qᴴ X``.

    Each holds the ones before it, and costs two products of `width` columns more
    ([musco2015]). Ends when the basis is as wide as the matrix, or another step finds nothing but
    rounding. The space begins with random vectors ``(in, width)``, or those of `start`, which may
    be fewer.
    """
    _check_matrix(x)
    xp, most = namespace(x), min(x.shape)
    if start is not None:
        start = orthonormal(start)
    elif _starts_wide(x, width):
        start = sketched_rows(sparse_sketch(x, _WIDER * width | 1, rng), width, rng)
    else:
        start = random_matrix(rng, (x.shape[1], width), x)
    q = orthonormal(x @ start)  # (out, width)
    b = last = adjoint(q) @ x  # (width, in)
    yield q, b
    while q.shape[1] < most:
        y = x @ orthonormal(adjoint(last))[:, : min(width, most - q.shape[1])]
        rest = y - q @ (adjoint(q) @ y)
        if quick_sum_of_squares(rest) <= (tol(x.dtype, 1) ** 2) * quick_sum_of_squares(y):
            return
        y = orthonormal(rest)
        y = orthonormal(y - q @ (adjoint(q) @ y))  # once more for what rounding brought back
        last = adjoint(y) @ x
        q, b = xp.concat([q, y], axis=1), xp.concat([b, last], axis=0)
        yield q, b


def _starts_wide(x: Array, width: int) -> bool:
    """Whether block Krylov steps begin with the leading rows of a sketch wider than they are."""
    return x.shape[0] >= 2 * _WIDER * width


def _from_basis(q: Array, b: Array, rank: int) -> Triplets:
    """The first triplets of ``q b`` for an orthonormal ``q (out, k)`` and ``b (k, in)``.

    Copies, none of them a view of what has more columns: they are kept while much else is done.
    """
    xp = namespace(b)
    if b.shape[1] < 4 * b.shape[0]:
        u, s, vh = _svd(b)
        return q @ u[:, :rank], s[:rank], xp.asarray(vh[:rank, :], copy=True)
    p = orthonormal(adjoint(b))  # (in, k)
    u, s, vh = _svd(double(b @ p))
    u, vh = xp.astype(u[:, :rank], b.dtype), xp.astype(vh[:rank, :], b.dtype)
    return q @ u, xp.astype(s[:rank], _real(b[:1, 0]).dtype), vh @ adjoint(p)


def _flipped(triplets: Triplets) -> Triplets:
    """Triplets of a matrix from those of its transpose."""
    u, s, vh = triplets
    return vh.T, s, u.T


def _nothing(x: Array) -> Triplets:
    """Rank 0."""
    return x[:, :0], _real(x[:1, 0])[:0], x[:0, :]


def _check_matrix(x: Array) -> None:
    """Refuse what is no matrix: rows of a tensor would be taken for rows of a matrix."""
    if len(x.shape) != 2:
        raise ArgumentError(
            f"a matrix (out, in) is needed, got an array of shape {tuple(x.shape)}: give one matrix"
            " at a time, or an unfolding (tdecomp.tensor.unfold)"
        )


def _check_rank(x: Array, rank: int) -> None:
    _check_matrix(x)
    if not isinstance(rank, (int, SupportsIndex)) or not 0 <= rank <= min(x.shape):
        raise ArgumentError(
            f"rank {rank!r} of a {tuple(x.shape)} matrix must be 0 to {min(x.shape)}"
        )


@threads_by_size
def _eigh(matrix: Array) -> tuple[Array, Array]:
    """LAPACK makes many small calls: on the threads of this matrix, not of what it was made of."""
    return namespace(matrix).linalg.eigh(matrix)


@threads_by_size
def _eigvalsh(matrix: Array) -> Array:
    return namespace(matrix).linalg.eigvalsh(matrix)


@threads_by_size
def _svd(x: Array) -> Triplets:
    u, s, vh = namespace(x).linalg.svd(x, full_matrices=False)
    return u, s, vh


@threads_by_size
def _reduce(matrix: Array) -> Array:
    """A matrix of the same left singular vectors and values, no wider than it is tall."""
    if matrix.shape[1] <= matrix.shape[0]:
        return matrix
    return adjoint(namespace(matrix).linalg.qr(adjoint(matrix), mode="reduced")[1])


def _real(x: Array) -> Array:
    xp = namespace(x)
    return xp.real(x) if xp.isdtype(x.dtype, "complex floating") else x


def _is_double(x: Array) -> bool:
    xp = namespace(x)
    return x.dtype in (xp.float64, xp.complex128)
