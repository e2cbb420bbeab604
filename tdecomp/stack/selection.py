"""Which weights of a model are meant, and how they are stacked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tdecomp.stack.select import Targets

__all__ = ["EVERYTHING", "Selection"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which weights of a model are sites, and which of their modes are stacked.

    By default all that the family of the model and the generic rule take, stacked along all modes.

    Attributes
    ----------
    targets
        As in PEFT: names or dotted suffixes, one regex for the whole module path, or
        ``"all-linear"``.
    exclude
        Names or a regex to leave out; wins over `targets`.
    layers
        Numbers of the layers to keep.
    patterns
        Where the sites are, in the place of a known family: ``"blocks.{layer}.att.{proj}"``.
    share
        Site modes that are stacked together, as in `group_sites`; ``()``: every matrix alone.

    Examples
    --------
    >>> Selection(targets=["q_proj", "v_proj"], layers=range(4)).to_json()["layers"]
    [0, 1, 2, 3]
    """

    targets: Targets | None = None
    exclude: Targets | None = None
    layers: Collection[int] | None = None
    patterns: Sequence[str] = ()
    share: Sequence[str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain lists, texts and None, by field."""
        return {
            "targets": _plain(self.targets),
            "exclude": _plain(self.exclude),
            "layers": _plain(self.layers),
            "patterns": _plain(self.patterns),
            "share": _plain(self.share),
        }


EVERYTHING = Selection()
"""What the family of a model and the generic rule take."""


def _plain(value: Collection[Any] | None) -> Any:
    return value if value is None or isinstance(value, str) else list(value)
