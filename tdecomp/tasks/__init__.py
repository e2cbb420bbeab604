"""Work in other processes, here or on other machines: what is sent, and how it is handed out."""

from tdecomp.tasks.spreading import Executor, spread, workers_of
from tdecomp.tasks.wire import Divided, OfSlices, sendable

__all__ = ["Divided", "Executor", "OfSlices", "sendable", "spread", "workers_of"]
