"""The array libraries: what is special about each, one record a library.

Everything else goes through the array API namespace of an array. A library that follows the
standard needs no record; one that does not gets its differences here and nowhere else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

__all__ = ["BACKENDS", "Backend", "autocast_devices", "backend_of"]


def _dtype_problem(x: Any) -> str | None:
    xp = array_api_compat.array_namespace(x)
    return None if xp.isdtype(x.dtype, ("bool", "numeric")) else f"an array of {x.dtype}"


def _no(*args: Any) -> bool:
    del args
    return False


def _as_it_is(x: Any) -> Any:
    return x


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What is special about one array library.

    Attributes
    ----------
    name
        The library.
    holds
        Whether an object is one of its arrays; never imports the library.
    problem
        What keeps an array from being one of numbers, and what to give in its place; or None.
    has_no_numbers
        Whether an array has a shape and no numbers: one of a meta device.
    is_recorded
        Whether steps on an array are only written down, to be done later on other numbers.
    is_followed
        Whether what is done with an array is recorded, or will be differentiated.
    standard
        The array in a dtype of the array API standard.
    detached
        The array without its history: what is done with it is not tracked.
    to_host
        The array as numpy takes it, on the host.
    scope
        Context in which steps on arrays have their own precision, or float64.
    scope_matters
        Whether that context may be other than none.
    writable
        Whether parts of an array can be assigned to.
    compiles_by_shape
        Whether every step on an array is compiled anew for every shape, and numpy can stand in.
    """

    name: str
    holds: Callable[[object], bool]
    problem: Callable[[Any], str | None] = _dtype_problem
    has_no_numbers: Callable[[Any], bool] = _no
    is_recorded: Callable[[Any], bool] = _no
    is_followed: Callable[[Any], bool] = _no
    standard: Callable[[Any], Any] = _as_it_is
    detached: Callable[[Any], Any] = _as_it_is
    to_host: Callable[[Any], Any] = _as_it_is
    scope: Callable[[Sequence[Any]], AbstractContextManager[Any]] = nullcontext
    scope_matters: Callable[[], bool] = _no
    writable: bool = True
    compiles_by_shape: Callable[[Any], bool] = _no


def backend_of(x: object) -> Backend:
    """The record of the library that an object is an array of; `STANDARD` for all others."""
    for backend in BACKENDS:
        if backend.holds(x):
            return backend
    return STANDARD


def _library(name: str) -> Any:
    """A library that was imported; None also where that failed, as ``sys.modules`` may tell."""
    return sys.modules.get(name)


# -- numpy -----------------------------------------------------------------------------------------


def _numpy_problem(x: np.ndarray) -> str | None:
    if isinstance(x, np.ma.MaskedArray):
        return (
            "a masked array, whose mask is not read: give its .data, and"
            " weights=~np.ma.getmaskarray(x) where entries are missing"
        )
    if isinstance(x, np.matrix):
        return "a numpy.matrix, which is never of another order than 2: give numpy.asarray(x)"
    if x.dtype.kind in "biufc" or _is_small_float(x.dtype):
        return None
    advice = ": give one field, x['name']" if x.dtype.names else ""
    return f"an array of {x.dtype}{advice}"


def _is_small_float(dtype: np.dtype) -> bool:
    """Whether numpy knows a dtype from ml_dtypes only: bfloat16, float8, int4 and their kin."""
    return dtype.type.__module__.split(".")[0] == "ml_dtypes"


def _numpy_standard(x: np.ndarray) -> np.ndarray:
    """What ml_dtypes adds in float32 (complex64), what is wider than float64 in float64."""
    if _is_small_float(x.dtype):
        return x.astype(np.complex64 if "complex" in x.dtype.name else np.float32)
    if x.dtype.kind == "f" and x.dtype.itemsize > 8:
        return x.astype(np.float64)
    if x.dtype.kind == "c" and x.dtype.itemsize > 16:
        return x.astype(np.complex128)
    return x


# -- torch -----------------------------------------------------------------------------------------


def _is_torch(x: object) -> bool:
    return _library("torch") is not None and array_api_compat.is_torch_array(x)


def _torch_problem(x: Any) -> str | None:
    if x.is_nested:
        return "a nested tensor: give its tensors one by one"
    if x.is_quantized:
        return f"a quantised tensor ({x.dtype}): give its dequantize()"
    if x.layout != _library("torch").strided:
        return f"a sparse tensor ({x.layout}): give its to_dense()"
    return None


def _torch_records(x: Any) -> bool:
    """By torch.jit.trace, make_fx, vmap or grad."""
    torch, proxies = _library("torch"), _library("torch.fx.experimental.proxy_tensor")
    recorded = proxies is not None and proxies.get_proxy_mode() is not None
    return recorded or torch.jit.is_tracing() or torch._C._functorch.is_functorch_wrapped_tensor(x)


def _torch_follows(x: Any) -> bool:
    differentiated = x.requires_grad and _library("torch").is_grad_enabled()
    return differentiated or _torch_has_no_numbers(x) or _torch_records(x)


def _torch_has_no_numbers(x: Any) -> bool:
    return x.is_meta or type(x).__name__ == "FakeTensor"


def _torch_scope(arrays: Sequence[Any]) -> AbstractContextManager[Any]:
    """Autocast, which multiplies in half precision, is off on the devices of the arrays."""
    scopes = ExitStack()
    for kind in {a.device.type for a in arrays}.intersection(autocast_devices()):
        scopes.enter_context(_library("torch").autocast(kind, enabled=False))
    return scopes


def autocast_devices() -> tuple[str, ...]:
    """Kinds of devices for which torch.autocast is in force."""
    torch = _library("torch")
    if torch is None:
        return ()
    return tuple(filter(torch.is_autocast_enabled, ("cpu", "cuda", "xpu", "mps")))


# -- the records -----------------------------------------------------------------------------------


def _jax_scope(arrays: Sequence[Any]) -> AbstractContextManager[Any]:
    """Jax has float64 only inside its x64 scope."""
    del arrays
    return _library("jax").enable_x64(True)


BACKENDS = (
    Backend(
        name="numpy",
        holds=lambda x: isinstance(x, np.ndarray),
        problem=_numpy_problem,
        standard=_numpy_standard,
    ),
    Backend(
        name="torch",
        holds=_is_torch,
        problem=_torch_problem,
        has_no_numbers=_torch_has_no_numbers,
        is_recorded=_torch_records,
        is_followed=_torch_follows,
        detached=lambda x: x.detach(),
        to_host=lambda x: x.detach().cpu(),
        scope=_torch_scope,
        scope_matters=lambda: bool(autocast_devices()),
    ),
    Backend(
        name="jax",
        holds=lambda x: _library("jax") is not None and array_api_compat.is_jax_array(x),
        is_followed=lambda x: isinstance(x, _library("jax").core.Tracer),
        scope=_jax_scope,
        scope_matters=lambda: _library("jax") is not None,
        writable=False,
        compiles_by_shape=lambda x: len(x.devices()) == 1,
    ),
    Backend(
        name="cupy",
        holds=lambda x: _library("cupy") is not None and array_api_compat.is_cupy_array(x),
        to_host=lambda x: x.get(),
    ),
)

STANDARD = Backend(name="array API standard", holds=_no)
"""Any other library that follows the standard."""
