"""Whether a saved adapter fits a model: by the names of its modules, and by the base weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tdecomp.adapters.site_grids import SiteGrid
from tdecomp.errors import SiteError
from tdecomp.files.attached import AdapterDescription
from tdecomp.stack import Site
from tdecomp_torch.attached import Attached
from tdecomp_torch.model.inventory import Inventory

__all__ = ["names_in", "renamed", "told_of_base"]

Shape = tuple[int, ...]
Rename = Callable[[str], str]


def names_in(
    inventory: Inventory, grids: Sequence[SiteGrid], besides: Mapping[str, Shape], path: Path
) -> Rename:
    """How names in a file are those of modules and parameters of a model.

    They are equal, or one is what the other calls it inside of a larger module.

    Parameters
    ----------
    inventory
        Of the model.
    grids
        The weights that the file names.
    besides
        The parameters that it names, and their shapes.
    path
        The file.

    Raises
    ------
    SiteError
        The model is another one, or has several places that fit.
    """
    sites = [site for grid in grids for site in grid.sites]
    reason = _misfit(inventory, sites, besides, str)
    if not reason:
        return str
    first = sites[0].module
    outer = [name.removesuffix(first) for name in inventory.modules if name.endswith(f".{first}")]
    dots = [k for k, c in enumerate(first) if c == "."]
    inner = [first[: k + 1] for k in dots if first[k + 1 :] in inventory.modules]
    places: list[Rename] = [
        *(lambda name, before=before: f"{before}{name}" for before in outer),
        *(lambda name, before=before: name.removeprefix(before) for before in inner),
    ]
    fits = [rename for rename in places if not _misfit(inventory, sites, besides, rename)]
    if len(fits) > 1:
        one, other = fits[0](first), fits[1](first)
        raise SiteError(
            f"{path} was saved from a model with {first}, and this one has {one} and {other}: give"
            " the part of the model that is meant"
        )
    if not fits:
        raise SiteError(f"{path} {reason}")
    return fits[0]


def _misfit(
    inventory: Inventory, sites: Sequence[Site], besides: Mapping[str, Shape], rename: Rename
) -> str:
    """Why a model does not have what the file names, once renamed; empty if it does."""
    for site in sites:
        if reason := _misfit_of(inventory, site, rename(site.module)):
            return f"was saved from another model: {reason}"
    for name, shape in besides.items():
        own = inventory.parameters.get(rename(name))
        if own is None or tuple(own.shape) != shape:
            return f"holds the parameter {name!r} {shape}: not in model"
    return ""


def _misfit_of(inventory: Inventory, site: Site, module: str) -> str:
    """Why a module is not that of a site; empty if it is."""
    matrix = inventory.matrices.get(module)
    if matrix is None and module not in inventory.shapeless:
        return f"this one has no module {site.module}"
    shape = None if matrix is None else matrix.shape
    if matrix is not None and matrix.kind.by_weight != bool(site.positions):
        return f"{site.path} was another kind of weight"
    if matrix is not None and matrix.kind.by_weight and matrix.kind.turned != site.transpose:
        return f"the experts of {site.module} are stored the other way round"
    end = site.shape[0] + (0 if matrix is None else matrix.kind.first_row(site, matrix.module))
    if shape is None or end > shape[0] or site.shape[1] != shape[1]:
        return f"{site.path} was {site.shape}, this model's {site.module} is {shape}"
    return ""


def renamed(said: AdapterDescription, rename: Rename) -> AdapterDescription:
    """A description by the names of the model."""
    if rename is str:
        return said
    grids = []
    for grid in said.grids:
        sites = [
            replace(s, tensor=rename(s.module) + s.tensor.removeprefix(s.module))
            for s in grid.sites
        ]
        grids.append(SiteGrid(grid.grid, tuple(sites)))
    base = said.base if isinstance(said.base, Mapping) else {}  # one digest has the names in it
    return replace(said, grids=tuple(grids), base={rename(name): own for name, own in base.items()})


def told_of_base(attached: Attached, saved: str | Mapping[str, str | None]) -> tuple[str, ...]:
    """A sentence if the base weights differ from those of the file, or cannot be compared.

    Parameters
    ----------
    attached
        Not installed yet, so that the weights are the base.
    saved
        Digests by module path; of format version 1 one of all bytes.
    """
    here = attached.base_samples()
    if isinstance(saved, str):
        unknown = [path for path, own in here.items() if own is None]
        wrong = ["of all"] if not unknown and saved != _hash(attached) else []
    else:
        unknown = [path for path, own in here.items() if own is None or saved.get(path) is None]
        wrong = [path for path, own in here.items() if path not in unknown and own != saved[path]]
    if wrong:
        return ("The base weights differ from those that this adapter was trained on.",)
    if unknown:
        return (
            f"Whether the base weights of {unknown[0]} ({len(unknown)} of {len(here)} modules) are"
            " those that this adapter was trained on is unknown: they could not be read.",
        )
    return ()


def _hash(attached: Attached) -> str:
    """Digest of the adapted base weights as format version 1 has it: of names, shapes and bytes."""
    digest = hashlib.sha256()
    for target in sorted(attached.targets, key=lambda target: target.path):
        for own in target.kind.content(target.module):
            digest.update(f"{target.path} {tuple(own.shape)} {own.dtype}".encode())
            raw = own.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(raw.numpy().tobytes())
    return digest.hexdigest()
