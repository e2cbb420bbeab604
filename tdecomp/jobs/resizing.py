"""Adapters with narrower pairs: one, or a whole folder of them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from tdecomp._xp import Array, to_numpy
from tdecomp.collections import AdapterPair
from tdecomp.collections.resizing import (
    PairSpectrum,
    ResizedPair,
    choose_ranks,
    ranks_above_noise,
    resized,
)
from tdecomp.errors import ArgumentError
from tdecomp.files import safetensors
from tdecomp.files.dtypes import NAMES, code_of
from tdecomp.files.loras import SCHEMES, AdapterFile, NamingScheme, write_adapter
from tdecomp.files.loras.adapter_file import HeldPair, held
from tdecomp.files.loras.several import AdapterSource, adapters_in, on_disk, opened, outputs
from tdecomp.jobs.reports import Report, relative_error
from tdecomp.jobs.steps import StepProgress, of_step, untold
from tdecomp.progress import Progress
from tdecomp.ranking.target import Target

__all__ = ["NotInPairs", "ResizeReport", "ResizedAdapter", "ResizedSite", "dtype_of", "resize"]

_WIDEST = 2**31


@dataclass(frozen=True, kw_only=True)
class ResizedSite:
    """One weight.

    Attributes
    ----------
    site, shape
        Its name without the scheme's, and (out, in).
    rank_before, rank
        Width of the pair that was read, and of the one that was written; 0: left out.
    energy, error
        ‖ΔW‖², and ``‖ΔW - B A‖ / ‖ΔW‖`` of what was written.
    """

    site: str
    shape: tuple[int, int]
    rank_before: int
    rank: int
    energy: float
    error: float


@dataclass(frozen=True, kw_only=True)
class NotInPairs:
    """A tensor that is not part of a pair, so that the new adapter lacks it, and why."""

    tensor: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ResizedAdapter:
    """One adapter.

    Attributes
    ----------
    name, path, scheme
        The task, where it was written, and how its tensors are named.
    numbers_before, numbers
        In the pairs that were read, and in those that were written.
    error
        ``‖ΔW - B A‖ / ‖ΔW‖`` over all sites.
    sites
        One by one.
    copied, not_covered
        Tensors that are no part of a pair: those that were copied, and those that are left out.
    notes
        Sentences on what a user should know.
    """

    name: str
    path: str
    scheme: str
    numbers_before: int
    numbers: int
    error: float
    sites: tuple[ResizedSite, ...]
    copied: tuple[str, ...]
    not_covered: tuple[NotInPairs, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ResizeReport(Report):
    """What `resize` wrote.

    Attributes
    ----------
    out
        Where.
    adapters
        One, or those of a folder in order.
    numbers_before, numbers, error
        Of all together.
    """

    out: str
    adapters: tuple[ResizedAdapter, ...]
    numbers_before: int
    numbers: int
    error: float


def resize(
    source: AdapterSource,
    out: str | Path,
    *,
    rank: int | None = None,
    error: float | None = None,
    budget: int | None = None,
    noise: bool = False,
    rank_max: int | None = None,
    same_rank: bool = False,
    scheme: str | None = None,
    network: str = "",
    dtype: str | None = None,
    base: str | Path | None = None,
    overwrite: bool = False,
    progress: StepProgress = untold,
) -> ResizeReport:
    """Write an adapter with narrower pairs, the best of their ranks.

    Every pair is taken apart by two QRs and the SVD of a small matrix; ΔW is never formed, and one
    pair is read at a time. The new pairs are balanced and at scale 1: ``alpha`` is their rank.

    Parameters
    ----------
    source
        An adapter as `tdecomp.files.loras.read_adapter` takes it or gives it, one on a model
        (``adapter.to_file()``), or a folder of adapters, which are resized together: an error or a
        budget is that of all.
    out
        What to write: a folder for PEFT, else a ``.safetensors`` file; a folder of these for a
        folder of adapters.
    rank, error, budget, noise
        Exactly one: the rank of every site; or the relative error or the numbers of all, by ranks
        that win most energy per number; or the singular values that stand out of noise, by
        `PairSpectrum.above_noise`.
    rank_max
        The largest rank that an error, a budget or noise may give.
    same_rank
        One rank for all sites of all adapters, as servers like it.
    scheme
        Name of a naming scheme to write in; None: that of the source.
    network
        Of all sites, ``"unet"``, where that scheme names one and the source does not.
    dtype
        ``"float32"``, ``"bfloat16"`` or ``"float16"``; None: as it is stored.
    base
        The base model, for DoRA.
    overwrite
        Replace an existing output of this tool.
    progress
        Called with the fraction of a step and its name.

    Raises
    ------
    ArgumentError
        None or two of rank, error and budget; a scheme that is not known.
    DataError
        An adapter with numbers that are not finite, by name.
    FileError
        A file that cannot be read, or an output that may not be written.
    """
    target = _target(rank, error, budget, rank_max, noise=noise)
    code = None if dtype is None else code_of(dtype)
    found = adapters_in(source)
    adapters = [opened(one, base=base) for one in found]
    schemes = [_scheme(scheme, adapter) for adapter in adapters]
    inputs = on_disk([source, base])
    single = isinstance(source, AdapterFile) or list(found) == [Path(source)]
    with outputs(
        out, adapters, schemes, single=single, overwrite=overwrite, inputs=inputs
    ) as places:
        ranks = _ranks(adapters, target, same_rank, of_step(progress, "measuring"))
        made: list[ResizedAdapter] = []
        told = _Shares(of_step(progress, "resizing"), sum(len(a.stored) for a in adapters))
        for adapter, row, place, wanted in zip(adapters, schemes, places, ranks, strict=True):
            narrow = _Narrowing(wanted, code, same_rank, told)
            new, sites = narrow(adapter)
            write_adapter(place, new, scheme=row, network=network, beside=True)
            path = Path(out) if single else Path(out) / place.name
            made.append(_told(adapter, path, row, sites))
    return ResizeReport(
        out=str(out),
        adapters=tuple(made),
        numbers_before=sum(one.numbers_before for one in made),
        numbers=sum(one.numbers for one in made),
        error=_error([site for one in made for site in one.sites]),
    )


def dtype_of(source: str | Path) -> str:
    """Name of the dtype of most pairs of an adapter, or of the first of a folder."""
    return NAMES.get(opened(adapters_in(source)[0]).dtype, "float32")


def _scheme(name: str | None, adapter: AdapterFile) -> NamingScheme:
    """The scheme of that name, else the adapter's own; PEFT's for our factors."""
    if name is None:
        return adapter.scheme or SCHEMES[0]
    known = {row.name: row for row in SCHEMES}
    if name.lower() in _READ_ONLY:
        raise ArgumentError(
            f"{name} is read and not written: {_READ_ONLY[name.lower()]}",
            tip="write pairs, in the scheme 'kohya' for example",
        )
    if name not in known:
        raise ArgumentError(f"no naming scheme {name!r} is known: there are {', '.join(known)}")
    return known[name]


@dataclass(frozen=True)
class _AboveNoise:
    """What stands out of noise is kept, up to a largest rank."""

    rank_max: int | None


def _target(
    rank: int | None, error: float | None, budget: int | None, most: int | None, *, noise: bool
) -> Target | _AboveNoise:
    if not noise:
        return Target(rank, error, budget, most)
    given = {"rank": rank, "error": error, "budget": budget}
    if named := [name for name, value in given.items() if value is not None]:
        raise ArgumentError(f"give exactly one of noise and {named[0]}, got both")
    if most is not None and most < 1:
        raise ArgumentError(f"rank_max={most!r} must be a whole number, 1 or more")
    return _AboveNoise(most)


_READ_ONLY = {
    "loha": "pairs are a LoHa only with a second factor of ones, which is twice as large",
    "lokr": "a LoRA is no Kronecker product, and the nearest one is another ΔW",
}
"""Kinds of pairs that are no naming scheme, and why none is made of a LoRA."""


def _ranks(
    adapters: Sequence[AdapterFile],
    target: Target | _AboveNoise,
    same: bool,
    progress: Progress,
) -> list[dict[str, int]]:
    """Rank of every site of every adapter. For a given rank no number is read."""
    if isinstance(target, Target) and target.rank is not None and not same:
        rank = target.ranks_of(("rank",), (_WIDEST,))[0]
        return [dict.fromkeys(adapter.stored, rank) for adapter in adapters]
    sites = [(k, site) for k, adapter in enumerate(adapters) for site in adapter.stored]
    spectra: list[PairSpectrum] = []
    for done, (k, site) in enumerate(sites):
        pair = adapters[k].pairs[site]
        spectra.append(PairSpectrum(to_numpy(pair.spectrum()), pair.shape))
        progress((done + 1) / len(sites))
    if isinstance(target, Target):
        chosen = choose_ranks(spectra, target, same=same)
    else:
        chosen = ranks_above_noise(spectra, most=target.rank_max, same=same)
        if not any(chosen):
            raise ArgumentError(
                "no singular value of any site stands out of noise", tip="give an error or a rank"
            )
    ranks: list[dict[str, int]] = [{} for _ in adapters]
    for (k, site), rank in zip(sites, chosen, strict=True):
        ranks[k][site] = rank
    return ranks


class _Shares:
    """Counts sites for a progress."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self) -> None:
        self._done += 1
        self._progress(self._done / self._total)


