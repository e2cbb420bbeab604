"""Which modules of a torch model are adapted: sites by name, and the modules they belong to."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

from torch import nn

from tdecomp.adapters import Spec
from tdecomp.adapters.site_grids import sites_with_heads
from tdecomp.errors import ArgumentError, SiteError
from tdecomp.stack import Site, Survey, Targets, find_sites
from tdecomp.stack.claims import reason_against
from tdecomp.stack.select import ALL_LINEAR, Chooser
from tdecomp_torch.model.expert_sites import is_turned_over, named_experts, shapes_of_experts
from tdecomp_torch.model.inventory import Adaptable, Inventory
from tdecomp_torch.model.left_out import left_out

__all__ = ["chosen_sites"]

_MOST = 8
_INSIDE = "used by MultiheadAttention without a call"
_MORE = "does more than multiply with its weight"


class _Names:
    """What `targets` and `exclude` say about a module.

    Attributes
    ----------
    everything
        Every Linear is meant, whatever its name.
    are_given
        Names or a regex say what is meant.
    """

    def __init__(self, targets: Targets | None, exclude: Targets | None):
        self.everything = isinstance(targets, str) and targets.lower() == ALL_LINEAR
        by_name = targets is not None and not self.everything
        self._chosen = Chooser.of(targets) if targets is not None and by_name else None
        self.are_given = self._chosen is not None
        self._excluded = Chooser.of(exclude) if exclude else None

    def exclude(self, path: str) -> bool:
        """Whether a module is excluded."""
        return self._excluded is not None and self._excluded(path)

    def name(self, path: str) -> bool:
        """Whether a module is chosen by its name."""
        return self._chosen is not None and self._chosen(path) and not self.exclude(path)


def chosen_sites(
    inventory: Inventory,
    *,
    targets: Targets | None,
    exclude: Targets | None,
    layers: Collection[int] | int | None,
    patterns: Sequence[str],
    spec: Spec | None = None,
) -> Survey:
    """Find the sites that are asked for, as `tdecomp.stack.find_sites` does by name and shape.

    By default those that fit the method: one that splits heads takes the weights that have heads.
    The notes say what is left out.

    Raises
    ------
    ArgumentError
        `targets` is not a sequence of names, or `layers` not one of whole numbers.
    SiteError
        Nothing matches, or something does that cannot be adapted (listed).
    """
    _check_names(targets=targets, exclude=exclude)
    layers = _numbers(layers)
    names, read = _Names(targets, exclude), inventory.readers
    if unfit := _unfit(inventory, names):
        more = f" and {len(unfit) - _MOST} more" if len(unfit) > _MOST else ""
        raise SiteError(
            f"these targets cannot be adapted: {', '.join(unfit[:_MOST])}{more}; name Linear,"
            " Conv1D, Conv2d (of one group) or Embedding modules, or parameters of experts, or"
            " exclude them"
        )
    by_default = targets is None and not patterns
    apart = read if names.everything or by_default else {}
    beside = tuple(_beside(inventory, names, apart, layers))
    try:
        found = find_sites(
            {
                **inventory.stored_shapes(linear=names.everything, apart=apart),
                **(shapes_of_experts(inventory) if names.are_given else {}),
            },
            inventory.config,
            targets=targets,
            exclude=exclude,
            layers=layers,
            patterns=patterns,
        )
    except SiteError as error:
        beside += named_experts(inventory, names.name, layers)
        if not beside:
            raise SiteError(f"{error}{_meant(targets, inventory.modules)}") from None
        notes = (*_may(beside, read), *_formed(inventory, beside))
        return Survey(family="generic", sites=beside, uncovered=(), notes=notes)
    found = _with_experts(inventory, names, layers, found)
    sites = tuple(_turned(site, inventory.matrices.get(site.module)) for site in found.sites)
    notes = (*found.notes, *_may((*sites, *beside), read), *_formed(inventory, sites))
    if not by_default:
        more = _told(inventory, names) if names.everything else ()
        return Survey(
            family=found.family,
            sites=(*sites, *beside),
            uncovered=found.uncovered,
            notes=(*notes, *more),
        )
    return _of_method(
        inventory,
        spec,
        Survey(family=found.family, sites=sites, uncovered=found.uncovered, notes=notes),
    )


def _of_method(inventory: Inventory, spec: Spec | None, found: Survey) -> Survey:
    """The default sites that fit a method, and a sentence on all others."""
    headless = _headless(inventory, spec, found.sites)
    kept = tuple(site for site in found.sites if site.path not in headless)
    taken = {site.tensor for site in kept}
    lost = {
        site.tensor: headless.get(site.path, "") for site in found.sites if site.tensor not in taken
    }
    uncovered = (*found.uncovered, *lost.items())
    reasons = {
        f"{path}.weight": _INSIDE
        for path in inventory.modules
        if inventory.is_inside_attention(path)
    }
    for path, reader in inventory.readers.items():
        reasons[f"{path}.weight"] = f"used by {reader} without a call"
    told = left_out(inventory, taken, reasons | dict(uncovered))
    return Survey(family=found.family, sites=kept, uncovered=uncovered, notes=(*found.notes, *told))


def _check_names(**given: Any) -> None:
    for what, names in given.items():
        if isinstance(names, Collection | None) and all(isinstance(n, str) for n in names or ()):
            continue
        raise ArgumentError(f"{what}={names!r} must be a list of module names, or one regex")


def _numbers(layers: Collection[int] | int | None) -> Collection[int] | None:
    """Layer numbers; one may stand alone, as in PEFT."""
    found = [layers] if isinstance(layers, int) else layers
    if isinstance(found, str) or not all(isinstance(n, Integral) for n in found or ()):
        raise ArgumentError(f"layers={layers!r} must be layer numbers, such as [0, 1]")
    return found


def _may(sites: Iterable[Site], read: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence on chosen weights that may be used without a call."""
    mine = list(dict.fromkeys(site.module for site in sites if site.module in read))
    if not mine:
        return ()
    return (
        f"{read[mine[0]]} may use the weight of {_few(mine)} without a call: where it does, the"
        " adapter does not act.",
    )


