"""An adapter as a loader wants it: its names, its layout of experts, one rank and one scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tdecomp.collections import AdapterPair
from tdecomp.errors import FileError
from tdecomp.files.fusions import Fusion
from tdecomp.files.loaders.experts import single
from tdecomp.files.loaders.loader import FUSED, PEFT_PREFIX, Loader, LoaderPlace, ModelView
from tdecomp.files.loaders.meant import Meant, dotted_key, flat_key
from tdecomp.files.loaders.model_names import Experts, ModelNames
from tdecomp.files.loaders.packing import part_of, parts_in, put_together
from tdecomp.files.loaders.pair_rows import cut, gate_and_up, joined, widened, zero
from tdecomp.files.loras.adapter_file import AdapterFile, Expert3d, HeldPair, SitePair, held
from tdecomp.files.loras.schemes import SCHEMES, NamingScheme
from tdecomp.files.peft_config import aims, facts
from tdecomp.stack.names import canonical

__all__ = ["FittedAdapter", "fit"]

_GATED = ("gate_proj", "up_proj")


@dataclass(frozen=True, kw_only=True)
class FittedAdapter:
    """What is to be written.

    Attributes
    ----------
    adapter
        Its pairs by the sites of its scheme, and its configuration.
    scheme
        In which it is written.
    renamed
        Names that it had -> names that it gets, where they differ; without endings.
    left_out
        (site, reason) of what the loader has no place for.
    rank
        Of all pairs, if they have one in common.
    """

    adapter: AdapterFile
    scheme: NamingScheme
    renamed: Mapping[str, str]
    left_out: tuple[tuple[str, str], ...]
    rank: int


ExpertPairs = dict[tuple[int, str], AdapterPair]
"""Number and projection -> pair; ``gate_up_proj`` is the two side by side."""


def fit(
    adapter: AdapterFile, names: ModelNames, loader: Loader, *, dtype: str | None = None
) -> FittedAdapter:
    """Give an adapter the names, layout, rank and scale by which it acts; ΔW stays what it is.

    Parameters
    ----------
    adapter
        As read; its pairs are read here.
    names
        Of the model that it is for.
    loader
        What is to load it.
    dtype
        Storage code of all pairs; None: as they are.

    Raises
    ------
    FileError
        A model in which the loader adapts nothing, or an adapter of which nothing has a place.
    """
    view = loader.view(names)
    if view.refused is not None:
        raise FileError(f"{adapter.path}: {view.refused.why}")
    meant = Meant(view.places, dotted_key if "peft" in loader.schemes else flat_key)
    placed, experts, left = _places(adapter, names, view, loader, meant)
    for container, pairs in experts.items():
        found, lost = _in_layout(names.experts[container], pairs, view, meant)
        placed |= _stored_as(found, adapter.dtype)
        left += [(f"{container}.{n}.{proj}", why) for (n, proj), why in lost.items()]
    if not placed:
        why = f": {left[0][0]}: {left[0][1]}" if left else ""
        raise FileError(f"{adapter.path} has nothing that {loader.name} could adapt{why}")
    placed = placed if dtype is None else _stored_as(placed, dtype)
    scheme = _scheme_of_all(placed, loader)
    rank, alike = _at_one_rank(placed) if scheme.in_folder else (0, placed)
    stored = {_site(stem, scheme): pair for stem, (_, pair) in alike.items()}
    return FittedAdapter(
        adapter=replace(
            adapter,
            scheme=scheme,
            stored=stored,
            beside={},
            config=_config(adapter, stored, names),
        ),
        scheme=scheme,
        renamed={old: stem for stem, (old, _) in placed.items() if old and old != stem},
        left_out=(*left, *adapter.not_covered),
        rank=rank,
    )


_Placed = dict[str, tuple[str, HeldPair]]
"""Stem -> the stem that it had ("" where it was in another layout), and the pair."""


def _places(
    adapter: AdapterFile, names: ModelNames, view: ModelView, loader: Loader, meant: Meant
) -> tuple[_Placed, dict[str, ExpertPairs], list[tuple[str, str]]]:
    """Pairs of modules by their stems, those of experts by their containers, and what is left."""
    containers = _containers(names)
    placed: _Placed = {}
    experts: dict[str, ExpertPairs] = {}
    strangers: dict[str, SitePair] = {}
    left: list[tuple[str, str]] = []
    for site, stored in adapter.stored.items():
        part = _expert(site, stored, names, containers)
        if part is not None:
            container, number, proj = part
            experts.setdefault(container, {})[number, proj] = stored.read()
            continue
        stem, pair = _stem(adapter, site, loader), stored.read()
        place = _arrives(view, stem, pair) or meant.place(stem, pair.shape)
        if place is None:
            strangers[site] = stored
        elif place.idle is not None:
            left.append((site, place.idle.why))
        elif place.stem in placed:
            left.append((site, f"{placed[place.stem][0]} is a pair for the same module"))
        else:
            placed[place.stem] = stem, held(pair, stored)
    stems = {site: _stem(adapter, site, loader) for site in strangers}
    found, used = _packed(strangers, stems, view, meant)
    for site in strangers.keys() - used:
        left.append((site, _why_not(view, stems[site], strangers[site])))
    return found | placed, experts, left


def _packed(
    strangers: Mapping[str, SitePair], stems: Mapping[str, str], view: ModelView, meant: Meant
) -> tuple[_Placed, set[str]]:
    """Pairs of modules that the model holds side by side, or apart; and the sites that are used."""

    def find(stem: str) -> LoaderPlace | None:
        return view.places.get(view.reads(stem)) or meant.place(stem, None)

    placed: _Placed = {}
    used: set[str] = set()
    together: dict[str, tuple[Fusion, dict[str, str]]] = {}
    for site, stored in strangers.items():
        if (part := part_of(stems[site], find)) is not None:
            whole, row, proj = part
            together.setdefault(whole, (row, {}))[1][proj] = site
        elif apart := parts_in(stems[site], stored.read(), find):
            placed |= {stem: (stems[site], held(pair, stored)) for stem, pair in apart.items()}
            used.add(site)
    for whole, (row, sites) in together.items():
        place = find(whole)
        assert place is not None, whole
        pairs = {proj: strangers[site].read() for proj, site in sites.items()}
        pair = put_together(row, pairs, place.sizes[0])
        if pair is not None:
            first = next(iter(sites.values()))
            placed[whole] = stems[first], held(pair, strangers[first])
            used |= set(sites.values())
    return placed, used


def _arrives(view: ModelView, stem: str, pair: AdapterPair) -> LoaderPlace | None:
    place = view.places.get(view.reads(stem))
    if place is None or not place.sizes:
        return place
    sizes = {pair.shape, pair.shape[::-1]} if pair.transpose else {pair.shape}
    return place if sizes & set(place.sizes) else None


def _why_not(view: ModelView, stem: str, stored: SitePair) -> str:
    """Why a pair has no place."""
    name = view.reads(stem)
    place = view.places.get(name)
    if place is None:
        return view.lost(name).why
    wanted = " or ".join(f"{out} × {in_}" for out, in_ in place.sizes)
    return f"the pair is {stored.shape[0]} × {stored.shape[1]}, the weight {wanted}"


def _stem(adapter: AdapterFile, site: str, loader: Loader) -> str:
    """What a site is called in the adapter's file; of factors what PEFT would call it."""
    scheme = adapter.scheme
    if scheme is None:
        return (PEFT_PREFIX if "peft" in loader.schemes else "") + site
    ending = next(e for e, known in scheme.endings.items() if known == ("lora", "a"))
    key = scheme.key(site, "lora", "a")
    return site if key is None else key.removesuffix(ending)


