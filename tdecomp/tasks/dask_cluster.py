"""The workers of a Dask cluster: one that is running, or one on this machine."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from tdecomp._threads import cores
from tdecomp._version import __version__
from tdecomp.errors import ArgumentError, WorkerError
from tdecomp.tasks.spreading import Executor

__all__ = ["dask_executor"]

LOCAL = "local"
_ANSWERS = 10  # seconds in which a scheduler answers
_STARTS = 60  # seconds in which its first worker is there


@contextmanager
def dask_executor(scheduler: str) -> Generator[Executor]:
    """Inside, an executor of Dask's workers, all with this version of the package.

    Parameters
    ----------
    scheduler
        Its address, ``"tcp://host:8786"``; or ``"local"`` for a cluster on this machine, one
        process with one thread for each core, which ends with this.

    Raises
    ------
    ArgumentError
        If ``dask.distributed`` is not installed.
    WorkerError
        A scheduler that does not answer or has no workers, or workers with another version.
    """
    try:
        import distributed
    except ImportError:
        raise ArgumentError(
            "Dask is not installed", tip="pip install tdecomp-toolkit[dask]"
        ) from None
    here = scheduler == LOCAL
    with ExitStack() as opened:
        if here:
            cluster: Any = distributed.LocalCluster(
                n_workers=cores(),
                threads_per_worker=1,
                dashboard_address=":0",
                memory_limit=0,
                silence_logs=logging.CRITICAL,
            )
            scheduler = opened.enter_context(cluster)
        try:
            client: Any = opened.enter_context(
                distributed.Client(scheduler, timeout=_ANSWERS, direct_to_workers=here or None)
            )
        except (OSError, TimeoutError, ValueError) as error:
            raise WorkerError(
                f"no Dask scheduler answers at {scheduler!r}",
                tip="start one with 'dask scheduler' and workers with 'dask worker', or say local",
            ) from error
        yield _DaskExecutor(client, _checked(client, str(scheduler)))


class _DaskExecutor:
    """Dask's own executor, with the number of its threads as those of the library tell it."""

    def __init__(self, client: Any, threads: int) -> None:
        self._executor = client.get_executor(pure=False)
        self._max_workers = threads

    def submit(self, fn: Any, /, *args: Any) -> Any:
        return self._executor.submit(fn, *args)


def _checked(client: Any, scheduler: str) -> int:
    """Threads of all workers, which have the package in this version."""
    try:
        client.wait_for_workers(1, timeout=_STARTS)
        versions = client.run(_version_there)
    except TimeoutError as error:
        raise WorkerError(
            f"the Dask scheduler {scheduler} has no workers",
            tip=f"start some: dask worker {scheduler}",
        ) from error
    except Exception as error:
        raise WorkerError(
            f"a worker of the Dask scheduler {scheduler} cannot load tdecomp: {error}",
            tip=f"install tdecomp-toolkit {__version__} where the workers run",
        ) from error
    for worker, version in versions.items():
        if version != __version__:
            raise WorkerError(
                f"the worker {worker} has tdecomp {version}, this process {__version__}",
                tip="install the same version everywhere",
            )
    return sum(client.nthreads().values())


def _version_there() -> str:
    return __version__
