"""An adapter, or factors, written so that one loader takes every tensor; and that is checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tdecomp.errors import FileError
from tdecomp.files.checkpoint import open_checkpoint
from tdecomp.files.dtypes import code_of
from tdecomp.files.loaders import loader_of, read_adapter_names, read_model_names
from tdecomp.files.loaders.fitting import FittedAdapter, fit
from tdecomp.files.loras import read_adapter, write_adapter
from tdecomp.files.loras.several import outputs
from tdecomp.files.places import is_there
from tdecomp.jobs.checking import CheckReport, report_on
from tdecomp.jobs.inspecting import LeftOut
from tdecomp.jobs.reports import Report

__all__ = ["FitReport", "RenamedModule", "export_for"]


@dataclass(frozen=True, kw_only=True)
class RenamedModule:
    """What a module was called in the adapter, and what it is called now; without endings."""

    was: str
    now: str


@dataclass(frozen=True, kw_only=True)
class FitReport(Report):
    """What was written for a loader.

    Attributes
    ----------
    source, out, model
        What was read, what was written, and the model that it is for.
    loader, scheme
        For which loader, and in which naming scheme.
    modules, rank
        Pairs that were written, and the rank of all; 0 where each has its own.
    renamed
        Modules that are called otherwise than before.
    left_out
        What the loader has no place for.
    check
        What `check` says of what was written.
    """

    source: str
    out: str
    model: str
    loader: str
    scheme: str
    modules: int
    rank: int
    renamed: tuple[RenamedModule, ...]
    left_out: tuple[LeftOut, ...]
    check: CheckReport


def export_for(
    source: str | Path,
    out: str | Path,
    *,
    loader: str,
    base: str | Path | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> FitReport:
    """Write an adapter with the names, layout of experts, rank and scale that a loader takes.

    ΔW of every module that is written is as it was, but for the rounding of its dtype.

    Parameters
    ----------
    source
        A LoRA of any naming scheme, or a folder that `decompose` wrote.
    out
        Folder to write; for loaders of images a ``.safetensors`` file.
    loader
        A key of `tdecomp.files.loaders.LOADERS`.
    base
        The model that it is for; None: what the source names, if it is there.
    dtype
        Of the pairs: ``"bfloat16"``; None: as they are.
    overwrite
        Replace an existing output of this tool.

    Raises
    ------
    FileError
        A source or a model that cannot be read, an output that may not be written, or an adapter
        of which the loader could adapt nothing.
    ArgumentError
        A loader that nobody knows.
    """
    row = loader_of(loader)
    adapter = read_adapter(source)
    model = _model(base, adapter.base, source)
    if any("DoRA" in why for _, why in adapter.not_covered) and _has_weights(model):
        adapter = read_adapter(source, base=model)
    names = read_model_names(model)
    code = None if dtype is None else code_of(dtype)
    fitted = fit(adapter, names, row, dtype=code)
    _check_rank(fitted, row.ranks, loader)
    if not fitted.adapter.base:
        fitted = replace(fitted, adapter=replace(fitted.adapter, base=str(model)))
    with outputs(
        out,
        [fitted.adapter],
        [fitted.scheme],
        single=True,
        overwrite=overwrite,
        inputs=[source, model],
    ) as (place,):
        write_adapter(place, fitted.adapter, scheme=fitted.scheme)
        written = read_adapter_names(place)
    written = replace(written, path=Path(out))
    return FitReport(
        source=str(source),
        out=str(out),
        model=str(model),
        loader=loader,
        scheme=fitted.scheme.name,
        modules=sum("b" in pair.parts for pair in written.pairs.values()),
        rank=fitted.rank,
        renamed=tuple(RenamedModule(was=old, now=new) for old, new in fitted.renamed.items()),
        left_out=tuple(LeftOut(tensor=site, reason=why) for site, why in fitted.left_out),
        check=report_on(written, names, row),
    )


def _model(base: str | Path | None, said: str, source: str | Path) -> Path:
    if base is not None:
        return Path(base)
    if said and is_there(Path(said) / "config.json"):
        return Path(said)
    named = f"names {said!r}, which is not here" if said else "does not say which model it is for"
    raise FileError(f"{source} {named}", tip="name the model's folder: base=")


def _has_weights(model: Path) -> bool:
    try:
        return bool(open_checkpoint(model).names)
    except FileError:
        return False


def _check_rank(fitted: FittedAdapter, ranks: tuple[int, ...], loader: str) -> None:
    if ranks and fitted.rank > ranks[-1]:
        raise FileError(
            f"the adapter needs rank {fitted.rank}, and {loader} takes at most {ranks[-1]}",
            tip=f"make it smaller first: tdecomp resize LORA -o SMALL --rank {ranks[-1]}",
        )
