"""Saving an adapter and putting it on a model again: one safetensors file, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tdecomp.adapters import Grid, Spec
from tdecomp.adapters.grids import SiteGrid
from tdecomp.errors import ArgumentError, FileError, SiteError
from tdecomp.files.atomic import output_folder
from tdecomp.stack import Site
from tdecomp_torch.adapter import START, Adapter, Settings
from tdecomp_torch.attach import build, check_name
from tdecomp_torch.gathering import Writers, is_part, make_whole, settle
from tdecomp_torch.modules import kind_of
from tdecomp_torch.names import parameters_of

__all__ = ["load_adapter", "save_adapter"]

FILE = "factors.safetensors"
VERSION = 2
_READABLE = (1, VERSION)
_KEY = "tdecomp.adapter"
_BESIDES = "also_train/"
_DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}
_MISFITS = (KeyError, TypeError, ValueError, IndexError, AttributeError)


def save_adapter(
    adapter: Adapter, folder: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write an adapter to a folder, whole or not at all; no base weight is read for it.

    ``factors.safetensors`` holds every trainable factor and every constant that was made of
    weights or changes during training, each once and in its own dtype, and the parameters trained
    besides; its metadata the method, the sites and the settings. Constants that follow from the
    seed are not stored.

    Parameters
    ----------
    adapter
        Attached.
    folder
        Existing ones are refused unless `overwrite`. Of a sharded model (FSDP) all processes save
        together; the first of those that were given the same folder writes it.

    Raises
    ------
    ArgumentError
        A factor is held in parts that cannot be put together here.
    FileError
        The folder cannot be written.
    """
    if not isinstance(folder, str | os.PathLike):
        raise ArgumentError(f"save takes a folder, got {type(folder).__name__}")
    settle(adapter.model)
    held, shapes = adapter.pool.stored(), adapter.shapes()
    for name, parameter in adapter.trained_besides().items():
        held[_BESIDES + name] = parameter
        if is_part(parameter):
            shapes[_BESIDES + name] = adapter.shapes_besides[name]
    state, device = make_whole(held, shapes)
    writers = Writers(Path(folder), device)
    written = False
    try:
        if writers.writes:
            _write(adapter, state, folder, overwrite=overwrite)
        written = True
    finally:
        writers.agree(Path(folder), written=written)


def _write(
    adapter: Adapter,
    state: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
    *,
    overwrite: bool,
) -> None:
    document = {
        "version": VERSION,
        "spec": adapter.spec.to_json(),
        "settings": _settings_json(adapter.settings),
        "dtype": _dtype(adapter),
        "step": adapter.at_step,
        "grids": [_grid_json(grid) for grid in adapter.grids],
        "base": str(getattr(adapter.model, "name_or_path", "") or ""),
        "base_samples": adapter.base_samples(),
    }
    with output_folder(folder, overwrite=overwrite) as temporary:
        save_file(
            {name: value.cpu().contiguous() for name, value in state.items()},
            temporary / FILE,
            {"format": "pt", _KEY: json.dumps(document)},
        )


