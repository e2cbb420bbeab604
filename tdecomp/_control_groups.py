"""Control groups of Linux: what containers and schedulers grant a process of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["MOUNTED", "OWN", "control_groups"]

OWN, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def control_groups(controller: str, own: Path = OWN, mounted: Path = MOUNTED) -> Iterator[Path]:
    """Folders of the groups that a process is in, each within the next; none where there are none.

    Parameters
    ----------
    controller
        ``"cpu"`` or ``"memory"``: the folder of version 1; those of version 2 have all.
    own
        Lines ``id:controllers:group`` of the process.
    mounted
        Where the control groups are.
    """
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = mounted / controller if controllers else mounted
            place = top / group.lstrip("/")
            for folder in (place, *place.parents):  # a container sees its own group as the top
                if folder.is_relative_to(top):
                    yield folder
