"""What factors start as: from a file, from the user, from the base weights or from a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdecomp._nearest import nearest
from tdecomp.adapters import Bound
from tdecomp.adapters.site_grids import SiteGrid
from tdecomp.errors import ArgumentError, SiteError
from tdecomp.stack import Site
from tdecomp_torch.forward.pool import Derived, FactorPool
from tdecomp_torch.making.plan import AdapterPlan
from tdecomp_torch.model.inventory import Inventory
from tdecomp_torch.model.offload import computing_device

__all__ = ["BaseWeights", "Starts", "fill"]


@dataclass(frozen=True, kw_only=True)
class Starts:
    """What takes the place of the starts that a method has.

    Attributes
    ----------
    given
        By factor name; of a factor of every ``site`` also a mapping from module paths.
    of_groups
        The same for every group by itself; `given` goes before.
    stored
        By key, taken as they are, dtype included.
    dtype
        Of all others; None: float32, and no less than the weights.
    progress
        Called with the share of the weights that the start is made from.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    of_groups: Sequence[Mapping[str, Any]] = ()
    stored: Mapping[str, Tensor] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    progress: Callable[[float], None] = lambda share: None


class BaseWeights:
    """The base weights of one grid, as they are now."""

    def __init__(self, grid: SiteGrid, inventory: Inventory):
        self.sites = grid.sites
        self.matrices = [inventory.matrices[site.module] for site in grid.sites]

    @property
    def device(self) -> torch.device:
        """Where the first of them is computed with."""
        return computing_device(self.matrices[0].module)

    @property
    def precision(self) -> torch.dtype:
        """Of factors beside them: float32, and no less than theirs."""
        first = self.matrices[0]
        dtype = first.kind.stored(first.module).dtype
        return torch.float64 if dtype == torch.float64 else torch.float32

    def looks_up(self) -> bool:
        """Whether these are embeddings."""
        kinds = {matrix.kind.looks_up for matrix in self.matrices}
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

    def __call__(self, site: int) -> Tensor:
        """``(out, in)`` of one site, a view."""
        matrix, where = self.matrices[site], self.sites[site]
        whole = matrix.kind.matrix(matrix.module).detach()
        start = matrix.kind.first_row(where, matrix.module)
        return whole[start : start + where.shape[0]]

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
    pool: FactorPool, plan: AdapterPlan, weights: Sequence[BaseWeights], starts: Starts
) -> None:
    """Make every factor and put it in the pool; constants that do not follow are kept in files.

    Raises
    ------
    ArgumentError
        What is given does not fit, or groups cannot share a factor.
    SiteError
        A start is made of weights that are not here.
    """
    given = [
        {**own, **_given_arrays(bound, grid.sites, starts.given)}
        for bound, grid, own in zip(
            plan.bounds, plan.grids, starts.of_groups or [{}] * len(plan.bounds), strict=True
        )
    ]
    total, before = sum(len(own.sites) for own in weights), 0
    shapes: dict[str, tuple[int, ...]] = {}
    for bound, held, own, arrays in zip(plan.bounds, plan.held, weights, given, strict=True):
        stored = {h.factor.name: starts.stored[h.key] for h in held if h.key in starts.stored}
        known = {name: value.double().numpy() for name, value in stored.items()}
        start = bound.start(
            own.numpy,
            seed=plan.settings.seed,
            given={**arrays, **known},
            names=[h.factor.name for h in held],
            progress=lambda share, own=own, before=before: starts.progress(
                (before + share * len(own.sites)) / total
            ),
        )
        before += len(own.sites)
        starts.progress(before / total)
        precision = starts.dtype or own.precision
        for h in held:
            name = h.factor.name
            if shapes.setdefault(h.key, h.shape) != h.shape:
                raise ArgumentError(
                    f"the factor {name!r} cannot be shared: it is {shapes[h.key]} in one group"
                    f" and {h.shape} in {bound.grid.name}"
                )
            if hasattr(pool, h.key):
                continue
            dtype = stored[name].dtype if name in stored else precision
            made = h.follows and name not in stored and name not in arrays
            derived = Derived(bound, h.factor, dtype) if made else None
            pool.add(h.key, h.factor, stored.get(name, start[name]), dtype, derived)
    pool.to(weights[0].device)


def _given_arrays(
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
        raise ArgumentError(f"what is given for {name!r} is not an array ({error})") from None
