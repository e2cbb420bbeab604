"""A few batches through a model, and what every chosen weight saw of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tdecomp.errors import ArgumentError, DataError, SiteError
from tdecomp.progress import Progress, silent
from tdecomp.stack import Site, Targets
from tdecomp.statistics import SiteStatistics, Statistics
from tdecomp_torch.capture.again import computed_again
from tdecomp_torch.capture.batches import (
    BatchLoss,
    TokenMask,
    kept_batches,
    loss_of,
    mask_of,
    moved,
    sampled,
)
from tdecomp_torch.capture.gradients import (
    GradientState,
    Reduce,
    SketchedGradients,
    WholeGradients,
)
from tdecomp_torch.capture.leaving import as_it_was
from tdecomp_torch.capture.moments import InputMoments, OutputMoments, SquaredGradients
from tdecomp_torch.capture.seeing import Watcher
from tdecomp_torch.model.inventory import Adaptable, Inventory
from tdecomp_torch.model.offload import computing_device
from tdecomp_torch.model.sample import sample
from tdecomp_torch.model.targets import chosen_sites

__all__ = ["Wanted", "capture", "capture_sites"]

WIDEST = 4096
"""Width up to which the second moment of inputs is held whole unless asked otherwise."""
SPARE_COLUMNS = 10
"""Columns of a sketched gradient beyond the rank."""
_CHECKPOINTS = "if it checkpoints, give use_reentrant=False"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to look at, and how; the attributes are arguments of `capture`."""

    inputs: Literal["whole", "auto"] | int | None = None
    gradients: Literal["whole"] | int | None = None
    outputs: bool = False
    fisher: bool = False
    passes: int = 2
    labels: Literal["given", "model"] = "given"
    loss: BatchLoss | None = None
    mask: TokenMask = mask_of
    dropout: bool = False
    checkpoint: bool = False
    seed: int = 0
    reduce: Reduce | None = None

    def __post_init__(self):
        _check_choice("inputs", self.inputs, ("whole", "auto"))
        _check_choice("gradients", self.gradients, ("whole",))
        if self.labels not in ("given", "model"):
            raise ArgumentError(f"labels={self.labels!r} must be 'given' or 'model'")
        if isinstance(self.passes, bool) or self.passes < 2:
            raise ArgumentError(f"passes={self.passes!r} must be a whole number, 2 or more")
        if self.inputs is None and not self.backward:
            raise ArgumentError(
                'capture looks at nothing: ask for inputs="auto", gradients=16, outputs=True or'
                " fisher=True"
            )
        if self.reduce is not None and isinstance(self.inputs, int):
            raise ArgumentError(
                "directions of inputs cannot be added up by reduce: add the statistics instead, or"
                ' ask for inputs="whole"'
            )

    @property
    def backward(self) -> bool:
        """Whether a backward pass is needed."""
        return self.gradients is not None or self.outputs or self.fisher


