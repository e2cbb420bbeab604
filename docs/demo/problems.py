"""The tasks of ``convergence.py``, and the methods that run in each."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import adapter
import compare
import digits
import docstrings
import finetune
import torch

from tdecomp.adapters import CATALOGUE, Spec
from tdecomp.adapters.expressions import Expression

Batch = Mapping[str, torch.Tensor]

STARTING = 4
"""Batches of a start from gradients, of the size of a training batch."""


@dataclass(frozen=True)
class Contender:
    """What is trained, and from where.

    Attributes
    ----------
    row, rank, alpha
        As `attach` takes them; of PEFT's LoRA the rank is ``{"r": ...}``.
    rule
        Start rule made of gradients.
    peft
        Start of PEFT's LoRA, which is trained in the place of a row.
    passes
        Over the batches of a start.
    rate_of
        Method of ``compare.py`` whose rate is taken.
    """

    row: Spec | str
    rank: Mapping[str, int]
    alpha: float | None = None
    rule: str | None = None
    peft: str | None = None
    passes: int = 2
    rate_of: str | None = None

    @property
    def captured(self) -> int:
        """Forward and backward passes over a batch that the start takes."""
        if self.peft == "lora_ga":
            return STARTING
        return 0 if self.rule is None else self.passes * STARTING


class Problem(ABC):
    """A task and a model.

    Attributes
    ----------
    name, targets, looks, goals, contenders
        Its name, the weights that are adapted, after which steps it looks, the accuracies that
        steps are counted to, and the methods.
    """

    name: str
    targets: tuple[str, ...]
    looks: tuple[int, ...]
    goals: tuple[float, ...]
    contenders: Mapping[str, Contender]
    train: list[Any]
    test: list[Any]

    @property
    def steps(self) -> int:
        """Of a training."""
        return self.looks[-1]

    @abstractmethod
    def fresh(self, seed: int) -> Any:
        """The model, its classifier from `seed`."""

    @abstractmethod
    def batches(self, items: list[Any]) -> list[Batch]:
        """The items of a step, in pieces of any size."""

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Mean over the items of a piece."""
        return model(**batch).loss

    @abstractmethod
    def accuracy(self, model: Any, items: list[Any]) -> float:
        """Share of items that get their label."""

    def tuned_rate(self, contender: Contender) -> float | None:
        """A rate that is known to be best; None: it is looked for."""
        return None


_FIFTH = {"r": 5, "s": 5}
_TENSLORA = {"r": 16, "s": 16, "u": 3, "v": 4}
_LOTR = {"r": 16, "s": 16}
_TT = {"r1": 5, "r2": 5, "r3": 5, "r4": 5, "r5": 4}
_TENSLORA_SCALED = replace(
    CATALOGUE["tenslora_qkv_depth"], name="tenslora_scaled", scale=Expression("alpha")
)
"""TensLoRA with an alpha, for the scale at which theory says that a first step has size 1."""


class Digits(Problem):
    """Digits 5 to 9, after 0 to 4."""

    name = "digits"
    targets = ("q_proj", "k_proj", "v_proj")
    looks = tuple(range(5, 101, 5))
    goals = (0.7, 0.8)
    contenders = {
        "lora": Contender("lora", {"r": 4}),
        "lora, gradients": Contender("lora", {"r": 4}, rule="zero"),
        "lora, one step": Contender("lora", {"r": 4}, rule="step"),
        "PEFT LoRA-GA": Contender("lora", {"r": 4}, peft="lora_ga"),
        "PEFT PiSSA": Contender("lora", {"r": 4}, peft="pissa"),
        "lotr": Contender("lotr", _LOTR),
        "lotr, gradients": Contender("lotr", _LOTR, rule="zero"),
        "lotr_narrow": Contender("lotr_narrow", _LOTR),
        "lotr_narrow, gradients": Contender("lotr_narrow", _LOTR, rule="zero"),
        "lotr_narrow, one step": Contender("lotr_narrow", _LOTR, rule="step"),
        "lotr_narrow, a fifth": Contender("lotr_narrow", _FIFTH),
        "lotr_narrow, a fifth, gradients": Contender("lotr_narrow", _FIFTH, rule="zero"),
        "tenslora_qkv_depth": Contender("tenslora_qkv_depth", _TENSLORA),
        "tenslora_qkv_depth, alpha 0.43": Contender(_TENSLORA_SCALED, _TENSLORA, alpha=0.43),
        "tenslora_qkv_depth, gradients": Contender("tenslora_qkv_depth", _TENSLORA, rule="zero"),
        "lorta": Contender("lorta", {"r": 65}),
        "lorta, gradients": Contender("lorta", {"r": 65}, rule="zero"),
        "tt_lora": Contender("tt_lora", _TT),
        "tt_lora, gradients": Contender("tt_lora", _TT, rule="zero"),
    }

    def __init__(self) -> None:
        self.train, self.test = digits.images().train, digits.images().test

    def fresh(self, seed: int) -> Any:
        """The small vision transformer."""
        return digits.fresh_model(seed)

    def batches(self, items: list[digits.Image]) -> list[Batch]:
        """One piece."""
        return [digits.batch_of(items)]

    def accuracy(self, model: Any, items: list[digits.Image]) -> float:
        """On images."""
        return digits.accuracy(model, items)


