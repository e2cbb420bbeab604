"""The handle of an adapter: everything that can be done with a method that is on a model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from tdecomp._brief import brief, brief_count
from tdecomp.adapters import Bound, LoRAModule, Spec
from tdecomp.adapters.settings import Settings
from tdecomp.adapters.site_grids import SiteGrid
from tdecomp.drawing import Diagram, Drawable
from tdecomp.errors import ArgumentError
from tdecomp.files.loras import AdapterFile
from tdecomp_torch.attached import AdaptedModule, Attached
from tdecomp_torch.forward.pool import FactorPool
from tdecomp_torch.forward.tasks import Examples, numbers_of
from tdecomp_torch.making.installing import uninstall
from tdecomp_torch.merging import merge_adapter, merged_state_dict, unmerge_adapter
from tdecomp_torch.saving.adapter_file import save_adapter
from tdecomp_torch.saving.export import save_lora, to_file, to_lora
from tdecomp_torch.training.rates import param_groups

__all__ = ["Adapter"]


class Adapter(Drawable):
    """A method on a model; made by `attach`.

    Attributes
    ----------
    attached
        What is on the model; the properties below are its own.
    """

    def __init__(self, attached: Attached):
        self.attached = attached

    # -- what it is --------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The adapted model.

        Its modules and their names are the ones it had: the adapter acts through forward hooks.
        """
        return self.attached.model

    @property
    def name(self) -> str:
        """Name of the adapter on the model."""
        return self.attached.name

    @property
    def spec(self) -> Spec:
        """The method."""
        return self.attached.spec

    @property
    def settings(self) -> Settings:
        """What it was attached with, besides the method and the weights."""
        return self.attached.settings

    @property
    def pool(self) -> FactorPool:
        """The module that holds every factor once; a submodule of the model."""
        return self.attached.pool

    @property
    def grids(self) -> tuple[SiteGrid, ...]:
        """The weights of every group."""
        return self.attached.grids

    @property
    def groups(self) -> tuple[Bound, ...]:
        """The method on every group of weights of equal shape, with all sizes."""
        return self.attached.groups

    @property
    def targets(self) -> tuple[AdaptedModule, ...]:
        """The adapted modules."""
        return self.attached.targets

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not as one would expect, one sentence each."""
        return self.attached.notes

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
        return self.attached.factors()

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every adapted weight by path, the largest of its ranks; as `attach` takes them.

        Empty for a method without ranks.
        """
        return {
            site.path: max(bound.ranks.values())
            for grid, bound in zip(self.grids, self.groups, strict=True)
            for site in grid.sites
            if bound.ranks
        }

    def delta(self, path: str) -> Tensor:
        """ΔW of one module, ``(out, in)``, scaled; rows without a site are zero."""
        return self.attached.delta(path)

    def base_samples(self) -> dict[str, str | None]:
        """Digest of the base weight of every adapted module, by path; None where unknown."""
        return self.attached.base_samples()

    def trained_besides(self) -> dict[str, nn.Parameter]:
        """Parameters of the model that are trained with the adapter, by name, as they are now.

        Those of ``also_train``, and any other that was switched on since.

        Raises
        ------
        SiteError
            The model no longer has one of them.
        """
        return self.attached.trained_besides()

    def check(self) -> None:
        """Refuse a model of which an adapted module was replaced or resized since `attach`.

        Every forward pass of the model looks by itself, as do merging, saving and exporting.

        Raises
        ------
        SiteError
            Names the module.
        """
        self.attached.check()

    def diagram(self) -> Diagram:
        """What `tdecomp.draw` draws: a panel for every group of weights."""
        return Diagram(tuple(p for group in self.groups for p in group.diagram().panels))

    def __repr__(self) -> str:
        paths = {site.path for grid in self.grids for site in grid.sites}
        where = f"{brief_count(len(paths), 'weight')} in {brief_count(len(self.grids), 'group')}"
        parts = [self.spec.name, where, _ranks(self.groups)]
        if tasks := self.settings.tasks:
            parts.append(brief_count(len(tasks), "task"))
        states = {
            "detached": not self.attached.handles,
            "merged": self.is_merged,
            "off": not self.active,
        }
        return brief(
            type(self),
            f"{self.name!r}: {', '.join(filter(None, parts))}",
            f"{self.n_trainable:,} trainable",
            ", ".join(state for state, holds in states.items() if holds),
        )

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.spec.name}, {self.n_trainable:,} trainable numbers"]
        lines += [
            f"  {g.grid.name}: {g.grid.n_sites} weights of {g.grid.shape[0]} x {g.grid.shape[1]}"
            f" ({', '.join(f'{mode} {len(labels)}' for mode, labels in g.grid.modes)}),"
            f" {g.n_trainable:,} trainable"
            for g in self.groups
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

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
        rate = heads.pop("also_train", None)
        if heads:
            raise ArgumentError(f"unknown argument {next(iter(heads))!r}: expected also_train")
        others = [p for p in self.trained_besides().values() if p.requires_grad]
        return param_groups(self.pool, lr, ratios, besides=others, besides_lr=rate)

    def step(self, number: float) -> None:
        """Say how many steps were trained, for methods with a schedule; after every step.

        Scales, shares that are frozen and numbers of clusters follow it.
        """
        self.attached.schedule.move_to(number)

    @property
    def at_step(self) -> float:
        """How many steps were trained, as far as `step` was told."""
        return self.attached.schedule.at_step

    # -- on and off ----------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether the adapter acts in a forward pass (or, merged, in the weights)."""
        return self.pool.state.active

    @active.setter
    def active(self, value: bool) -> None:
        if self.is_merged and not value:
            raise ArgumentError(f"the adapter {self.name!r} is merged: unmerge it to switch it off")
        self.pool.state.active = bool(value)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Context in which the model is what it was before."""
        before, self.active = self.active, False
        try:
            yield
        finally:
            self.active = before

    @property
    def task(self) -> str | tuple[str, ...] | None:
        """The task that acts, or the task of every example of a batch; None without tasks.

        At first the first one. Examples are counted along the first axis of a module's input.
        """
        tasks, state = self.settings.tasks, self.pool.state
        if state.examples is not None:
            return tuple(tasks[number] for number in state.examples.tasks)
        return tasks[state.task] if tasks else None

    @task.setter
    def task(self, value: str | Sequence[str]) -> None:
        if self.is_merged:
            raise ArgumentError(f"the adapter {self.name!r} is merged with the task {self.task!r}")
        numbers, state = numbers_of(value, self.settings.tasks), self.pool.state
        state.examples = None if isinstance(value, str) else Examples.of(numbers)
        state.task = numbers[0]

    # -- in the weights ------------------------------------------------------------------------

    @property
    def is_merged(self) -> bool:
        """Whether the weights of the model hold the adapter."""
        return self.attached.is_merged

    def merge(self, *, keep: Literal["cpu", "device"] | None = "cpu", untie: bool = False) -> int:
        """Write the adapted weights into the model; see `tdecomp_torch.merging.merge_adapter`.

        Returns
        -------
        int
            Bytes of the original weights that are kept for `unmerge`.
        """
        return merge_adapter(self.attached, keep=keep, untie=untie)

    def unmerge(self) -> None:
        """Put the original weights back, bit by bit."""
        unmerge_adapter(self.attached)

    def merged_state_dict(self) -> dict[str, Tensor]:
        """``state_dict`` of the plain model with the adapted weights; nothing is changed."""
        return merged_state_dict(self.attached)

    def detach(self) -> nn.Module:
        """Take the adapter off the model; flags and hooks are as they were before `attach`.

        The weights of a merged adapter stay as they are; a folded start is taken out of them.
        """
        uninstall(self.attached)
        return self.model

    # -- in files --------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the adapter to a folder; see `tdecomp_torch.saving.adapter_file.save_adapter`."""
        save_adapter(self.attached, folder, overwrite=overwrite)

    def to_lora(self, *, max_rank: int | None = None) -> list[LoRAModule]:
        """LoRA pairs of every adapted module; see `tdecomp_torch.saving.export.to_lora`."""
        return to_lora(self.attached, max_rank=max_rank)

    def to_file(self, name: str = "") -> AdapterFile:
        """Its pairs as a source of `tdecomp.jobs.merge` and its kin; `saving.export.to_file`."""
        return to_file(self.attached, name or self.name)

    def save_lora(
        self,
        folder: str | os.PathLike[str],
        *,
        base: str = "",
        max_rank: int | None = None,
        overwrite: bool = False,
    ) -> list[LoRAModule]:
        """Write a PEFT LoRA folder; see `tdecomp_torch.saving.export.save_lora`."""
        return save_lora(self.attached, folder, base=base, max_rank=max_rank, overwrite=overwrite)


def _ranks(groups: Sequence[Bound]) -> str:
    """Ranks of all groups: ``rank r=8 s=4``, ``rank r=4..8`` where they differ."""
    found: dict[str, list[int]] = {}
    for group in groups:
        for letter, size in group.ranks.items():
            found.setdefault(letter, []).append(size)
    words = [
        f"{letter}={min(sizes)}" + (f"..{max(sizes)}" if min(sizes) < max(sizes) else "")
        for letter, sizes in found.items()
    ]
    return f"rank {' '.join(words)}" if words else ""
