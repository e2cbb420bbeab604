"""Everything below a folder, however deep it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["entries_below"]


def entries_below(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All that is not a folder itself, links to folders included; they are not followed.

    Not recursive, as `os.walk` is before Python 3.12: a thousand folders in each other would end
    it. An OSError where a folder cannot be read: nobody knows what is in it.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry
