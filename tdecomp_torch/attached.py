"""What is on a model: the method, its factors, the adapted modules, and what was there before.

Everything that is done with an adapter (training, merging, saving, exporting) is a function of an
`Attached`, in a file of its own; the handle that a user holds has them all.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tdecomp._brief import brief, brief_count
from tdecomp.adapters import Bound, Spec
from tdecomp.adapters.settings import Settings
from tdecomp.adapters.site_grids import SiteGrid
from tdecomp.errors import ArgumentError, SiteError
from tdecomp_torch.forward.layer import Hook
from tdecomp_torch.forward.lending import lend
from tdecomp_torch.forward.pool import FactorPool
from tdecomp_torch.forward.switches import Switches
from tdecomp_torch.model.gathering import is_part
from tdecomp_torch.model.guest import Guest
from tdecomp_torch.model.kinds import Kind
from tdecomp_torch.model.names import guests_of, named, parameters_of
from tdecomp_torch.model.sample import sample
from tdecomp_torch.model.uses import readers_of_weights
from tdecomp_torch.standing import Standing
from tdecomp_torch.training.schedule import Schedule
from tdecomp_torch.watch import BypassWatch

__all__ = ["Attached", "Originals", "AdaptedModule"]


@dataclass(frozen=True, kw_only=True, repr=False)
class AdaptedModule:
    """A module with sites, and the hook that adapts it."""

    path: str
    module: nn.Module
    kind: Kind
    hook: Hook

    def __repr__(self) -> str:
        sites = brief_count(sum(map(len, self.hook.by_task)), "site")
        return brief(type(self), f"{self.path}, a {type(self.module).__name__}", sites)

    @property
    def weight(self) -> nn.Parameter:
        """Its weight as stored, of a kind that can be written."""
        return getattr(self.module, self.kind.name)

    def put(self, parameter: nn.Parameter) -> None:
        """Give the module another parameter in the place of its weight."""
        setattr(self.module, self.kind.name, parameter)

    @property
    def key(self) -> tuple[int, str]:
        """Tells it from every other weight, whatever the names of modules are."""
        return id(self.module), self.kind.name

    @property
    def tensor(self) -> str:
        """Name of its weight in the ``state_dict``."""
        return self.path if self.kind.by_weight else f"{self.path}.weight"

    def put_on(self) -> list[Any]:
        """Let the hook act; the handles take it off again."""
        if self.kind.by_weight:
            return [lend(self.module, self.hook)]
        return [self.module.register_forward_hook(self.hook, with_kwargs=True)]

    def sample(self) -> str | None:
        """Digest of its weight as it is now; None where that is not here."""
        if any(p.is_meta or is_part(p) for p in self.module.parameters(recurse=False)):
            return None
        return sample(self.kind.content(self.module))


@dataclass(frozen=True, kw_only=True, repr=False)
class Originals:
    """What the weights were before an adapter was merged into them.

    Attributes
    ----------
    weights
        Module path -> values as stored; empty where they were not kept.
    parameters
        Module path -> the parameter that the module had before it was untied.
    kept
        Whether the weights were kept.
    beneath
        Of the adapters that were merged into the same weights before.
    together
        Names of all adapters that were merged at once; empty for one alone.
    """

    weights: dict[str, Tensor]
    parameters: dict[str, nn.Parameter]
    kept: bool
    beneath: tuple[Switches, ...] = ()
    together: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return brief(
            type(self), f"{brief_count(len(self.weights), 'weight')}, {self.n_bytes:,} bytes"
        )

    @property
    def n_bytes(self) -> int:
        """Size of the kept values."""
        return sum(w.numel() * w.element_size() for w in self.weights.values())


@dataclass(kw_only=True, eq=False, repr=False)
class Attached:
    """A method on a model.

    Attributes
    ----------
    model, name, spec, settings
        What was put where: under which name, which method, and how.
    grids
        The weights, those of equal shape together.
    targets
        The adapted modules, in the order of the model.
    pool
        The module that holds every factor once.
    notes
        What is not as one would expect, one sentence each.
    schedule
        What follows the number of steps that were trained.
    originals
        The weights before the adapter was merged; None while it is not.
    unfolded
        Module path -> its weight before a start was folded into it.
    samples
        Module path -> digest of its weight when the adapter was attached.
    shapes_besides
        Shape of every parameter that is trained besides, by name, whole.
    handles
        Of the hooks on the model, to be taken off again; none while the adapter is not on it.
    standing
        Looks whether the modules are still those of the model; None while it is not on it.
    watch
        Sees which weights the model uses without calling their modules.
    """

    model: nn.Module
    name: str
    spec: Spec
    settings: Settings
    grids: tuple[SiteGrid, ...]
    targets: tuple[AdaptedModule, ...]
    pool: FactorPool
    notes: tuple[str, ...] = ()
    originals: Originals | None = None
    unfolded: dict[str, Tensor] = field(default_factory=dict)
    samples: Mapping[str, str | None] = field(init=False)
    shapes_besides: dict[str, tuple[int, ...]] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)
    standing: Standing | None = None
    watch: BypassWatch = field(init=False)
    schedule: Schedule = field(init=False)

    def __post_init__(self):
        self.schedule = Schedule(self.pool)
        self.samples = {target.path: target.sample() for target in self.targets}
        self.watch = BypassWatch({t.path: t.module for t in self.targets}, self._tell_bypassed)

    def __repr__(self) -> str:
        modules = brief_count(len(self.targets), "module")
        return brief(type(self), f"{self.name!r}: {self.spec.name} on {modules}")

    @property
    def groups(self) -> tuple[Bound, ...]:
        """The method on every group, with all sizes."""
        return tuple(member.bound for member in self.pool.members)

    @property
    def is_merged(self) -> bool:
        """Whether the weights of the model hold the adapter."""
        return self.pool.state.merged

    def factors(self) -> dict[str, nn.Parameter]:
        """Every trainable factor by its key: group and name."""
        return dict(self.pool.named_parameters())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every factor by key, whole: what this process holds may be a part."""
        return {
            key: tuple(member.bound.shapes[name])
            for member in self.pool.members
            for name, key in member.keys.items()
        }

    def delta(self, path: str) -> Tensor:
        """ΔW of one module, ``(out, in)``, scaled; rows without a site are zero."""
        target = self._target(path)
        shape = target.kind.shape(target.module)
        assert shape is not None
        first = target.hook.delta(target.hook.places[0])
        total = torch.zeros(shape, dtype=first.dtype, device=first.device)
        for place in target.hook.places:
            total[place.start : place.stop] = target.hook.delta(place).to(total.device)
        return total

    def _target(self, path: str) -> AdaptedModule:
        for target in self.targets:
            if target.path == path:
                return target
        known = ", ".join(target.path for target in self.targets[:4])
        raise ArgumentError(f"{path!r} is not adapted by {self.name!r}: adapted are {known}, ...")

    def base_samples(self) -> dict[str, str | None]:
        """Digest of the base weight of every adapted module, by path; None where unknown.

        Of the weights as they are, unless those are not the base, or cannot be read here any more
        (sharded, offloaded): then as they were when the adapter was attached.
        """
        kept = {} if self.originals is None else self.originals.weights
        found: dict[str, str | None] = {}
        for target in self.targets:
            path, before = target.path, self.unfolded.get(target.path, kept.get(target.path))
            if before is not None:
                found[path] = sample([before])
            elif not self.is_merged and (now := target.sample()) is not None:
                found[path] = now
            else:
                found[path] = self.samples[path]
        return found

    # -- what the model does with the adapted weights ------------------------------------------

    def check(self) -> None:
        """Refuse a model of which an adapted module was replaced or resized since `attach`.

        Raises
        ------
        SiteError
            Names the module.
        """
        if self.standing is not None:
            self.standing.check()

    def acting_targets(self) -> tuple[AdaptedModule, ...]:
        """Targets whose modules the model calls.

        Raises
        ------
        SiteError
            If this is not known yet.
        """
        if not self.watch.passes:
            suspects = readers_of_weights(self.model)
            for target in self.targets:
                if target.path in suspects:
                    raise SiteError(
                        f"{suspects[target.path]} may use the weight of {target.path} without"
                        " calling it, where an adapter does not act: run the model once with the"
                        " adapter on it, so that this is known"
                    )
        dead = self.watch.bypassed - self.watch.called
        return tuple(target for target in self.targets if target.path not in dead)

    def _tell_bypassed(self, paths: Iterable[str]) -> None:
        """Say once which weights the model uses without calling their modules."""
        dead = [path for path in paths if path not in self.watch.called]
        partly = [path for path in paths if path in self.watch.called]
        notes = []
        if dead:
            notes.append(
                f"The model uses the weight of {_named(dead)} without calling the module: the"
                " adapter does not act there, and merging and exporting leave it out."
            )
        if partly:
            notes.append(
                f"The model also uses the weight of {_named(partly)} without calling the module:"
                " there the adapter does not act, and it cannot be merged."
            )
        self.notes = (*self.notes, *notes)
        for note in notes:
            warnings.warn(note, stacklevel=2)

    # -- what the model trains besides -----------------------------------------------------------

    def trained_besides(self) -> dict[str, nn.Parameter]:
        """Parameters of the model that are trained with the adapter, by name, as they are now.

        Those of ``also_train``, and any other that was switched on since.

        Raises
        ------
        SiteError
            The model no longer has one of them.
        """
        present = parameters_of(self.model)
        if gone := [name for name in self.pool.trained if name not in present]:
            raise SiteError(
                f"{gone[0]!r} is trained with the adapter {self.name!r}, and the model has no"
                " parameter of that name any more: put it back, or attach anew"
            )
        found = {name: present[name] for name in self.pool.trained}
        if self.handles:
            others = {n for names in self.trained_by_others().values() for n in names}
            found |= {n: p for n, p in present.items() if p.requires_grad and n not in others}
        first = {id(p): name for name, p in reversed(found.items())}  # tied ones have several names
        return {name: p for name, p in found.items() if first[id(p)] == name}

    def trained_by_others(self) -> dict[Guest, list[str]]:
        """Parameters that other adapters on this model train besides, by name."""
        return {
            guest: named(prefix, guest.trained)
            for guest, prefix in guests_of(self.model).items()
            if guest is not self.pool
        }


def _named(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1} more" if paths[1:] else ""
    return f"{paths[0]}{more}"
