"""Adapters as `tdecomp_torch` saves them, as pairs: from the description and the factors alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from tdecomp.adapters import Bound, Factor, lora_modules
from tdecomp.adapters.from_weights import FROM_WEIGHTS
from tdecomp.adapters.placed import acting, bounds_on, factor_key
from tdecomp.collections import AdapterPair
from tdecomp.errors import FileError, TdecompError
from tdecomp.files.attached import BESIDES, KEY, START, AdapterDescription, read_description
from tdecomp.files.loras.adapter_file import AdapterFile, MadePair, finite
from tdecomp.files.loras.base_names import WeightFinder
from tdecomp.files.safetensors import FLOATS, Entry
from tdecomp.formats import Format, Network
from tdecomp.modes import Equation
from tdecomp.stack import Group, Site
from tdecomp.stack.names import canonical

__all__ = ["open_saved"]

_DENSE = Equation.parse("site out in -> site out in")
_SEEDED, _MOST_SEEDED = 1 << 22, 1 << 26
"""Numbers of constants that are made from a seed, besides as many as the weights have; at most."""

_Arrays = Mapping[str, np.ndarray]


def open_saved(
    path: Path,
    entries: Mapping[str, Entry],
    metadata: Mapping[str, str],
    *,
    name: str,
    weights: WeightFinder,
) -> AdapterFile:
    """An adapter of any method as pairs; no factor is read before a pair is asked for.

    The pair of a module is exact. It is as wide as the narrowest cut of its network between ``out``
    and ``in``, and a matrix with an identity where no cut is narrower than that or where the method
    changes a weight by what that is.

    Parameters
    ----------
    path, entries, metadata
        What was named, and the header of its file.
    name
        The task.
    weights
        Module -> what reads its weight in the base as it is stored; None where that is not known.

    Raises
    ------
    FileError
        A damaged file, a method that needs the base and has none, or an adapter of several tasks.
    """
    saved = _Saved(path, entries, _described(path, metadata), weights)
    saved.check()
    besides = sorted(key for key in entries if key.startswith(BESIDES))
    return AdapterFile(
        path=path,
        name=name,
        scheme=None,
        stored={canonical(module): saved.stored(module) for module in saved.places},
        base=saved.said.model,
        not_covered=tuple((key, "trained besides, and kept whole") for key in besides),
    )


def _described(path: Path, metadata: Mapping[str, str]) -> AdapterDescription:
    try:
        return read_description(metadata[KEY])
    except (TdecompError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise FileError(f"{path} is damaged: {error}") from error


@dataclass(frozen=True)
class _Saved:
    """A saved adapter, its factors read when they are first asked for."""

    path: Path
    entries: Mapping[str, Entry]
    said: AdapterDescription
    weights: WeightFinder

    @cached_property
    def bounds(self) -> list[Bound]:
        """The method on every group."""
        said = self.said
        try:
            return bounds_on(acting(said.spec, said.settings), said.grids, said.settings)
        except (TdecompError, ValueError, ArithmeticError, LookupError) as error:
            raise FileError(f"{self.path} is damaged: {error}") from error

    @cached_property
    def places(self) -> dict[str, dict[int, list[int]]]:
        """Every module with its sites, by group."""
        found: dict[str, dict[int, list[int]]] = {}
        for g, grid in enumerate(self.said.grids):
            for k, site in enumerate(grid.sites):
                found.setdefault(site.module, {}).setdefault(g, []).append(k)
        return found

    # -- what can be known without the factors ------------------------------------------------

    def check(self) -> None:
        """Refuse what cannot become pairs, before any number is read."""
        if tasks := self.said.settings.tasks:
            raise FileError(
                f"{self.path} is an adapter of {len(tasks)} tasks, which share factors: write each"
                " as pairs",
                tip="adapter = tdecomp_torch.load_adapter(model, PATH); adapter.task ="
                f" {tasks[0]!r}; adapter.save_lora(DIR)",
            )
        sites = (site for grid in self.said.grids for site in grid.sites)
        if fused := next((site.module for site in sites if site.positions), None):
            raise FileError(
                f"{self.path} adapts the experts of {fused}, which lie in one parameter: write them"
                " as pairs",
                tip="adapter = tdecomp_torch.load_adapter(model, PATH); adapter.save_lora(DIR)",
            )
        for site in (site for grid in self.said.grids for site in grid.sites):
            if not site.tensor.endswith(".weight"):
                raise FileError(f"{self.path} is damaged: {site.tensor!r} is no weight of a module")
        present = {key for key in self.entries if not key.startswith(BESIDES)}
        expected: dict[str, tuple[int, ...]] = {}
        seeded = 0
        for bound in self.bounds:
            for factor in bound.factors:
                key, shape = self._key(bound, factor), tuple(bound.shapes[factor.name])
                keys = (key, START + key) if factor.trainable else (key,)
                expected |= dict.fromkeys(keys, shape)
                if key not in present:
                    seeded += self._size_from_seed(factor, key, shape)
                    self._check_base(factor)
        self._check_seeded(seeded)
        for key in sorted(present):
            self._check_entry(key, expected.get(key))
        if not self.said.spec.adds:
            self._need_base(f"{self.said.spec.name!r} changes every weight by what that is")

    def _size_from_seed(self, factor: Factor, key: str, shape: tuple[int, ...]) -> int:
        """Numbers of a constant that no file need hold; of others 0, or they are missed."""
        if not factor.trainable and factor.init.kind in FROM_WEIGHTS:
            return 0
        if factor.trainable or not factor.init.from_seed or factor.clusters is not None:
            raise FileError(f"{self.path} misses the tensor {key!r}")
        return int(np.prod(shape, dtype=object))

    def _check_seeded(self, count: int) -> None:
        sites = (site for grid in self.said.grids for site in grid.sites)
        weights = {site.path: site.shape[0] * site.shape[1] for site in sites}
        if count > min(_SEEDED + sum(weights.values()), _MOST_SEEDED):
            raise FileError(f"{self.path} asks for {count} numbers of constants: it must hold them")

    def _check_entry(self, key: str, shape: tuple[int, ...] | None) -> None:
        entry = self.entries[key]
        if shape is None:
            raise FileError(f"{self.path} has, besides its factors, the tensor {key!r}")
        if entry.dtype not in FLOATS:
            raise FileError(f"{self.path} is damaged: {key!r} is {entry.dtype}, not floating")
        if tuple(entry.shape) != shape:
            raise FileError(
                f"{self.path}: the factor {key!r} is {entry.shape}, its method makes it {shape}"
            )

    def _check_base(self, factor: Factor) -> None:
        if factor.init.kind in FROM_WEIGHTS:
            self._need_base(f"its constant {factor.name!r} is made of the weights")

    def _need_base(self, why: str) -> None:
        modules = iter(self.places)
        if any(self.weights(canonical(module)) is None for module in modules):
            raise FileError(f"{self.path}: {why}", tip="name the base, which has them")

    # -- pairs ---------------------------------------------------------------------------------

    def stored(self, module: str) -> MadePair:
        """What stands for a module."""
        first = self._first(module)
        return MadePair(
            shape=self._shape(module),
            dtype=self._dtype,
            make=lambda: self.pair(module),
            kind="embedding" if first.role == "embedding" and first.transpose else "lora",
        )

    def pair(self, module: str) -> AdapterPair:
        """The pair of a module, float64."""
        by_group, first = self.places[module], self._first(module)
        out, in_ = self._shape(module)
        groups: list[Group] = []
        tensors: list[Format] = []
        for g, chosen in by_group.items():
            sites = tuple(self.said.grids[g].sites[k] for k in chosen)
            labels = (tuple(site.path for site in sites),)
            name = self.said.grids[g].grid.name
            for tensor in self._tensors(g, chosen):
                modes = ("site", "out", "in")
                groups.append(Group(name=name, modes=modes, labels=labels, sites=sites))
                tensors.append(tensor)
        stored = {f"{module}.weight": (in_, out) if first.transpose else (out, in_)}
        ((made,), _) = lora_modules(groups, tensors, stored)
        kernel = self.said.shapes.get(module, ())[2:]
        b, a = np.asarray(made.b), np.asarray(made.a)
        return AdapterPair(b=b, a=a, transpose=first.transpose, kernel=kernel)

    def _first(self, module: str) -> Site:
        ((g, chosen), *_) = self.places[module].items()
        return self.said.grids[g].sites[chosen[0]]

    def _shape(self, module: str) -> tuple[int, int]:
        """(out, in) of a whole module."""
        grids, told = self.said.grids, self.said.shapes.get(module)
        sites = [grids[g].sites[k] for g, own in self.places[module].items() for k in own]
        least = max(site.first_row + site.shape[0] for site in sites), sites[0].shape[1]
        if told is None:
            return least
        out, in_ = told[0], int(np.prod(told[1:], dtype=object))
        if out < least[0] or any(site.shape[1] != in_ for site in sites):
            raise FileError(f"{self.path} is damaged: {module} is said to be {told}")
        return out, in_

    def _tensors(self, g: int, chosen: Sequence[int]) -> Iterator[Format]:
        """ΔW of some sites of a group: one format, or two that add up."""
        bound, said = self.bounds[g], self.said
        if not said.spec.adds:
            yield Network(_DENSE, (self._changes(g, chosen),))
            return
        yield bound.tensor(self.arrays(g), said.step, sites=tuple(chosen))
        if said.settings.fold:
            yield bound.tensor(self.starts(g), sites=tuple(chosen)) * -1.0

    def _changes(self, g: int, chosen: Sequence[int]) -> np.ndarray:
        """``W' - W`` of some sites in one module, ``(site, out, in)``."""
        bound, arrays = self.bounds[g], self.arrays(g)
        found: list[np.ndarray] = []
        for k in chosen:
            w = self._weight(g, k)
            folded = bound.delta(self.starts(g), k) if self.said.settings.fold else 0.0
            found.append(np.asarray(bound.weight(w - folded, arrays, k, self.said.step)) - w)
        return np.stack(found)

    def _weight(self, g: int, k: int) -> np.ndarray:
        """The weight of a site in the base, ``(out, in)`` in float64."""
        site = self.said.grids[g].sites[k]
        read = self.weights(canonical(site.module))
        assert read is not None
        stored = read()
        matrix = stored.reshape(len(stored), -1).astype(np.float64)
        matrix = matrix.T if site.transpose else matrix
        if matrix.shape != self._shape(site.module):
            raise FileError(
                f"{site.module} is {matrix.shape} in the base, {self._shape(site.module)} in"
                f" {self.path}"
            )
        return matrix[site.first_row : site.first_row + site.shape[0]]

    # -- factors -------------------------------------------------------------------------------

    def _key(self, bound: Bound, factor: Factor) -> str:
        return factor_key(bound, factor, self.said.settings.sides)

    @cached_property
    def _read(self) -> dict[tuple[int, str], dict[str, np.ndarray]]:
        return {}

    def arrays(self, g: int) -> _Arrays:
        """The factors of a group by name, float64."""
        return self._kept(g, "")

    def starts(self, g: int) -> _Arrays:
        """The same as they were when they were folded into the weights."""
        return self._kept(g, START)

    def _kept(self, g: int, before: str) -> _Arrays:
        if (g, before) not in self._read:
            self._read[g, before] = self._loaded(g, before)
        return self._read[g, before]

    def _loaded(self, g: int, before: str) -> dict[str, np.ndarray]:
        bound = self.bounds[g]
        known: dict[str, np.ndarray] = {}
        for factor in bound.factors:
            key = self._key(bound, factor)
            entry = self.entries.get((before if factor.trainable else "") + key)
            if entry is not None:
                known[factor.name] = finite(entry).astype(np.float64)
        names = [factor.name for factor in bound.factors]
        seed = self.said.settings.seed
        return bound.start(partial(self._weight, g), seed=seed, given=known, names=names)

    @cached_property
    def _dtype(self) -> str:
        """Storage code of most factors."""
        codes = [e.dtype for key, e in self.entries.items() if not key.startswith(BESIDES)]
        return max(dict.fromkeys(codes), key=codes.count, default="F32")
