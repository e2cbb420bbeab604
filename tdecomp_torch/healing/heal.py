"""Distilling a tuned model into truncated factors for a few steps."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tdecomp.errors import ArgumentError, DataError
from tdecomp.files import Factors, load_factors
from tdecomp.progress import Progress, silent
from tdecomp_torch.capture.batches import kept_batches, moved
from tdecomp_torch.capture.leaving import as_it_was
from tdecomp_torch.handle import Adapter
from tdecomp_torch.healing.factored import FactoredStudent
from tdecomp_torch.healing.outputs import OutputRows, Outputs, finite, seen_of
from tdecomp_torch.healing.report import HealReport
from tdecomp_torch.healing.student import AdapterStudent, Student
from tdecomp_torch.plainly import plainly

__all__ = ["heal"]

_LOOKS = 3
"""How often the validation split is looked at."""


@plainly()
def heal(
    base_model: nn.Module,
    tuned_model: nn.Module,
    factors: Factors | Adapter | str | os.PathLike[str],
    batches: Iterable[Any],
    *,
    outputs: Outputs | None = None,
    steps: int = 60,
    rate: float = 3e-3,
    validation: float = 0.2,
    seed: int = 0,
    progress: Progress = silent,
) -> HealReport:
    """Train truncated factors for a few steps to give what the tuned model gives; no labels.

    Decomposing keeps the largest part of a change, not the part that matters most to the outputs.
    Adam with a short warm-up and a linear decay moves the factors to where base + ΔW gives the
    tuned model's outputs; what is best on batches that are not trained on is kept.

    Parameters
    ----------
    base_model, tuned_model
        Models alike; both are left as they were, the base with an adapter but for its factors.
    factors
        From `tdecomp.files.load_factors`, a folder that ``tdecomp decompose`` wrote, or an
        `Adapter` on the base model, which is healed in place.
    batches
        A DataLoader or any iterable; kept on the CPU. Steps go through them again and again.
    outputs
        ``outputs(model, batch)``, a tensor over examples; default: ``model(**batch).logits``
        (compared as distributions) or ``last_hidden_state``. What a user gives is compared by
        squared distance.
    steps
        Of one batch each.
    rate
        Highest learning rate.
    validation
        Share of the batches that is not trained on, at least one batch: the last ones.
    seed
        Of the order of the batches.
    progress
        Called with the share of the work that is done.

    Returns
    -------
    HealReport
        What was won. Of decomposed factors it holds the healed ones, of the same formats and ranks,
        with their errors against the two models, ready for `tdecomp.files.save_factors`.

    Raises
    ------
    ArgumentError
        Fewer than two batches, or a number that is none; models or batches without an output.
    SiteError
        Factors of another model.
    DataError
        An output that is not finite; the factors are then as they were.
    """
    _check(steps=steps, rate=rate, validation=validation, seed=seed)
    split = _split(kept_batches(batches, None), validation)
    student = _student(base_model, factors)
    if not student.parameters():
        raise ArgumentError("there is nothing to train: the factors have rank 0")
    with as_it_was(base_model, dropout=False), as_it_was(tuned_model, dropout=False):
        course = _Course(student, tuned_model, outputs, *split)
        with _left_as_it_was(base_model, student):
            report = course.run(steps, rate, seed, progress)
    if isinstance(student, FactoredStudent):
        done = student.healed(base_model, tuned_model) if report.kept_step else student.factors
        options = {**done.options, "healed": {"steps": report.kept_step, "rate": rate}}
        return replace(report, factors=replace(done, options=options))
    return report


@dataclass(frozen=True)
class _Course:
    """A student, its teacher, and what is learnt from."""

    student: Student
    tuned: nn.Module
    outputs: Outputs | None
    training: Sequence[Any]
    validation: Sequence[Any]

    def run(self, steps: int, rate: float, seed: int, progress: Progress) -> HealReport:
        """Train, look at the validation split now and then, and keep the best."""
        start = self.student.snapshot()
        try:
            return self._run(steps, rate, seed, progress)
        except BaseException:
            self.student.restore(start)
            raise

    def _run(self, steps: int, rate: float, seed: int, progress: Progress) -> HealReport:
        parameters = self.student.parameters()
        optimizer = torch.optim.Adam(parameters, lr=rate)
        warmup = max(1, steps // 10)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda k: min((k + 1) / warmup, (steps - k) / max(steps - warmup, 1))
        )
        taught = [self._taught(batch, "validation", k) for k, batch in enumerate(self.validation)]
        before, agreement = self._validate(taught)
        best, kept, kept_step, agreed = before, self.student.snapshot(), 0, agreement
        looks = {round(steps * (k + 1) / _LOOKS) for k in range(_LOOKS)} | {steps}
        known: dict[int, OutputRows] = {}
        losses: list[float] = []
        for step, number in enumerate(_order(len(self.training), steps, seed), start=1):
            if number not in known:
                known[number] = self._taught(self.training[number], "training", number)
            losses.append(self._step(number, known[number], optimizer))
            schedule.step()
            if step in looks:
                now, agreement_now = self._validate(taught)
                if now < best:
                    best, agreed, kept_step = now, agreement_now, step
                    kept = self.student.snapshot()
            progress(step / steps)
        self.student.restore(kept)
        return HealReport(
            before=before,
            after=best,
            agreement_before=agreement,
            agreement_after=agreed,
            steps=steps,
            kept_step=kept_step,
            n_params=sum(p.numel() for p in parameters),
            train_batches=len(self.training),
            validation_batches=len(self.validation),
            losses=tuple(losses),
        )

    def _step(self, number: int, taught: OutputRows, optimizer: torch.optim.Optimizer) -> float:
        parameters = self.student.parameters()
        with self.student.acting(), torch.enable_grad():
            loss = self._seen(self.training[number]).loss_to(taught)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        if not math.isfinite(loss.item()):
            raise DataError(
                f"training batch {number}: the loss is {loss.item()} after some steps: give a"
                " smaller rate"
            )
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    @torch.no_grad()
    def _validate(self, taught: Sequence[OutputRows]) -> tuple[float, float | None]:
        """Mean loss and agreement."""
        losses, agreements = [], []
        with self.student.acting():
            for batch, wanted in zip(self.validation, taught, strict=True):
                seen = self._seen(batch)
                losses.append(float(seen.loss_to(wanted)))
                agreements.append(seen.agreement(wanted))
        known = [a for a in agreements if a is not None]
        return float(np.mean(losses)), float(np.mean(known)) if known else None

    @torch.no_grad()
    def _taught(self, batch: Any, which: str, number: int) -> OutputRows:
        device = _device(self.tuned)
        seen = seen_of(self.tuned, moved(batch, device), self.outputs)
        if not finite(seen):
            raise DataError(f"{which} batch {number}: the tuned model's output is not finite")
        return OutputRows(seen.rows.to(_device(self.student.model)), seen.scores)

    def _seen(self, batch: Any) -> OutputRows:
        model = self.student.model
        return seen_of(model, moved(batch, _device(model)), self.outputs)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _left_as_it_was(model: nn.Module, student: Student) -> Iterator[None]:
    """No gradients of the model's own parameters, and those that were there kept."""
    own = {id(p) for p in student.parameters()}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    gradients = [(p, p.grad) for p in student.parameters()]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _student(model: nn.Module, factors: Any) -> Student:
    if isinstance(factors, Adapter):
        if factors.model is not model:
            raise ArgumentError(f"the adapter {factors.name!r} is not on the base model given")
        return AdapterStudent(model, factors)
    if not isinstance(factors, Factors):
        factors = load_factors(Path(factors))
    return FactoredStudent.of(model, factors)


def _split(batches: list[Any], share: float) -> tuple[list[Any], list[Any]]:
    if len(batches) < 2:
        raise ArgumentError("heal needs two batches or more: one to train on and one to look at")
    last = min(max(1, round(share * len(batches))), len(batches) - 1)
    return batches[:-last], batches[-last:]


def _order(batches: int, steps: int, seed: int) -> Iterator[int]:
    """Numbers of batches: all of them in a random order, and again."""
    rng, left = np.random.default_rng(seed), list[int]()
    for _ in range(steps):
        left = left or rng.permutation(batches).tolist()
        yield left.pop()


def _check(*, steps: Any, rate: Any, validation: Any, seed: Any) -> None:
    for what, value, least in (("steps", steps, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ArgumentError(f"{what}={value!r} must be a whole number, {least} or more")
    if not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise ArgumentError(f"rate={rate!r} must be a positive number")
    if not isinstance(validation, int | float) or not 0 < validation < 1:
        raise ArgumentError(f"validation={validation!r} must be above 0 and below 1")
