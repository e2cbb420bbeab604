"""A folder beside an output in which it is made, and from which it takes its place.

``.NAME.XXXXXXXX.tmp`` holds a file ``lock``, which is locked for as long as its process lives, the
output in the making, ``new...``, and for moments what was there before, ``old``. A process that is
killed leaves it behind, without the lock: the next one that writes NAME puts back what belongs
there and removes the rest.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import FileError
from .plain import is_object

__all__ = ["Workshop", "clear", "discard_all", "recover", "still_open"]

_LOCK, _OLD, _NEW = "lock", "old", "new"
_ABANDONED = 7 * 24 * 3600.0  # seconds after which another machine's folder is taken for dead
_NAME_BYTES = 200  # of the output's name: a file name holds 255
_OPEN: dict[Path, Workshop] = {}
"""Those of this process that are not removed yet: a signal may come at any moment."""


@dataclass(eq=False)
class Workshop:
    """One output in the making.

    Parameters
    ----------
    target
        Where the output will be; resolved.
    folder
        Beside it.
    missing
        Folders above the target that were made for it, innermost first.
    lock
        Descriptor of the locked file; None where there is none.
    """

    target: Path
    folder: Path
    missing: tuple[Path, ...] = ()
    lock: int | None = None

    @classmethod
    def open(cls, target: Path) -> Workshop:
        """Make the folder, and the folders above it that are missing."""
        missing = tuple(folder for folder in target.parents if not os.path.lexists(folder))
        for _ in range(16):
            folder = target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}.tmp")
            shop = _OPEN[folder] = cls(target, folder, missing)
            try:
                folder.mkdir(parents=True)
                if shop._take_lock():
                    return shop
            except BaseException:
                shop.discard()
                raise
            shop.discard()  # somebody took the new folder for a dead one
        raise FileError(f"cannot write {target}: its temporary folders disappear")

    @property
    def new(self) -> Path:
        """Where the output is made; has the suffix of its place, which some writers look at."""
        return self.folder / f"{_NEW}{self.target.suffix}"

    @property
    def old(self) -> Path:
        """Where an old output is while the new one takes its place, if they cannot exchange."""
        return self.folder / _OLD

    def put_in_place(self, overwrite: bool) -> None:
        """Move the output to its place, which holds the old one or the new one at any moment.

        Where the file system cannot exchange two folders there is a moment with neither; the next
        run that writes there puts the old one back.
        """
        if not overwrite or not self.target.is_dir():
            _rename(self.new, self.target, overwrite)
        elif not _renameat2(self.new, self.target, _EXCHANGE):
            self.target.rename(self.old)
            self.new.rename(self.target)

    def put_back(self) -> None:
        """Undo half an exchange: the old output is here and nothing is in its place."""
        if os.path.lexists(self.old) and not os.path.lexists(self.target):
            with suppress(OSError):
                self.old.rename(self.target)

    def discard(self) -> Path | None:
        """Remove the folder; returns it if that fails."""
        self.put_back()
        try:
            self.remove()
        except BaseException:  # an interruption
            self.remove()
            raise
        if self.lock is not None:
            lock, self.lock = self.lock, None
            os.close(lock)
        for folder in self.missing:
            with suppress(OSError):  # never made, or somebody uses it by now
                folder.rmdir()
        if os.path.lexists(self.folder):
            return self.folder
        _OPEN.pop(self.folder, None)
        return None

    def remove(self) -> None:
        """Remove the folder, the lock last: what has none would not be known again."""
        if os.path.lexists(self.old) and os.path.lexists(self.new):
            return  # half an exchange, and somebody else's output in its place: nothing is lost
        for path in (self.new, self.old):
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            if not os.path.lexists(self.new) and not os.path.lexists(self.old):
                (self.folder / _LOCK).unlink(missing_ok=True)
                self.folder.rmdir()

    def _take_lock(self) -> bool:
        """Lock the folder; False if somebody removed it meanwhile."""
        place = self.folder / _LOCK
        try:
            self.lock = os.open(place, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            _is_locked(self.lock)
            note = {"made_by": "tdecomp", "name": self.target.name} | _machine()
            os.write(self.lock, json.dumps(note).encode())
        except FileNotFoundError:
            return False
        return place.exists()


def recover(target: Path) -> None:
    """Put an old output back that a killed process had moved away."""
    for shop in _left_by_others(target):
        shop.put_back()


def clear(target: Path) -> None:
    """Remove what killed processes left beside ``target``; what lives is not touched."""
    for shop in _left_by_others(target):
        shop.remove()


def discard_all() -> list[Path]:
    """Remove every temporary folder of this process; returns those that cannot be removed."""
    return [folder for shop in list(_OPEN.values()) if (folder := shop.discard())]


def still_open() -> list[Path]:
    """Temporary folders of this process that are there now."""
    return [folder for folder in _OPEN if os.path.lexists(folder)]


# ----------------------------------------------------------------------------------- leftovers


def _prefix(target: Path) -> str:
    name = os.fsencode(target.name)[:_NAME_BYTES]
    return f".{os.fsdecode(name)}."


def _left_by_others(target: Path) -> Iterator[Workshop]:
    """What dead processes left beside ``target``, each locked while it is looked at."""
    pattern = re.compile(re.escape(_prefix(target)) + r"[0-9a-f]{8}\.tmp")
    try:
        names = os.listdir(target.parent)  # noqa: PTH208 - names only
    except OSError:
        return
    for folder in (target.parent / name for name in names if pattern.fullmatch(name)):
        if folder in _OPEN or folder.is_symlink():
            continue
        try:
            folder.rmdir()  # killed before it had a lock, or after
        except OSError:
            yield from _if_dead(Workshop(target, folder))


def _if_dead(shop: Workshop) -> Iterator[Workshop]:
    try:
        lock = os.open(shop.folder / _LOCK, os.O_RDWR)
    except OSError:
        return
    try:
        if _is_dead(lock, shop):
            yield shop
    finally:
        os.close(lock)


def _is_dead(lock: int, shop: Workshop) -> bool:
    """Whether nobody works in a folder any more."""
    locked = _is_locked(lock)
    ours = {"made_by": "tdecomp", "name": shop.target.name}
    try:
        note = json.loads(os.read(lock, 4096) or json.dumps(ours))  # killed before it wrote
    except (ValueError, RecursionError):
        return False
    if locked is False or not is_object(note) or not ours.items() <= note.items():
        return False
    if locked and any(note.get(key, value) == value for key, value in _machine().items() if value):
        return True
    # Locks may not reach across a network.
    newest = max(path.lstat().st_mtime for path in (shop.folder, *shop.folder.rglob("*")))
    return time.time() - newest > _ABANDONED


def _is_locked(descriptor: int) -> bool | None:
    """Lock an open file for this process; False: another one has it, None: there are no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _machine() -> dict[str, str]:
    """What tells whose locks can be seen from here: one system since its start, or one host."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return {"boot": boot, "host": platform.node()}


# -------------------------------------------------------------------------------------- renaming

_AT_FDCWD, _NO_REPLACE, _EXCHANGE = -100, 1, 2
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def _rename(source: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        source.replace(target)
    elif not _renameat2(source, target, _NO_REPLACE):
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Rename as Linux can; False where there is no such call."""
    call = _system_call()
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    import ctypes

    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(target))


@cache
def _system_call() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_char_p] * 2 + [ctypes.c_uint]
    call.restype = ctypes.c_int
    return call
