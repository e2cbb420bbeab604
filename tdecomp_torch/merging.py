"""Merging an adapter into the weights of its model, and taking it out again bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tdecomp import ArgumentError, SiteError
from tdecomp_torch.attached import AdaptedModule, Attached, Originals
from tdecomp_torch.forward.layer import Hook
from tdecomp_torch.forward.lending import hooks_on
from tdecomp_torch.model.names import plain_name
from tdecomp_torch.model.writing import why_not_written
from tdecomp_torch.plainly import plainly

__all__ = [
    "adapter_of",
    "check_untied",
    "check_uppermost",
    "merge_adapter",
    "merged_hooks",
    "merged_state_dict",
    "merged_weight",
    "put_back",
    "tied",
    "unmerge_adapter",
    "writable",
    "write",
]

Keep = Literal["cpu", "device"] | None


@plainly()
@torch.no_grad()
def merge_adapter(attached: Attached, *, keep: Keep = "cpu", untie: bool = False) -> int:
    """Write ``W'`` into the weights of the model; the adapter no longer acts.

    Parameters
    ----------
    attached
        Not merged yet.
    keep
        Where the original weights are kept, so that `unmerge_adapter` restores every bit: in main
        memory, on the weights' device, or (None) not at all.
    untie
        Give a weight that several modules share a copy of its own in the adapted one.

    Returns
    -------
    int
        Bytes of the original weights that are kept.

    Raises
    ------
    ArgumentError
        It is merged already.
    SiteError
        A weight cannot be written, or other modules use it too.
    """
    attached.check()
    if keep not in ("cpu", "device", None):
        raise ArgumentError(f"keep={keep!r}: expected 'cpu', 'device' or None")
    if attached.is_merged:
        raise ArgumentError(f"the adapter {attached.name!r} is merged already: unmerge it first")
    targets = writable(attached)
    shared = tied(attached.model, targets)
    check_untied(shared, untie)
    beneath = tuple(hook.state for hook in merged_hooks(attached))
    originals = Originals(weights={}, parameters={}, kept=keep is not None, beneath=beneath)
    for target in targets:
        parameter = target.weight
        if keep is not None:
            where = torch.device("cpu") if keep == "cpu" else parameter.device
            originals.weights[target.path] = parameter.detach().to(where, copy=True)
    for target in targets:
        parameter, merged = target.weight, merged_weight(target)
        if any(target.path == path for path, _ in shared):
            originals.parameters[target.path] = parameter
            target.put(nn.Parameter(merged, parameter.requires_grad))
        else:
            write(parameter, merged)
    attached.originals, attached.pool.state.merged = originals, True
    return originals.n_bytes


def merged_weight(target: AdaptedModule) -> Tensor:
    """The adapted weight of one module, in the layout and dtype that it is stored in."""
    stored = target.weight.detach()
    result = target.kind.as_matrix(stored).clone()
    for place in target.hook.places:
        new = target.hook.adapted_weight(target.module, place)
        result[place.start : place.stop] = new.to(result.dtype)
    return target.kind.as_stored(result, stored)


def write(parameter: Tensor, value: Tensor) -> None:
    """In place; a weight that was made in inference mode can be written in it only."""
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():
        parameter.copy_(value)


@plainly()
@torch.no_grad()
def unmerge_adapter(attached: Attached) -> None:
    """Put the original weights back, bit by bit; the adapter acts again."""
    originals = attached.originals
    if originals is None:
        raise ArgumentError(f"the adapter {attached.name!r} is not merged")
    attached.check()
    if not originals.kept:
        raise ArgumentError(
            f"the adapter {attached.name!r} was merged without keeping the original weights: merge"
            " with keep='cpu' or 'device' to be able to unmerge"
        )
    if originals.together:
        names = ", ".join(map(repr, originals.together))
        raise ArgumentError(
            f"the adapters {names} were merged together: unmerge what tdecomp_torch.merge returned"
        )
    check_uppermost(attached, originals)
    put_back(attached, originals)


def check_uppermost(attached: Attached, originals: Originals) -> None:
    """Refuse to take out what another adapter was merged on top of."""
    for hook in merged_hooks(attached):
        if not any(hook.state is state for state in originals.beneath):
            later = adapter_of(attached.model, hook)
            raise ArgumentError(
                f"the adapter {later!r} was merged after {attached.name!r} into the same weights:"
                " unmerge it first"
            )


def put_back(attached: Attached, originals: Originals) -> None:
    """The weights as they were kept, for the modules of one adapter."""
    for target in attached.targets:
        if target.path in originals.parameters:
            target.put(originals.parameters[target.path])
        elif target.path in originals.weights:
            write(target.weight, originals.weights[target.path])
    attached.originals, attached.pool.state.merged = None, False


@plainly()
@torch.no_grad()
def merged_state_dict(attached: Attached) -> dict[str, Tensor]:
    """``state_dict`` of the plain model with the adapter merged; the model is not changed.

    Factors of adapters are left out, and so are the segments that wrappers write into names, so
    that the unadapted model can load it.
    """
    attached.check()
    targets = writable(attached)
    model = attached.model
    named = {plain_name(model, name): value for name, value in model.state_dict().items()}
    state = {name: value for name, value in named.items() if ".tdecomp_" not in f".{name}"}
    for target in targets:
        state[target.tensor] = merged_weight(target)
    return state


def writable(attached: Attached) -> tuple[AdaptedModule, ...]:
    """The targets that act; refuses weights that can be read only, and uses that cannot follow."""
    targets = attached.acting_targets()
    for target in targets:
        reason, advice = why_not_written(target.kind, target.module)
        if reason:
            raise SiteError(f"{target.path} {reason}, its weight cannot be written: {advice}")
        if target.path in attached.watch.bypassed:
            raise SiteError(
                f"the model uses the weight of {target.path} also without calling the module, and"
                " the adapter does not act there: leave it out of the targets, or write the adapter"
                " as a LoRA with save_lora"
            )
    return targets


def check_untied(shared: Sequence[tuple[str, str]], untie: bool) -> None:
    """Refuse to change the weight of another module, unless the adapted one gets its own."""
    if shared and not untie:
        raise SiteError(
            f"{shared[0][0]} shares its weight with {shared[0][1]}, which would change with it:"
            " give untie=True to give it a copy of its own"
        )


def merged_hooks(attached: Attached) -> list[Hook]:
    """Hooks of other merged adapters on the same modules."""
    return [
        hook
        for target in attached.targets
        for hook in hooks_on(target.module, target.kind)
        if hook.state is not target.hook.state and hook.state.merged
    ]


def adapter_of(model: nn.Module, hook: Hook) -> str:
    """Name of the adapter that a hook belongs to."""
    pools = [name for name, module in model.named_modules() if module is hook.pool]
    return pools[0].removeprefix("tdecomp_") if pools else "another one"


def tied(model: nn.Module, targets: Sequence[AdaptedModule]) -> list[tuple[str, str]]:
    """(module, other module) for every adapted weight that another module uses too."""
    users: dict[int, list[tuple[str, nn.Module, Tensor]]] = {}
    for path, module in model.named_modules():
        for own in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            users.setdefault(_memory(own), []).append((path, module, own))
    found = []
    for target in targets:
        beside = [
            path
            for path, user, other in users.get(_memory(target.weight), ())
            if other is not target.weight or user is not target.module
            if _share(target.weight, other)
        ]
        found += [(target.path, other) for other in beside[:1]]
    return found


def _memory(x: Tensor) -> int:
    """Address of the storage of a tensor; of one without any, or of other kinds, what it is."""
    plain = type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided
    return x.untyped_storage().data_ptr() or id(x) if plain else id(x)


def _share(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage have numbers in common."""
    (start, stop), (first, last) = _span(a), _span(b)
    return a is b or (start < last and first < stop)


def _span(x: Tensor) -> tuple[int, int]:
    """First byte and end of a tensor without gaps; of any other its first number alone."""
    reach = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    count = x.numel() if reach == x.numel() else 1
    start = int(x.storage_offset()) * x.element_size()
    return start, start + count * x.element_size()
