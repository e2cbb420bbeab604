"""What a factors file holds: total, per group and per site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tdecomp.files.factors import Factors, GroupFactors, load_factors
from tdecomp.jobs.reports import Report, Unknown, relative_error, unknown_of
from tdecomp.picture import draw

__all__ = [
    "ErrorOfGroup",
    "ErrorOfSite",
    "FactorsReport",
    "OfFactors",
    "energy_of",
    "info",
    "of_factors",
]


@dataclass(frozen=True, kw_only=True)
class ErrorOfSite:
    """A site, its relative error, and the squared norm of its delta."""

    site: str
    error: float
    energy: float


@dataclass(frozen=True, kw_only=True)
class ErrorOfGroup:
    """A group of sites: its tensor in factors, and how true that is.

    Attributes
    ----------
    name, modes, shape, grid
        Of the group.
    format, equation, rank, n_params
        Of the tensor.
    error
        Relative, over all sites.
    energy_share
        Of the squared norm of all that is covered.
    sites
        One row each.
    """

    name: str
    modes: tuple[str, ...]
    shape: tuple[int, ...]
    grid: str
    format: str
    equation: str
    rank: tuple[int, ...]
    n_params: int
    error: float
    energy_share: float
    sites: tuple[ErrorOfSite, ...]


@dataclass(frozen=True, kw_only=True)
class OfFactors(Report):
    """What every report on factors says.

    Attributes
    ----------
    unknown
        What could not be compared: no figure here contains it.
    method, dtype, options
        By what they were made, how they are stored (``"F32"``), and what was asked for.
    n_params, delta_params, bytes
        Numbers stored, numbers of the full delta, and bytes stored.
    error
        Relative, over everything covered.
    groups
        One row each.
    sources
        The two models: path, files with their hashes.
    """

    unknown: tuple[Unknown, ...]
    method: str
    dtype: str
    options: Mapping[str, Any]
    n_params: int
    delta_params: int
    bytes: int
    error: float
    groups: tuple[ErrorOfGroup, ...]
    sources: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class FactorsReport(OfFactors):
    """What a factors file holds."""


def info(
    out: str | Path, *, picture: str | Path | None = None, overwrite: bool = False
) -> FactorsReport:
    """Tell what a factors file holds, with the errors that it claims.

    Parameters
    ----------
    out
        Folder that `decompose` wrote, or the file in it.
    picture
        SVG file to draw the factors to.
    overwrite
        Replace an existing picture.

    Raises
    ------
    FileError
        If it is missing, damaged, or not such a file, or the picture may not be written.
    """
    factors = load_factors(out)
    if picture is not None:
        draw(factors).save(picture, overwrite=overwrite)
    return FactorsReport(**of_factors(factors))


def of_factors(factors: Factors) -> dict[str, Any]:
    """The fields of `OfFactors`."""
    total = energy_of(factors)
    residual = [float(part.residual.sum()) for part in factors.parts]
    return {
        "unknown": unknown_of(factors.unknown),
        "method": factors.method,
        "dtype": factors.dtype,
        "options": dict(factors.options),
        "n_params": factors.n_params,
        "delta_params": factors.delta_params,
        "bytes": factors.nbytes,
        "error": relative_error(residual, [total]),
        "groups": tuple(_group(part, total) for part in factors.parts),
        "sources": dict(factors.sources),
    }


def energy_of(factors: Factors) -> float:
    """Squared norm of the delta that the factors stand for."""
    return sum(float(part.energy.sum()) for part in factors.parts)


def _group(part: GroupFactors, total: float) -> ErrorOfGroup:
    group, tensor, energy = part.group, part.tensor, float(part.energy.sum())
    return ErrorOfGroup(
        name=group.name,
        modes=group.modes,
        shape=group.shape,
        grid=group.grid,
        format=type(tensor).__name__,
        equation=str(tensor.equation),
        rank=tuple(int(r) for r in np.atleast_1d(tensor.rank)),
        n_params=tensor.n_params,
        error=relative_error([float(part.residual.sum())], [energy]),
        energy_share=energy / total if total else 0.0,
        sites=tuple(
            ErrorOfSite(site=site.path, error=relative_error([r], [e]), energy=float(e))
            for site, r, e in zip(group.sites, part.residual, part.energy, strict=True)
        ),
    )
