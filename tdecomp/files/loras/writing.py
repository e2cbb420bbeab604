"""Writing an adapter in any naming scheme: what is read again is the same bits and scales."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tdecomp._xp import to_numpy
from tdecomp.collections import AdapterPair
from tdecomp.errors import FileError, SiteError
from tdecomp.files import safetensors
from tdecomp.files.loras.adapter_file import AdapterFile, SitePair
from tdecomp.files.loras.peft_scales import read_scales
from tdecomp.files.loras.reading import CONFIG, WEIGHTS
from tdecomp.files.loras.schemes import SCHEMES, NamingScheme
from tdecomp.files.safetensors import Entry

__all__ = ["PAIRS_KEY", "write_adapter"]

PAIRS_KEY = "tdecomp.pairs"
"""Metadata key by which a file that was written here is known again."""

_STALE = ("lora_adapter_metadata", "sshs_model_hash", "sshs_legacy_hash")
"""Metadata that says something of the tensors of another file."""
_SIZES = ("ss_network_dim", "ss_network_alpha")


def write_adapter(
    path: str | Path,
    adapter: AdapterFile,
    *,
    scheme: NamingScheme | None = None,
    network: str = "",
    beside: bool = False,
) -> None:
    """Write an adapter's pairs; the caller makes that atomic.

    Pairs are read one at a time, and written in the dtype that they have. Those of rank 0 are left
    out, and what the adapter does not cover is not written.

    Parameters
    ----------
    path
        An existing empty folder for a scheme of folders (``"peft"``), else the file to write.
    adapter
        As read, or made: ``replace(adapter, stored={site: HeldPair(pair, "BF16")})``.
    scheme
        A row of `SCHEMES`; None: the adapter's own, and ``"peft"`` for our factors.
    network
        Of all sites, ``"unet"`` or ``"transformer"``, where the adapter names none and the scheme
        does.
    beside
        Copy `AdapterFile.beside`, too, where the scheme is the adapter's own.

    Raises
    ------
    FileError
        Nothing to write, or a site that the scheme has no name for.
    DataError
        Numbers that do not fit the dtype.
    """
    scheme = scheme or adapter.scheme or SCHEMES[0]
    rows = _rows(adapter, scheme, network)
    if not rows:
        raise FileError(f"{adapter.name}: no pair can be written, all are of rank 0")
    copied = adapter.beside if beside and scheme is adapter.scheme else dict[str, Entry]()
    alpha = not scheme.in_folder and _needs_alpha(rows, scheme)
    tensors = [t for row in rows for t in row.tensors(scheme, alpha=alpha)]
    tensors += [_copy(entry) for entry in copied.values()]
    if scheme.in_folder:
        folder = Path(path)
        _write(folder / WEIGHTS, tensors, {"format": "pt"})
        text = json.dumps(_config(rows, adapter, copied=bool(copied)), indent=2) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
    else:
        _write(Path(path), tensors, _metadata(adapter, rows))


# ---------------------------------------------------------------------------------------- rows


@dataclass(frozen=True, kw_only=True)
class _WrittenPair:
    """One pair as it is stored: of one site, or of the experts of a module."""

    site: str
    key: Callable[[str, str], str]
    pairs: tuple[SitePair, ...]
    kind: str
    shape: tuple[int, int]
    rank: int
    scale: float
    transpose: bool
    kernel: tuple[int, ...]
    dtype: str

    @property
    def alpha(self) -> float:
        """``scale · r``, as the number that gives this scale when it is divided by r."""
        alpha = self.scale * self.rank
        return round(alpha, 9) if round(alpha, 9) / self.rank == self.scale else alpha

    def tensors(self, scheme: NamingScheme, *, alpha: bool) -> list[_Tensor]:
        """What is written for it, in order."""
        (out, in_), count = self.shape, len(self.pairs)
        channels = in_ // int(np.prod(self.kernel, dtype=int))
        a_shape = (self.rank * count, channels, *self.kernel)
        b_shape = (out, self.rank * count, *(1 for _ in self.kernel))
        a = _Tensor(self.key(self.kind, "a"), self.dtype, a_shape, lambda: self._stacked()[1])
        b = _Tensor(self.key(self.kind, "b"), self.dtype, b_shape, lambda: self._stacked()[0])
        said = ("", "alpha") in scheme.endings.values() and alpha
        value = np.array(self.alpha, np.float32)
        return [a, b, *([_Tensor(self.key("", "alpha"), "F32", (), lambda: value)] if said else [])]

    def _stacked(self) -> tuple[np.ndarray, np.ndarray]:
        """B and A as they lie in the file; experts are padded to one rank and one scale."""
        each = [_padded(pair.read(), self.rank, self.scale) for pair in self.pairs]
        if len(each) == 1:
            return each[0]
        b = np.stack([left for left, _ in each], axis=-1)  # (out, r, expert)
        return b.reshape(len(b), -1), np.concatenate([right for _, right in each], axis=0)


@dataclass(frozen=True)
class _Tensor:
    """A tensor to be written: name, code and shape, and what makes its numbers, or its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]
    is_bytes: bool = False

    def encoded(self) -> np.ndarray:
        """The stored bytes."""
        made = self.make()
        return made if self.is_bytes else safetensors.encode(made.reshape(self.shape), self.dtype)


