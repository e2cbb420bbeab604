"""Who works on a job beside this process: a Dask cluster, parts that meet in a folder, ranks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdecomp.errors import ArgumentError
from tdecomp.files.bucket import Bucket
from tdecomp.files.storage import Url, place
from tdecomp.tasks import Executor
from tdecomp.tasks.dask_cluster import dask_executor
from tdecomp.tasks.meeting import Folder
from tdecomp.tasks.ranks import leading_ranks, rank_here, serve_rank
from tdecomp.tasks.scratch import ScratchPart, leading, serve

__all__ = ["ALONE", "Workers"]


@dataclass(frozen=True, kw_only=True)
class Workers:
    """At most one of a cluster, parts and ranks.

    Attributes
    ----------
    dask
        Address of a scheduler, or ``"local"``; see `dask_executor`.
    part, scratch, timeout
        Number of this process and of all, where they meet (a folder, or one in a bucket), and for
        how long they wait, in seconds.
    torchrun
        Whether ``torchrun`` started this process and its like.
    """

    dask: str | None = None
    part: tuple[int, int] | None = None
    scratch: Path | None = None
    timeout: float = 600.0
    torchrun: bool = False

    def __post_init__(self):
        given = [self.dask is not None, self.part is not None, self.torchrun]
        if sum(given) > 1:
            raise ArgumentError("give one of --dask, --part and --torchrun")
        if (self.part is None) != (self.scratch is None):
            raise ArgumentError(
                "--part and --scratch go together", tip="--part 1/8 --scratch FOLDER"
            )

    @property
    def leads(self) -> bool:
        """Whether this process does the job and writes the output."""
        if self.torchrun:
            return rank_here() == 0
        return self.part is None or self.part[0] == 1

    def serve(self, job: Mapping[str, Any], told: Callable[[str], None] = print) -> int:
        """Do tasks of the process that leads until its job is done; how many there were."""
        return serve_rank() if self.torchrun else serve(self._part(job, told))

    @contextmanager
    def executor(
        self, job: Mapping[str, Any], told: Callable[[str], None] = print
    ) -> Generator[Executor | None]:
        """Inside, the executor of the job that this process leads; None: it works alone.

        Parameters
        ----------
        job
            What was asked for, in plain JSON values: parts that differ in it are refused.
        told
            Hears what is waited for.
        """
        if self.dask is not None:
            with dask_executor(self.dask) as found:
                yield found
        elif self.torchrun:
            with leading_ranks() as found:
                yield found
        elif self.part is not None:
            with leading(self._part(job, told)) as found:
                yield found
        else:
            yield None

    def _part(self, job: Mapping[str, Any], told: Callable[[str], None]) -> ScratchPart:
        assert self.part is not None
        assert self.scratch is not None
        number, of = self.part
        where = place(self.scratch)
        return ScratchPart(
            number=number,
            of=of,
            place=Bucket(where) if isinstance(where, Url) else Folder(where),
            job=job,
            timeout=self.timeout,
            told=told,
        )


ALONE = Workers()
"""This process and its threads."""
