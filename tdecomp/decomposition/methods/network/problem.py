"""A sum of networks to be fitted to an array: the model, its derivatives, its normal equations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from tdecomp._plan import contract
from tdecomp._xp import Array, double, namespace, sum_of_squares
from tdecomp.formats.equations import fresh
from tdecomp.modes import Equation

__all__ = ["NO_RIDGE", "Block", "Problem", "conjugate_gradients", "dot", "einsum", "update"]

Term = tuple[str, ...]

_DENSE = 3000  # unknowns of one system up to which its matrix is formed
_STEPS = 100  # of conjugate gradients beyond that
_SMALL = 1 << 16  # numbers of an environment up to which its singular values are taken
NO_RIDGE = 1e-12  # of the largest eigenvalue: enough for a singular system, and all that is added


@dataclass(frozen=True)
class Problem:
    """The array `x` and the sum of networks that is to come near it.

    Attributes
    ----------
    terms
        Names of every factor, over all addends.
    addends
        Positions of the terms of each addend.
    output
        Names of the axes of `x`, splits opened.
    sizes
        Of every name.
    groups
        Positions of the free terms; those in one group hold one and the same array.
    frozen
        Arrays of all other terms, float64.
    x
        The data, scaled to a largest entry of 1; float64 unless it is large.
    """

    terms: tuple[Term, ...]
    addends: tuple[tuple[int, ...], ...]
    output: Term
    sizes: Mapping[str, int]
    groups: tuple[tuple[int, ...], ...]
    frozen: Mapping[int, Array]
    x: Array

    @cached_property
    def energy(self) -> float:
        """Squared norm of the data."""
        return sum_of_squares(self.x)

    @cached_property
    def twins(self) -> dict[str, str]:
        """A second name for every name, none of them in use."""
        return dict(zip(self.sizes, fresh([f"{n}_" for n in self.sizes], self.sizes), strict=True))

    @property
    def free(self) -> tuple[int, ...]:
        """Positions of all terms that are not frozen."""
        return tuple(k for group in self.groups for k in group)

    @property
    def is_tied(self) -> bool:
        """Whether some array stands in two terms, so that the model is not linear in it."""
        return any(len(group) > 1 for group in self.groups)

    def addend_of(self, k: int) -> tuple[int, ...]:
        """Positions of the terms that stand in a product with term `k`, itself included."""
        return next(addend for addend in self.addends if k in addend)

    def shape(self, k: int) -> tuple[int, ...]:
        """Shape of the array of term `k`."""
        return tuple(self.sizes[n] for n in self.terms[k])

    def product(self, arrays: Sequence[Array], addend: Sequence[int]) -> Array:
        """Dense array of one addend, in the precision of the data."""
        terms = tuple(self.terms[k] for k in addend)
        return einsum(terms, self.output, [self._narrow(arrays[k]) for k in addend])

    def change(self, arrays: Sequence[Array], k: int, step: Array) -> Array:
        """What the model changes by when `step` is added to factor `k`."""
        return self.product([*arrays[:k], step, *arrays[k + 1 :]], self.addend_of(k))

    def remainder(self, arrays: Sequence[Array]) -> Array:
        """``X − X̂``, every entry formed."""
        left = self.x
        for addend in self.addends:
            left = left - self.product(arrays, addend)
        return left

    def pull(self, arrays: Sequence[Array], k: int, left: Array) -> Array:
        """Gradient of ``−½‖left‖²`` in factor `k`: `left` contracted with all its companions."""
        others = [j for j in self.addend_of(k) if j != k]
        terms = (self.output, *(self.terms[j] for j in others))
        narrow = [self._narrow(arrays[j]) for j in others]
        return double(einsum(terms, self.terms[k], [left, *narrow]))

    def _narrow(self, array: Array) -> Array:
        return (
            array if array.dtype == self.x.dtype else namespace(array).astype(array, self.x.dtype)
        )


@dataclass(frozen=True)
class Block:
    """Normal equations of one factor, ``E Eᵀ`` for its environment ``E``, ready to be solved.

    The modes that only this factor has are free rows, those it has in common with others are a
    batch. The environment falls apart into components that share no other name, and the matrix
    is the Kronecker product of theirs: each is brought to its eigenvectors along its own names.

    Attributes
    ----------
    term
        Names of the factor.
    turned
        Names in eigenvector coordinates: free rows, batch, one name per component.
    bases
        ``(names, array)`` of the eigenvectors of the components that have any.
    values
        Eigenvalues, broadcast against `turned`.
    scale
        The largest of them, per batch entry.
    """

    term: Term
    turned: Term
    bases: tuple[tuple[Term, Array], ...]
    values: Array
    scale: Array

    @classmethod
    def of(cls, problem: Problem, arrays: Sequence[Array], k: int) -> Block:
        """The block of factor `k`."""
        term, xp = problem.terms[k], namespace(*arrays)
        others = [j for j in problem.addend_of(k) if j != k]
        inside = {n for j in others for n in problem.terms[j]}
        batch = [n for n in term if n in problem.output and n in inside]
        bases, values, turned = [], [], []
        for number, part in enumerate(_components(problem, others, set(batch))):
            names = {n for j in part for n in problem.terms[j]}
            shared = [n for n in batch if n in names]
            ranks = [n for n in term if n in names and n not in problem.output]
            gram = _gram(problem, arrays, part, shared, ranks)
            own = []
            if ranks:
                own = fresh([f"e{number}"], problem.sizes)
                value, vectors = xp.linalg.eigh(gram)
                shape = tuple(problem.sizes[n] for n in [*shared, *ranks])
                vectors = xp.reshape(vectors, (*shape, -1))
                bases.append(((*shared, *ranks, *own), vectors))
                gram = value
            turned += own
            values.append(((*shared, *own), gram))
        product = _outer(values, (*batch, *turned), like=arrays[k])
        scale = product
        for axis in range(len(batch), product.ndim):
            scale = xp.max(scale, axis=axis, keepdims=True)
        rows = [n for n in term if n in problem.output and n not in batch]
        return cls(
            term,
            (*rows, *batch, *turned),
            tuple(bases),
            xp.clip(product, min=0.0),
            xp.where(scale > 0, scale, xp.ones_like(scale)),
        )

    def solve(self, right: Array, shift: Array | float) -> Array:
        """``step`` with ``(E Eᵀ + shift) step = right``."""
        extra = tuple(names for names, _ in self.bases)
        vectors = [array for _, array in self.bases]
        there = einsum((self.term, *extra), self.turned, [right, *vectors])
        there = there / (self.values + shift)
        return einsum((self.turned, *extra), self.term, [there, *vectors])


@lru_cache(maxsize=1024)
def _equation(terms: tuple[Term, ...], output: Term) -> Equation:
    return Equation(terms, output)


def einsum(terms: tuple[Term, ...], output: Term, arrays: Sequence[Array]) -> Array:
    """Contraction of arrays over named axes, parsed and planned once for the same names."""
    return contract(_equation(terms, output), arrays)


def update(problem: Problem, arrays: Sequence[Array], k: int, left: Array, ridge: float) -> Array:
    """Step of factor `k` to the least-squares solution given the others.

    It minimises ``‖left − E step‖² + ρ‖step‖²`` with ``ρ`` equal to `ridge` times the largest
    eigenvalue: proximal, so that a singular system does no harm and the error always falls. Where
    the environment `E` is small and no `ridge` is asked for, it is the shortest least-squares
    solution by the singular values of `E`: normal equations square them, and what the data hold
    along those below 1e-6 of the largest would hardly ever be found.
    """
    if ridge <= NO_RIDGE and (names := _small_environment(problem, k)) is not None:
        return _shortest(problem, arrays, k, left, *names)
    right = problem.pull(arrays, k, left)
    if _largest_system(problem, k) <= _DENSE:
        block = Block.of(problem, arrays, k)
        return block.solve(right, ridge * block.scale)
    shape = problem.shape(k)

    def apply(v: Array) -> Array:
        step = namespace(v).reshape(v, shape)
        return _flat(problem.pull(arrays, k, problem.change(arrays, k, step)))

    found = conjugate_gradients(apply, _flat(right), _STEPS, 1e-12)
    return namespace(right).reshape(found, shape)


def _small_environment(problem: Problem, k: int) -> tuple[Term, Term, Term, Term] | None:
    """Names of a factor and its environment, if that is small, in float64 and has all modes.

    Returns
    -------
    batch, rows, ranks, outer
        Modes that both have, modes that only the factor has, names to be summed over, and modes
        that only the environment has.
    """
    term, xp = problem.terms[k], namespace(problem.x)
    inside = {n for j in problem.addend_of(k) if j != k for n in problem.terms[j]}
    batch = tuple(n for n in term if n in problem.output and n in inside)
    rows = tuple(n for n in term if n in problem.output and n not in inside)
    ranks = tuple(n for n in term if n not in problem.output)
    outer = tuple(n for n in problem.output if n not in term)
    numbers = math.prod(problem.sizes[n] for n in (*batch, *ranks, *outer))
    is_whole = bool(inside) and inside.issuperset((*ranks, *outer))
    small = is_whole and numbers <= _SMALL and problem.x.dtype == xp.float64
    return (batch, rows, ranks, outer) if small else None


def _shortest(
    problem: Problem,
    arrays: Sequence[Array],
    k: int,
    left: Array,
    batch: Term,
    rows: Term,
    ranks: Term,
    outer: Term,
) -> Array:
    """The shortest step that leaves least of `left`."""
    xp, term = namespace(left), problem.terms[k]
    others = [j for j in problem.addend_of(k) if j != k]

    def size(names: Term) -> int:
        return math.prod(problem.sizes[n] for n in names)

    terms = tuple(problem.terms[j] for j in others)
    environment = einsum(terms, (*batch, *outer, *ranks), [arrays[j] for j in others])
    environment = xp.reshape(environment, (size(batch), size(outer), size(ranks)))
    goal = einsum((problem.output,), (*batch, *outer, *rows), [left])
    goal = xp.reshape(goal, (size(batch), size(outer), size(rows)))
    u, s, vh = xp.linalg.svd(environment, full_matrices=False)
    noise = max(environment.shape[1:]) * xp.finfo(s.dtype).eps
    seen = s > noise * xp.max(s, axis=1, keepdims=True)
    inverse = xp.where(seen, 1 / xp.where(seen, s, xp.ones_like(s)), xp.zeros_like(s))
    step = vh.mT @ (inverse[:, :, None] * (u.mT @ goal))  # (batch, ranks, rows)
    step = xp.reshape(step, tuple(problem.sizes[n] for n in (*batch, *ranks, *rows)))
    return einsum(((*batch, *ranks, *rows),), term, [step])


def conjugate_gradients(
    apply: Callable[[Array], Array],
    right: Array,
    n_steps: int,
    tol: float,
    precondition: Callable[[Array], Array] = lambda v: v,
) -> Array:
    """Solution of a positive semidefinite system, to `tol` of `right`, beginning from zero."""
    xp = namespace(right)
    found, left = xp.zeros_like(right), right
    direction = near = precondition(left)
    product, stop = dot(left, near), tol**2 * dot(right, right)
    for _ in range(n_steps):
        if product <= 0 or dot(left, left) <= stop:
            break
        image = apply(direction)
        curvature = dot(direction, image)
        if curvature <= 0:
            break
        found = found + (product / curvature) * direction
        left = left - (product / curvature) * image
        near = precondition(left)
        product, before = dot(left, near), product
        direction = near + (product / before) * direction
    return found


def _flat(x: Array) -> Array:
    return namespace(x).reshape(x, (-1,))


def dot(a: Array, b: Array) -> float:
    """Sum of the products of the entries."""
    return float(namespace(a).sum(a * b))


def _components(problem: Problem, others: Sequence[int], batch: set[str]) -> list[list[int]]:
    """Terms that hang together by names which are not batch modes."""
    parts: list[tuple[set[str], list[int]]] = []
    for j in others:
        names, members = set(problem.terms[j]) - batch, [j]
        apart = []
        for other in parts:
            if other[0] & names:
                names, members = names | other[0], other[1] + members
            else:
                apart.append(other)
        parts = [*apart, (names, members)]
    return [members for _, members in parts]


def _gram(
    problem: Problem,
    arrays: Sequence[Array],
    part: Sequence[int],
    shared: Sequence[str],
    ranks: Sequence[str],
) -> Array:
    """``(batch..., n, n)`` over the merged rank names, ``(batch...)`` where there are none."""
    second = {n: n if n in problem.output else twin for n, twin in problem.twins.items()}
    terms = tuple(problem.terms[j] for j in part)
    copies = tuple(tuple(second[n] for n in term) for term in terms)
    output = (*shared, *ranks, *(second[n] for n in ranks))
    used = [double(arrays[j]) for j in part]
    gram = einsum((*terms, *copies), output, [*used, *used])
    if not ranks:
        return gram
    n = math.prod(problem.sizes[r] for r in ranks)
    gram = namespace(gram).reshape(gram, (*(problem.sizes[b] for b in shared), n, n))
    return 0.5 * (gram + gram.mT)


def _outer(values: Sequence[tuple[Term, Array]], names: Term, like: Array) -> Array:
    """Product of arrays over different names, broadcast to all `names` in order."""
    xp = namespace(like)
    product = xp.ones((1,) * len(names), dtype=xp.float64, device=like.device)
    for own, value in values:
        size = dict(zip(own, value.shape, strict=True))
        product = product * xp.reshape(value, tuple(size.get(n, 1) for n in names))
    return product


def _largest_system(problem: Problem, k: int) -> int:
    """Unknowns of the largest component's system for factor `k`."""
    term = problem.terms[k]
    others = [j for j in problem.addend_of(k) if j != k]
    inside = {n for j in others for n in problem.terms[j]}
    batch = {n for n in term if n in problem.output and n in inside}
    largest = 1
    for part in _components(problem, others, batch):
        names = {n for j in part for n in problem.terms[j]}
        ranks = [n for n in term if n in names and n not in problem.output]
        largest = max(largest, math.prod(problem.sizes[r] for r in ranks))
    return largest
