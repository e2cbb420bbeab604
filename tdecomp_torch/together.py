"""Several adapters in the weights of one model at once, and all of them out again bit by bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tdecomp import ArgumentError, DataError
from tdecomp._brief import brief
from tdecomp_torch.attached import AdaptedModule, Attached, Originals
from tdecomp_torch.handle import Adapter
from tdecomp_torch.merging import (
    Keep,
    check_untied,
    check_uppermost,
    merged_hooks,
    put_back,
    tied,
    writable,
    write,
)
from tdecomp_torch.plainly import plainly

__all__ = ["MergedAdapters", "merge"]


@dataclass(frozen=True, repr=False)
class MergedAdapters:
    """Adapters whose weighted sum is in the weights of their model.

    Attributes
    ----------
    adapters, weights
        As they were given.
    n_bytes
        Of the original weights that are kept.
    """

    adapters: tuple[Adapter, ...]
    weights: tuple[float, ...]
    n_bytes: int

    def __repr__(self) -> str:
        pairs = zip(self.weights, self.adapters, strict=True)
        return brief(type(self), " + ".join(f"{w:g} {a.name}" for w, a in pairs))

    @plainly()
    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the original weights back, bit by bit; all adapters act again.

        Raises
        ------
        ArgumentError
            They are not merged any more, the weights were not kept, or another adapter was merged
            into the same weights since.
        """
        each = [(adapter.attached, adapter.attached.originals) for adapter in self.adapters]
        for attached, originals in each:
            if originals is None or len(originals.together) != len(each):
                raise ArgumentError(f"the adapter {attached.name!r} is not merged with the others")
            if not originals.kept:
                raise ArgumentError(
                    "the adapters were merged without keeping the original weights: merge with"
                    " keep='cpu' or 'device' to be able to unmerge"
                )
            attached.check()
            check_uppermost(attached, originals)
        for attached, originals in each:
            assert originals is not None
            put_back(attached, originals)


@plainly()
@torch.no_grad()
def merge(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None = None,
    *,
    keep: Keep = "cpu",
    untie: bool = False,
) -> MergedAdapters:
    """Write ``W + Σ_t w_t (W'_t − W)`` into the weights of a model.

    ``W'_t`` is the weight with adapter t alone: ``W + ΔW_t``, or what DoRA makes of W. Added up in
    float64 and rounded once to the dtype of the weight, so that the order does not count.

    Parameters
    ----------
    adapters
        On one model, none of them merged.
    weights
        One for each; 1 by default.
    keep, untie
        As in `tdecomp_torch.Adapter.merge`.

    Returns
    -------
    MergedAdapters
        Its ``unmerge()`` restores every bit.

    Raises
    ------
    ArgumentError
        Adapters of several models, one twice, one that is merged already, or another number of
        weights.
    DataError
        A new weight is not finite; nothing was changed then.
    SiteError
        A weight cannot be written, or other modules use it too.
    """
    attached = _checked(adapters, keep)
    chosen = _weights(weights, len(attached))
    targets = {t.key: t for one in attached for t in writable(one)}
    shared = [row for one in attached for row in tied(one.model, writable(one))]
    check_untied(shared, untie)
    news = _WeightedWeights(attached, chosen)
    for target in targets.values():  # nothing is written before all is known to be finite
        news.check(target)
    own = {t.key for one in attached for t in writable(one) if _is_tied(t, shared)}
    before = _kept(targets, own, keep)
    beneath = tuple(hook.state for one in attached for hook in merged_hooks(one))
    for key, target in targets.items():
        value = news.of(target)
        if key in own:
            target.put(nn.Parameter(value, target.weight.requires_grad))
        else:
            write(target.weight, value)
    names, states = tuple(one.name for one in attached), tuple(one.pool.state for one in attached)
    for one in attached:
        mine = [(t.path, t.key) for t in one.targets]
        one.originals = Originals(
            weights={path: before.weights[key] for path, key in mine if key in before.weights},
            parameters={p: before.parameters[key] for p, key in mine if key in before.parameters},
            kept=keep is not None,
            beneath=(*beneath, *states),
            together=names,
        )
        one.pool.state.merged = True
    return MergedAdapters(tuple(adapters), chosen, before.n_bytes)


