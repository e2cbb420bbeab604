"""Calls handed out to the workers of an executor, and what they gave, in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol, TypeVar

from tdecomp._version import __version__
from tdecomp.errors import (
    ArgumentError,
    DataError,
    FileError,
    SiteError,
    TdecompError,
    WorkerError,
)
from tdecomp.tasks.wire import packed, unpacked

__all__ = ["Executor", "goes_near", "perform", "perform_packed", "spread", "workers_of"]

Found = TypeVar("Found")

_TRIES = 3  # times a call is handed out again when the worker that had it is lost
_BEGUN = 64  # calls that are with the workers at once, where their number is unknown
_WAIT = 0.2  # seconds before a lost call is handed out again
_KINDS = {
    kind.__name__: kind for kind in (ArgumentError, DataError, FileError, SiteError, WorkerError)
}


class Executor(Protocol):
    """What is asked of an executor, such as those of `concurrent.futures`: no more than this."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        """A future, whose ``result()`` waits for ``fn(*args)``."""
        ...


@contextmanager
def spread(
    executor: Executor, calls: Iterable[Callable[[], Found]], *, near: bool = False
) -> Iterator[Iterator[Found]]:
    """Inside, what each of the calls gives is at hand, in their order.

    Parameters
    ----------
    executor
        Who does them.
    calls
        Functions marked `sendable`, with their arguments as a `functools.partial`.
    near
        Whether the k-th call had better be done where the k-th one of before was.

    Raises
    ------
    WorkerError
        An executor that is shut down or broken, a worker with another version of this package, or
        one call that was lost three times.
    TdecompError
        What a call raised.
    """
    coming: list[_Call] = []
    try:
        yield _in_order(executor, enumerate(calls), coming, near and goes_near(executor))
    finally:
        for call in coming:
            call.cancel()


def workers_of(executor: Executor) -> int:
    """How many calls an executor does at once; 0: it does not tell."""
    return int(getattr(executor, "_max_workers", None) or 0)


def goes_near(executor: Executor) -> bool:
    """Whether an executor can send a call to where its like was done: one of ours."""
    return hasattr(executor, "submit_near")


def _in_order(
    executor: Executor,
    calls: Iterator[tuple[int, Callable[[], Found]]],
    coming: list[_Call],
    near: bool,
) -> Iterator[Found]:
    def begin(k: int, call: Callable[[], Found]) -> _Call:
        return _Call(executor, packed(call), k if near else None)

    begun = 2 * workers_of(executor) or _BEGUN
    coming += [begin(k, call) for k, call in islice(calls, begun)]
    while coming:
        found = coming[0].result()
        coming.pop(0)
        coming += [begin(k, call) for k, call in islice(calls, 1)]
        yield found


class _Call:
    """One call, handed out again where the worker that had it is lost."""

    def __init__(self, executor: Executor, data: bytes, place: int | None) -> None:
        self._executor, self._data, self._place = executor, data, place
        self._future = self._submitted()

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        cancel = getattr(self._future, "cancel", None)
        if cancel is not None:
            cancel()

    def result(self) -> Any:
        """What the call gave."""
        return _given(self._answer())

    def _answer(self) -> bytes:
        for left in reversed(range(_TRIES)):
            try:
                return self._future.result()
            except TdecompError:
                raise
            except Exception as error:  # the call itself raises nothing: see `perform`
                if left == 0 or isinstance(error, BrokenExecutor):
                    raise WorkerError(
                        f"a worker of {_shown(self._executor)} was lost: {_said(error)}",
                        tip="run again; what was written before is as it was",
                    ) from error
                time.sleep(_WAIT)
                self._future = self._submitted()
        raise AssertionError("no tries")

    def _submitted(self) -> Any:
        try:
            if self._place is None:
                return self._executor.submit(perform, __version__, self._data)
            there: Any = self._executor
            return there.submit_near(self._place, perform, __version__, self._data)
        except TdecompError:
            raise
        except Exception as error:
            raise WorkerError(
                f"{_shown(self._executor)} takes no work: {_said(error)}",
                tip="give one that is not shut down",
            ) from error


def perform_packed(call: bytes) -> bytes:
    """`perform` of what an executor of ours packed; a FileError if it did not."""
    match unpacked(call):
        case (str(wanted), bytes(data)):
            return perform(wanted, data)
        case _:
            raise FileError(f"these {len(call)} bytes are no call")


def perform(wanted: str, data: bytes) -> bytes:
    """What a worker does: the call in `data`. What that raises is in what this gives.

    Parameters
    ----------
    wanted
        Version of this package where the call was made: a worker of another one does nothing.
    data
        From `packed`.
    """
    if wanted != __version__:
        return packed(("version", __version__))
    try:
        return packed(("found", unpacked(data)()))
    except TdecompError as error:
        return packed(("error", type(error).__name__, error.message, error.tip))
    except Exception as error:
        return packed(("failed", f"{type(error).__name__}: {error}"))


def _given(data: bytes) -> Any:
    """What a call gave, or what it raised."""
    match unpacked(data):
        case ("found", found):
            return found
        case ("error", str(name), str(message), str(tip)):
            raise _KINDS.get(name, TdecompError)(message, tip=tip)
        case ("version", str(theirs)):
            raise WorkerError(
                f"a worker has tdecomp {theirs}, this process {__version__}",
                tip="install the same version everywhere",
            )
        case ("failed", str(text)):
            raise RuntimeError(f"a task failed on its worker: {text}")
        case _:
            raise FileError(f"these {len(data)} bytes are not what a task gives")


def _shown(executor: Executor) -> str:
    return f"the executor ({type(executor).__name__})"


def _said(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
