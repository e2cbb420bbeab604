"""Work in other processes, here or on other machines: what is sent, and how it is handed out."""

from tdecomp.tasks.spreading import Executor, goes_near, spread, workers_of
from tdecomp.tasks.wire import Divided, OfSlices, sendable

__all__ = ["Divided", "Executor", "OfSlices", "goes_near", "sendable", "spread", "workers_of"]
