"""The array library of the input, and the precision every computation runs in.

The library is resolved once at each public function and handed down as ``xp``; nothing here is
global. Half-precision and smaller floats are widened to float32, float64 stays float64.
"""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol, TypeVar

import array_api_compat
import numpy as np

from tdecomp._backends import BACKENDS, autocast_devices, backend_of
from tdecomp.errors import ArgumentError, DataError

__all__ = [
    "Array",
    "ArrayKind",
    "adjoint",
    "autocast_devices",
    "check_array",
    "check_held",
    "check_not_traced",
    "detached",
    "double",
    "find_dtype",
    "float64_scope",
    "floor",
    "is_followed",
    "is_writable",
    "namespace",
    "quick_sum_of_squares",
    "scope_matters",
    "sum_of_squares",
    "to_numpy",
    "tol",
    "working",
]

_ROW = 1 << 12  # squares summed in float32 at a time
_TILE = 1 << 22  # numbers widened to float64 at a time: 32 MiB


class Array(Protocol):
    """What arrays of numpy, torch, jax and cupy have in common, and this code relies on.

    What depends on the library, such as dtypes, devices and indices, is Any; results are arrays of
    the same library. Everything else is a function of `namespace`.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def device(self) -> Any: ...
    @property
    def T(self) -> Any: ...  # noqa: N802
    @property
    def mT(self) -> Any: ...  # noqa: N802
    def __getitem__(self, key: Any, /) -> Any: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def __int__(self) -> int: ...
    def __float__(self) -> float: ...
    def __complex__(self) -> complex: ...
    def __neg__(self) -> Any: ...
    def __abs__(self) -> Any: ...
    def __add__(self, other: Any, /) -> Any: ...
    def __radd__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __rsub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...
    def __rtruediv__(self, other: Any, /) -> Any: ...
    def __pow__(self, other: Any, /) -> Any: ...
    def __matmul__(self, other: Any, /) -> Any: ...
    def __rmatmul__(self, other: Any, /) -> Any: ...
    def __lt__(self, other: Any, /) -> Any: ...
    def __le__(self, other: Any, /) -> Any: ...
    def __gt__(self, other: Any, /) -> Any: ...
    def __ge__(self, other: Any, /) -> Any: ...


_NUMBERS = "biufc"  # kinds of numpy's own dtypes; zero gradients of jax are numpy arrays of another

ArrayKind = TypeVar("ArrayKind", bound=Array)
"""An array of one library, where the result is of that library too."""


def namespace(*arrays: Array) -> Any:
    """Array API namespace shared by `arrays`; a `DataError` for anything else."""
    if len(arrays) == 1 and type(x := arrays[0]) is np.ndarray and x.dtype.kind in _NUMBERS:
        return _of_numpy()  # asked for more often than all others, and looked up slowly
    try:
        return array_api_compat.array_namespace(*arrays)
    except TypeError:
        kinds = ", ".join(sorted({type(a).__name__ for a in arrays}))
        raise DataError(
            f"expected arrays of one library (numpy, torch, jax, cupy), got {kinds}"
        ) from None


@functools.cache
def _of_numpy() -> Any:
    return array_api_compat.array_namespace(np.empty(0))


def check_array(x: Array) -> None:
    """Refuse what only looks like an array of numbers, naming what to give in its place.

    Raises
    ------
    DataError
        numpy: masked arrays, `numpy.matrix`, objects, texts, dates, records. torch: sparse, meta,
        quantised and nested tensors, those of a FakeTensorMode.
    """
    namespace(x)
    backend = backend_of(x)
    problem = backend.problem(x)
    if problem is None and backend.has_no_numbers(x):
        problem = "a tensor without numbers (of the meta device or a FakeTensorMode): load it first"
    _refuse(problem)


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise DataError(f"expected an array of numbers, got {problem}")


def check_held(x: Any) -> None:
    """`check_array` for what a format is made of: only where it is an array, and meta tensors pass.

    Placeholders pass too: jax makes formats of them.
    """
    backend = backend_of(x)
    if backend in BACKENDS and not backend.has_no_numbers(x):
        _refuse(backend.problem(x))


def check_not_traced(x: Array) -> None:
    """Refuse a torch tensor that is only recorded: by torch.jit.trace, make_fx, vmap or grad.

    Formats are contracted the same way whatever the numbers, so they may be traced; ranks, sweeps
    and starts of a decomposition depend on the numbers.
    """
    if backend_of(x).is_recorded(x):
        raise DataError(
            "a decomposition depends on the numbers and cannot be traced (torch.jit.trace, make_fx,"
            " torch.func): decompose first, and trace what uses the result"
        )


def is_followed(x: Array) -> bool:
    """Whether steps on `x` must be the same whatever its numbers, and have gradients.

    Traced arrays, those with a history or that are to have one, and those without numbers.
    """
    return backend_of(x).is_followed(x)


def working(x: Array) -> Array:
    """`x` in working precision: float64 and complex as they are, integers float64, else float32.

    What is wider than float64 becomes float64 (complex128), what ml_dtypes adds float32.

    Raises
    ------
    DataError
        What `check_array` refuses.
    """
    check_array(x)
    xp, x = namespace(x), backend_of(x).standard(x)
    if x.dtype in (xp.float32, xp.float64, xp.complex64, xp.complex128):
        return x
    if xp.isdtype(x.dtype, "complex floating"):
        return xp.astype(x, xp.complex64)
    if xp.isdtype(x.dtype, ("bool", "integral")):
        return xp.astype(x, xp.float64)
    return xp.astype(x, xp.float32)


def find_dtype(xp: Any, dtype: Any) -> Any:
    """A dtype of a library by name, ``"float32"``, or from one of any library.

    >>> find_dtype(np, "float32") == find_dtype(np, np.dtype("float32")) == np.float32
    True
    """
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    name = name.rsplit(".", 1)[-1]
    found = getattr(xp, {"float": "float64", "complex": "complex128"}.get(name, name), None)
    try:
        xp.zeros((0,), dtype=found)
    except (TypeError, ValueError, AttributeError, RuntimeError):
        found = None
    if found is None or found is getattr(xp, "bool", None):
        raise ArgumentError(f"{xp.__name__.rsplit('.', 1)[-1]} has no numbers of dtype {dtype!r}")
    return found


def detached(x: Array) -> Array:
    """`x` without its history: a torch tensor that requires gradients is not to be tracked."""
    return backend_of(x).detached(x)


def float64_scope(*arrays: Array) -> AbstractContextManager[Any]:
    """Context in which steps on the arrays are done in their own precision, or in float64.

    jax has float64 only inside its x64 scope; torch multiplies in half precision under autocast.
    """
    scopes = ExitStack()
    for backend in BACKENDS:
        if backend.scope_matters() and (own := [a for a in arrays if backend.holds(a)]):
            scopes.enter_context(backend.scope(own))
    return scopes


def scope_matters() -> bool:
    """Whether `float64_scope` may be other than none, for whatever arrays."""
    return any(backend.scope_matters() for backend in BACKENDS)


def is_writable(x: Array) -> bool:
    """Whether parts of an array can be assigned to."""
    return backend_of(x).writable


def double(x: Array) -> Array:
    """`x` in float64 (complex128 for complex arrays), in its own library."""
    xp, x = namespace(x), backend_of(x).standard(x)
    wide = xp.complex128 if xp.isdtype(x.dtype, "complex floating") else xp.float64
    return x if x.dtype == wide else xp.astype(x, wide)


def adjoint(matrix: Array) -> Array:
    """Conjugate transpose."""
    xp = namespace(matrix)
    return xp.conj(matrix.T) if xp.isdtype(matrix.dtype, "complex floating") else matrix.T


def sum_of_squares(x: Array) -> float:
    """‖x‖² accumulated in float64, a tile at a time, without overflow for float32 input."""
    xp = namespace(x)
    flat = xp.reshape(x, (-1,))
    total = 0.0
    for start in range(0, flat.shape[0], _TILE):
        tile = double(flat[start : min(start + _TILE, flat.shape[0])])
        if xp.isdtype(tile.dtype, "complex floating"):
            tile = xp.abs(tile)
        total += float(xp.sum(tile * tile))
    return total


def quick_sum_of_squares(x: Array) -> float:
    """‖x‖² to about 1e-7: as `sum_of_squares`, in one pass over float32 data without widening it.

    Rows of 4096 squares are summed in float32, the rows in float64; where float32 cannot hold the
    squares, `sum_of_squares` does it.
    """
    xp = namespace(x)
    n = math.prod(x.shape)
    if x.dtype != xp.float32 or n < _ROW:
        return sum_of_squares(x)
    flat = xp.reshape(x, (-1,))
    whole = n // _ROW * _ROW
    rows = xp.reshape(flat[:whole], (-1, _ROW))
    with np.errstate(over="ignore", under="ignore"):
        total = float(xp.sum(xp.vecdot(rows, rows), dtype=xp.float64))
    if not 1e-30 * n < total < math.inf:
        if total == 0 and float(xp.min(flat)) == 0 == float(xp.max(flat)):
            return 0.0  # of what was not trained, not of numbers too small for their squares
        return sum_of_squares(x)
    return total if whole == n else total + sum_of_squares(flat[whole:])


def tol(dtype: Any, n: int) -> float:
    """Relative error that rounding alone may cause in a sum of `n` terms of `dtype`.

    ``8 · eps · √n``, at least ``32 · eps``. The one source of tolerances, in code and tests.
    """
    name = str(dtype).rsplit(".", 1)[-1].removesuffix("'>")
    eps = float(np.finfo(np.dtype(name)).eps)
    return eps * max(32.0, 8.0 * math.sqrt(n))


def floor(dtype: Any) -> float:
    """Smallest relative error worth asking for in a working precision.

    Sums of squares over products in that precision agree between machines to this share of them.
    """
    return 1e-14 if str(dtype).endswith(("float64", "complex128")) else 1e-6


def to_numpy(x: Array) -> np.ndarray:
    """`x` as a numpy array on the host."""
    return np.asarray(backend_of(x).to_host(x))
