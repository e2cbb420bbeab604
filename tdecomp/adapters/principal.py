"""Principal directions of several adapters: what a new one can be made of (EigenLoRAx)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tdecomp.adapters.lora import LoRAModule
from tdecomp.errors import ArgumentError

__all__ = ["principal_directions"]


def principal_directions(
    adapters: Sequence[Sequence[LoRAModule]], k: int, *, extra: int = 0, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Leading directions of the LoRA factors of several adapters, for the row ``eigenlorax``.

    For every module the rows of all A, and the columns of all B, are put side by side; the leading
    singular vectors span the subspace that holds most of them. They are not centred.

    Parameters
    ----------
    adapters
        LoRA pairs of each, as `lora_modules` and `Adapter.to_lora` of the torch layer give them;
        all of the same modules.
    k
        Directions to keep; no more than the summed ranks.
    extra
        Further directions: random, orthonormal to those and to each other.
    seed
        Of the random ones.

    Returns
    -------
    dict
        ``directions_out`` and ``directions_in``, each by module: ``(out, k + extra)`` and
        ``(k + extra, in)``, orthonormal columns and rows. To be passed on as ``given=`` with
        ``rank={"k": k + extra, "r": ...}``.

    Raises
    ------
    ArgumentError
        The adapters have other modules, or fewer directions than asked for.

    Examples
    --------
    >>> rest = {"module": "q", "transpose": False, "departure": 0.0, "energy": 0.0}
    >>> one = LoRAModule(a=np.eye(2, 5), b=np.eye(4, 2), **rest)
    >>> two = LoRAModule(a=np.eye(1, 5), b=np.eye(4, 1), **rest)
    >>> found = principal_directions([[one], [two]], 1)
    >>> np.abs(found["directions_in"]["q"]).round(3).tolist()
    [[1.0, 0.0, 0.0, 0.0, 0.0]]
    """
    by_module = [{pair.module: pair for pair in adapter} for adapter in adapters]
    if not by_module:
        raise ArgumentError("principal_directions needs one adapter or more")
    modules = list(by_module[0])
    for pairs in by_module[1:]:
        if different := sorted(set(modules) ^ pairs.keys()):
            raise ArgumentError(
                f"the adapters are of different modules: {different[0]} is not in all of them"
            )
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, np.ndarray]] = {"directions_out": {}, "directions_in": {}}
    for module in modules:
        own = [pairs[module] for pairs in by_module]
        columns = np.concatenate([np.asarray(p.b, dtype=np.float64) for p in own], axis=1)
        rows = np.concatenate([np.asarray(p.a, dtype=np.float64) for p in own], axis=0)
        found["directions_out"][module] = _leading(columns, k, extra, rng, module)
        found["directions_in"][module] = _leading(rows.T, k, extra, rng, module).T
    return found


def _leading(
    columns: np.ndarray, k: int, extra: int, rng: np.random.Generator, module: str
) -> np.ndarray:
    """Leading left singular vectors, and random ones orthonormal to them: ``(n, k + extra)``."""
    n, most = columns.shape[0], min(columns.shape)
    if not 1 <= k <= most or not 0 <= extra <= n - k:
        raise ArgumentError(
            f"k={k} and extra={extra} directions of {module}: the adapters have {most} of {n}"
        )
    leading = np.linalg.svd(columns, full_matrices=False)[0][:, :k]
    if not extra:
        return leading
    both = np.concatenate([leading, rng.standard_normal((n, extra))], axis=1)
    return np.concatenate([leading, np.linalg.qr(both)[0][:, k:]], axis=1)