def _copy(entry: Entry) -> _Tensor:
    return _Tensor(entry.name, entry.dtype, entry.shape, lambda: safetensors.raw(entry), True)


def _rows(adapter: AdapterFile, scheme: NamingScheme, network: str) -> list[_WrittenPair]:
    together: dict[str, list[SitePair]] = {}
    for site, stored in adapter.stored.items():
        one = stored.expert is None or not scheme.in_folder
        together.setdefault(site if one or not stored.expert else stored.expert.module, []).append(
            stored
        )
    _check_dots(adapter, scheme)
    names = _names(together, adapter.scheme, scheme, network)
    rows = (_row(names[site], members, scheme) for site, members in together.items())
    return [row for row in rows if row.rank]


def _row(site: str, members: Sequence[SitePair], scheme: NamingScheme) -> _WrittenPair:
    pairs = [member.read() for member in members]
    first = pairs[0]
    scales = {pair.scale for pair in pairs}
    return _WrittenPair(
        site=site,
        key=_key_of(site, scheme),
        pairs=tuple(members),
        kind="embedding" if members[0].kind == "embedding" else "lora",
        shape=first.shape,
        rank=max(pair.rank for pair in pairs),
        scale=scales.pop() if len(scales) == 1 else 1.0,
        transpose=first.transpose,
        kernel=first.kernel,
        dtype=members[0].dtype,
    )


def _key_of(site: str, scheme: NamingScheme) -> Callable[[str, str], str]:
    def key(kind: str, part: str) -> str:
        found = scheme.key(site, kind, part)
        if found is None:
            known = ", ".join(filter(None, scheme.networks.values()))
            raise SiteError(
                f"the naming scheme {scheme.name!r} has no name for the {kind} pair of {site}",
                tip=f"say which network it is of, network=: {known}" if known else "",
            )
        return found

    return key