def load_adapter(
    model: nn.Module, folder: str | os.PathLike[str], *, name: str = "default"
) -> Adapter:
    """Put a saved adapter on a model.

    Parameters
    ----------
    model
        With the same modules as the one it was saved from, at the same paths.
    folder
        Written by `save_adapter`.
    name
        Name of the adapter on this model.

    Raises
    ------
    FileError
        The file is missing, damaged, of a newer version, or its tensors do not fit its method.
    SiteError
        The model is another one; the first module that differs is named. Nothing is changed.
    """
    if not isinstance(folder, str | os.PathLike):
        raise ArgumentError(
            f"load_adapter takes a model and then a folder, got {type(folder).__name__}"
        )
    path = Path(folder)
    path = path / FILE if path.is_dir() else path
    check_name(model, name)
    document, tensors = _read(path)
    try:
        spec = Spec.from_json(document["spec"])
        settings = _settings(document["settings"])
        grids = _grids(document["grids"])
        _check_tasks(grids, settings.tasks)
        step = float(document["step"])
        dtype = None if document["dtype"] is None else _DTYPES[document["dtype"]]
        base = document["base_hash" if document["version"] == 1 else "base_samples"]
    except _MISFITS as error:
        raise FileError(f"{path} is damaged: its description cannot be read ({error})") from error
    _check_model(model, grids, path)
    besides = {k.removeprefix(_BESIDES): v for k, v in tensors.items() if k.startswith(_BESIDES)}
    factors = {k: v for k, v in tensors.items() if not k.startswith(_BESIDES)}
    starts = {k.removeprefix(START): v for k, v in factors.items() if k.startswith(START)}
    parameters = parameters_of(model)
    for key, value in besides.items():
        if key not in parameters or parameters[key].shape != value.shape:
            raise SiteError(f"{path} holds the parameter {key} {tuple(value.shape)}: not in model")
    try:
        stored = factors | starts
        adapter = build(model, name, spec, grids, settings, stored=stored, dtype=dtype)
    except ValueError as error:
        raise FileError(f"{path} cannot be put on this model ({error})") from error
    expected = {
        *adapter.pool.state_dict(),
        *(START + k for k in adapter.factors() if settings.fold),
    }
    if wrong := sorted(expected ^ factors.keys()):
        what = "misses" if wrong[0] in expected else "has, besides its factors,"
        raise FileError(f"{path} {what} the tensor {wrong[0]!r}")
    adapter.notes += _told_of_base(adapter, base)
    adapter.step(step)
    adapter.install(tuple(besides))
    with torch.no_grad():
        for key, value in besides.items():
            parameters[key].copy_(value)
        for key in starts:  # folded into the weights by now
            adapter.factors()[key].copy_(factors[key])
    return adapter


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileError(f"{path} does not exist: give a folder that save wrote")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise FileError(f"{path} holds no adapter: its metadata has no {_KEY!r}")
            document = json.loads(metadata[_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise FileError(f"{path} is damaged ({error})") from error
    if not isinstance(document, dict):
        raise FileError(f"{path} is damaged: its description is a {type(document).__name__}")
    if odd := sorted(key for key, value in tensors.items() if not value.is_floating_point()):
        raise FileError(f"{path} is damaged: the tensor {odd[0]!r} is {tensors[odd[0]].dtype}")
    if document.get("version") not in _READABLE:
        raise FileError(
            f"{path} has format version {document.get('version')}, this tdecomp reads {VERSION}"
        )
    return document, tensors


def _check_model(model: nn.Module, grids: tuple[SiteGrid, ...], path: Path) -> None:
    """Compare the sites of the file with the modules of the model."""
    modules = dict(model.named_modules())
    for sites in grids:
        for site in sites.sites:
            module = modules.get(site.module)
            kind = None if module is None else kind_of(module)
            if module is None or kind is None:
                raise SiteError(
                    f"{path} was saved from another model: this one has no module {site.module}"
                )
            shape = kind.shape(module)
            end = site.first_row + site.shape[0]
            if shape is None or end > shape[0] or site.shape[1] != shape[1]:
                raise SiteError(
                    f"{path} was saved from another model: {site.path} was {site.shape}, this"
                    f" model's {site.module} is {shape}"
                )


def _told_of_base(adapter: Adapter, saved: str | Mapping[str, str | None]) -> tuple[str, ...]:
    """A sentence if the base weights are others than those of the file, or cannot be compared.

    Parameters
    ----------
    adapter
        Not installed yet, so that the weights are the base.
    saved
        Digests by module path; of format version 1 one of all bytes.
    """
    here = adapter.base_samples()
    if isinstance(saved, str):
        unknown = [path for path, own in here.items() if own is None]
        wrong = ["of all"] if not unknown and saved != _hash(adapter) else []
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


def _hash(adapter: Adapter) -> str:
    """Digest of the adapted base weights as format version 1 has it: of names, shapes and bytes."""
    digest = hashlib.sha256()
    for target in sorted(adapter.targets, key=lambda target: target.path):
        for own in target.kind.content(target.module):
            digest.update(f"{target.path} {tuple(own.shape)} {own.dtype}".encode())
            raw = own.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(raw.numpy().tobytes())
    return digest.hexdigest()


def _dtype(adapter: Adapter) -> str | None:
    """Dtype of all factors, in which the constants that are not stored are made again."""
    found = {str(t.dtype) for t in (*adapter.pool.parameters(), *adapter.pool.buffers())}
    return found.pop().removeprefix("torch.") if len(found) == 1 else None


def _settings_json(settings: Settings) -> dict[str, Any]:
    plain = asdict(settings)
    rank = plain["rank"]
    return plain | {
        "sides": sorted(settings.sides),
        "rank": dict(rank) if isinstance(rank, Mapping) else rank,
    }


def _settings(plain: Mapping[str, Any]) -> Settings:
    return Settings(
        **{**plain, "sides": frozenset(plain["sides"]), "tasks": tuple(plain.get("tasks", ()))}
    )


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


def _grids(plain: Sequence[Mapping[str, Any]]) -> tuple[SiteGrid, ...]:
    found = tuple(map(_grid, plain))
    if not found:
        raise ValueError("it names no module")
    for sites in found:
        wrong = [site.path for site in sites.sites if site.shape != sites.grid.shape]
        if wrong or len(sites.sites) != sites.grid.n_sites:
            raise ValueError(
                f"the group {sites.grid.name} of {sites.grid.n_sites} weights of"
                f" {sites.grid.shape} does not fit {', '.join(wrong) or 'its modules'}"
            )
    return found


def _check_tasks(grids: Sequence[SiteGrid], tasks: Sequence[str]) -> None:
    """Refuse weights that are not one site for every task."""
    found: dict[str, list[Any]] = {}
    for sites in grids:
        for site in sites.sites:
            found.setdefault(site.path, []).append(dict(site.labels).get("task"))
    for path, own in found.items():
        if len(own) != max(len(tasks), 1) or (tasks and {*own} != {*tasks}):
            raise ValueError(f"{path} is not one site for each of {', '.join(tasks) or 'no tasks'}")


def _grid(plain: Mapping[str, Any]) -> SiteGrid:
    out, in_ = plain["shape"]
    grid = Grid(
        plain["name"],
        (int(out), int(in_)),
        tuple((mode, tuple(labels)) for mode, labels in plain["modes"]),
        tuple(tuple(map(int, place)) for place in plain["places"]),
        plain["heads"],
        plain["heads_in"],
    )
    return SiteGrid(grid, tuple(map(Site.from_json, plain["sites"])))
