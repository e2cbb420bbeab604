"""Which modules of a torch model are adapted: sites by name, and the modules they belong to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

from torch import nn

from tdecomp import ArgumentError, SiteError
from tdecomp.adapters import Spec
from tdecomp.adapters.grids import sites_with_heads
from tdecomp.stack import Site, Survey, Targets, find_sites
from tdecomp.stack.claims import reason_against
from tdecomp.stack.select import ALL_LINEAR, Chooser
from tdecomp_torch.left_out import left_out
from tdecomp_torch.modules import does_more, kind_of
from tdecomp_torch.names import inner_model, modules_of, parameters_of
from tdecomp_torch.uses import readers_of_weights

__all__ = ["chosen_sites", "config_of", "known_sites"]

_MOST = 8
_INSIDE = "used by MultiheadAttention without a call"
_MORE = "which does more than multiply with its weight"


def config_of(model: nn.Module) -> Mapping[str, Any]:
    """The configuration of a transformers model as plain values; empty for any other."""
    config = getattr(inner_model(model), "config", None)
    to_dict: Any = getattr(config, "to_dict", None)
    return to_dict() if to_dict is not None else {}


def known_sites(model: nn.Module) -> tuple[Site, ...]:
    """Every site of the model that is known by its family; none where that is no model we know."""
    try:
        return find_sites(_shapes(model), config_of(model)).sites
    except SiteError:
        return ()


def chosen_sites(
    model: nn.Module,
    *,
    targets: Targets | None,
    exclude: Targets | None,
    layers: Collection[int] | int | None,
    patterns: Sequence[str],
    spec: Spec | None = None,
) -> Survey:
    """Find the sites that are asked for, as `tdecomp.stack.find_sites` does by name and shape.

    By default those that fit the method: one that splits heads takes the weights that have some.
    What is left out is told.

    Raises
    ------
    ArgumentError
        Targets or layers that are none.
    SiteError
        Nothing matches, or something does that cannot be adapted (listed).
    """
    _check_names(targets=targets, exclude=exclude)
    layers = _numbers(layers)
    everything = isinstance(targets, str) and targets.lower() == ALL_LINEAR
    chooser = None if targets is None or everything else Chooser.of(targets)
    excluded = Chooser.of(exclude) if exclude else None
    wanted = lambda path: (
        chooser is not None and chooser(path) and not (excluded and excluded(path))
    )
    if unfit := _unfit(model, wanted):
        more = f" and {len(unfit) - _MOST} more" if len(unfit) > _MOST else ""
        raise SiteError(
            f"these targets cannot be adapted: {', '.join(unfit[:_MOST])}{more}; name Linear,"
            " Conv1D, Conv2d (of one group) or Embedding modules, or exclude them"
        )
    modules = modules_of(model)
    read = readers_of_weights(model)
    apart = read if everything or (targets is None and not patterns) else {}
    beside = tuple(
        site
        for path, module in modules.items()
        if wanted(path) or (everything and isinstance(module, nn.Linear))
        if not (excluded and excluded(path)) and path not in apart
        for site in _beside(path, module)
        if layers is None or dict(site.labels).get("layer") in layers
    )
    try:
        found = find_sites(
            _shapes(model, linear=everything, apart=apart),
            config_of(model),
            targets=targets,
            exclude=exclude,
            layers=layers,
            patterns=patterns,
        )
    except SiteError as error:
        if not beside:
            raise SiteError(f"{error}{_meant(targets, modules)}") from None
        return Survey("generic", beside, (), _may(beside, read))
    sites = tuple(_turned(site, modules[site.module]) for site in found.sites)
    notes = (*found.notes, *_may((*sites, *beside), read))
    if targets is not None or patterns:
        more = _told(model, read, excluded) if everything else ()
        return Survey(found.family, (*sites, *beside), found.uncovered, (*notes, *more))
    headless = _split_heads(model, spec, sites)
    kept = tuple(site for site in sites if site.path not in headless)
    taken = {site.tensor for site in kept}
    lost = {site.tensor: headless.get(site.path, "") for site in sites if site.tensor not in taken}
    uncovered = (*found.uncovered, *lost.items())
    within = {f"{path}.weight": _INSIDE for path in modules if _is_inside_attention(modules, path)}
    within |= {f"{path}.weight": f"used by {name} without a call" for path, name in apart.items()}
    told = left_out(model, taken, within | dict(uncovered))
    return Survey(found.family, kept, uncovered, (*notes, *told))


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


def _told(model: nn.Module, read: Mapping[str, str], excluded: Any) -> list[str]:
    """Sentences on what is left out: weights used without a call, modules that do more."""
    modules = modules_of(model)
    known = {path: kind_of(module) for path, module in modules.items()}
    mine = [p for p in read if known.get(p) is not None and not (excluded and excluded(p))]
    notes = []
    if mine:
        notes.append(f"Left out, as {read[mine[0]]} uses the weight without a call: {_few(mine)}.")
    more = [p for p, m in modules.items() if isinstance(m, nn.Linear) and does_more(m)]
    more = [path for path in more if not (excluded and excluded(path))]
    if more:
        name = type(modules[more[0]]).__name__
        notes.append(f"Left out, as a {name} {_MORE.removeprefix('which ')}: {_few(more)}.")
    return notes


def _few(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1} more" if paths[1:] else ""
    return f"{paths[0]}{more}"


def _meant(targets: Targets | None, modules: Iterable[str]) -> str:
    """What to write instead of a name that was given where a regex is read."""
    if not isinstance(targets, str) or not any(map(Chooser.of([targets]), modules)):
        return ""
    return f"; a string is a regex for whole paths: give [{targets!r}] to name modules"


def _shapes(
    model: nn.Module, *, linear: bool = False, apart: Collection[str] = ()
) -> dict[str, tuple[int, ...]]:
    """Stored shape of every weight that is a matrix of its module; `linear`: and stored as one.

    Those of the modules `apart` are left out.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    modules = modules_of(model)
    for path, module in modules.items():
        kind = kind_of(module)
        if kind is None or kind.looks_up or _is_inside_attention(modules, path) or path in apart:
            continue
        shape = kind.shape(module)
        if shape is not None and (kind.is_matrix or not linear):
            shapes[f"{path}.weight"] = shape[::-1] if kind.turned else shape
    return shapes