def capture(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    targets: Targets | None = None,
    exclude: Targets | None = None,
    layers: Collection[int] | None = None,
    patterns: Sequence[str] = (),
    inputs: Literal["whole", "auto"] | int | None = "auto",
    gradients: Literal["whole"] | int | None = None,
    outputs: bool = False,
    fisher: bool = False,
    loss: BatchLoss | None = None,
    labels: Literal["given", "model"] = "given",
    steps: int | None = None,
    passes: int = 2,
    mask: TokenMask = mask_of,
    dropout: bool = False,
    checkpoint: bool = False,
    seed: int = 0,
    reduce: Reduce | None = None,
    progress: Progress = silent,
) -> Statistics:
    """Run a few batches and gather what the chosen weights saw; the model is left as it was.

    No weight need require a gradient, and none is given one: gradients are made of the inputs and
    output gradients of the modules. So bases that are frozen or quantised can be looked at.

    Parameters
    ----------
    model
        Any model, on any device.
    batches
        A DataLoader, or any iterable of batches. They are kept on the CPU for further passes.
    targets, exclude, layers, patterns
        As in `attach`.
    inputs
        Moments of the inputs: ``"whole"`` holds ``(in, in)`` numbers for each, a number k keeps k
        frequent directions and the diagonal, with a bound of what is lost; ``"auto"`` is whole up
        to a width of 4096 and 256 directions above. Weights that read one tensor share them.
    gradients
        Gradients by weights: a rank sketches each in ``rank + 10`` columns and rows, ``"whole"``
        holds them on the CPU.
    outputs
        Sums of ``δ δᵀ``, with the gradient δ by an output token.
    fisher
        Means over batches of the squared gradients: the empirical Fisher diagonal for batches of
        one example and given labels, the true one's estimate for ``labels="model"``.
    loss
        ``loss(model, batch)``, a scalar; default: ``model(**batch).loss``. Moments of inputs alone
        need no loss: the forward pass is run.
    labels
        ``"model"`` draws labels from the model's logits in the place of the given ones, at the
        tokens that count by `mask`.
    steps
        Batches at most.
    passes
        Over the batches for sketched gradients: two, or more where their spectra fall slowly.
    mask
        ``mask(batch)``: true for tokens that count as inputs, ``(example, token)``; default: the
        ``attention_mask`` of the batch, if it has one. Gradients are those of the loss, whatever
        the mask; no label is drawn elsewhere.
    dropout
        Leave the model in the mode it is in; default: evaluation.
    checkpoint
        Compute the activations of every numbered layer again in the backward pass, so that those
        of one are held at a time: a third more time. What transformers' own checkpointing does in
        training is off in evaluation.
    seed
        Of the sketches, and of drawn labels.
    reduce
        Adds up a tensor over processes in place, such as ``torch.distributed.all_reduce``: every
        process sees its own batches, and all get the statistics of all.
    progress
        Called with the share of the batches that is done.

    Returns
    -------
    Statistics
        By name of the weight, in numpy. Means are over batches for gradients, as the loss weighs
        its tokens, and over tokens for inputs.

    Raises
    ------
    ArgumentError
        No batches, a loss that is not a scalar, or nothing to look at.
    DataError
        A loss or gradient that is not finite; names the batch.
    SiteError
        Targets that match nothing, embeddings, or weights that no gradient reached, by name.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> batches = [torch.ones(3, 6), torch.zeros(3, 6)]
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> found = capture(model, batches, loss=loss, gradients=2)
    >>> found.gradient_of("0").shape, found.inputs_of("0").tokens
    ((4, 6), 6)
    """
    wanted = Wanted(
        inputs=inputs,
        gradients=gradients,
        outputs=outputs,
        fisher=fisher,
        passes=passes,
        labels=labels,
        loss=loss,
        mask=mask,
        dropout=dropout,
        checkpoint=checkpoint,
        seed=seed,
        reduce=reduce,
    )
    inventory = Inventory(model)
    survey = chosen_sites(
        inventory, targets=targets, exclude=exclude, layers=layers, patterns=patterns
    )
    return capture_sites(
        inventory, survey.sites, kept_batches(batches, steps), wanted, progress=progress
    )


def capture_sites(
    inventory: Inventory,
    sites: Sequence[Site],
    batches: Sequence[Any],
    wanted: Wanted,
    *,
    progress: Progress = silent,
) -> Statistics:
    """The same for sites of a model that are known; parameters and errors as in `capture`."""
    own = {site.module: inventory.matrices[site.module] for site in sites}
    for path, matrix in own.items():
        if matrix.kind.by_weight:
            raise SiteError(
                f"the experts of {path} see their tokens inside of one forward, where capture"
                " cannot look: leave them out with exclude=, or start from the weights"
            )
        if matrix.kind.looks_up:
            raise SiteError(
                f"{path} is an embedding, whose inputs are positions: capture looks at matrices;"
                " leave it out with exclude="
            )
    run = _Capturing(own, sites, wanted)
    model, device = inventory.model, computing_device(inventory.model)
    loss = wanted.loss or loss_of
    if wanted.loss is None and wanted.labels == "model":
        loss = sampled(wanted.seed, wanted.mask)
    total = run.passes * len(batches)
    losses: list[float] = []
    again = computed_again(model, own) if wanted.checkpoint and wanted.backward else nullcontext()
    with as_it_was(model, dropout=wanted.dropout), again:
        for number in range(run.passes):
            losses.clear()
            run.begin(number)
            with run.watcher:
                for k, batch in enumerate(batches):
                    losses.append(run.step(model, moved(batch, device), loss, k))
                    progress((number * len(batches) + k + 1) / total)
            run.end(number)
    return run.found(losses, len(batches), type(inventory.model).__name__)


