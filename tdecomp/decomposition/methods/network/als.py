"""Fit of any network: closed form for trees, alternating least squares and Newton for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from tdecomp._xp import Array, floor
from tdecomp.decomposition.checks import check_iteration, check_real, seed_of
from tdecomp.decomposition.fit import Fit, Rounding, make_fit
from tdecomp.decomposition.methods.network.parse import Ansatz, parse, positions_of
from tdecomp.decomposition.methods.network.solve import Options
from tdecomp.decomposition.methods.network.task import Task
from tdecomp.decomposition.rank_search import search_rank
from tdecomp.errors import ArgumentError, DataError
from tdecomp.formats import Format, Network, Sum
from tdecomp.modes import Equation
from tdecomp.passes.coordinates import Frame, format_frame
from tdecomp.passes.slices import Input, check_shape, dense, in_float64
from tdecomp.progress import Progress, silent
from tdecomp.ranking.target import Target

__all__ = ["als"]


def als(
    x: Input,
    equation: str | Equation,
    *,
    rank: int | Mapping[str, int] | None = None,
    error: float | None = None,
    budget: int | None = None,
    free: str | None = None,
    sizes: Mapping[str, int] | None = None,
    frozen: Mapping[int, Array] | None = None,
    tied: Iterable[Sequence[int]] = (),
    init: Literal["auto", "random"] | Format = "auto",
    n_iter_max: int = 200,
    tol: float = 1e-8,
    ridge: float = 0.0,
    n_restarts: int = 1,
    random_state: int | np.random.Generator | None = None,
    rank_max: int = 64,
    rounding: Rounding | None = None,
    progress: Progress = silent,
) -> Fit:
    """Fit of any einsum over named modes: ``X ≈ Σ_addends Σ_ranks A_1[..] A_2[..] ...``.

    Names in the output are modes, all others ranks; a name may stand in any number of terms. What
    is done depends on the equation:

    - A tree (every rank in two terms, every mode in one, no cycle; modes that all terms have only
      repeat the problem) gets a truncated SVD per bond: LoRA, LoTR, Tucker, TT, MPO, and Kronecker
      products ([vanloan1993], by rearrangement). This is optimal for one or two terms, and
      exact on data that are such a network; else sweeps follow.
    - One rank in all terms (CP, LoRTA) starts from `cp`; the entrywise product of two low-rank
      matrices (LoHa) from its column space, by linear algebra if ``out`` or ``in`` has
      ``r(r+1)s(s+1)/4`` or more entries, also where one of the two is the same in all slices; a
      factor that scales entries (VeRA vectors, gates) from eigenvectors, the rest from a closed
      form; a sum from its addends one by one; everything else from the best of eight short random
      starts.
    - Then alternating least squares, each factor in turn the minimiser given the others, and
      Levenberg-Marquardt steps ([marquardt1963]) in all factors at once. Random starts of small
      problems and problems with tied factors get only the latter.

    Parameters
    ----------
    x
        Real array, or a `Stack` (loaded whole), or any format, whose modes are those of the output
        in order: it is fitted in orthonormal coordinates of every mode that a single term carries.
    equation
        ``"out r, layer r s, s in -> layer out in"``; the output names the axes of `x` in order,
        and may split them, ``(o1 o2)``. Several addends are joined by ``+``:
        ``"out r, r in + out a, layer a b, b in -> layer out in"``; an addend without an output
        mode is constant along it, and its network holds a vector of ones for that mode. A letter
        in two addends has one size and is summed separately.
    rank
        Size of the rank letters that neither `sizes` nor `frozen` fixes: one for all (cut where a
        letter between two terms cannot use it), or by letter (kept as given; what is too large is
        filled with zeros by the closed form). ``{}`` for an equation without ranks.
    error
        Relative Frobenius error, met by the returned factors: the size of `free` is doubled from
        1, then bisected. It is small, not proven smallest. One start of every size is the fit of
        the smaller one, so that a larger size is never worse.
    budget
        Numbers to store, at most (frozen, tied and ones arrays counted as they stand in the
        network): the largest size of `free` that fits and is of use.
    free
        The letter that `error` or `budget` chooses; default the only one without a size.
    sizes
        Of split modes, ``{"o1": 8}`` (one part of each axis may be left out), and of rank letters.
    frozen
        Arrays that stay as they are, by the position of their term: 0-based, over all addends.
    tied
        Groups of positions of terms that hold one and the same array, of the same shape.
    init
        ``"auto"``, ``"random"``, or a `Network` (a `Sum` of them) of this equation and these sizes.
    n_iter_max, tol
        Sweeps at most (and Newton steps at most), and the relative change of the error at which
        they stop.
    ridge
        Pull of each update towards the factor it replaces, relative to the largest eigenvalue of
        the normal equations; at least 1e-12. It slows the iteration, its limit is the same
        ([li2013rals]).
    n_restarts
        Number of starts for equations that are no tree: the first as `init` says, the others
        random; the best wins, and an exact one ends the search.
    random_state
        Seed or generator; None is seed 0.
    rank_max
        Largest size of `free` that the search for `error` may try.
    rounding
        Applied to every array before the error is measured (storage precision).
    progress
        Called with the fraction of the work done.

    Returns
    -------
    Fit
        With a `Network`, or a `Sum` of one network per addend, in the library and working
        precision of `x`. `trace.reason` says which path led to it.

    Raises
    ------
    ArgumentError
        An equation, rank, size, frozen or tied term that cannot be honoured; the text says why.
    NotReached
        The error was not met up to `rank_max`; its `best` is the closest Fit.
    DataError
        NaN, Inf, complex entries, an empty mode, an order other than that of the output.

    Notes
    -----
    The error of sweeps and steps never rises. Trees apart, the global optimum is not guaranteed,
    and a best approximation need not exist (CP: [desilva2008]); from random starts, scales and
    entrywise products end in local minima more often than not. A sweep
    costs two contractions of the size of `x` per factor; two copies of `x` are kept. Up to 4
    million numbers all is float64; beyond, products with `x` stay in its precision. Newton steps
    are taken for up to 260 000 numbers, beyond that only where the Jacobian has at most 20 million.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> out, core, in_ = (rng.standard_normal(n) for n in ((6, 2), (3, 2, 2), (2, 5)))
    >>> fit = als(out @ core @ in_, "out r, layer r s, s in -> layer out in", rank=2)
    >>> fit.tensor.rank, fit.n_params, fit.error < 1e-12
    ((2, 2), 34, True)
    """
    check_shape(x)
    with in_float64(x):
        target = Target(rank, error, budget)
        check_iteration(
            counts={"n_iter_max": n_iter_max, "n_restarts": n_restarts, "rank_max": rank_max},
            amounts={"tol": tol, "ridge": ridge},
        )
        ansatz, frozen = parse(equation), frozen or {}
        array, frame = _coordinates(x, ansatz, frozen)
        check_real(array, "als")
        stored = {str(ansatz.output[k]): int(u.shape[0]) for k, u in frame.lift.items()}
        task = Task.of(array, ansatz, sizes or {}, frozen, tied, stored)
        if init not in ("auto", "random") and not isinstance(init, Format):
            raise ArgumentError(f"init={init!r} must be 'auto', 'random' or a Network")
        given = None if isinstance(init, str) else _tensors(init, ansatz, frame)
        options = Options(init == "auto", n_iter_max, tol, ridge, n_restarts, seed_of(random_state))

        def solve(ranks: Mapping[str, int], progress: Progress, below: Fit | None = None) -> Fit:
            smaller = None if below is None else _tensors(below.tensor, ansatz, frame)
            found, trace = task.solve(ranks, given, smaller, options, progress)
            tensor = frame.up(_format(ansatz, found))
            return make_fit(x, tensor, rounding, {}, trace, seen=(array, frame))

        if target.rank is not None:
            return solve(task.ranks(target.rank), progress)
        letter = task.free_letter(free)
        fibres = math.prod(array.shape) // max(array.shape)  # no CP needs a larger rank
        reach = ansatz.reach(letter, task.sizes, fibres)
        if target.budget is not None:
            return solve({letter: task.within(letter, target.budget, reach)}, progress)
        assert target.error is not None
        if target.error < floor(array.dtype):
            raise ArgumentError(
                f"error={target.error:g} is below {floor(array.dtype):g}, what this precision can"
                " reach"
            )
        return search_rank(
            lambda size, smaller: solve({letter: size}, silent, smaller),
            error=target.error,
            most=min(rank_max, reach),
            advice=f"raise rank_max={rank_max}, n_restarts or n_iter_max, or the error",
            progress=progress,
        )


def _coordinates(x: Input, ansatz: Ansatz, frozen: Mapping[int, Array]) -> tuple[Array, Frame]:
    """The dense array; of a format its core, in coordinates of every mode that one free term has.

    A mode that several terms of an addend share, or none, or a frozen one, keeps its own.
    """
    if not isinstance(x, Format):
        return dense(x), Frame()
    if len(x.modes) != len(ansatz.output):
        raise DataError(
            f"a format of shape {x.shape} has {len(x.shape)} modes, the output of '{ansatz}' has"
            f" {len(ansatz.output)}"
        )
    fixed = set(positions_of(ansatz, frozen, "frozen"))
    free = {k for k in ansatz.written if k not in fixed}
    opened = [
        mode
        for mode, axis in zip(x.modes, ansatz.output, strict=True)
        if not all(
            [k in free for k in block if axis in ansatz.terms[k]] == [True]
            for block in ansatz.blocks
        )
    ]
    core, frame = format_frame(x, opened)
    return dense(core), frame


def _tensors(init: Format, ansatz: Ansatz, frame: Frame) -> list[Array]:
    """Arrays of a network or sum of networks of this equation, in the coordinates."""
    networks = init._summands()
    wanted = [Equation(e.terms, e.output) for e in ansatz.addends]
    if [n.equation for n in networks] != wanted:
        told = " + ".join(str(n.equation) for n in networks)
        raise ArgumentError(f"init '{told}' is no Network of the equation '{ansatz}'")
    return [a for network in networks for a in frame.down(network).arrays.values()]


def _format(ansatz: Ansatz, arrays: Sequence[Array]) -> Format:
    networks = tuple(
        Network(equation, tuple(arrays[k] for k in block))
        for equation, block in zip(ansatz.addends, ansatz.blocks, strict=True)
    )
    if len(networks) == 1:
        return networks[0]
    return Sum(networks)
