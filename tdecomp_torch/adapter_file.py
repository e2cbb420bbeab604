"""Saving an adapter and putting it on a model again: one safetensors file, no pickle."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tdecomp.adapters.grids import SiteGrid
from tdecomp.errors import ArgumentError, FileError, SiteError
from tdecomp.files.apart import files_in
from tdecomp.files.atomic import output_folder
from tdecomp.stack import Site
from tdecomp_torch.attached import Attached
from tdecomp_torch.build import build
from tdecomp_torch.description import Description, describe, read_description
from tdecomp_torch.gathering import Writers, is_part, make_whole, settle
from tdecomp_torch.installing import START, check_name, install
from tdecomp_torch.keys import Held, held_factors
from tdecomp_torch.modules import kind_of
from tdecomp_torch.names import modules_of, parameters_of
from tdecomp_torch.plainly import plainly
from tdecomp_torch.training import step

__all__ = ["load", "save_adapter"]

FILE = "factors.safetensors"
_KEY = "tdecomp.adapter"
_BESIDES = "also_train/"
_DTYPES = ("F16", "BF16", "F32", "F64")
_FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, RuntimeError)
"""What building may raise on values that passed every check, besides ValueError and TypeError."""


def save_adapter(
    attached: Attached, folder: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write an adapter to a folder, whole or not at all; no base weight is read for it.

    ``factors.safetensors`` holds every trainable factor and every constant that was made of
    weights or changes during training, each once and in its own dtype, and the parameters trained
    besides; its metadata the method, the sites and the settings. Constants that follow from the
    seed are not stored.

    Parameters
    ----------
    attached
        On its model.
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
    attached.check()
    if not isinstance(folder, str | os.PathLike):
        raise ArgumentError(f"save takes a folder, got {type(folder).__name__}")
    settle(attached.model)
    held, shapes = attached.pool.stored(), attached.shapes()
    for name, parameter in attached.trained_besides().items():
        held[_BESIDES + name] = parameter
        if is_part(parameter):
            shapes[_BESIDES + name] = attached.shapes_besides[name]
    state, device = make_whole(held, shapes)
    writers = Writers(Path(folder), device)
    written = False
    try:
        if writers.writes:
            _write(attached, state, folder, overwrite=overwrite)
        written = True
    finally:
        writers.agree(Path(folder), written=written)


def _write(
    attached: Attached,
    state: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
    *,
    overwrite: bool,
) -> None:
    inputs = files_in(str(getattr(attached.model, "name_or_path", "") or ""))
    with output_folder(folder, overwrite=overwrite, inputs=inputs) as temporary:
        save_file(
            {name: value.cpu().contiguous() for name, value in state.items()},
            temporary / FILE,
            {"format": "pt", _KEY: describe(attached)},
        )


@plainly()
def load(model: nn.Module, folder: str | os.PathLike[str], name: str) -> Attached:
    """Put a saved adapter on a model; see `tdecomp_torch.load_adapter`."""
    if not isinstance(folder, str | os.PathLike):
        raise ArgumentError(
            f"load_adapter takes a model and then a folder, got {type(folder).__name__}"
        )
    path = Path(folder)
    path = path / FILE if path.is_dir() else path
    check_name(model, name)
    with _opened(path) as file:
        said, shapes = _described(file, path), _shapes(file, path)
        rename = _fitted(model, said, shapes, path)
        said = _renamed(said, rename)
        besides = {
            rename(key.removeprefix(_BESIDES)): key for key in shapes if key.startswith(_BESIDES)
        }
        with _as_damage(path):
            _check_factors(said, shapes, path)
            tensors = {key: file.get_tensor(key) for key in shapes}
            attached = build(
                model,
                name,
                said.spec,
                said.grids,
                said.settings,
                stored=_starts(said, tensors),
                dtype=said.dtype,
            )
            step(attached, said.step)
    attached.notes += _told_of_base(attached, said.base)
    install(attached, tuple(besides))
    with torch.no_grad():
        if said.settings.fold:  # by now the start is folded into the weights
            for key, factor in attached.factors().items():
                factor.copy_(tensors[key])
        for key, parameter in attached.trained_besides().items():
            if key in besides:
                parameter.copy_(_like(parameter, tensors[besides[key]]))
    return attached


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise FileError(f"{path} does not exist: give a folder that save wrote")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise FileError(f"{path} is damaged ({error})") from error


@contextmanager
def _as_damage(path: Path) -> Iterator[None]:
    """Errors of what is built of a file as errors of the file."""
    try:
        yield
    except (ValueError, TypeError, *_FAULTS) as error:
        raise FileError(f"{path} cannot be put on this model ({error})") from error


def _described(file: Any, path: Path) -> Description:
    plain = (file.metadata() or {}).get(_KEY)
    if plain is None:
        raise FileError(f"{path} holds no adapter: its metadata has no {_KEY!r}")
    try:
        return read_description(plain)
    except (ValueError, TypeError, *_FAULTS) as error:
        raise FileError(f"{path} is damaged: {error}") from error


def _shapes(file: Any, path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, none of which is read."""
    found = {}
    for key in file.keys():  # noqa: SIM118 - not a mapping
        part = file.get_slice(key)
        if part.get_dtype() not in _DTYPES:
            dtype = part.get_dtype()
            raise FileError(f"{path} is damaged: the tensor {key!r} is {dtype}, not floating")
        found[key] = tuple(part.get_shape())
    return found