class Docstrings(Problem):
    """The task of ``compare.py``; pieces of alike length and products in bfloat16 save time."""

    name = "docstrings"
    targets = adapter.TARGETS
    looks = (10, 20, 30, 40, 60, 80)
    goals = (0.5, 0.6, 0.65)
    contenders = {
        "lora": Contender("lora", {"r": 1}, rate_of="lora"),
        "lotr": Contender("lotr", {"r": 14, "s": 14}, rate_of="lotr"),
        # theory says that it takes LoRA's rate (docs/theory.md)
        "lotr_narrow": Contender("lotr_narrow", {"r": 14, "s": 14}, rate_of="lora"),
        "lotr_narrow, gradients": Contender("lotr_narrow", {"r": 14, "s": 14}, rule="zero"),
        "lotr_narrow, a fifth": Contender("lotr_narrow", {"r": 3, "s": 3}),
        "tenslora_qkv_depth, alpha 1.4": Contender(
            _TENSLORA_SCALED, {"r": 14, "s": 14, "u": 3, "v": 6}, alpha=1.4
        ),
        "tenslora_qkv_depth, gradients": Contender(
            "tenslora_qkv_depth", {"r": 14, "s": 14, "u": 3, "v": 6}, rule="zero"
        ),
        "lora, gradients": Contender("lora", {"r": 1}, rule="zero"),
        "PEFT LoRA-GA": Contender("lora", {"r": 1}, peft="lora_ga"),
        "PEFT PiSSA": Contender("lora", {"r": 1}, peft="pissa"),
        "lorta": Contender("lorta", {"r": 32}, rate_of="lorta"),
        "lorta, gradients": Contender("lorta", {"r": 32}, rule="zero"),
        "tt_lora": Contender("tt_lora", _TT, rate_of="tt_lora"),
        "tt_lora, gradients": Contender("tt_lora", _TT, rule="zero"),
    }

    def __init__(self) -> None:
        data = docstrings.task(0)
        self.train, self.test = data.train, data.test
        self.tokens = finetune.tokenizer(finetune.minilm())

    def fresh(self, seed: int) -> Any:
        """MiniLM."""
        return adapter.fresh_model(seed)

    def batches(self, items: list[docstrings.Item]) -> list[Batch]:
        """Two pieces: the shorter texts and the longer ones."""
        items = sorted(items, key=lambda item: len(item.text))
        pieces = [part for part in (items[: len(items) // 2], items[len(items) // 2 :]) if part]
        return [
            {
                **finetune.encode(self.tokens, part),
                "labels": torch.tensor([item.label for item in part]),
            }
            for part in pieces
        ]

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """In mixed precision."""
        with _mixed():
            return super().loss(model, batch)

    def accuracy(self, model: Any, items: list[docstrings.Item]) -> float:
        """On texts."""
        with _mixed():
            return adapter.test_accuracy(model, items)

    def tuned_rate(self, contender: Contender) -> float | None:
        """Of the comparison, where it is there."""
        if contender.rate_of is None:
            return None
        return compare.results_in(compare.RESULTS).best(contender.rate_of)


def _mixed() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


PROBLEMS: Mapping[str, type[Problem]] = {p.name: p for p in (Digits, Docstrings)}
