"""What factors start as: from a file, from the user, from the base weights or from a seed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tdecomp.adapters import Bound
from tdecomp.adapters.expressions import nearest
from tdecomp.adapters.grids import SiteGrid
from tdecomp.errors import ArgumentError, SiteError
from tdecomp.stack import Site
from tdecomp_torch.modules import Kind, kind_of
from tdecomp_torch.offload import computing_device
from tdecomp_torch.pool import Derived, FactorPool, Member

__all__ = ["BaseWeights", "fill", "given_arrays"]


def given_arrays(
    bound: Bound, sites: Sequence[Site], given: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """What the user gives in place of starts, as float64 in numpy."""
    if not isinstance(given, Mapping):
        raise ArgumentError(f"given={given!r} must be arrays by factor name")
    names = [factor.name for factor in bound.factors]
    if unknown := [name for name in given if name not in names]:
        raise ArgumentError(
            f"given names {unknown[0]!r}{nearest(str(unknown[0]), names)}: the factors of"
            f" {bound.spec.name!r} are {', '.join(names)}"
        )
    return {
        name: _by_site(bound, name, sites, value)
        if isinstance(value, Mapping)
        else _as_array(name, value)
        for name, value in given.items()
    }


def _by_site(
    bound: Bound, name: str, sites: Sequence[Site], arrays: Mapping[str, Any]
) -> np.ndarray:
    """One array per weight, by module path, as one for the group."""
    modes = next(f.modes for f in bound.factors if f.name == name)
    if modes[:1] != ("site",):
        raise ArgumentError(
            f"arrays by module are given for {name!r}, which has the axes {' '.join(modes)}: that"
            " is for factors whose first axis is 'site'"
        )
    found = []
    for site in sites:
        own = arrays.get(site.path, arrays.get(site.module))
        if own is None:
            raise ArgumentError(f"nothing is given for {name!r} of {site.path}")
        found.append(_as_array(f"{name} of {site.path}", own))
    try:
        return np.stack(found)
    except ValueError:
        raise ArgumentError(
            f"what is given for {name!r} has different shapes in {bound.grid.name}"
        ) from None


def _as_array(name: str, value: Any) -> np.ndarray:
    try:
        return torch.as_tensor(value).detach().double().cpu().numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"what is given for {name!r} is no array ({error})") from None


class BaseWeights:
    """The base weights of one grid, as they are now."""

    def __init__(self, grid: SiteGrid, modules: Mapping[str, nn.Module]):
        self.sites = grid.sites
        self.modules = [modules[site.module] for site in grid.sites]
        self.kinds = [self._kind(module) for module in self.modules]

    @property
    def dtype(self) -> torch.dtype:
        """Of the first of them."""
        return self._kind(self.modules[0]).stored(self.modules[0]).dtype

    def looks_up(self) -> bool:
        """Whether these are embeddings."""
        kinds = {kind.looks_up for kind in self.kinds}
        if len(kinds) > 1:
            raise SiteError(
                f"{self.sites[0].path} and others of one shape are embeddings and matrices: attach"
                " an adapter of its own to the embeddings"
            )
        return kinds.pop()

    def readers(self) -> float:
        """How many of them read the same tokens: those that lie in one module of the model."""
        parents = {site.module.rpartition(".")[0] for site in self.sites}
        return len({site.module for site in self.sites}) / len(parents)

    @staticmethod
    def _kind(module: nn.Module) -> Kind:
        kind = kind_of(module)
        assert kind is not None
        return kind

    def __call__(self, site: int) -> Tensor:
        """``(out, in)`` of one site, a view."""
        module, where = self.modules[site], self.sites[site]
        matrix = self.kinds[site].matrix(module).detach()
        return matrix[where.first_row : where.first_row + where.shape[0]]

    def numpy(self, site: int) -> np.ndarray:
        """The same as float64 in numpy."""
        found = self(site)
        if found.is_meta:
            raise SiteError(
                f"{self.sites[site].path} is on meta, without values, and this method starts from"
                " them: give the model its weights first"
            )
        return found.double().cpu().numpy()


def fill(
    pool: FactorPool,
    members: Sequence[Member],
    weights: Sequence[BaseWeights],
    seed: int,
    given: Sequence[Mapping[str, Any]],
    stored: Mapping[str, Tensor],
    follows: Collection[str],
    dtype: torch.dtype | None,
    progress: Callable[[float], None],
) -> None:
    """Make every factor and put it in the pool; constants that do not follow are kept in files."""
    done: dict[str, tuple[int, ...]] = {}
    total, before = sum(len(own.sites) for own in weights), 0
    for member, own, arrays in zip(members, weights, given, strict=True):
        bound, precision = member.bound, dtype or _precision(own.dtype)
        keys = member.keys
        known = {n: stored[k].double().numpy() for n, k in keys.items() if k in stored}
        start = bound.start(
            own.numpy,
            seed=seed,
            given={**arrays, **known},
            names=keys,
            progress=lambda share, own=own, before=before: progress(
                (before + share * len(own.sites)) / total
            ),
        )
        before += len(own.sites)
        progress(before / total)
        for factor in bound.factors:
            key, shape = keys.get(factor.name), bound.shapes[factor.name]
            if key is None:
                continue
            if done.setdefault(key, shape) != shape:
                raise ArgumentError(
                    f"the factor {factor.name!r} cannot be shared: it is {done[key]} in one group"
                    f" and {shape} in {bound.grid.name}"
                )
            if not hasattr(pool, key):
                value = stored.get(key, start[factor.name])
                own = stored[key].dtype if key in stored else precision
                given_one = key in stored or factor.name in arrays
                made = not given_one and key in follows
                pool.add(key, factor, value, own, Derived(bound, factor, own) if made else None)
    pool.to(computing_device(weights[0].modules[0]))


def _precision(dtype: torch.dtype) -> torch.dtype:
    """Of factors beside base weights of some precision: float32, and no less than theirs."""
    return torch.float64 if dtype == torch.float64 else torch.float32
