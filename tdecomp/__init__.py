"""Tensor decompositions for stacks of weights.

>>> import numpy as np
>>> import tdecomp as td
>>> x = np.random.default_rng(0).standard_normal((3, 2, 16, 12))
>>> fit = td.tucker2(x, budget=500, names="layer proj out in")
>>> fit.tensor.rank, fit.n_params
((7, 7), 490)
"""

# ruff: noqa: F403, F405 - the names are listed where they are imported

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tdecomp._public import *

__version__ = "0.1.0"

__all__ = [
    "CP",
    "TT",
    "ArgumentError",
    "DataError",
    "Exploration",
    "FileError",
    "Fit",
    "Fits",
    "Format",
    "Group",
    "LowRank",
    "Network",
    "NotReached",
    "Site",
    "SiteError",
    "Spectra",
    "Stack",
    "Stream",
    "Sum",
    "TdecompError",
    "Trace",
    "Tucker",
    "Tucker2",
    "als",
    "cp",
    "decompose",
    "explore",
    "hosvd",
    "load",
    "mpo",
    "plan",
    "ranks",
    "save",
    "svd",
    "tensor_train",
    "tt_round",
    "tucker",
    "tucker2",
]

if not TYPE_CHECKING:  # a type checker knows the names

    def __getattr__(name: str) -> object:
        """Load a name, or a module of this package, when it is asked for.

        Importing numpy and the rest takes half a second. Python imports this package before any
        module of it, and the command should be able to answer signals before that.
        """
        if name in __all__:
            public = import_module("tdecomp._public")
            globals().update({key: getattr(public, key) for key in __all__})
            return globals()[name]
        missing = AttributeError(f"module 'tdecomp' has no attribute {name!r}")
        if name.startswith("__"):
            raise missing
        try:
            return import_module(f"tdecomp.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"tdecomp.{name}":
                raise
            raise missing from None

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
