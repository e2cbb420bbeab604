"""What inputs occupy on disk, so that no output takes the place of one, under whatever name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ..errors import FileError
from .below import entries_below
from .storage import Url
from .storage import place as placed

__all__ = ["check_apart", "files_in", "resolved"]

_INDEX = ".index.json"
_Identity = tuple[int, int]  # device and number of a file: the same for all its names


def check_apart(target: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse an output that is an input, holds one or lies inside one.

    A file occupies itself and the ``config.json`` beside it, an index its folder too, a folder all
    that it holds and what its links lead to. Links, hard links, other mounts and other spellings
    of the same place are seen through.

    Parameters
    ----------
    target
        Of the output; resolved, may not exist.
    inputs
        Files and folders that are being read.

    Raises
    ------
    FileError
        Names the output and the input.
    """
    itself, around = _identity(target), _identities(target.parents)
    for place in _places(inputs):
        one = _identity(place)
        if target == place or (itself and itself == one):
            which = "the input itself" if target == place else f"the input {place}"
            raise FileError(f"{target} is {which}: write to another place")
        if target in place.parents or (itself and itself in _identities(place.parents)):
            raise FileError(f"{target} holds the input {place}: write to another folder")
        if place in target.parents or (place.is_dir() and one in around):
            raise FileError(f"{target} lies inside the input {place}: write to another folder")
    if itself:  # what does not exist yet is no file of an input
        _check_links(target, itself, inputs)


def files_in(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The files of a folder, or a file, as inputs: outputs may lie beside them; () for neither."""
    place, found = Path(path), list[Path]()
    with suppress(OSError, ValueError):
        if os.fspath(path) and place.exists():
            found = sorted(place.iterdir()) if place.is_dir() else [place]
    return tuple(file for file in found if file.is_file())


def resolved(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path without links; a FileError where links go in a circle."""
    if isinstance(where := placed(path), Url):
        raise FileError(f"{where}: outputs are written to a disk of this machine: name a folder")
    try:
        return where.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: before Python 3.13
        raise FileError(f"cannot follow {os.fspath(path)!r}: {error}") from error


def _places(inputs: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Inputs as they are named and as their links lead, and what belongs to them."""
    for one in (given for given in inputs if not isinstance(placed(given), Url)):
        for path in dict.fromkeys((Path(one).absolute(), resolved(one))):
            yield path
            if path.name.endswith(_INDEX):
                yield path.parent
            elif path.is_file():
                yield path.with_name("config.json")


def _check_links(target: Path, itself: _Identity, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse a target that a link inside an input folder leads to, or that holds such a file."""
    folders = {place for place in _places(inputs) if place.is_dir()}
    for file in (file for folder in folders for file in _linked(folder)):
        with suppress(OSError, RuntimeError):  # a broken link leads nowhere
            place = file.resolve(strict=True)
            if _identity(place) == itself or itself in _identities(place.parents):
                raise FileError(
                    f"{target} is or holds {place}, which the input {file} leads to: write to "
                    "another place"
                )


def _linked(folder: Path) -> Iterator[Path]:
    """Files below a folder that have another name too; those in linked folders as well."""
    for entry in entries_below(folder):
        path = Path(entry.path)
        with suppress(OSError):
            if entry.is_symlink() and entry.is_dir():
                yield from (file for file in path.iterdir() if file.is_file())
            elif entry.is_symlink() or entry.stat(follow_symlinks=False).st_nlink > 1:
                yield path


def _identity(path: Path) -> _Identity | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _identities(paths: Iterable[Path]) -> set[_Identity]:
    return {found for path in paths if (found := _identity(path))}
