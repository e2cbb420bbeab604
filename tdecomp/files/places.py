"""What a name in a model's folder may be: a regular file, or a link to one that belongs there."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import FileError
from .storage import Location, Url

__all__ = ["check_inside", "is_there"]


def is_there(file: Location) -> bool:
    """Whether there is a regular file, or a link to one.

    Raises
    ------
    FileError
        If something else has the name: a folder, a pipe, a device, or a link that leads nowhere.
    """
    if isinstance(file, Url):
        return file.is_file()
    if not os.path.lexists(file):
        return False
    if not file.exists():
        raise FileError(f"{file} is a link that leads nowhere: download the file, or remove it")
    if not file.is_file():
        raise FileError(f"{file} is not a regular file but a folder, pipe or device: remove it")
    return True


def check_inside(folder: Location, file: Location) -> None:
    """Refuse a link that leads out of the folder, unless to a blob of a hub cache.

    A downloaded folder may hold links to anything on this machine; what they lead to would be read,
    and copied into a model that others get. The cache of huggingface_hub is made of links from
    ``models--NAME/snapshots/REVISION`` to ``models--NAME/blobs``.

    Parameters
    ----------
    folder
        The folder that was named; it may itself be a link.
    file
        Something below it.

    Raises
    ------
    FileError
        Names both ends of the link.
    """
    if isinstance(folder, Url) or isinstance(file, Url):
        return  # servers have no links
    try:
        home, target = folder.resolve(), file.resolve()
    except (OSError, RuntimeError) as error:  # a circle, which Python 3.13 has no error for
        raise FileError(f"{file} is a link that leads nowhere ({error})") from error
    if target.is_relative_to(home) or _is_blob(target, home):
        return
    raise FileError(
        f"{file} is a link out of its folder, to {target}: put the file itself there, or name the "
        "folder where it is"
    )


def _is_blob(target: Path, home: Path) -> bool:
    blobs = target.parent
    caches = [place.parent.parent for place in (home, *home.parents) if place.parent.name == _REVS]
    return blobs.name == "blobs" and (
        blobs.parent.name.startswith("models--") or blobs.parent in caches
    )


_REVS = "snapshots"