# ---------------------------------------------------------------------------------- experts


def _containers(names: ModelNames) -> dict[str, str]:
    """Containers of experts by what their names have in common with other names for them."""
    return {dotted_key(container).removeprefix("text."): container for container in names.experts}


def _expert(
    site: str, stored: SitePair, names: ModelNames, containers: Mapping[str, str]
) -> tuple[str, int, str] | None:
    """Container, number and projection of a pair that is one expert's."""
    if stored.expert is not None:
        module = canonical(stored.expert.module.replace(".base_layer", ""))
        container = containers.get(dotted_key(module).removeprefix("text."))
        if container is None:
            return None
        inner = stored.expert.module.endswith(".base_layer")
        proj = _fused_part(names.experts[container], stored.shape, inner=inner)
        return container, stored.expert.number, proj
    found = single(canonical(site))
    if found is None:
        return None
    container = containers.get(dotted_key(found[0]).removeprefix("text."))
    return None if container is None else (container, found[1], found[2])


def _fused_part(experts: Experts, shape: tuple[int, int], *, inner: bool) -> str:
    """Which of the two fused parameters a pair is of: by its size, else by its place."""
    fitting = [p for p in ("gate_up_proj", "down_proj") if experts.sizes.get(p) == shape]
    if len(fitting) == 1:
        return fitting[0]
    return "gate_up_proj" if inner else "down_proj"


