"""What a model saw, in a file of its own: ``stats.safetensors``, written by ``tdecomp capture``.

One safetensors file. Arrays of weight number ``k`` are named ``"site.k.right"``, those of an input
that weights share ``"input.k.total"``; the metadata key ``tdecomp.statistics`` holds a JSON
document with all else. Every array keeps its dtype, float32 or float64. No pickle, no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tdecomp.errors import ArgumentError, FileError
from tdecomp.files import safetensors
from tdecomp.files.atomic import output_file
from tdecomp.files.ours import has_metadata
from tdecomp.files.plain import is_list, is_object
from tdecomp.files.storage import local
from tdecomp.statistics import Gradient, InputStatistics, SiteStatistics, Statistics

__all__ = ["load_statistics", "save_statistics", "statistics_output", "write_statistics"]

STATISTICS_VERSION = 1
_KEY = "tdecomp.statistics"
_CODES = {"float32": "F32", "float64": "F64"}
_MISFITS = (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError),
    *(OverflowError, RecursionError),
)

_Arrays = dict[str, np.ndarray]


def save_statistics(
    statistics: Statistics, path: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write statistics to a file, whole or not at all.

    Parameters
    ----------
    statistics
        As `tdecomp_torch.capture` gives them.
    path
        The file, by custom ``stats.safetensors``.
    overwrite
        Whether an existing file may be replaced, if this function wrote it.

    Raises
    ------
    ArgumentError
        These are no statistics.
    FileError
        The file exists or cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> gradient = Gradient(batches=2, left=None, right=np.ones((3, 4)))
    >>> site = SiteStatistics(shape=(3, 4), gradient=gradient)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_statistics(Statistics(sites={"a": site}), folder + "/stats.safetensors")
    ...     again = load_statistics(folder + "/stats.safetensors")
    >>> again.gradient_of("a").batches
    2
    """
    if not isinstance(statistics, Statistics):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(
            f"save_statistics takes Statistics and then a path, got a {type(statistics).__name__}"
        )
    with statistics_output(path, overwrite=overwrite) as temporary:
        write_statistics(temporary, statistics)


