"""Models that transformers loads, quietly and without a network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from tdecomp.errors import ArgumentError, FileError

__all__ = ["LoadedModel", "load_model", "load_pair", "load_tokenizer"]


_TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model"),
    *("sentencepiece.bpe.model", "tekken.json", "source.spm"),
)
"""Files of which one is there: without any, transformers makes a tokenizer of no words."""


@dataclass(frozen=True)
class LoadedModel:
    """A model, and the parameters that its folder did not hold."""

    model: nn.Module
    missing: tuple[str, ...]


def load_model(folder: Path, *, device: str | None, headless: bool = False) -> LoadedModel:
    """Load the class that a folder's configuration names, in float32, ready for inference.

    Parameters
    ----------
    headless
        The class without a head, which gives hidden states.

    Raises
    ------
    FileError
        There is no model that transformers loads.
    ArgumentError
        There is no such device.
    """
    if not (folder / "config.json").is_file():
        raise FileError(
            f"{folder} holds no config.json: give a folder that transformers loads a model from"
        )
    with _quietly(folder):
        config: Any = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        named = [] if headless else (config.architectures or [])
        kind: Any = getattr(transformers, named[0], None) if named else transformers.AutoModel
        if kind is None:
            raise FileError(f"{folder} is a {named[0]}, which this transformers does not know")
        model, info = kind.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    try:
        model = model.to(device or "cpu").eval()
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"device={device!r} cannot be used: {error}") from error
    return LoadedModel(model, tuple(sorted(info["missing_keys"])))


def load_pair(base: Path, tuned: Path, *, device: str | None) -> tuple[nn.Module, nn.Module, str]:
    """Two models to be compared, and a sentence where their heads cannot be; else empty.

    The class is the tuned model's; where the base has no such head, both are loaded without one.
    """
    theirs, ours = load_model(tuned, device=device), load_model(base, device=device)
    same = type(theirs.model) is type(ours.model)
    if same and not theirs.missing and not ours.missing:
        return ours.model, theirs.model, ""
    lost = next(iter((*ours.missing, *theirs.missing)), "")
    why = f"no {lost}" if lost else f"another head than the {type(theirs.model).__name__}"
    note = f"{base} has {why}: hidden states are compared, not logits."
    bare = [load_model(folder, device=device, headless=True).model for folder in (base, tuned)]
    return bare[0], bare[1], note


def load_tokenizer(*folders: Path) -> Any:
    """The tokenizer of the first folder that has one.

    Raises
    ------
    FileError
        None has one.
    """
    for folder in (f for f in folders if any((f / name).is_file() for name in _TOKENIZERS)):
        try:
            with _quietly(folder):
                found: Any = transformers.AutoTokenizer.from_pretrained(
                    folder, local_files_only=True
                )
        except FileError:
            continue
        if found.pad_token is None:
            found.pad_token = found.eos_token
        return found
    raise FileError(
        f"{folders[0]} has no tokenizer that transformers loads: put tokenizer.json and"
        " tokenizer_config.json beside its weights"
    )


@contextmanager
def _quietly(folder: Path) -> Iterator[None]:
    """No network and no reports; what goes wrong is told in one sentence."""
    reports = transformers.utils.logging
    level, bar = reports.get_verbosity(), reports.is_progress_bar_enabled()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    reports.set_verbosity_error()
    reports.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileError(f"transformers cannot load {folder}: {first}") from error
    finally:
        reports.set_verbosity(level)
        if bar:
            reports.enable_progress_bar()
