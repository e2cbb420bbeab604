"""Outputs that appear whole or not at all: made beside their place, then moved into it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import FileError
from .apart import check_apart, resolved
from .ours import foreign_in, mark
from .storage import Url, place
from .uploads import uploaded_file, uploaded_folder
from .workshop import Workshop, clear, recover

__all__ = ["output_file", "output_folder"]


@contextmanager
def output_folder(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
) -> Generator[Path]:
    """Give a temporary folder beside ``path``; move it to ``path`` when the block succeeds.

    On any exception, KeyboardInterrupt included, the temporary folder is removed and what was at
    ``path`` stays as it was. Missing parents are made, and removed again on failure. A symbolic
    link at ``path`` is followed. The folder gets the list by which `ours` knows it again.

    Parameters
    ----------
    path
        The folder to make; on a server: see `uploads`.
    overwrite
        Whether an existing folder may be replaced: an empty one, or one that holds what this
        function made and nothing else.
    inputs
        Files and folders that are being read; ``path`` may not be, hold or lie inside one.

    Raises
    ------
    FileError
        Before any work, if ``path`` may not be written; afterwards, if the disk refuses.
    """
    if isinstance(where := place(path), Url):
        with uploaded_folder(where, overwrite=overwrite, inputs=inputs) as new:
            yield new
        return
    target = resolved(path)
    recover(target)

    def check() -> None:
        _check_old_folder(target, overwrite)

    with _made(target, overwrite, inputs, check) as new:
        new.mkdir()
        yield new
        mark(new)


@contextmanager
def output_file(
    path: str | os.PathLike[str],
    *,
    ours: Callable[[Path], bool],
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
) -> Generator[Path]:
    """Give a temporary file name beside ``path``; move it to ``path`` when the block succeeds.

    The suffix is kept, since some writers choose the format by it. Otherwise as `output_folder`.

    Parameters
    ----------
    path
        The file to make; on a server: see `uploads`.
    ours
        Whether an existing file has the content that is being written; an empty file may be
        replaced too.
    overwrite
        Whether an existing file may be replaced.
    inputs
        As for `output_folder`.

    Raises
    ------
    FileError
        Before any work, if ``path`` may not be written; afterwards, if the disk refuses.
    """
    if isinstance(where := place(path), Url):
        with uploaded_file(where, ours=ours, overwrite=overwrite, inputs=inputs) as new:
            yield new
        return
    target = resolved(path)

    def check() -> None:
        _check_old_file(target, overwrite, ours)

    with _made(target, overwrite, inputs, check) as new:
        yield new


@contextmanager
def _made(
    target: Path,
    overwrite: bool,
    inputs: Sequence[str | os.PathLike[str]],
    check: Callable[[], None],
) -> Generator[Path]:
    """The place to make an output at; it is moved to ``target``, or everything is undone."""
    shop = None
    try:
        _check_parent(target)
        check_apart(target, inputs)
        check()
        clear(target)
        shop = Workshop.open(target)
        yield shop.new
        check()  # hours may have passed
        shop.put_in_place(overwrite)
    except OSError as error:
        raise _in_our_words(error, target, shop) from error
    finally:
        if shop is not None:
            shop.discard()


# ------------------------------------------------------------------------------------- refusals


def _check_parent(target: Path) -> None:
    existing = next(folder for folder in target.parents if folder.exists())
    if not existing.is_dir():
        raise FileError(f"cannot write {target}: {existing} is not a folder")


def _check_free(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise FileError(
            f"{target} already exists", tip="add overwrite=True, or choose another name"
        )


def _check_old_file(target: Path, overwrite: bool, ours: Callable[[Path], bool]) -> None:
    if target.is_dir():
        raise FileError(f"{target} is a folder: name a file")
    _check_free(target, overwrite)
    if not target.exists():
        return
    if not target.is_file():
        raise FileError(f"{target} is not a regular file: choose another name")
    if target.stat().st_size and not ours(target):
        raise FileError(
            f"{target} is not an output of tdecomp of this kind, by its content: it is not "
            "replaced; delete it yourself or choose another name"
        )


def _check_old_folder(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise FileError(f"{target} exists and is not a folder: choose another name")
    _check_free(target, overwrite)
    here = Path.cwd()
    if target == here or target in here.parents:
        raise FileError(f"{target} holds the current folder: it cannot be replaced")
    if fault := foreign_in(target):
        raise FileError(f"{target} {fault}")


def _in_our_words(error: OSError, target: Path, shop: Workshop | None) -> FileError:
    where = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else target
    ours = where == target or (shop is not None and shop.folder in (where, *where.parents))
    detail = "" if ours else f" ({where})"
    return FileError(f"cannot write {target}: {error.strerror or error}{detail}")
