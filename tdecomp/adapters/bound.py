"""An adapter on a group of weights: every letter has a size, every site its part of a factor."""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from array_api_compat import device  # pyright: ignore[reportUnknownVariableType]

from tdecomp._brief import brief, brief_modes
from tdecomp._plan import contract
from tdecomp._threads import side_by_side, workers
from tdecomp._xp import Array, namespace
from tdecomp.adapters.from_weights import FROM_WEIGHTS, WeightRequest
from tdecomp.adapters.grid import Grid
from tdecomp.adapters.inits import Init
from tdecomp.adapters.pictured import pictured
from tdecomp.adapters.seeded import SEEDED, Request
from tdecomp.adapters.spec import Spec
from tdecomp.adapters.terms import SITE_MODES, Factor, Operand, Term
from tdecomp.adapters.unit import unit_along
from tdecomp.drawing import Diagram, Drawable, Panel
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format, Network, Sum
from tdecomp.modes import Axis, Equation, flatten

__all__ = ["Bound", "WeightOf", "wrap_factors"]

WeightOf = Callable[[int], np.ndarray]
"""The base weight of a site, ``(out, in)``."""


@dataclass(frozen=True, repr=False, kw_only=True)
class Bound(Drawable):
    """An adapter on a grid of weights, all sizes known.

    Attributes
    ----------
    spec
        The adapter, its base rule written out as terms.
    grid
        The weights.
    sizes
        Size of every letter.
    numbers
        Every number that formulas can use: sizes, ``alpha``, ``out``, ``in``, ...
    shapes
        Shape of every factor, in the order of the adapter; those of a wrap come last.
    turned
        The equation is that of the transposed weight.
    """

    spec: Spec
    grid: Grid
    sizes: Mapping[str, int]
    numbers: Mapping[str, float]
    shapes: Mapping[str, tuple[int, ...]]
    turned: bool = False

    def __repr__(self) -> str:
        return brief(
            type(self),
            f"{self.spec.name} on {self.grid.name}",
            brief_modes(tuple(self.ranks), tuple(self.ranks.values())),
            f"{self.n_trainable:,} trained, {self.n_frozen:,} frozen",
        )

    def diagram(self) -> Diagram:
        """What `td.draw` draws: every factor with the sizes of its axes."""
        wrap = () if self.spec.wrap_rule is None else self.spec.wrap_rule.factors
        weight = dict(zip(("out", "in"), self.grid.shape, strict=True))
        products = pictured(
            self.spec.terms,
            self.spec.factors,
            self.spec.output,
            sites={*self.grid.rows, *SITE_MODES},
            sizes=weight | {"site": self.grid.n_sites} | dict(self.sizes),
            wrap=wrap,
        )
        title = f"{self.spec.name} on {self.grid.name}"
        notes = (self.spec.equation, f"{self.n_trainable:,} trained, {self.n_frozen:,} frozen")
        return Diagram((Panel(title=title, products=products, notes=notes),))

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """Every factor that is stored, those of the wrap included."""
        return self.spec.factors + wrap_factors(self.spec)

    @property
    def n_trainable(self) -> int:
        """Numbers that are trained."""
        return sum(math.prod(self.shapes[f.name]) for f in self.factors if f.trainable)

    @property
    def n_frozen(self) -> int:
        """Numbers of the constants, whether stored or made from a seed."""
        return sum(math.prod(self.shapes[f.name]) for f in self.factors if not f.trainable)

    def scale(self, step: float = 0) -> float:
        """What the sum of terms is multiplied by at a step."""
        return float(self.spec.scale({**self.numbers, "step": step}))

    def coefficient(self, term: Term, step: float = 0) -> float:
        """What one term is multiplied by at a step."""
        return term.sign * (self.scale(step) if term.scaled else 1.0)

    @cached_property
    def redundant(self) -> tuple[str, ...]:
        """Ranks that join two factors and are larger than one of them can fill.

        A rank that stands in more factors (of a CP adapter) is not limited in this way.
        """
        found: dict[str, None] = {}
        for term in self.spec.terms:
            for operand in term.operands:
                sizes = [self.sizes[n] for n in operand.letters]
                for n, size in zip(operand.letters, sizes, strict=True):
                    joined = sum(n in other.letters for other in term.operands)
                    if n not in self._fixed and joined == 2 and size * size > math.prod(sizes):
                        found[n] = None
        return tuple(found)

    @property
    def ranks(self) -> dict[str, int]:
        """Size of every letter that is neither a site mode nor a mode of a weight."""
        return {n: size for n, size in self.sizes.items() if n not in self._fixed}

    @cached_property
    def _fixed(self) -> frozenset[str]:
        """Letters that are not ranks: site modes and the modes of a weight."""
        return frozenset({*self.spec.weight_modes, *self.grid.rows})

    # -- the part of every factor that a site uses -------------------------------------------

    def letters(self, operand: Operand) -> tuple[str, ...]:
        """Letters of an operand of one site: its letters without site modes."""
        return tuple(n for n in operand.letters if n not in self.grid.rows)

    def where(self, operand: Operand, site: int) -> tuple[int | slice, ...]:
        """Index of a site's part of a factor."""
        rows = self.grid.rows
        shape = self.shapes[operand.factor]
        return tuple(
            int(rows[n][site])
            if n in rows
            else slice(None if self.sizes.get(n, size) == size else self.sizes[n])
            for n, size in zip(operand.letters, shape, strict=True)
        )

    def gathered(self, operand: Operand, array: Array) -> tuple[tuple[str, ...], Array]:
        """Every site's part of a factor: letters and array, ``site`` first where it has any."""
        rows = self.grid.rows
        own = [n for n in operand.letters if n in rows]
        sizes = tuple(self.sizes[n] for n in operand.letters)
        array = array if tuple(array.shape) == sizes else array[tuple(map(slice, sizes))]
        if not own:
            return operand.letters, array
        rest = tuple(n for n in operand.letters if n not in rows)
        order = tuple(operand.letters.index(n) for n in (*own, *rest))
        if order != tuple(range(len(order))):
            array = namespace(array).permute_dims(array, order)
        if own != ["site"]:
            array = array[tuple(_like(rows[n], array) for n in own)]
        return ("site", *rest), array

    def delta(self, arrays: Mapping[str, Array], site: int, step: float = 0) -> Array:
        """ΔW of one site, ``(out, in)``, scaled; a norm wrap not applied."""
        total = None
        for term in self.spec.terms:
            equation = Equation(tuple(map(self.letters, term.operands)), self.spec.output)
            parts = [
                self._acting(o.factor, self.letters(o), arrays[o.factor][self.where(o, site)])
                for o in term.operands
            ]
            part = self.coefficient(term, step) * contract(equation, parts)
            total = part if total is None else total + part
        assert total is not None
        rows, columns = self.matrix_shape
        total = total[:rows, :columns]
        return total.T if self.turned else total

    def tensor(
        self,
        arrays: Mapping[str, Array],
        step: float = 0,
        *,
        sites: Sequence[int] | None = None,
    ) -> Format:
        """ΔW of every site, or of some, as one format over ``site out in``, scaled."""
        n_sites = self.grid.n_sites if sites is None else len(sites)
        parts: list[Format] = []
        output: list[Axis] = list(self.spec.output)[:: -1 if self.turned else 1]
        for term in self.spec.terms:
            found = [self.gathered(o, arrays[o.factor]) for o in term.operands]
            terms = [letters for letters, _ in found]
            found = [
                (letters, self._acting(o.factor, letters, array))
                for o, (letters, array) in zip(term.operands, found, strict=True)
            ]
            tensors = [
                array if sites is None or "site" not in letters else _taken(array, sites)
                for letters, array in found
            ]
            if not any("site" in letters for letters in terms):
                xp = namespace(tensors[0])
                ones = xp.ones(n_sites, dtype=tensors[0].dtype, device=device(tensors[0]))
                terms.append(("site",))
                tensors.append(ones)
            network = Network(Equation(tuple(terms), ("site", *output)), tuple(tensors))
            parts.append(network * self.coefficient(term, step))
        whole = parts[0] if len(parts) == 1 else Sum(tuple(parts))
        n_out, n_in = self.grid.shape
        return whole if whole.shape[1:] == (n_out, n_in) else whole[:, :n_out, :n_in]

    def _acting(self, name: str, letters: Sequence[str], array: Array) -> Array:
        """A factor, or a part of it, as it stands in a product."""
        unit = self.spec.factor(name).unit
        return unit_along(array, [letters.index(n) for n in unit]) if unit else array

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Shape of a weight as the equation sees it: turned if the equation is."""
        n_out, n_in = self.grid.shape
        return (n_in, n_out) if self.turned else (n_out, n_in)

    def weight(self, w: Array, arrays: Mapping[str, Array], site: int, step: float = 0) -> Array:
        """The adapted weight of one site, ``(out, in)``, as the base and wrap rules say."""
        delta = self.delta(arrays, site, step)
        wrap = self.spec.wrap_rule
        if wrap is None:
            return self.spec.base_rule.weight(w, delta)
        own = {f.name: arrays[f.name][site] for f in wrap_factors(self.spec)}
        return wrap.apply(w, delta, own, lambda norm: norm)

    # -- how the factors start ------------------------------------------------------------------

    def start(
        self,
        weights: WeightOf | None = None,
        *,
        seed: int = 0,
        given: Mapping[str, Any] | None = None,
        names: Collection[str] | None = None,
        progress: Callable[[float], None] = lambda share: None,
    ) -> dict[str, np.ndarray]:
        """Start values of every factor, float64.

        Parameters
        ----------
        weights
            Base weight ``(out, in)`` of a site; needed where a factor is made of it.
        seed
            Seed of the random factors; every factor has a stream of its own.
        given
            Arrays of the factors whose rule is ``given``, and of any other to be replaced.
        names
            The factors that are wanted; default is all.
        progress
            Called with the share of the weights that have been read.
        """
        found: dict[str, np.ndarray] = {}
        given = given or {}
        factors = [f for f in self.factors if names is None or f.name in names]
        of_weights = [f for f in factors if f.init.kind in FROM_WEIGHTS and f.name not in given]
        found |= self._of_weights(of_weights, weights, progress)
        for factor in factors:
            if factor.name in given:
                found[factor.name] = self._given(factor, given[factor.name])
            elif factor.init.kind == "given":
                raise ArgumentError(
                    f"the factor {factor.name!r} of {self.spec.name!r} must be given, an array of"
                    f" {' '.join(factor.modes)}, {self.shapes[factor.name]}"
                )
            elif factor.init.kind in SEEDED:
                found[factor.name] = self.seeded(factor, seed)
        for factor in factors:
            if factor.init.kind == "copy" and factor.name not in given:
                source = found[str(factor.init.args[0])]
                found[factor.name] = self._given(factor, source).copy()
        return {f.name: found[f.name] for f in factors}

    def seeded(self, factor: Factor, seed: int) -> np.ndarray:
        """A factor that follows from a seed, float64."""
        home = "" if factor.across else self.grid.name

        def stream(name: str) -> np.random.Generator:
            return np.random.default_rng([seed, zlib.crc32(f"{home}/{name}".encode())])

        shape = self.shapes[factor.name]  # of a factor held across grids, that of the largest
        numbers = {**self.numbers, **dict(zip(factor.modes, shape, strict=True))}
        ask = Request(
            shape=shape, args=self._args(factor.init, numbers), stream=stream, name=factor.name
        )
        array = SEEDED[factor.init.kind].make(ask)
        return np.asarray(array, dtype=np.float64)

    def _args(self, init: Init, numbers: Mapping[str, float]) -> tuple[float, ...]:
        return tuple(float(arg(numbers)) for arg in init.args)

    def _given(self, factor: Factor, array: Any) -> np.ndarray:
        found = np.asarray(array, dtype=np.float64)
        if found.shape != self.shapes[factor.name]:
            raise ArgumentError(
                f"the factor {factor.name!r} is {' '.join(factor.modes)} of sizes"
                f" {self.shapes[factor.name]}, given was an array of {found.shape}"
            )
        return found

    def _of_weights(
        self,
        factors: Sequence[Factor],
        weights: WeightOf | None,
        progress: Callable[[float], None],
    ) -> dict[str, np.ndarray]:
        """Factors that are made of the weights, one weight at a time where each has its own.

        What several weights share is made of these side by side.
        """
        if not factors:
            return {}
        if weights is None:
            raise ArgumentError(
                f"{self.spec.name!r} starts from the base weights ({factors[0].init} of"
                f" {factors[0].name!r}): give weights="
            )
        found = {f.name: np.zeros(self.shapes[f.name]) for f in factors}
        alike: dict[tuple[tuple[int, ...], ...], list[Factor]] = {}
        for f in factors:
            alike.setdefault(self._sharing(f), []).append(f)
        total, done = len(alike) * self.grid.n_sites, 0
        for sharing, group in alike.items():
            pieces_of = partial(self._pieces, group, _in_turn(weights))
            with side_by_side(pieces_of, sharing, workers(len(sharing))) as all_pieces:
                for sites, pieces in zip(sharing, all_pieces, strict=True):
                    for f, piece in zip(group, pieces, strict=True):
                        found[f.name][self.where(Operand(f.name, f.modes), sites[0])] = piece
                    done += len(sites)
                    progress(done / total)
        return found

    def _pieces(
        self, factors: Sequence[Factor], weights: WeightOf, sites: Sequence[int]
    ) -> list[np.ndarray]:
        """The part of each factor that some sites share, made of their weights."""
        frames = [np.asarray(weights(site), dtype=np.float64) for site in sites]
        frames = [w.T if self.turned else w for w in frames]
        beside: dict[int, tuple[np.ndarray, dict[str, Any]]] = {}
        found: list[np.ndarray] = []
        for f in factors:
            axis = int(len(sites) > 1 and not set(f.modes) & set(self.sides[1]))
            if axis not in beside:
                beside[axis] = np.concatenate(frames, axis=axis), {}
            found.append(self._piece(f, *beside[axis]))
        return found

    def _sharing(self, factor: Factor) -> tuple[tuple[int, ...], ...]:
        """The sites, those together that have one part of the factor."""
        rows = [self.grid.rows[n] for n in factor.modes if n in self.grid.rows]
        places: dict[tuple[int, ...], list[int]] = {}
        for site in range(self.grid.n_sites):
            places.setdefault(tuple(int(r[site]) for r in rows), []).append(site)
        return tuple(map(tuple, places.values()))

    @property
    def out_letters(self) -> tuple[str, ...]:
        """Letters that make up the out mode of the weight, slowest first."""
        return self.sides[self.turned]

    @property
    def in_letters(self) -> tuple[str, ...]:
        """Letters that make up the in mode of the weight, slowest first."""
        return self.sides[not self.turned]

    @property
    def sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Letters of the two sides of the weight as the equation sees it."""
        rows, columns = self.spec.output
        return flatten((rows,)), flatten((columns,))

    def _piece(self, factor: Factor, w: np.ndarray, memo: dict[str, Any]) -> np.ndarray:
        modes = tuple(n for n in factor.modes if n not in self.grid.rows)
        sides, sizes = self.sides, dict(self.sizes)
        if factor in wrap_factors(self.spec):  # a wrap sees the weight as it is
            w = w.T if self.turned else w
            sides, sizes = (("out",), ("in",)), {"out": w.shape[0], "in": w.shape[1]}
        piece = WeightRequest(
            name=factor.name,
            modes=modes,
            sides=sides,
            sizes=sizes,
            args=self._args(factor.init, self.numbers),
            memo=memo,
        )
        return FROM_WEIGHTS[factor.init.kind].make(w, piece)


def _in_turn(weights: WeightOf) -> WeightOf:
    """The same for several threads: what gives the weights is asked for one at a time."""
    lock = threading.Lock()

    def one(site: int) -> np.ndarray:
        with lock:
            return weights(site)

    return one


def _taken(array: Array, rows: Sequence[int]) -> Array:
    return namespace(array).take(array, _like(np.asarray(rows), array), axis=0)


def _like(rows: np.ndarray, array: Array) -> Array:
    xp = namespace(array)
    return xp.asarray(rows, device=device(array))


def wrap_factors(spec: Spec) -> tuple[Factor, ...]:
    """Factors that the norm wrap of an adapter adds."""
    if spec.wrap_rule is None:
        return ()
    return tuple(
        Factor(name=n, modes=modes, init=Init.parse(i)) for n, modes, i in spec.wrap_rule.factors
    )
