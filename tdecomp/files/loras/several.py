"""Adapters in a folder of adapters, and the place where one is written."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tdecomp.errors import FileError
from tdecomp.files import safetensors
from tdecomp.files.atomic import output_file, output_folder
from tdecomp.files.loras.adapter_file import AdapterFile
from tdecomp.files.loras.reading import CONFIG, WEIGHTS, read_adapter
from tdecomp.files.loras.schemes import NamingScheme
from tdecomp.files.loras.writing import PAIRS_KEY
from tdecomp.files.ours import has_metadata
from tdecomp.files.storage import Url, local, place

__all__ = ["AdapterSource", "adapters_in", "on_disk", "opened", "outputs"]

AdapterSource = str | Path | AdapterFile
"""A path, or an adapter that is open or in memory."""


def opened(
    source: AdapterSource,
    *,
    name: str | None = None,
    base: str | os.PathLike[str] | None = None,
) -> AdapterFile:
    """The adapter that a source stands for, under a name if one is given."""
    if isinstance(source, AdapterFile):
        return source if name is None else replace(source, name=name)
    return read_adapter(source, name=name, base=base)


def on_disk(sources: Iterable[AdapterSource | None]) -> list[Path]:
    """The paths that sources are read from, which no output may overwrite."""
    read = (one.path if isinstance(one, AdapterFile) else one for one in sources)
    places = [place(path) for path in read if path is not None]
    return [path for path in places if not isinstance(path, Url) and path.exists()]


def adapters_in(source: AdapterSource) -> tuple[AdapterSource, ...]:
    """The adapters that a source stands for: itself, or all that a folder of adapters holds.

    A folder of adapters has no weights of its own but folders that have ``adapter_config.json``, or
    several ``.safetensors`` files.

    Raises
    ------
    FileError
        There is nothing there.
    """
    if isinstance(source, AdapterFile):
        return (source,)
    path = local(source, "adapters")
    if not path.exists():
        raise FileError(f"{path} does not exist")
    if not path.is_dir() or (path / CONFIG).exists() or (path / WEIGHTS).exists():
        return (path,)
    visible = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    files = [p for p in visible if p.suffix == ".safetensors" and p.is_file()]
    folders = [p for p in visible if p.is_dir() and (p / CONFIG).exists()]
    if len(files) + len(folders) > 1 or folders:
        return (*folders, *files)
    return (path,)


@contextmanager
def outputs(
    path: str | os.PathLike[str],
    adapters: Sequence[AdapterFile],
    schemes: Sequence[NamingScheme],
    *,
    single: bool,
    overwrite: bool,
    inputs: Sequence[str | os.PathLike[str]],
) -> Generator[list[Path]]:
    """Places to write adapters at, each of its scheme; all appear, or none.

    Of a single adapter ``path`` is its place, else the folder that gets all by their names.
    """
    path = local(path, "adapters")
    if not single:
        with output_folder(path, overwrite=overwrite, inputs=inputs) as root:
            yield [_inside(root, a, s) for a, s in zip(adapters, schemes, strict=True)]
        return
    (scheme,) = schemes
    _check_kind(path, scheme)
    if scheme.in_folder:
        with output_folder(path, overwrite=overwrite, inputs=inputs) as new:
            yield [new]
        return
    with output_file(path, ours=_is_ours, overwrite=overwrite, inputs=inputs) as new:
        yield [new]


def _is_ours(file: Path) -> bool:
    return has_metadata(file, PAIRS_KEY)


def _inside(root: Path, adapter: AdapterFile, scheme: NamingScheme) -> Path:
    if not scheme.in_folder:
        return root / f"{adapter.name}.safetensors"
    place = root / adapter.name
    place.mkdir()
    return place


def _check_kind(path: Path, scheme: NamingScheme) -> None:
    is_file = path.suffix in {".safetensors", *safetensors.PICKLE_SUFFIXES}
    if scheme.in_folder and is_file:
        raise FileError(f"{path}: adapters of {scheme.name!r} are folders: name a folder")
    if not scheme.in_folder and path.suffix != ".safetensors":
        raise FileError(
            f"{path}: adapters of {scheme.name!r} are files: name one that ends in .safetensors"
        )
