"""Tensor adapters for torch models.

`attach` puts any method of `tdecomp.adapters` on a model and gives back an `Adapter`, which trains,
merges, saves and exports; `apply` adds a decomposed delta to a model in memory; `capture` gathers
what the weights of a model see, and `gradients`, `activations` and `captured` start adapters from
it, `factors` from a decomposed delta, with ranks that `allocate` finds for a budget; `heal` trains
truncated factors on a tuned model's outputs; `merge` writes several adapters into one model.
"""

# ruff: noqa: F403 - the names are listed where they are imported

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tdecomp_torch._public import *
else:  # a type checker knows the names

    class _Package(ModuleType):
        """Loads torch when a public name is asked for: the command line lists commands without it.

        Some names are those of modules, too: the name is what `tdecomp_torch._public` says.
        """

        def __getattr__(self, name: str) -> object:
            if name.startswith("__") and name != "__all__":
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            public = import_module(f"{self.__name__}._public")
            self.__dict__.update({key: getattr(public, key) for key in public.__all__})
            self.__dict__["__all__"] = public.__all__
            if name in self.__dict__:
                return self.__dict__[name]
            try:
                return import_module(f"{self.__name__}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{self.__name__}.{name}":
                    raise
                text = f"module {self.__name__!r} has no attribute {name!r}"
                raise AttributeError(text) from None

        def __setattr__(self, name: str, value: object) -> None:
            """Python binds a module to its package when it is imported; public names stay."""
            if not (isinstance(value, ModuleType) and name in ("apply", "attach", "capture")):
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*self.__dict__, *self.__getattr__("__all__")})

    sys.modules[__name__].__class__ = _Package
