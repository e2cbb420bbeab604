"""A method on a model: what it holds, and what can be done with it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tdecomp import ArgumentError, SiteError
from tdecomp.adapters import Bound, LoRAModule, Spec
from tdecomp.adapters.expressions import nearest
from tdecomp.adapters.grids import SiteGrid
from tdecomp.stack.select import Chooser
from tdecomp_torch.gathering import is_part
from tdecomp_torch.layer import Hook
from tdecomp_torch.modules import Kind
from tdecomp_torch.names import modules_of, named, parameters_of, pools_of
from tdecomp_torch.offload import offloaded
from tdecomp_torch.pool import FactorPool
from tdecomp_torch.sample import sample
from tdecomp_torch.standing import Standing
from tdecomp_torch.state import Examples
from tdecomp_torch.uses import readers_of_weights
from tdecomp_torch.watch import Watch

__all__ = ["START", "Adapter", "Settings", "Target", "chosen_parameters", "pool_name"]

START = "start__"
"""Before the key of a factor: its start, kept where it was folded into the weights."""


@dataclass(frozen=True)
class Target:
    """A module with sites, and the hook that adapts it."""

    path: str
    module: nn.Module
    kind: Kind
    hook: Hook

    @property
    def weight(self) -> nn.Parameter:
        """Its weight as stored, of a kind that can be written."""
        return self.module.weight  # pyright: ignore[reportReturnType]

    def sample(self) -> str | None:
        """Digest of its weight as it is now; None where that is not here."""
        if any(p.is_meta or is_part(p) for p in self.module.parameters(recurse=False)):
            return None
        return sample(self.kind.content(self.module))


@dataclass(frozen=True)
class Settings:
    """What an adapter was attached with, besides the method and the weights.

    Attributes
    ----------
    rank, alpha, dropout, shared_dropout, rank_dropout, seed, tokens, fold, tasks
        As in `attach`.
    sides
        Weight modes whose factors are held once for all groups of equal width.
    """

    rank: int | Mapping[str, int] | None = None
    alpha: float | None = None
    sides: frozenset[str] = frozenset()
    dropout: float = 0.0
    shared_dropout: bool = False
    rank_dropout: float = 0.0
    seed: int = 0
    tokens: int = 1024
    fold: bool = False
    tasks: tuple[str, ...] = ()


class Adapter:
    """A method on a model; made by `attach`.

    Attributes
    ----------
    model
        The adapted model. Its modules and their names are the ones it had: the adapter acts
        through forward hooks.
    name
        Name of the adapter on the model.
    spec
        The method.
    pool
        The module that holds every factor once; a submodule of the model.
    groups
        The groups of weights of equal shape that the method was put on, with all sizes.
    notes
        What is not as one would expect, one sentence each.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        spec: Spec,
        pool: FactorPool,
        grids: Sequence[SiteGrid],
        targets: Sequence[Target],
        notes: Sequence[str],
        settings: Settings,
    ):
        self.model, self.name, self.spec, self.pool = model, name, spec, pool
        self.grids, self.targets, self.notes = tuple(grids), tuple(targets), tuple(notes)
        self.settings = settings
        self._state = pool.state
        self._unfolded: dict[str, Tensor] = {}
        self._samples = {target.path: target.sample() for target in targets}
        self._handles: list[Any] = []
        self._standing: Standing | None = None
        self.shapes_besides: dict[str, tuple[int, ...]] = {}
        self.originals: Any = None
        self.at_step = 0.0
        self.watch = Watch({t.path: t.module for t in targets}, self._tell_bypassed)
        self.step(0)

    # -- what it is --------------------------------------------------------------------------

    @property
    def groups(self) -> tuple[Bound, ...]:
        """The method on every group, with all sizes."""
        return tuple(member.bound for member in self.pool.members)

    @property
    def n_trainable(self) -> int:
        """Numbers that are trained; shared ones count once."""
        return sum(p.numel() for p in self.pool.parameters())

    @property
    def n_frozen(self) -> int:
        """Numbers in constants that the adapter holds; base weights not counted."""
        return sum(b.numel() for b in self.pool.buffers())

    def factors(self) -> dict[str, nn.Parameter]:
        """Every trainable factor by its key: group and name."""
        return dict(self.pool.named_parameters())

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.spec.name}, {self.n_trainable:,} trainable numbers"]
        lines += [
            f"  {g.grid.name}: {g.grid.n_sites} weights of {g.grid.shape[0]} x {g.grid.shape[1]}"
            f" ({', '.join(f'{mode} {len(labels)}' for mode, labels in g.grid.modes)}),"
            f" {g.n_trainable:,} trainable"
            for g in self.groups
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

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

    def base_samples(self) -> dict[str, str | None]:
        """Digest of the base weight of every adapted module, by path; None where unknown.

        Of the weights as they are, unless those are not the base, or cannot be read here any more
        (sharded, offloaded): then as they were when the adapter was attached.
        """
        kept: dict[str, Tensor] = self.originals.weights if self.originals is not None else {}
        found: dict[str, str | None] = {}
        for target in self.targets:
            path, before = target.path, self._unfolded.get(target.path, kept.get(target.path))
            if before is not None:
                found[path] = sample([before])
            elif not self.is_merged and (now := target.sample()) is not None:
                found[path] = now
            else:
                found[path] = self._samples[path]
        return found

    def _target(self, path: str) -> Target:
        for target in self.targets:
            if target.path == path:
                return target
        known = ", ".join(target.path for target in self.targets[:4])
        raise ArgumentError(f"{path!r} is not adapted by {self.name!r}: adapted are {known}, ...")

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

    def acting_targets(self) -> tuple[Target, ...]:
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

    # -- training ----------------------------------------------------------------------------

    def param_groups(
        self, lr: float, ratios: Mapping[str, float] | None = None, **heads: float
    ) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer.

        Parameters
        ----------
        lr
            Learning rate of the factors.
        ratios
            Factor name -> what its rate is multiplied by: ``{"b": 16}`` is LoRA+
            ([hayou2024]).
        **heads
            ``also_train=1e-2``: learning rate of the parameters trained besides.
        """
        if not isinstance(lr, int | float):
            raise ArgumentError(f"lr={lr!r} must be a number")
        ratios = dict(ratios or {})
        names = {f.name for g in self.groups for f in g.factors if f.trainable}
        if unknown := sorted(set(ratios) - names):
            raise ArgumentError(
                f"ratios name {unknown[0]!r}: the trainable factors are {', '.join(sorted(names))}"
            )
        by_rate: dict[float, list[nn.Parameter]] = {}
        for member in self.pool.members:
            for name, key in member.keys.items():
                parameter = getattr(self.pool, key)
                if isinstance(parameter, nn.Parameter):
                    own = by_rate.setdefault(lr * ratios.get(name, 1.0), [])
                    if not any(parameter is p for p in own):
                        own.append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": own, "lr": rate} for rate, own in by_rate.items()
        ]
        rate = heads.pop("also_train", None)
        if heads:
            raise ArgumentError(f"unknown argument {next(iter(heads))!r}: expected also_train")
        others = [p for p in self.trained_besides().values() if p.requires_grad]
        if others:
            groups.append({"params": others, "lr": lr if rate is None else rate})
        return groups

    def step(self, number: float) -> None:
        """Say how many steps were trained, for methods with a schedule; after every step.

        Scales, shares that are frozen and numbers of clusters follow it.
        """
        if not isinstance(number, int | float):
            raise ArgumentError(f"step={number!r} must be a number")
        self.at_step = float(number)
        with torch.inference_mode(False), torch.no_grad():
            self._state.scale_by(
                [[g.coefficient(term, number) for term in g.spec.terms] for g in self.groups]
            )
            self.pool.freeze(number)
            self.pool.cluster(number)

    # -- on and off ----------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether the adapter acts in a forward pass (or, merged, in the weights)."""
        return self._state.active

    @active.setter
    def active(self, value: bool) -> None:
        if self.is_merged and not value:
            raise ArgumentError(f"the adapter {self.name!r} is merged: unmerge it to switch it off")
        self._state.active = bool(value)

    @property
    def task(self) -> str | tuple[str, ...] | None:
        """The task that acts, or the task of every example of a batch; None without tasks.

        At first the first one. Examples are counted along the first axis of a module's input.
        """
        tasks, examples = self.settings.tasks, self._state.examples
        if examples is not None:
            return tuple(tasks[number] for number in examples.tasks)
        return tasks[self._state.task] if tasks else None

    @task.setter
    def task(self, value: str | Sequence[str]) -> None:
        tasks = self.settings.tasks
        if self.is_merged:
            raise ArgumentError(f"the adapter {self.name!r} is merged with the task {self.task!r}")
        if not isinstance(value, str | list | tuple):
            raise ArgumentError(f"task={value!r} must be a name, or a list with one per example")
        names = [value] if isinstance(value, str) else list(value)
        if unknown := [name for name in names if name not in tasks]:
            raise ArgumentError(
                f"no task {unknown[0]!r}{nearest(str(unknown[0]), tasks)}: this adapter has"
                f" {', '.join(tasks) or 'none, give tasks= to attach'}"
            )
        if not names:
            raise ArgumentError("task=[] names no task: give one, or one for every example")
        numbers = [tasks.index(name) for name in names]
        self._state.examples = None if isinstance(value, str) else Examples.of(numbers)
        self._state.task = numbers[0]

    @property
    def is_merged(self) -> bool:
        """Whether the weights of the model hold the adapter."""
        return self._state.merged

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Context in which the model is what it was before."""
        before, self.active = self.active, False
        try:
            yield
        finally:
            self.active = before

    def merge(self, *, keep: Literal["cpu", "device"] | None = "cpu", untie: bool = False) -> int:
        """Write the adapted weights into the model; see `tdecomp_torch.merging.merge_adapter`.

        Returns
        -------
        int
            Bytes of the original weights that are kept for `unmerge`.
        """
        from tdecomp_torch.merging import merge_adapter

        self.check()
        self.originals = merge_adapter(self, keep=keep, untie=untie)
        self._state.merged = True
        return self.originals.n_bytes

    def unmerge(self) -> None:
        """Put the original weights back, bit by bit."""
        from tdecomp_torch.merging import unmerge_adapter

        if not self.is_merged:
            raise ArgumentError(f"the adapter {self.name!r} is not merged")
        self.check()
        unmerge_adapter(self, self.originals)
        self.originals, self._state.merged = None, False

    def merged_state_dict(self) -> dict[str, Tensor]:
        """``state_dict`` of the plain model with the adapted weights; nothing is changed."""
        from tdecomp_torch.merging import merged_state_dict

        self.check()
        return merged_state_dict(self)

    def check(self) -> None:
        """Refuse a model of which an adapted module was replaced or resized since `attach`.

        Every forward pass of the model looks by itself, as do merging, saving and exporting.

        Raises
        ------
        SiteError
            Names the module.
        """
        if self._standing is not None:
            self._standing.check()

    # -- files -----------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the adapter to a folder; see `tdecomp_torch.adapter_file.save_adapter`."""
        from tdecomp_torch.adapter_file import save_adapter

        self.check()
        save_adapter(self, folder, overwrite=overwrite)

    def to_lora(self, *, max_rank: int | None = None) -> list[LoRAModule]:
        """LoRA pairs of every adapted module; see `tdecomp_torch.export.to_lora`."""
        from tdecomp_torch.export import to_lora

        self.check()
        return to_lora(self, max_rank=max_rank)

    def save_lora(
        self,
        folder: str | os.PathLike[str],
        *,
        base: str = "",
        max_rank: int | None = None,
        overwrite: bool = False,
    ) -> list[LoRAModule]:
        """Write a PEFT LoRA folder; see `tdecomp_torch.export.save_lora`."""
        from tdecomp_torch.export import save_lora

        self.check()
        return save_lora(self, folder, base=base, max_rank=max_rank, overwrite=overwrite)

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
        if self._handles:
            others = {n for names in self._trained_by_others().values() for n in names}
            found |= {n: p for n, p in present.items() if p.requires_grad and n not in others}
        first = {id(p): name for name, p in reversed(found.items())}  # tied ones have several names
        return {name: p for name, p in found.items() if first[id(p)] == name}

    def _trained_by_others(self) -> dict[FactorPool, list[str]]:
        """Parameters that other adapters on this model train besides, by name."""
        return {
            pool: named(prefix, pool.trained)
            for pool, prefix in pools_of(self.model).items()
            if pool is not self.pool
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every factor by key, whole: what this process holds may be a part."""
        return {
            key: tuple(member.bound.shapes[name])
            for member in self.pool.members
            for name, key in member.keys.items()
        }

    # -- on the model ----------------------------------------------------------------------------

    def detach(self) -> nn.Module:
        """Take the adapter off the model; flags and hooks are as they were before `attach`.

        The weights of a merged adapter stay as they are; a folded start is taken out of them.
        """
        if not self._handles:
            raise ArgumentError(f"the adapter {self.name!r} is not on a model: it was detached")
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._standing = None
        with torch.no_grad():
            for target in self.targets if self._unfolded else ():
                target.weight.copy_(self._unfolded[target.path])
        self._unfolded.clear()
        delattr(self.model, pool_name(self.name))
        others = self._trained_by_others()
        kept = {name for names in others.values() for name in names}
        for name, parameter in parameters_of(self.model).items():
            if not others and name in self.pool.flags:
                parameter.requires_grad_(self.pool.flags[name])
            elif name in self.pool.trained and name not in kept:
                parameter.requires_grad_(False)
        return self.model

    @torch.no_grad()
    def _fold(self) -> None:
        """Subtract what the start factors give from the weights; keep the weights and the start."""
        for key, start in self.factors().items():
            self.pool.register_buffer(f"{START}{key}", start.detach().clone())
        for target in self.targets:
            self._unfolded[target.path] = target.weight.detach().to("cpu", copy=True)
            stored = target.weight.detach()
            matrix = target.kind.as_matrix(stored).clone()
            for place in target.hook.places:
                own = matrix[place.start : place.stop]
                start = target.hook.delta(place, own.device)
                own.copy_((own.double() - start.double()).to(own.dtype))
            with torch.inference_mode(stored.is_inference()), torch.no_grad():
                target.weight.copy_(target.kind.as_stored(matrix, stored))

    def install(self, trained: Sequence[str] = ()) -> None:
        """Change the model: freeze its own parameters, add the pool, hook the layers.

        Parameters
        ----------
        trained
            Names of parameters that are trained besides. What other adapters train stays trained.
        """
        own, others = parameters_of(self.model), self._trained_by_others()
        before = {
            name: flag
            for pool, prefix in pools_of(self.model).items()
            for name, flag in zip(named(prefix, pool.flags), pool.flags.values(), strict=True)
        }
        self.pool.trained = tuple(trained)
        self.shapes_besides = {name: tuple(own[name].shape) for name in trained}
        self.pool.flags = {name: before.get(name, p.requires_grad) for name, p in own.items()}
        kept = {*trained, *(name for names in others.values() for name in names)}
        for parameter in own.values():
            parameter.requires_grad_(False)
        for name, parameter in own.items():
            if name in kept:
                parameter.requires_grad_(True)
        self._standing = Standing(self.model, self.pool, [(t.path, t.module) for t in self.targets])
        self.model.add_module(pool_name(self.name), self.pool)
        self._handles = [
            self.model.register_forward_pre_hook(self._standing),
            self.model.register_forward_pre_hook(self.pool.begin),
            self.model.register_forward_hook(self.pool.end, always_call=True),
            self.model.register_forward_pre_hook(self.watch.begin),
            self.model.register_forward_hook(self.watch.end, always_call=True),
        ]
        self._handles += [
            target.module.register_forward_hook(target.hook, with_kwargs=True)
            for target in self.targets
        ]
        if self.settings.fold:
            self._fold()


def _named(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1} more" if paths[1:] else ""
    return f"{paths[0]}{more}"


def pool_name(name: str) -> str:
    """Name of the submodule that holds an adapter's factors."""
    return f"tdecomp_{name}"


def chosen_parameters(model: nn.Module, also_train: Sequence[str]) -> list[str]:
    """Names of the parameters that are named, or that lie in modules that are."""
    if not isinstance(also_train, Collection):
        raise ArgumentError(f"also_train={also_train!r} must be names of modules or parameters")
    found: dict[str, None] = {}
    paths = list(parameters_of(model)) if also_train else []
    for pattern in [also_train] if isinstance(also_train, str) else also_train:
        chooser = Chooser.of([pattern])
        own = [
            path
            for path in paths
            if any(chooser(".".join(path.split(".")[:k])) for k in range(1, path.count(".") + 2))
        ]
        if not own:
            raise SiteError(f"also_train={pattern!r} matches no parameter of the model")
        found |= dict.fromkeys(own)
    modules = modules_of(model) if found else {}
    for path in found:
        owner, _, name = path.rpartition(".")
        if owner in modules and offloaded(modules[owner], name) is not None:
            raise ArgumentError(
                f"also_train={path!r} is offloaded: what a step changes is not kept; dispatch the"
                " model so that it stays on a device"
            )
    return list(found)