def _padded(pair: AdapterPair, rank: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    b, a = to_numpy(pair.b), to_numpy(pair.a)
    if pair.scale != scale:
        b = b * (pair.scale / scale)
    extra = rank - pair.rank
    if extra:
        b, a = np.pad(b, ((0, 0), (0, extra))), np.pad(a, ((0, extra), (0, 0)))
    return b, a


def _check_dots(adapter: AdapterFile, scheme: NamingScheme) -> None:
    lost = adapter.scheme is not None and adapter.scheme.joint != "."
    if lost and scheme.joint == ".":
        assert adapter.scheme is not None
        raise FileError(
            f"{adapter.path} names its modules without dots ({adapter.scheme.name}), and"
            f" {scheme.name} needs them: write it in a scheme without dots"
        )


def _names(
    sites: Iterable[str], own: NamingScheme | None, scheme: NamingScheme, network: str
) -> dict[str, str]:
    """What sites are called in another scheme: with a network, or without one if all are in one."""
    names = {site: site for site in sites}
    if scheme is own:
        return names
    named = own is not None and own.names_networks
    if scheme.names_networks and not named and network:
        return {site: f"{network}.{site}" for site in names}
    one = len({site.partition(".")[0] for site in names}) == 1
    if named and one and not scheme.names_networks:
        return {site: site.partition(".")[2] for site in names}
    return names


def _needs_alpha(rows: Sequence[_WrittenPair], scheme: NamingScheme) -> bool:
    """Whether a loader could not know the scales otherwise: schemes with dots take it for r."""
    return scheme.joint == "_" or any(row.scale != 1 for row in rows) or _mixed(rows)


def _mixed(rows: Sequence[_WrittenPair]) -> bool:
    return len({row.rank for row in rows}) > 1


# ---------------------------------------------------------------------------------------- files


def _write(path: Path, tensors: Sequence[_Tensor], metadata: Mapping[str, str]) -> None:
    by_name = {tensor.name: tensor for tensor in tensors}

    entries = [(t.name, t.dtype, t.shape) for t in tensors]
    safetensors.write(path, entries, lambda name: by_name[name].encoded(), metadata)


def _metadata(adapter: AdapterFile, rows: Sequence[_WrittenPair]) -> dict[str, str]:
    kept = {key: text for key, text in adapter.metadata.items() if key not in _STALE}
    kept[PAIRS_KEY] = "1"
    each = {"ss_network_dim": {r.rank for r in rows}, "ss_network_alpha": {r.alpha for r in rows}}
    for key in _SIZES:
        if key in kept:
            kept[key] = f"{each[key].pop():g}" if len(each[key]) == 1 else "Dynamic"
    return kept


def _config(rows: Sequence[_WrittenPair], adapter: AdapterFile, *, copied: bool) -> dict[str, Any]:
    """The configuration: what the old one says of other things, and the ranks and scales."""
    rank = max(row.rank for row in rows)
    alpha, _ = Counter(row.alpha for row in rows if row.rank == rank).most_common(1)[0]
    inside = _parameters(rows, adapter)
    targets = sorted(row.site for row in rows if row.site not in inside)
    usual = {"peft_type": "LORA", "task_type": None, "lora_dropout": 0.0}
    ours = {
        "base_model_name_or_path": adapter.base or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _as_typed(alpha),
        "rank_pattern": _pattern(rows, inside, lambda row: row.rank, rank),
        "alpha_pattern": _pattern(rows, inside, lambda row: _as_typed(row.alpha), _as_typed(alpha)),
        "target_modules": targets,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "modules_to_save": adapter.config.get("modules_to_save") if copied else None,
        "bias": adapter.config.get("bias", "none") if copied else "none",
        "fan_in_fan_out": any(row.transpose and row.kind == "lora" for row in rows),
        "use_rslora": False,
        "use_dora": False,
        "lora_bias": False,
        "init_lora_weights": True,
    }
    kept = {key: value for key, value in adapter.config.items() if key != "auto_mapping"}
    return usual | kept | ours


def _parameters(rows: Sequence[_WrittenPair], adapter: AdapterFile) -> dict[str, tuple[str, ...]]:
    """Rows whose pair is of a parameter (``target_parameters``): row -> names of parameters."""
    if not adapter.config.get("target_parameters"):
        return {}
    scales, _ = read_scales(adapter.config, adapter.path)
    named = {row.site: scales.names_inside(row.site)[1:] for row in rows}
    return {site: names for site, names in named.items() if names}


def _pattern(
    rows: Sequence[_WrittenPair],
    inside: Mapping[str, tuple[str, ...]],
    value: Callable[[_WrittenPair], Any],
    usual: Any,
) -> dict[str, Any]:
    """What differs from the usual, by name; long names first, as the first that fits is taken."""
    named = {
        name: value(row)
        for row in rows
        if value(row) != usual
        for name in inside.get(row.site, (row.site,))
    }
    sites = [row.site for row in rows]
    ends = {name for name in named if any(site.endswith(f".{name}") for site in sites)}
    return {
        f"^{name}" if name in ends else name: named[name] for name in sorted(named, key=len)[::-1]
    }


def _as_typed(alpha: float) -> float | int:
    """A whole number as such, as PEFT writes it."""
    return int(alpha) if float(alpha).is_integer() else alpha