def _check_factors(said: Description, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Compare the factors in the file with those of its method, before anything is made."""
    known: dict[str, Held] = {}
    for held in held_factors(said.spec, said.grids, said.settings):
        same = known.setdefault(held.key, held)
        if same.shape != held.shape:
            raise FileError(f"{path}: groups differ in the size of their factor {held.name!r}")
    expected = {key: held.shape for key, held in known.items()}
    needed = {key for key, held in known.items() if not held.follows}
    if said.settings.fold:
        starts = {START + key: held.shape for key, held in known.items() if held.trainable}
        expected |= starts
        needed |= starts.keys()
    present = {key for key in shapes if not key.startswith(_BESIDES)}
    if missing := sorted(needed - present):
        raise FileError(f"{path} misses the tensor {missing[0]!r}")
    if more := sorted(present - expected.keys()):
        raise FileError(f"{path} has, besides its factors, the tensor {more[0]!r}")
    for key in sorted(present):
        if shapes[key] != expected[key]:
            factor = known[key.removeprefix(START)]
            raise FileError(
                f"{path}: the factor {factor.name!r} ({key}) is {shapes[key]}, its method makes it"
                f" {expected[key]}"
            )


def _starts(said: Description, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Factors as they started where a start is folded into the weights, else as they are."""
    if not said.settings.fold:
        return dict(tensors)
    starts = {k.removeprefix(START): v for k, v in tensors.items() if k.startswith(START)}
    return {**tensors, **starts}


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """A value as the parameter that takes it is held: sharded, where that is."""
    if not hasattr(parameter, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = parameter
    return distribute_tensor(value, sharded.device_mesh, sharded.placements)


def _fitted(
    model: nn.Module, said: Description, shapes: Mapping[str, tuple[int, ...]], path: Path
) -> Callable[[str], str]:
    """How names in the file are those of modules and parameters of the model.

    They are equal, or one is what the other calls it inside of a larger module.

    Raises
    ------
    SiteError
        The model is another one, or has several places that fit.
    """
    modules, present = modules_of(model), parameters_of(model)
    besides = [key.removeprefix(_BESIDES) for key in shapes if key.startswith(_BESIDES)]

    def misfit(rename: Callable[[str], str]) -> str:
        for sites in said.grids:
            for site in sites.sites:
                if reason := _misfit(modules.get(rename(site.module)), site):
                    return f"was saved from another model: {reason}"
        for name in besides:
            own, shape = present.get(rename(name)), shapes[_BESIDES + name]
            if own is None or tuple(own.shape) != shape:
                return f"holds the parameter {name!r} {shape}: not in model"
        return ""

    reason = misfit(str)
    if not reason:
        return str
    first = said.grids[0].sites[0].module
    outer = [name.removesuffix(first) for name in modules if name.endswith(f".{first}")]
    inner = [first[: k + 1] for k, c in enumerate(first) if c == "." and first[k + 1 :] in modules]
    places: list[Callable[[str], str]] = [
        *(lambda name, before=before: f"{before}{name}" for before in outer),
        *(lambda name, before=before: name.removeprefix(before) for before in inner),
    ]
    fits = [rename for rename in places if not misfit(rename)]
    if len(fits) > 1:
        one, other = fits[0](first), fits[1](first)
        raise SiteError(
            f"{path} was saved from a model with {first}, and this one has {one} and {other}: give"
            " the part of the model that is meant"
        )
    if not fits:
        raise SiteError(f"{path} {reason}")
    return fits[0]


def _misfit(module: nn.Module | None, site: Site) -> str:
    """Why a module is not that of a site; empty if it is."""
    kind = None if module is None else kind_of(module)
    if module is None or kind is None:
        return f"this one has no module {site.module}"
    shape = kind.shape(module)
    end = site.first_row + site.shape[0]
    if shape is None or end > shape[0] or site.shape[1] != shape[1]:
        return f"{site.path} was {site.shape}, this model's {site.module} is {shape}"
    return ""


def _renamed(said: Description, rename: Callable[[str], str]) -> Description:
    """A description by the names of the model."""
    if rename is str:
        return said
    grids = tuple(
        SiteGrid(
            sites.grid,
            tuple(replace(s, tensor=f"{rename(s.module)}.weight") for s in sites.sites),
        )
        for sites in said.grids
    )
    base = said.base if isinstance(said.base, Mapping) else {}  # one digest has the names in it
    return replace(said, grids=grids, base={rename(name): own for name, own in base.items()})


def _told_of_base(attached: Attached, saved: str | Mapping[str, str | None]) -> tuple[str, ...]:
    """A sentence if the base weights are others than those of the file, or cannot be compared.

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
