"""What an adapter file says besides its tensors; `tdecomp.files.attached` reads it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from tdecomp.adapters.settings import Settings
from tdecomp.adapters.site_grids import SiteGrid
from tdecomp.files.attached import VERSION
from tdecomp_torch.attached import Attached
from tdecomp_torch.model.gathering import is_part
from tdecomp_torch.model.names import inner_model

__all__ = ["describe"]


def describe(attached: Attached) -> str:
    """The description of an adapter, as it stands in its file."""
    return json.dumps(
        {
            "version": VERSION,
            "spec": attached.spec.to_json(),
            "settings": _settings_json(replace(attached.settings, seed=attached.pool.seed)),
            "dtype": _dtype(attached),
            "step": attached.schedule.at_step,
            "grids": [_grid_json(grid) for grid in attached.grids],
            "base": str(getattr(inner_model(attached.model), "name_or_path", "") or ""),
            "base_samples": attached.base_samples(),
            "shapes": _shapes(attached),
        },
        default=lambda scalar: scalar.item(),  # a rank or an alpha may be numpy's
    )


def _shapes(attached: Attached) -> dict[str, list[int]]:
    """Shapes of the modules of which the sites do not tell them."""
    parts = {s.module for grid in attached.grids for s in grid.sites if s.index}
    found: dict[str, list[int]] = {}
    for target in attached.targets:
        whole = target.kind.is_matrix or target.kind.looks_up
        pieces = any(map(is_part, target.module.parameters(recurse=False)))
        if (whole and target.path not in parts) or pieces:
            continue  # of a piece of a weight, as FSDP1 leaves, no shape is known
        stored = target.kind.stored(target.module).shape
        found[target.path] = list(target.kind.shape(target.module) or ()) if whole else list(stored)
    return found


def _dtype(attached: Attached) -> str | None:
    """Dtype of all factors, in which the constants that are not stored are made again."""
    found = {str(t.dtype) for t in (*attached.pool.parameters(), *attached.pool.buffers())}
    return found.pop().removeprefix("torch.") if len(found) == 1 else None


def _settings_json(settings: Settings) -> dict[str, Any]:
    plain = asdict(settings)
    rank = plain["rank"]
    if not plain["ranks"]:
        del plain["ranks"]  # which older versions do not know
    return plain | {
        "sides": sorted(settings.sides),
        "rank": dict(rank) if isinstance(rank, Mapping) else rank,
    }


def _grid_json(sites: SiteGrid) -> dict[str, Any]:
    grid = sites.grid
    return {
        "name": grid.name,
        "shape": list(grid.shape),
        "modes": [[mode, list(labels)] for mode, labels in grid.modes],
        "places": [list(place) for place in grid.places],
        "heads": grid.heads,
        "heads_in": grid.heads_in,
        "sites": [site.to_json() for site in sites.sites],
    }
