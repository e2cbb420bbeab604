"""The data of the demo: docstrings, to be told apart by their standard library module.

The docstrings are read from the source files of the Python that runs the demo, so nothing is
downloaded, and one Python version always gives the same task. Source is parsed, never imported.
"""

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Sizeable in every Python since 3.11, and installed without tkinter and its like.
LABELS = (
    "asyncio",
    "datetime",
    "email",
    "http",
    "importlib",
    "inspect",
    "ipaddress",
    "logging",
    "mailbox",
    "multiprocessing",
    "pathlib",
    "tarfile",
    "typing",
    "unittest",
    "urllib",
    "xml",
)
MAX_WORDS = 48  # about 64 tokens; cut before duplicates are dropped, so that none is hidden
MIN_WORDS = 4
_LABEL = re.compile("|".join(LABELS), re.IGNORECASE)


class Item(NamedTuple):
    """One docstring and the index of its module in ``LABELS``."""

    text: str
    label: int


class Task(NamedTuple):
    """Training and test items; no text is in both."""

    train: list[Item]
    test: list[Item]


def _docstrings(source: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in the library's own source
        tree = ast.parse(source.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _clean(text: str) -> str:
    # Every label goes from every text, inside longer words too (`HTTPServer`, `asyncio.Task`):
    # a name left in would give the answer away.
    return " ".join(_LABEL.sub(" ", text).split()[:MAX_WORDS])


def collect() -> list[Item]:
    """Docstrings of the modules in ``LABELS``, cleaned; a text occurs once.

    Returns
    -------
    list of Item
        In a fixed order: by label, file name and position. Texts of fewer than ``MIN_WORDS``
        words are dropped, and so are texts that occur in more than one module.

    Raises
    ------
    FileNotFoundError
        A module has no source files in this Python installation.
    """
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, set[int]] = {}
    for label, name in enumerate(LABELS):
        package = [path for path in (library / name).rglob("*.py") if "test" not in path.parts]
        sources = sorted(package) or [library / f"{name}.py"]
        for source in sources:
            for text in map(_clean, _docstrings(source)):
                if len(text.split()) >= MIN_WORDS:
                    found.setdefault(text, set()).add(label)
    return [Item(text, min(labels)) for text, labels in found.items() if len(labels) == 1]


def task(seed: int = 0, *, per_label: int = 120, test_share: float = 0.2) -> Task:
    """Split the docstrings into training and test items, label by label.

    Parameters
    ----------
    seed : int
        Seed of the choice and of the order.
    per_label : int
        At most this many docstrings of one module, so that no module dominates.
    test_share : float
        Share of every label's items that becomes test items.

    Returns
    -------
    Task
        Both lists are shuffled: the first items are a fair sample of all labels.
    """
    rng = np.random.default_rng(seed)
    items = collect()
    train, test = [], []
    for label in range(len(LABELS)):
        own = [item for item in items if item.label == label]
        chosen = [own[i] for i in rng.permutation(len(own))[:per_label]]
        n_test = round(test_share * len(chosen))
        test += chosen[:n_test]
        train += chosen[n_test:]
    return Task(*([part[i] for i in rng.permutation(len(part))] for part in (train, test)))


def texts_beside(test: list[Item], *, seed: int = 0) -> list[str]:
    """All docstrings but those that are tested on, in a random order and without labels."""
    tested = {item.text for item in test}
    texts = [item.text for item in collect() if item.text not in tested]
    return [texts[k] for k in np.random.default_rng(seed).permutation(len(texts))]
