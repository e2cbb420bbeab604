"""Several tasks in one adapter: every weight is one site for each of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tdecomp._nearest import nearest
from tdecomp.errors import ArgumentError
from tdecomp.stack import Site

__all__ = ["Examples", "checked_tasks", "numbers_of", "sites_of_tasks"]


@dataclass(frozen=True)
class Examples:
    """Which examples of a batch belong to which task.

    Attributes
    ----------
    tasks
        Number of the task of every example.
    groups
        (task, positions of its examples).
    back
        Where every example is found when the groups stand one after the other.
    """

    tasks: tuple[int, ...]
    groups: tuple[tuple[int, Tensor], ...]
    back: Tensor

    @classmethod
    def of(cls, tasks: Sequence[int]) -> Examples:
        """Group examples by task."""
        with torch.inference_mode(False):  # it is for passes that train, too
            numbers = torch.tensor(tasks)
            groups = tuple((int(t), (numbers == t).nonzero()[:, 0]) for t in numbers.unique())
            return cls(tuple(tasks), groups, torch.cat([where for _, where in groups]).argsort())


def checked_tasks(tasks: Any, *, fold: bool) -> tuple[str, ...]:
    """Names of tasks as they are kept; refuses what is not a list of different names."""
    words = not isinstance(tasks, str) and isinstance(tasks, Collection)
    if not words or not all(isinstance(t, str) and t and t.isprintable() for t in tasks):
        raise ArgumentError(
            f"tasks={tasks!r} must be names in printable letters, such as ['english', 'french']"
        )
    if len(set(tasks)) < len(tasks):
        raise ArgumentError(f"tasks={tasks!r} has a name twice")
    if tasks and fold:
        raise ArgumentError("fold=True subtracts one start from the weights: it goes without tasks")
    return tuple(tasks)


def sites_of_tasks(sites: Sequence[Site], tasks: Sequence[str]) -> Sequence[Site]:
    """Every site once for each task."""
    if not tasks:
        return sites
    if clash := [site.path for site in sites if "task" in dict(site.labels)]:
        raise ArgumentError(
            f"{clash[0]} has a place along the mode 'task' by its name: leave tasks= out, or name"
            " that mode otherwise in patterns="
        )
    return [replace(s, labels=(*s.labels, ("task", task))) for s in sites for task in tasks]


def numbers_of(value: str | Sequence[str], tasks: Sequence[str]) -> list[int]:
    """Numbers of the tasks that are named: one, or one for every example of a batch.

    Raises
    ------
    ArgumentError
        No name, or one that is not among the tasks.
    """
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
    return [tasks.index(name) for name in names]
