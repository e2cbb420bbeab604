"""Putting a method on a model: the arguments are read and checked, then all is made, then added."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tdecomp.adapters import Spec, method
from tdecomp.errors import ArgumentError
from tdecomp.stack import Targets
from tdecomp_torch.allocating import RankRequest
from tdecomp_torch.handle import Adapter
from tdecomp_torch.making.installing import check_name, chosen_parameters, install
from tdecomp_torch.model.inventory import Inventory
from tdecomp_torch.plainly import plainly
from tdecomp_torch.preparing import Asked, Chosen, StartFrom, prepare
from tdecomp_torch.saving.adapter_file import load

__all__ = ["attach", "load_adapter"]


@plainly()
def attach(
    model: nn.Module,
    spec: Spec | str,
    *,
    targets: Targets | None = None,
    exclude: Targets | None = None,
    layers: Collection[int] | None = None,
    rank: int | Mapping[str, int] | RankRequest | None = None,
    alpha: float | None = None,
    dropout: float = 0.0,
    shared_dropout: bool = False,
    rank_dropout: float = 0.0,
    name: str = "default",
    share: Sequence[str] | None = None,
    patterns: Sequence[str] = (),
    also_train: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    seed: int = 0,
    given: Mapping[str, Any] | None = None,
    start: StartFrom = None,
    tokens: int = 1024,
    fold: bool = False,
    tasks: Sequence[str] = (),
    progress: Callable[[float], None] = lambda share: None,
) -> Adapter:
    """Put a method on a model and freeze everything else.

    Parameters
    ----------
    model
        Any model; its Linear, Conv1D, Conv2d and Embedding modules can be adapted, fused ones by
        their parts, and parameters that hold several experts, where
        they are named. It keeps its modules and gets one new submodule, which holds the factors.
    spec
        A row of the catalogue by name, or a `tdecomp.adapters.Spec` of your own.
    targets, exclude, layers
        As in PEFT: module names or dotted suffixes, one regex for the whole path, or
        ``"all-linear"``; layer numbers. Default: all matrices in numbered layers but routers and
        embeddings, of a method that splits heads those with heads; `Adapter.notes` tells the rest.
    rank
        Size of every rank that the method leaves open, or sizes by letter. By path of the weight
        or module, a rank for each, 0 to leave it out, where a method shares no factors between
        them; `allocate` finds such ranks for a budget.
    alpha
        For the scale; default is that of the method's paper. One that is given is the same at
        every rank; it is refused where the scale of the method has none.
    dropout, shared_dropout
        Of the input of the first factor, for every weight by itself, or one mask for all that read
        the same input.
    rank_dropout
        Of whole ranks: those of the edge behind the tokens, for every weight by itself.
    name
        Several adapters may be on one model under different names; they add up.
    share
        Site modes along which weights are stacked (default: all that the method can), and ``"in"``
        or ``"out"`` to hold factors over that mode once for all groups of equal width. ``"head"``
        makes every head of q, k and v a weight of its own, in one stack also where keys and values
        have fewer: `head` stands for `proj` too.
    patterns
        Where sites are in an unknown model: ``"blocks.{layer}.att.{proj}"``; they name modes.
    also_train
        Parameters or modules to train besides, chosen as `targets`: heads.
    dtype
        Of the factors; default float32, or float64 for a model in float64.
    seed
        Seed of random factors.
    given
        Arrays by factor name, in place of the method's start; of a factor of every ``site`` also a
        mapping from module paths to the array of each.
    start
        Where the factors come from in place of the method's start: `gradients` or `activations` of
        a few batches, `captured` statistics, `factors` that were decomposed, or the name of a rule
        that needs the weights alone, such as ``"pissa"``.
    tokens
        Number of tokens (batch times length) that contraction orders are planned for.
    fold
        For methods whose start is subtracted (a residual base): subtract it from the weights
        themselves, which is faster; `Adapter.detach` puts the weights back. The weights are then
        not the original ones while the adapter is off, and no second adapter can be there.
    tasks
        Names of tasks: every weight is then one site for each, along the site mode ``task``.
        `Adapter.task` says which of them acts, for all examples of a batch or one by one.
    progress
        Called with the share of the work that is done, from 0 to 1: starts that are made of the
        weights take a while on large models.

    Returns
    -------
    Adapter
        The handle to everything else; nothing has changed on the model if an error was raised.

    Raises
    ------
    ArgumentError, SiteError
        An unknown method or mode, sizes that do not fit, targets that match nothing or cannot be
        adapted, a name that is taken.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(6, 4))
    >>> adapter = attach(model, "lotr", rank=2)
    >>> adapter.n_trainable
    28
    """
    spec = method(spec) if isinstance(spec, str) else spec
    if not isinstance(spec, Spec):
        raise ArgumentError(
            "attach takes a model and then the name of a method or a Spec, got"
            f" {type(spec).__name__}"
        )
    check_name(model, name)
    asked = Asked(
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        shared_dropout=shared_dropout,
        rank_dropout=rank_dropout,
        share=share,
        dtype=dtype,
        seed=seed,
        given={} if given is None else given,
        start=start,
        tokens=tokens,
        fold=fold,
        tasks=tasks,
        progress=progress,
    )
    inventory = Inventory(model)
    trained = chosen_parameters(inventory, also_train)
    chosen = Chosen(targets, exclude, layers, patterns)
    attached = prepare(inventory, spec, asked, chosen=chosen, name=name)
    install(attached, trained)
    return Adapter(attached)


def load_adapter(
    model: nn.Module, folder: str | os.PathLike[str], *, name: str = "default"
) -> Adapter:
    """Put a saved adapter on a model.

    Parameters
    ----------
    model
        With the same modules as the one it was saved from, at the same paths.
    folder
        Written by `Adapter.save`.
    name
        Name of the adapter on this model.

    Raises
    ------
    FileError
        The file is missing, damaged, of a newer version, or its tensors do not fit its method.
    SiteError
        The model is another one; the first module that differs is named. Nothing is changed.
    """
    return Adapter(load(model, folder, name))
