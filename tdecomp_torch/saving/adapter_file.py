"""Saving an adapter and putting it on a model again: one safetensors file, no pickle."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tdecomp.errors import ArgumentError, FileError
from tdecomp.files.apart import files_in
from tdecomp.files.atomic import output_folder
from tdecomp.files.attached import BESIDES, KEY, START, AdapterDescription, read_description
from tdecomp_torch.attached import Attached
from tdecomp_torch.making.build import build
from tdecomp_torch.making.filling import Starts
from tdecomp_torch.making.installing import check_name, install
from tdecomp_torch.making.plan import AdapterPlan, Held, plan_adapter
from tdecomp_torch.model.gathering import Writers, is_part, make_whole, settle
from tdecomp_torch.model.inventory import Inventory
from tdecomp_torch.plainly import plainly
from tdecomp_torch.saving.description import describe
from tdecomp_torch.saving.fitting import names_in, renamed, told_of_base

__all__ = ["load", "save_adapter"]

FILE = "factors.safetensors"
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
        held[BESIDES + name] = parameter
        if is_part(parameter):
            shapes[BESIDES + name] = attached.shapes_besides[name]
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
            {"format": "pt", KEY: describe(attached)},
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
        keys = {k.removeprefix(BESIDES): k for k in shapes if k.startswith(BESIDES)}
        inventory = Inventory(model)
        rename = names_in(
            inventory, said.grids, {name: shapes[key] for name, key in keys.items()}, path
        )
        besides = {rename(name): key for name, key in keys.items()}
        said = renamed(said, rename)
        with _as_damage(path):
            plan = plan_adapter(inventory, said.spec, said.grids, said.settings)
            _check_factors(plan, shapes, path)
            tensors = {key: file.get_tensor(key) for key in shapes}
            stored = _starts(tensors, folded=said.settings.fold)
            attached = build(plan, name, Starts(stored=stored, dtype=_dtype(said.dtype)))
            attached.schedule.move_to(said.step)
    attached.notes += told_of_base(attached, said.base)
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
        peft = (path.parent / "adapter_config.json").is_file()
        raise FileError(
            f"{path} does not exist: give a folder that save wrote",
            tip="that is a folder of PEFT: import tdecomp_torch.peft, and load it with"
            " peft.PeftModel.from_pretrained(model, FOLDER)"
            if peft
            else "",
        )
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


def _described(file: Any, path: Path) -> AdapterDescription:
    plain = (file.metadata() or {}).get(KEY)
    if plain is None:
        raise FileError(f"{path} holds no adapter: its metadata has no {KEY!r}")
    try:
        return read_description(plain)
    except (ValueError, TypeError, *_FAULTS) as error:
        raise FileError(f"{path} is damaged: {error}") from error


def _shapes(file: Any, path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor; no values are read."""
    found = {}
    for key in file.keys():  # noqa: SIM118 - not a mapping
        part = file.get_slice(key)
        if part.get_dtype() not in _DTYPES:
            dtype = part.get_dtype()
            raise FileError(f"{path} is damaged: the tensor {key!r} is {dtype}, not floating")
        found[key] = tuple(part.get_shape())
    return found


def _check_factors(plan: AdapterPlan, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Compare the factors in the file with those of its method, before anything is made."""
    known: dict[str, Held] = {}
    for held in chain.from_iterable(plan.held):
        same = known.setdefault(held.key, held)
        if same.shape != held.shape:
            raise FileError(
                f"{path}: groups differ in the size of their factor {held.factor.name!r}"
            )
    expected = {key: held.shape for key, held in known.items()}
    needed = {key for key, held in known.items() if not held.follows}
    if plan.settings.fold:
        starts = {START + key: held.shape for key, held in known.items() if held.factor.trainable}
        expected |= starts
        needed |= starts.keys()
    present = {key for key in shapes if not key.startswith(BESIDES)}
    if missing := sorted(needed - present):
        raise FileError(f"{path} misses the tensor {missing[0]!r}")
    if more := sorted(present - expected.keys()):
        raise FileError(f"{path} has, besides its factors, the tensor {more[0]!r}")
    for key in sorted(present):
        if shapes[key] != expected[key]:
            name = known[key.removeprefix(START)].factor.name
            raise FileError(
                f"{path}: the factor {name!r} ({key}) is {shapes[key]}, its method makes it"
                f" {expected[key]}"
            )


def _starts(tensors: Mapping[str, Tensor], *, folded: bool) -> dict[str, Tensor]:
    """Factors as they started where a start is folded into the weights, else as they are."""
    if not folded:
        return dict(tensors)
    starts = {k.removeprefix(START): v for k, v in tensors.items() if k.startswith(START)}
    return {**tensors, **starts}


def _dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else getattr(torch, name)


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """A value laid out as the parameter that takes it: sharded if that is sharded."""
    if not hasattr(parameter, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = parameter
    return distribute_tensor(value, sharded.device_mesh, sharded.placements)
