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

from tdecomp._version import __version__ as __version__

if TYPE_CHECKING:
    from tdecomp._public import *

# What reads and writes files: a third of all modules, and no decomposition needs them.
_WITH_FILES = {
    **dict.fromkeys(("load", "save"), "tdecomp.files.format_file"),
    **dict.fromkeys(("Picture", "draw"), "tdecomp.picture"),
}

if not TYPE_CHECKING:  # a type checker knows the names

    def __getattr__(name: str) -> object:
        """Load a public name, or a module of this package, when it is asked for.

        Importing numpy and the rest takes half a second. Python imports this package before any
        module of it, and the command should be able to answer signals before that.
        """
        missing = AttributeError(f"module 'tdecomp' has no attribute {name!r}")
        if name.startswith("__") and name != "__all__":
            raise missing
        if name in _WITH_FILES:
            globals()[name] = getattr(import_module(_WITH_FILES[name]), name)
            return globals()[name]
        public = import_module("tdecomp._public")
        known = vars(public)
        globals().update({key: known[key] for key in ("__all__", *public.__all__) if key in known})
        if name in globals():
            return globals()[name]
        try:
            return import_module(f"tdecomp.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"tdecomp.{name}":
                raise
            raise missing from None

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