@contextmanager
def statistics_output(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
) -> Generator[Path]:
    """Give a temporary file, which becomes the one at `path` when the block succeeds.

    Raises
    ------
    FileError
        Before any work, if `path` may not be written.
    """
    ours = partial(has_metadata, key=_KEY)
    with output_file(path, ours=ours, overwrite=overwrite, inputs=inputs) as temporary:
        yield temporary


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write statistics to a file of `statistics_output`."""
    arrays: _Arrays = {}
    document = {
        "version": STATISTICS_VERSION,
        "model": statistics.model,
        "losses": list(statistics.losses),
        "sites": [
            {"name": name, **_site_json(site, f"site.{k}", arrays)}
            for k, (name, site) in enumerate(statistics.sites.items())
        ],
        "inputs": [
            {"name": name, **_input_json(own, f"input.{k}", arrays)}
            for k, (name, own) in enumerate(statistics.inputs.items())
        ],
    }
    codes = {name: _CODES.get(array.dtype.name, "F64") for name, array in arrays.items()}
    safetensors.write(
        path,
        [(name, codes[name], array.shape) for name, array in arrays.items()],
        lambda name: safetensors.encode(arrays[name], codes[name]),
        {"format": "tdecomp", _KEY: json.dumps(document)},
    )


def load_statistics(path: str | os.PathLike[str]) -> Statistics:
    """Read statistics that `save_statistics` wrote.

    Raises
    ------
    FileError
        The file is missing, damaged, not one of these, or of a newer version.
    """
    path = local(path, "statistics")
    entries, strings = safetensors.read_header(path)
    if _KEY not in strings:
        raise FileError(f"{path} holds no statistics: give a file that tdecomp capture wrote")
    try:
        document = json.loads(strings[_KEY])
        version = document["version"]
        if type(version) is not int or version != STATISTICS_VERSION:
            raise FileError(
                f"{path} has version {version}, this tdecomp reads {STATISTICS_VERSION}"
            )
        arrays = {name: _checked(name, safetensors.load(e)) for name, e in entries.items()}
        found = _read(document, arrays)
        if arrays:
            raise ValueError(f"nothing is said of the array {next(iter(arrays))!r}")
        return found
    except _MISFITS as error:
        raise FileError(
            f"{path} is damaged: its description does not fit its arrays ({error})"
        ) from error


# -- writing ---------------------


def _site_json(site: SiteStatistics, key: str, arrays: _Arrays) -> dict[str, Any]:
    """Plain values; arrays go to `arrays`."""
    _keep(arrays, key, left=site.gradient and site.gradient.left, outputs=site.outputs)
    _keep(arrays, key, right=site.gradient and site.gradient.right)
    _keep(arrays, key, fisher=site.fisher and site.fisher[1])
    return {
        "shape": list(site.shape),
        "input": site.input,
        "weight": site.weight,
        "gradient": site.gradient and site.gradient.batches,
        "tokens": site.tokens,
        "fisher": site.fisher and site.fisher[0],
    }


def _input_json(own: InputStatistics, key: str, arrays: _Arrays) -> dict[str, Any]:
    _keep(arrays, key, total=own.total, squares=own.squares)
    _keep(arrays, key, whole=own.whole, directions=own.directions)
    return {"tokens": own.tokens, "lost": own.lost}


def _keep(arrays: _Arrays, key: str, **given: np.ndarray | None) -> None:
    arrays |= {f"{key}.{n}": np.asarray(a) for n, a in given.items() if a is not None}


# -- reading ---------------------


def _checked(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite numbers")
    return array


def _read(document: Mapping[str, Any], arrays: _Arrays) -> Statistics:
    """Statistics of a document; takes the arrays out."""
    inputs = {
        _text(row["name"]): _read_input(row, f"input.{k}", arrays)
        for k, row in enumerate(_rows(document["inputs"]))
    }
    sites = {
        _text(row["name"]): _read_site(row, f"site.{k}", arrays, inputs)
        for k, row in enumerate(_rows(document["sites"]))
    }
    if len(sites) < len(document["sites"]) or len(inputs) < len(document["inputs"]):
        raise ValueError("a name is there twice")
    return Statistics(
        sites=sites,
        inputs=inputs,
        losses=tuple(_number(x) for x in document["losses"]),
        model=_text(document["model"]),
    )


def _read_site(
    row: Mapping[str, Any], key: str, arrays: _Arrays, inputs: Mapping[str, InputStatistics]
) -> SiteStatistics:
    n_out, n_in = map(_count, row["shape"])
    left, right = arrays.pop(f"{key}.left", None), arrays.pop(f"{key}.right", None)
    outputs, fisher = arrays.pop(f"{key}.outputs", None), arrays.pop(f"{key}.fisher", None)
    gradient = None
    if row["gradient"] is not None:
        if right is None:
            raise ValueError(f"{key} has no gradient")
        gradient = Gradient(batches=_count(row["gradient"]), left=left, right=right)
        if left is not None and left.shape[1:] != right.shape[:1]:
            raise ValueError(f"{key} has {left.shape} columns times rows {right.shape}")
        _check_shape(key, gradient.shape, (n_out, n_in))
    elif left is not None or right is not None:
        raise ValueError(f"{key} has a gradient over no batches")
    _check_shape(key, None if outputs is None else outputs.shape, (n_out, n_out))
    _check_shape(key, None if fisher is None else fisher.shape, (n_out, n_in))
    if (fisher is None) != (row["fisher"] is None):
        raise ValueError(f"{key} has a Fisher diagonal over no batches, or none over some")
    read = _text(row["input"])
    if read in inputs and inputs[read].width != n_in:
        raise ValueError(f"{key} reads {inputs[read].width} numbers of {n_in}")
    return SiteStatistics(
        shape=(n_out, n_in),
        input=read,
        weight=_text(row["weight"]),
        gradient=gradient,
        outputs=outputs,
        tokens=_count(row["tokens"], least=0),
        fisher=None if fisher is None else (_count(row["fisher"]), fisher),
    )


def _read_input(row: Mapping[str, Any], key: str, arrays: _Arrays) -> InputStatistics:
    total, squares = arrays.pop(f"{key}.total"), arrays.pop(f"{key}.squares")
    whole, directions = arrays.pop(f"{key}.whole", None), arrays.pop(f"{key}.directions", None)
    (width,) = total.shape
    _check_shape(key, squares.shape, (width,))
    _check_shape(key, None if whole is None else whole.shape, (width, width))
    if directions is not None:
        _check_shape(key, directions.shape, (len(directions), width))
    return InputStatistics(
        tokens=_count(row["tokens"]),
        total=total,
        squares=squares,
        whole=whole,
        directions=directions,
        lost=_number(row["lost"]),
    )


def _check_shape(key: str, found: tuple[int, ...] | None, wanted: tuple[int, ...]) -> None:
    if found is not None and tuple(found) != wanted:
        raise ValueError(f"{key} has an array of {tuple(found)} in the place of {wanted}")


def _rows(value: object) -> list[dict[str, Any]]:
    if not is_list(value) or not all(is_object(row) for row in value):
        raise TypeError("a list of objects is expected")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: object, *, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise TypeError(f"{value!r} is no count")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)