_Key = tuple[int, str]


@dataclass(frozen=True)
class _Kept:
    """What modules had before, by their identity."""

    weights: dict[_Key, Tensor]
    parameters: dict[_Key, nn.Parameter]

    @property
    def n_bytes(self) -> int:
        return sum(w.numel() * w.element_size() for w in self.weights.values())


def _kept(targets: dict[_Key, AdaptedModule], own: set[_Key], keep: Keep) -> _Kept:
    weights = {}
    for key, target in targets.items() if keep is not None else ():
        where = torch.device("cpu") if keep == "cpu" else target.weight.device
        weights[key] = target.weight.detach().to(where, copy=True)
    return _Kept(weights, {key: targets[key].weight for key in own})


@dataclass(frozen=True)
class _WeightedWeights:
    """Weights with all adapters in them, one module at a time."""

    attached: Sequence[Attached]
    weights: Sequence[float]

    def of(self, target: AdaptedModule) -> Tensor:
        """In the layout and dtype that the weight is stored in."""
        stored = target.weight.detach()
        base = target.kind.as_matrix(stored)
        total = base.double()
        for _, weight, change in self._changes(target):
            total = total + weight * change
        return target.kind.as_stored(total.to(base.dtype), stored)

    def check(self, target: AdaptedModule) -> None:
        """Refuse values that are not finite, and say whose they are."""
        if bool(torch.isfinite(self.of(target)).all()):
            return
        for name, _, change in self._changes(target):
            if not bool(torch.isfinite(change).all()):
                raise DataError(f"the adapter {name!r} is not finite at {target.path}")
        dtype = str(target.weight.dtype).removeprefix("torch.")
        raise DataError(f"the merged weight of {target.path} does not fit {dtype}")

    def _changes(self, target: AdaptedModule):
        """(name, weight, W' − W) of every adapter that acts on a module."""
        base = target.kind.as_matrix(target.weight.detach()).double()
        for one, weight in zip(self.attached, self.weights, strict=True):
            for mine in one.targets:
                if mine.key != target.key:
                    continue
                change = torch.zeros_like(base)
                for place in mine.hook.places:
                    new = mine.hook.adapted_weight(mine.module, place)
                    change[place.start : place.stop] = new.double()
                    change[place.start : place.stop] -= base[place.start : place.stop]
                yield one.name, weight, change


def _checked(adapters: Sequence[Adapter], keep: Keep) -> list[Attached]:
    if keep not in ("cpu", "device", None):
        raise ArgumentError(f"keep={keep!r}: expected 'cpu', 'device' or None")
    if not isinstance(adapters, Sequence) or not all(isinstance(a, Adapter) for a in adapters):
        raise ArgumentError(
            "merge takes a list of adapters, as attach gives them",
            tip="tdecomp_torch.apply adds decomposed factors to a model",
        )
    attached = [adapter.attached for adapter in adapters]
    if not attached:
        raise ArgumentError("no adapters were given")
    if len({id(one) for one in attached}) < len(attached):
        raise ArgumentError("an adapter was given twice: give it once, with the sum of its weights")
    for one in attached:
        one.check()
        if one.is_merged:
            raise ArgumentError(f"the adapter {one.name!r} is merged already: unmerge it first")
        if not one.handles:
            raise ArgumentError(f"the adapter {one.name!r} is not on a model: it was detached")
    largest = max((one.model for one in attached), key=lambda model: len(list(model.modules())))
    parts = {id(module) for module in largest.modules()}
    for one in attached:
        if id(one.model) not in parts:
            raise ArgumentError(f"the adapter {one.name!r} is on another model than the others")
    return attached


def _weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    chosen = (1.0,) * count if weights is None else tuple(map(float, weights))
    if len(chosen) != count:
        raise ArgumentError(f"{len(chosen)} weights for {count} adapters: give one for each")
    if not all(map(math.isfinite, chosen)):
        raise ArgumentError(f"weights {chosen}: expected finite numbers")
    return chosen


def _is_tied(target: AdaptedModule, shared: Sequence[tuple[str, str]]) -> bool:
    return any(target.path == path for path, _ in shared)