@dataclass(frozen=True)
class _Narrowing:
    """How the pairs of an adapter become narrower: ranks, storage code, whether filled up."""

    ranks: Mapping[str, int]
    code: str | None
    same: bool
    told: Callable[[], None]

    def __call__(self, adapter: AdapterFile) -> tuple[AdapterFile, tuple[ResizedSite, ...]]:
        """The adapter with narrower pairs, and what happened at every site."""
        stored: dict[str, HeldPair] = {}
        sites: list[ResizedSite] = []
        for site, old in adapter.stored.items():
            code = self.code or old.dtype
            before = old.read()
            new = resized(
                before, self.ranks[site], rounding=partial(_rounded, code), padded=self.same
            )
            stored[site] = held(_as_float(new.pair, code), old, code)
            sites.append(_site(site, before.rank, new))
            self.told()
        return replace(adapter, stored=stored), tuple(sites)


def _rounded(code: str, array: Array) -> np.ndarray:
    return safetensors.rounded(to_numpy(array), code)


def _as_float(pair: AdapterPair, code: str) -> AdapterPair:
    """The same numbers in the least room that holds them."""
    kind = np.float64 if code == "F64" else np.float32
    return replace(pair, b=to_numpy(pair.b).astype(kind), a=to_numpy(pair.a).astype(kind))


def _site(site: str, before: int, new: ResizedPair) -> ResizedSite:
    return ResizedSite(
        site=site,
        shape=new.pair.shape,
        rank_before=before,
        rank=new.pair.rank,
        energy=new.energy,
        error=relative_error([new.departure], [new.energy]),
    )


def _told(
    adapter: AdapterFile, path: Path, scheme: NamingScheme, sites: tuple[ResizedSite, ...]
) -> ResizedAdapter:
    copied = list(adapter.beside) if scheme is adapter.scheme else list[str]()
    return ResizedAdapter(
        name=adapter.name,
        path=str(path),
        scheme=scheme.name,
        numbers_before=sum(sum(site.shape) * site.rank_before for site in sites),
        numbers=sum(sum(site.shape) * site.rank for site in sites),
        error=_error(sites),
        sites=sites,
        copied=tuple(copied),
        not_covered=tuple(
            NotInPairs(tensor=t, reason=why) for t, why in adapter.not_covered if t not in copied
        ),
        notes=adapter.notes,
    )


def _error(sites: Sequence[ResizedSite]) -> float:
    return relative_error((s.error**2 * s.energy for s in sites), (s.energy for s in sites))