class _Capturing:
    """The states of one capture, and how they are filled."""

    def __init__(self, matrices: Mapping[str, Adaptable], sites: Sequence[Site], wanted: Wanted):
        self.wanted, self.matrices, self.sites = wanted, matrices, tuple(sites)
        self.by_module: dict[str, list[int]] = {}
        for k, site in enumerate(self.sites):
            self.by_module.setdefault(site.module, []).append(k)
        self.gradients = self._gradients()
        self.passes = 1 if self.gradients is None else self.gradients.passes
        shapes = [site.shape for site in self.sites]
        self.outputs = [OutputMoments(out) for out, _ in shapes] if wanted.outputs else []
        self.squares = [SquaredGradients(shape) for shape in shapes] if wanted.fisher else []
        self.inputs: dict[str, InputMoments] = {}
        self.leader: dict[str, str] = {}
        self.reached: set[str] = set()
        self._met: dict[str, Tensor] = {}
        self._mask: Tensor | None = None
        self._first, self._broken = True, ""
        self.watcher = Watcher(
            {path: matrix.module for path, matrix in matrices.items()},
            saw_input=None if wanted.backward else self._input,
            saw_gradient=self._gradient,
            met=self._meet,
        )

    def _gradients(self) -> GradientState | None:
        asked = self.wanted.gradients
        if asked is None:
            return None
        if asked == "whole":
            return WholeGradients(self.sites)
        width = asked + SPARE_COLUMNS
        return SketchedGradients(self.sites, width, self.wanted.passes, self.wanted.seed)

    # -- one batch -----------------------------------------------------------------------------

    def begin(self, number: int) -> None:
        """Start pass number `number`."""
        self._first = number == 0

    def step(self, model: nn.Module, batch: Any, loss: BatchLoss, number: int) -> float:
        """Run one batch; its loss, or 0 where none is asked for."""
        self._met, self._broken = {}, ""
        mask = self.wanted.mask(batch)
        self._mask = None if mask is None else mask.bool()
        if not self.wanted.backward:
            with torch.no_grad():
                _forward(model, batch, loss)
            return 0.0
        with torch.enable_grad():
            value = loss(model, batch)
            self._check_loss(value, number)
            # a backward pass to the modules that are looked at, and no further
            torch.autograd.grad(value.sum(), self.watcher.anchor, allow_unused=True)
        self._met = {}
        if self._broken:
            raise DataError(
                f"batch {number}: the gradient that reaches {self._broken} is not finite; nothing"
                " was kept"
            )
        if self._first:
            for own in self.squares:
                own.end_batch()
        return float(value.detach())

    def _check_loss(self, value: Any, number: int) -> None:
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError(f"the loss must be a scalar tensor, got {what}: take its mean")
        if not bool(torch.isfinite(value).all()):
            raise DataError(f"batch {number}: the loss is {value.item()}; nothing was kept")
        if not value.requires_grad:
            hint = f": {_CHECKPOINTS}" if self.watcher.without else ""
            raise SiteError(
                "no gradient reaches any of the chosen weights: the loss does not depend on them,"
                f" or was computed where no gradients are kept{hint}"
            )

    # -- what a module sees --------------------------------------------------------------------

    def _meet(self, path: str, x: Tensor) -> None:
        """Find out which modules read the same tensor."""
        if self.wanted.inputs is None or not self._first:
            return
        kind = self.matrices[path].kind
        same = (other for other, seen in self._met.items() if seen is x and kind.reads_alike)
        leader = next(same, path)
        known = self.leader.setdefault(path, leader)
        if known != leader and known != path:
            raise SiteError(
                f"{path} read what {known} reads in one batch and something else in another:"
                " capture their inputs apart, by targets="
            )
        if known == path:
            self._met[path] = x

    def _input(self, path: str, x: Tensor) -> None:
        """Tokens of a module, in a forward pass."""
        self.reached.add(path)
        if self.wanted.inputs is not None and self._first and self.leader[path] == path:
            self._add_input(path, x)

    def _add_input(self, path: str, x: Tensor) -> None:
        matrix = self.matrices[path]
        tokens = _wide(matrix.kind.tokens(matrix.module, self._masked(x)))
        if path not in self.inputs:
            self.inputs[path] = InputMoments(matrix.shape[1], _directions(self.wanted, matrix))
        self.inputs[path].add(tokens)

    def _masked(self, x: Tensor) -> Tensor:
        """The tokens that count, where the mask fits the tensor."""
        mask = self._mask
        if mask is None:
            return x
        if x.shape[:-1] == mask.shape:
            return x[mask.to(x.device)]
        if x.dim() == 2 and len(x) == mask.numel():
            return x[mask.reshape(-1).to(x.device)]
        return x

    def _gradient(self, path: str, x: Tensor, gradient: Tensor) -> None:
        """Tokens and output gradients of a module, in a backward pass."""
        self.reached.add(path)
        matrix = self.matrices[path]
        kind, module = matrix.kind, matrix.module
        rows = _wide(kind.rows(module, gradient))  # (token, out)
        if not self._broken and not bool(torch.isfinite(rows.sum())):
            self._broken = path
        self._input(path, x)
        tokens = _wide(kind.tokens(module, x))  # (token, in)
        tokens = tokens.to(rows.dtype) * kind.factor(gradient.dtype)
        for k in self.by_module[path]:
            site = self.sites[k]
            delta = rows[:, site.first_row : site.first_row + site.shape[0]]
            if self.gradients is not None:
                self.gradients.add(k, tokens, delta)
            if self._first and self.outputs:
                self.outputs[k].add(delta)
            if self._first and self.squares:
                self.squares[k].add(tokens, delta)

    # -- the end ---------------------------------------------------------------------------------

    def end(self, number: int) -> None:
        """End a pass: all weights were seen, and what other processes saw is added."""
        if missed := [path for path in self.matrices if path not in self.reached]:
            raise SiteError(self._why_missed(missed))
        reduce = self.wanted.reduce or (lambda tensor: None)
        if self.gradients is not None:
            self.gradients.finish(number, reduce)
        if number == 0:
            for own in (*self.inputs.values(), *self.outputs, *self.squares):
                own.reduce(reduce)

    def _why_missed(self, paths: Sequence[str]) -> str:
        what = "no gradient reached" if self.wanted.backward else "the model does not call"
        more = f" and {len(paths) - 1} more" if paths[1:] else ""
        if paths[0] in self.watcher.without:
            return (
                f"{what} {paths[0]}{more}, which the model calls where no gradients are kept:"
                f" {_CHECKPOINTS}"
            )
        return f"{what} {paths[0]}{more}: leave it out with exclude="

    def found(self, losses: Sequence[float], n_batches: int, model: str) -> Statistics:
        """All that was seen."""
        batches = torch.tensor(float(n_batches), dtype=torch.float64)
        if self.wanted.reduce is not None:
            self.wanted.reduce(batches)
        n = round(float(batches))
        sites = {site.path: self._of_site(k, n) for k, site in enumerate(self.sites)}
        return Statistics(
            sites=sites,
            inputs={path: own.found() for path, own in self.inputs.items()},
            losses=tuple(losses) if self.wanted.backward else (),
            model=model,
        )

    def _of_site(self, k: int, n: int) -> SiteStatistics:
        site = self.sites[k]
        matrix = self.matrices[site.module]
        return SiteStatistics(
            shape=site.shape,
            input=self.leader.get(site.module, ""),
            weight=sample(matrix.kind.content(matrix.module)) or "",
            gradient=None if self.gradients is None else self.gradients.found(k, n),
            outputs=self.outputs[k].sum.cpu().numpy() if self.outputs else None,
            tokens=self.outputs[k].tokens if self.outputs else 0,
            fisher=(n, (self.squares[k].sum / n).numpy()) if self.squares else None,
        )


def _wide(x: Tensor) -> Tensor:
    """In float32, or float64 as it is."""
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


def _directions(wanted: Wanted, matrix: Adaptable) -> int | None:
    if wanted.inputs == "auto":
        return None if matrix.shape[1] <= WIDEST else 256
    return wanted.inputs if isinstance(wanted.inputs, int) else None


def _forward(model: nn.Module, batch: Any, loss: BatchLoss) -> None:
    """A forward pass: of the loss where one is given, else of the model itself."""
    if loss is not loss_of:
        loss(model, batch)
    elif isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, list | tuple):
        model(*batch)
    else:
        model(batch)


def _check_choice(what: str, value: Any, words: tuple[str, ...]) -> None:
    if value is None or value in words:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        known = " or ".join(map(repr, words))
        raise ArgumentError(f"{what}={value!r} must be a whole number, 1 or more, {known} or None")