def _unfit(model: nn.Module, wanted: Any) -> list[str]:
    """Modules and bare parameters that are targets and no matrices, with what they are."""
    found = []
    modules = modules_of(model)
    for path, module in modules.items():
        if not path or not wanted(path):
            continue
        kind = kind_of(module)
        if _is_inside_attention(modules, path):
            found.append(f"{path} ({_INSIDE})")
        elif does_more(module):
            found.append(f"{path} ({type(module).__name__}, {_MORE})")
        elif kind is None and any(True for _ in module.parameters(recurse=False)):
            found.append(f"{path} ({type(module).__name__})")
        elif kind is not None and kind.shape(module) is None:
            found.append(f"{path} ({type(module).__name__} that is no matrix)")
    for path, parameter in parameters_of(model).items():
        owner, _, name = path.rpartition(".")
        if name not in ("weight", "bias") and wanted(path) and owner in modules:
            found.append(f"{path} (a parameter of shape {tuple(parameter.shape)}, not a module)")
    return found


def _split_heads(model: nn.Module, spec: Spec | None, sites: Sequence[Site]) -> dict[str, str]:
    """Why default sites do not fit a method that splits heads: path -> reason."""
    if spec is None or "head" not in spec.weight_modes:
        return {}
    fit = {site.path for site in sites_with_heads(sites, everywhere=known_sites(model))}
    if not fit:
        return {}  # binding refuses them, by name
    return {site.path: "without heads" for site in sites if site.path not in fit}


def _is_inside_attention(modules: Mapping[str, nn.Module], path: str) -> bool:
    parent = path.rpartition(".")[0]
    return bool(parent) and isinstance(modules.get(parent), nn.MultiheadAttention)


def _beside(path: str, module: nn.Module) -> tuple[Site, ...]:
    """An embedding, or a matrix that has the name of one: `find_sites` leaves these out."""
    kind = kind_of(module)
    shape = None if kind is None else kind.shape(module)
    if kind is None or shape is None:
        return ()
    if not kind.looks_up and reason_against(f"{path}.weight", shape) != "embedding":
        return ()
    *before, name = path.split(".")
    number = next((int(n) for n in before if n.isdecimal()), None)
    labels = (("proj", name),) if number is None else (("layer", number), ("proj", name))
    return (Site(f"{path}.weight", (), kind.turned, labels, shape, "embedding"),)


def _turned(site: Site, module: nn.Module) -> Site:
    """A site the way round that its module stores it, which names alone do not tell."""
    kind = kind_of(module)
    if site.index or site.transpose or kind is None or not kind.turned:
        return site
    return replace(site, transpose=True, shape=site.shape[::-1])