def _formed(inventory: Inventory, sites: Iterable[Site]) -> tuple[str, ...]:
    """A sentence on what chosen experts cost."""
    mine = list(dict.fromkeys(site.module for site in sites if site.module in inventory.experts))
    if not mine:
        return ()
    numbers = sum(math.prod(inventory.experts[path].shape) for path in mine)
    return (
        f"{_few(mine)} hold experts: their adapted weights, {numbers:,} numbers, are formed in"
        " every forward pass.",
    )


def _told(inventory: Inventory, names: _Names) -> list[str]:
    """Sentences on what is left out: weights used without a call, modules that do more."""
    notes, read = [], inventory.readers
    known = {*inventory.matrices, *inventory.shapeless}
    mine = [path for path in read if path in known and not names.exclude(path)]
    if mine:
        notes.append(f"Left out, as {read[mine[0]]} uses the weight without a call: {_few(mine)}.")
    more = [
        path
        for path, module in inventory.modules.items()
        if path in inventory.unlike and isinstance(module, nn.Linear) and not names.exclude(path)
    ]
    if more:
        name = type(inventory.modules[more[0]]).__name__
        notes.append(f"Left out, as a {name} {_MORE}: {_few(more)}.")
    return notes


def _few(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1} more" if paths[1:] else ""
    return f"{paths[0]}{more}"


def _meant(targets: Targets | None, modules: Iterable[str]) -> str:
    """What to write instead of a name that was given where a regex is read."""
    if not isinstance(targets, str) or not any(map(Chooser.of([targets]), modules)):
        return ""
    return f"; a string is a regex for whole paths: give [{targets!r}] to name modules"


def _unfit(inventory: Inventory, names: _Names) -> list[str]:
    """Modules and bare parameters that are named and cannot be adapted, with what they are."""
    found = []
    for path, module in inventory.modules.items():
        if any(names.name(m.path) for m in inventory.experts.values() if m.module is module):
            continue
        if path and names.name(path) and (reason := _why_unfit(inventory, path, module)):
            found.append(f"{path} ({reason})")
    for path, parameter in inventory.parameters.items():
        owner, _, name = path.rpartition(".")
        if path in inventory.experts:
            continue
        if name not in ("weight", "bias") and names.name(path) and owner in inventory.modules:
            found.append(f"{path} (a parameter of shape {tuple(parameter.shape)}, not a module)")
    return found


def _why_unfit(inventory: Inventory, path: str, module: nn.Module) -> str:
    """Why a module cannot be adapted; empty where it can, or where it only holds others."""
    name = type(module).__name__
    if inventory.is_inside_attention(path):
        return _INSIDE
    if path in inventory.unlike:
        return f"{name}, which {_MORE}"
    if path in inventory.shapeless:
        return f"{name}, not a matrix"
    holds = any(True for _ in module.parameters(recurse=False))
    return name if holds and path not in inventory.matrices else ""


def _headless(inventory: Inventory, spec: Spec | None, sites: Sequence[Site]) -> dict[str, str]:
    """Why default sites do not fit a method that splits heads: path -> reason."""
    if spec is None or "head" not in spec.weight_modes:
        return {}
    fit = {site.path for site in sites_with_heads(sites, everywhere=inventory.known_sites)}
    if not fit:
        return {}  # binding refuses them, by name
    return {site.path: "without heads" for site in sites if site.path not in fit}


def _beside(
    inventory: Inventory,
    names: _Names,
    apart: Collection[str],
    layers: Collection[int] | None,
) -> Iterator[Site]:
    """Chosen embeddings, and matrices that have the name of one: `find_sites` leaves these out."""
    for path, matrix in inventory.matrices.items():
        chosen = names.name(path) or (names.everything and isinstance(matrix.module, nn.Linear))
        if not chosen or names.exclude(path) or path in apart:
            continue
        tensor = f"{path}.weight"
        if matrix.kind.by_weight:
            continue
        if not matrix.kind.looks_up and reason_against(tensor, matrix.shape) != "embedding":
            continue
        *before, name = path.split(".")
        number = next((int(n) for n in before if n.isdecimal()), None)
        if layers is None or number in layers:
            labels = (("proj", name),) if number is None else (("layer", number), ("proj", name))
            yield Site(
                tensor=tensor,
                index=(),
                transpose=matrix.kind.turned,
                labels=labels,
                shape=matrix.shape,
                role="embedding",
            )


def _with_experts(
    inventory: Inventory, names: _Names, layers: Collection[int] | None, found: Survey
) -> Survey:
    """What was found, with the experts that are named and that no family knows."""
    kept = tuple(site for site in found.sites if not is_turned_over(inventory, site))
    known = {site.module for site in kept}
    more = named_experts(inventory, lambda path: names.name(path) and path not in known, layers)
    own = [site.module for site in more]
    idle = [
        f"Target {path.split('.', k)[-1]!r} " for path in own for k in range(path.count(".") + 1)
    ]
    notes = tuple(note for note in found.notes if not note.startswith((*idle, "\0")))
    return replace(found, sites=(*kept, *more), notes=notes)


def _turned(site: Site, matrix: Adaptable | None) -> Site:
    """A site turned as its module stores it, which names alone do not tell."""
    if site.index or site.transpose or matrix is None or not matrix.kind.turned:
        return site
    return replace(site, transpose=True, shape=site.shape[::-1])
