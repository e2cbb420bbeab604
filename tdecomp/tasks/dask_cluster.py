"""The workers of a Dask cluster: one that is running, or one on this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Generator
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
_LOOKS = 5  # seconds of waiting after which it is looked whether workers are there
_KEPT = 1 << 30  # bytes that workers on this machine do not give back to the system


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
            scheduler = opened.enter_context(_local_cluster())
        try:
            client: Any = opened.enter_context(
                distributed.Client(scheduler, timeout=_ANSWERS, direct_to_workers=here or None)
            )
        except (OSError, TimeoutError, ValueError) as error:
            raise WorkerError(
                f"no Dask scheduler answers at {scheduler!r}",
                tip="start one with 'dask scheduler' and workers with 'dask worker', or say local",
            ) from error
        threads = _checked(client, str(scheduler))
        yield _DaskExecutor(client, threads, scheduler if here else None)


@contextmanager
def _local_cluster() -> Generator[Any]:
    """One on this machine, whose workers get memory from the system once and profile nothing.

    By default glibc gives all of it back at every turn, so that each matrix costs new pages, and
    Dask looks a hundred times a second at what a worker does.
    """
    import dask.config
    import distributed

    environ = "distributed.nanny.pre-spawn-environ"
    keeping = {f"MALLOC_{what}_THRESHOLD_": _KEPT for what in ("TRIM", "MMAP")}
    lean = {environ: {**dask.config.get(environ, {}), **keeping}}
    with (
        dask.config.set({**lean, "distributed.worker.profile.enabled": False}),
        distributed.LocalCluster(
            n_workers=cores(),
            threads_per_worker=1,
            dashboard_address=":0",
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        ) as cluster,
    ):
        yield cluster


class _DaskExecutor:
    """Calls for the workers of a client: for any, or rather for a certain one, while it is there.

    It knows how many they are, and waits for what they give only as long as there are some.
    """

    def __init__(self, client: Any, threads: int, cluster: Any = None) -> None:
        self._client, self._max_workers, self._cluster = client, threads, cluster
        self._at: list[str] = []  # a worker for each of its threads
        self._alone: float | None = None  # since when there are no workers

    def submit(self, fn: Any, /, *args: Any) -> _DaskCall:
        return _DaskCall(self, None, fn, args)

    def submit_near(self, place: int, fn: Any, /, *args: Any) -> _DaskCall:
        """Give a call to one of the workers, or to another where that has too much to do."""
        if place == 0:  # one that was lost has another name now
            there = sorted(self._client.nthreads().items())
            self._at = [worker for worker, threads in there for _ in range(threads)]
        return _DaskCall(self, self._at[place % len(self._at)] if self._at else None, fn, args)

    def given(self, worker: str | None, fn: Any, args: tuple[Any, ...]) -> Any:
        """A future of the client's."""
        where = {} if worker is None else {"workers": [worker], "allow_other_workers": True}
        return self._client.get_executor(pure=False, **where).submit(fn, *args)

    def there(self) -> Collection[str]:
        """The workers; a WorkerError where there have been none for a minute."""
        if self._cluster is not None:  # which does not replace one that dies as it starts
            self._cluster.scale(self._max_workers)
        there = self._client.nthreads()
        if there:
            self._alone = None
        elif self._alone is None:
            self._alone = time.monotonic()
        elif time.monotonic() - self._alone > _STARTS:
            raise WorkerError(
                f"the Dask scheduler {self._client.scheduler.address} has no workers any more",
                tip="start some and run again; what was written before is as it was",
            )
        return there


class _DaskCall:
    """A call that workers have, as a future."""

    def __init__(
        self, executor: _DaskExecutor, worker: str | None, fn: Any, args: tuple[Any, ...]
    ) -> None:
        self._executor, self._worker, self._work = executor, worker, (fn, args)
        self._future = executor.given(worker, fn, args)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._future.cancel()

    def result(self) -> Any:
        """What it gave; a WorkerError where nobody is left to do it."""
        while True:
            try:
                return self._future.result(_LOOKS)
            except TimeoutError:
                if self._future.done():
                    raise
                there = self._executor.there()
                if there and self._worker is not None and self._worker not in there:
                    # Dask forgets that others may do it once there were no workers at all
                    self.cancel()
                    self._worker = None
                    self._future = self._executor.given(None, *self._work)


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
