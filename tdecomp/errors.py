"""The errors that tdecomp raises: one clear line each, naming what was given and what to do."""

__all__ = ["ArgumentError", "DataError", "FileError", "SiteError", "TdecompError"]


class TdecompError(Exception):
    """Base of every error that tdecomp raises on purpose."""


class ArgumentError(TdecompError, ValueError):
    """An argument (rank, error, budget, mode, option) that cannot be honoured."""


class DataError(TdecompError, ValueError):
    """An array that cannot be decomposed: NaN, Inf, an empty mode, a wrong order."""


class SiteError(TdecompError, ValueError):
    """Weights that cannot be found, stacked or paired by name."""


class FileError(TdecompError):
    """A file or folder that cannot be read or written; the message names it."""
