"""A task that is not text: a tiny vision transformer learns five digits after five others.

The images are scikit-learn's, 8 x 8. The model is trained on the digits 0 to 4 from random weights,
which takes some seconds, and is then given a new classifier for 5 to 9. Nothing is downloaded.
"""

import copy
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import finetune
import torch

N_TRAIN = 400
HIDDEN, LAYERS, HEADS = 48, 4, 4
FIRST = finetune.Recipe(steps=300, batch=64, lr=3e-3, seed=0)


class Image(NamedTuple):
    """One digit: pixels between 0 and 1, shape ``(1, 8, 8)``, and which of its five it is."""

    pixels: torch.Tensor
    label: int


@dataclass(frozen=True)
class Images:
    """What the model knows, what it shall learn and what it is tested on."""

    known: list[Image]
    train: list[Image]
    test: list[Image]


@functools.cache
def images() -> Images:
    """All images; the split is always the same."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    pixels = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    found = [Image(x, int(y)) for x, y in zip(pixels, data.target, strict=True)]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    known = [found[i] for i in order if found[i].label < 5]
    new = [Image(found[i].pixels, found[i].label - 5) for i in order if found[i].label >= 5]
    return Images(known, new[:N_TRAIN], new[N_TRAIN:])


def batch_of(items: list[Image]) -> dict[str, torch.Tensor]:
    """Images and labels as the model takes them."""
    labels = torch.tensor([item.label for item in items])
    return {"pixel_values": torch.stack([item.pixels for item in items]), "labels": labels}


@functools.cache
def _trained() -> Any:
    """The model that knows the digits 0 to 4."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes: Any = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * HIDDEN,
        "image_size": 8,
        "patch_size": 2,
        "num_channels": 1,
        "num_labels": 5,
    }
    config = ViTConfig(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FIRST.seed)
        model = ViTForImageClassification(config)
        groups = [{"params": list(model.parameters()), "lr": FIRST.lr}]
        optimizer, schedule = finetune.scheduled(groups, FIRST)
        model.train()
        for items in finetune.drawn(images().known, FIRST):
            model(**batch_of(items)).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model.eval()


def fresh_model(seed: int) -> Any:
    """The model that knows other digits, with a classifier that starts from `seed`."""
    model = copy.deepcopy(_trained())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        finetune.fresh_head(model)
    return model


@torch.inference_mode()
def accuracy(model: Any, items: list[Image]) -> float:
    """Share of images that get their label."""
    batch = batch_of(items)
    labels = batch.pop("labels")
    return (model(**batch).logits.argmax(dim=1) == labels).double().mean().item()