def _in_layout(
    experts: Experts, pairs: ExpertPairs, view: ModelView, meant: Meant
) -> tuple[_Placed, dict[tuple[int, str], str]]:
    """The pairs of one container as a loader takes them, and why others are left out."""
    if not view.layouts:
        return {}, dict.fromkeys(pairs, "experts are not adapted in such a model")
    experts = _with_sizes(experts, pairs)
    lost = {place: _no_expert(experts, *place, pair) for place, pair in pairs.items()}
    lost = {place: why for place, why in lost.items() if why}
    known = {place: pair for place, pair in pairs.items() if place not in lost}
    if not known:
        return {}, lost
    if FUSED in view.layouts:
        return _fused(experts, known, meant), lost
    return _each(experts, known, view), lost


def _no_expert(experts: Experts, number: int, proj: str, pair: AdapterPair) -> str:
    """Why a pair is none of these experts; "" where it is one."""
    if number >= experts.count:
        return f"the model has {experts.count} experts there"
    size = experts.sizes.get(proj)
    if size != pair.shape:
        wanted = "no such projection" if size is None else f"the weight {size[0]} × {size[1]}"
        return f"the pair is {pair.shape[0]} × {pair.shape[1]}, {wanted}"
    return ""


def _with_sizes(experts: Experts, pairs: ExpertPairs) -> Experts:
    """Sizes and count, as far as the model does not say them, from the pairs."""
    sizes = {proj: pair.shape for (_, proj), pair in pairs.items()} | dict(experts.sizes)
    half = next((sizes[p] for p in _GATED if p in sizes), None)
    if half is not None:
        sizes = {"gate_up_proj": (2 * half[0], half[1])} | sizes
    if "gate_up_proj" in sizes:
        out, in_ = sizes["gate_up_proj"]
        sizes = dict.fromkeys(_GATED, (out // 2, in_)) | {"down_proj": (in_, out // 2)} | sizes
    count = experts.count or max(number for number, _ in pairs) + 1
    return replace(experts, sizes=sizes, count=count)


def _each(experts: Experts, pairs: ExpertPairs, view: ModelView) -> _Placed:
    alone: ExpertPairs = {}
    for (number, proj), pair in pairs.items():
        if proj != "gate_up_proj":
            alone[number, proj] = pair
            continue
        both = gate_and_up(pair.shape[0], interleaved=experts.interleaved)
        for half, rows in zip(_GATED, both, strict=True):
            alone[number, half] = cut(pair, rows)
    if view.whole:
        alone = dict(_filled(experts, alone))
    return {
        f"{PEFT_PREFIX}{experts.container}.{n}.{experts.leaves[proj]}": ("", HeldPair(pair))
        for (n, proj), pair in alone.items()
    }


def _filled(experts: Experts, alone: ExpertPairs) -> Iterator[tuple[tuple[int, str], AdapterPair]]:
    """A pair for every expert: zeros where there is none."""
    for number in range(experts.count):
        for proj in experts.leaves:
            pair = alone.get((number, proj))
            yield (number, proj), zero(experts.sizes[proj]) if pair is None else pair


def _fused(experts: Experts, pairs: ExpertPairs, meant: Meant) -> _Placed:
    """PEFT's two places for all experts; those without a pair get zeros."""
    placed: _Placed = {}
    sizes = experts.sizes
    for ending, proj in ((".base_layer", "gate_up_proj"), ("", "down_proj")):
        place = meant.place(f"{PEFT_PREFIX}{experts.container}{ending}", None)
        assert place is not None, experts.container
        module = place.stem.removeprefix(PEFT_PREFIX)
        for number in range(experts.count):
            pair = _fused_pair(pairs, number, proj, sizes, interleaved=experts.interleaved)
            expert = Expert3d(module, number, experts.count)
            placed[f"{PEFT_PREFIX}{module}.{number}"] = "", HeldPair(pair, expert=expert)
    return placed


def _fused_pair(
    pairs: ExpertPairs,
    number: int,
    proj: str,
    sizes: Mapping[str, tuple[int, int]],
    *,
    interleaved: bool,
) -> AdapterPair:
    if (pair := pairs.get((number, proj))) is not None:
        return pair
    there = [(pairs[number, p], i) for i, p in enumerate(_GATED) if (number, p) in pairs]
    if proj == "down_proj" or not there:
        return zero(sizes[proj])
    out, _ = sizes["gate_up_proj"]
    rows = gate_and_up(out, interleaved=interleaved)
    return joined([pair for pair, _ in there], [rows[i] for _, i in there], out)


# ---------------------------------------------------------------------------------- writing


def _stored_as(placed: _Placed, dtype: str) -> _Placed:
    return {stem: (old, replace(pair, dtype=dtype)) for stem, (old, pair) in placed.items()}


def _scheme_of_all(placed: _Placed, loader: Loader) -> NamingScheme:
    """The one scheme that all names are of."""
    known = {row.name: row for row in SCHEMES}
    rows = [known[name] for name in loader.schemes]
    found = {_scheme(stem, rows).name for stem in placed}
    if len(found) > 1:
        raise FileError(
            f"its modules get names of several schemes ({', '.join(sorted(found))}), which no"
            " file can have"
        )
    return known[found.pop()]


def _scheme(stem: str, rows: list[NamingScheme]) -> NamingScheme:
    for row in rows:
        if any(prefix and stem.startswith(prefix) for prefix in row.networks):
            return row
    return rows[0]


def _site(stem: str, scheme: NamingScheme) -> str:
    prefix = max((p for p in scheme.networks if stem.startswith(p)), key=len, default="")
    network = scheme.networks.get(prefix, "")
    module = stem.removeprefix(prefix)
    return f"{network}.{module}" if network else module


def _at_one_rank(placed: _Placed) -> tuple[int, _Placed]:
    """All pairs at the largest rank, and at the scale that they have in common, else at 1."""
    rank = max(pair.pair.rank for _, pair in placed.values())
    scales = {pair.pair.scale for _, pair in placed.values() if pair.pair.rank}
    scale = scales.pop() if len(scales) == 1 else 1.0
    return rank, {
        stem: (old, replace(pair, pair=widened(pair.pair, rank, scale)))
        for stem, (old, pair) in placed.items()
    }


def _config(
    adapter: AdapterFile, stored: Mapping[str, HeldPair], names: ModelNames
) -> dict[str, object]:
    """What of the old configuration stays true, and where the pairs of experts go."""
    kept = {key: adapter.config[key] for key in ("task_type",) if key in adapter.config}
    containers = {p.expert.module.removesuffix(".base_layer") for p in stored.values() if p.expert}
    fused = [f"{c}.{p}" for c in sorted(containers) for p in ("gate_up_proj", "down_proj")]
    model = facts(names.config)
    alone = [site for site, pair in stored.items() if pair.expert is None]
    by_weight = aims(alone, model).parameters if not any(map(single, alone)) else ()
    parameters = [*fused, *by_weight]
    return {**kept, **({"target_parameters": parameters} if parameters else {})}
