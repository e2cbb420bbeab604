"""Outputs that appear whole or not at all: written beside their place, then renamed into it."""

import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import FileError

__all__ = ["OUR_FILES", "output_file", "output_folder"]

OUR_FILES = ("factors.safetensors", "adapter_config.json", "config.json", "report.json")


@contextmanager
def output_folder(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    marker: Collection[str] = OUR_FILES,
) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; rename it to ``path`` when the block succeeds.

    On any exception, KeyboardInterrupt included, the temporary folder is removed and what was at
    ``path`` stays as it was. Missing parents are made, and removed again on failure. A symbolic
    link at ``path`` is followed.

    Parameters
    ----------
    path
        The folder to make.
    overwrite
        Whether an existing folder may be replaced.
    inputs
        Files and folders that are being read; ``path`` may not equal, hold or lie inside one.
    marker
        A folder that is not empty is only replaced if it holds a file of one of these names.

    Raises
    ------
    FileError
        Before any work, if ``path`` may not be written; afterwards, if the disk refuses.
    """
    target = _resolved(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    missing = _missing_parents(target)
    try:
        _check_parent(target)
        _check_inputs(target, inputs)
        _check_old_folder(target, overwrite, marker)
        temporary.mkdir(parents=True)
        yield temporary
        _move_folder(temporary, target, overwrite)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove(missing)
        if isinstance(error, OSError):
            raise _in_our_words(error, target, temporary) from error
        raise


@contextmanager
def output_file(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
) -> Iterator[Path]:
    """Give a temporary file name beside ``path``; rename it to ``path`` when the block succeeds.

    The suffix is kept, since some writers choose the format by it. Otherwise as `output_folder`.

    Parameters
    ----------
    path
        The file to make.
    overwrite
        Whether an existing file may be replaced.
    inputs
        Files and folders that are being read; ``path`` may not equal one of the files.

    Raises
    ------
    FileError
        Before any work, if ``path`` may not be written; afterwards, if the disk refuses.
    """
    target = _resolved(path)
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.tmp{target.suffix}")
    missing = _missing_parents(target)
    try:
        _check_parent(target)
        _check_old_file(target, overwrite, inputs)
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _check_free(target, overwrite)
        temporary.replace(target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        _remove(missing)
        if isinstance(error, OSError):
            raise _in_our_words(error, target, temporary) from error
        raise


# ------------------------------------------------------------------------------------- refusals


def _check_parent(target: Path) -> None:
    existing = next(folder for folder in target.parents if folder.exists())
    if not existing.is_dir():
        raise FileError(f"cannot write {target}: {existing} is not a folder")


def _places(inputs: Sequence[str | os.PathLike[str]]) -> set[Path]:
    """Every input as it is named and as its links lead."""
    return {Path(one).absolute() for one in inputs} | {_resolved(one) for one in inputs}


def _resolved(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise FileError(f"cannot follow {os.fspath(path)}: {error}") from error


def _check_inputs(target: Path, inputs: Sequence[str | os.PathLike[str]]) -> None:
    for place in _places(inputs):
        if target == place or target in place.parents:
            raise FileError(f"{target} holds the input {place}: write to another folder")
        if place in target.parents:
            raise FileError(f"{target} lies inside the input {place}: write to another folder")


def _check_free(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise FileError(f"{target} already exists: choose another name, or ask for overwriting")


def _check_old_file(
    target: Path, overwrite: bool, inputs: Sequence[str | os.PathLike[str]]
) -> None:
    if target.is_dir():
        raise FileError(f"{target} is a folder: name a file")
    if target in _places(inputs):
        raise FileError(f"{target} is one of the inputs: write to another file")
    _check_free(target, overwrite)


def _check_old_folder(target: Path, overwrite: bool, marker: Collection[str]) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise FileError(f"{target} exists and is not a folder: choose another name")
    _check_free(target, overwrite)
    here = Path.cwd()
    if target == here or target in here.parents:
        raise FileError(f"{target} holds the current folder: it cannot be replaced")
    if any(target.iterdir()) and not any((target / name).is_file() for name in marker):
        raise FileError(
            f"{target} is not an output of tdecomp (it has none of {', '.join(marker)}): "
            "it is not replaced; delete it yourself or choose another name"
        )


# --------------------------------------------------------------------------------- moving, undoing


def _missing_parents(target: Path) -> list[Path]:
    """Folders above ``target`` that do not exist yet, innermost first."""
    return [folder for folder in target.parents if not os.path.exists(folder)]  # noqa: PTH110 - never raises


def _move_folder(temporary: Path, target: Path, overwrite: bool) -> None:
    aside = temporary.with_suffix(".old")
    try:
        if overwrite and target.exists():
            target.rename(aside)
        temporary.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        if target.exists():  # the new one, if the old one was moved at all
            shutil.rmtree(aside, ignore_errors=True)
        elif aside.exists():
            aside.rename(target)
        raise


def _remove(missing: Sequence[Path]) -> None:
    for folder in missing:
        with suppress(OSError):  # never made, or someone else uses it by now
            folder.rmdir()


def _in_our_words(error: OSError, target: Path, temporary: Path) -> FileError:
    where = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else target
    ours = where in (target, temporary) or temporary in where.parents
    detail = "" if ours else f" ({where})"
    return FileError(f"cannot write {target}: {error.strerror or error}{detail}")
