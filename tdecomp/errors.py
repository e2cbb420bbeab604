"""The errors that tdecomp raises: one clear line each, naming what was given and what to do."""

from typing import Any

__all__ = [
    "ArgumentError",
    "DataError",
    "FileError",
    "NotReached",
    "SiteError",
    "TdecompError",
    "WorkerError",
]


class TdecompError(Exception):
    """Base of every error that tdecomp raises on purpose.

    Attributes
    ----------
    message, tip
        What is wrong, and what to do about it, in the words of Python: ``"add overwrite=True"``.
        The text of the error has both; the command line shows the tip on a line of its own.
    """

    def __init__(self, message: str = "", *, tip: str = ""):
        super().__init__(f"{message}: {tip}" if tip else message)
        self.message, self.tip = message, tip


class ArgumentError(TdecompError, ValueError):
    """An argument (rank, error, budget, mode, option) that cannot be honoured."""


class NotReached(ArgumentError):  # noqa: N818 - it carries a result, as StopIteration does
    """An error that was asked for and not met; `best` is the closest result found."""

    def __init__(self, message: str, best: Any = None):
        super().__init__(message)
        self.best = best


class DataError(TdecompError, ValueError):
    """An array that cannot be decomposed: NaN, Inf, an empty mode, a wrong order."""


class SiteError(TdecompError, ValueError):
    """Weights that cannot be found, stacked or paired by name."""


class FileError(TdecompError):
    """A file or folder that cannot be read or written; the message names it."""


class WorkerError(TdecompError):
    """Work that was handed to other processes and not done there: none answers, or all are lost."""
