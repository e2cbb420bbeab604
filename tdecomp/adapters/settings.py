"""What an adapter was attached with, and what that makes of its method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """What an adapter was attached with, besides the method and the weights.

    Attributes
    ----------
    rank, alpha, dropout, shared_dropout, rank_dropout, seed, tokens, fold, tasks
        As in `attach`.
    ranks
        Of every group, where these differ; empty: `rank` is that of all.
    sides
        Weight modes whose factors are held once for all groups of equal width.
    """

    rank: int | Mapping[str, int] | None = None
    ranks: tuple[int, ...] = ()
    alpha: float | None = None
    sides: frozenset[str] = frozenset()
    dropout: float = 0.0
    shared_dropout: bool = False
    rank_dropout: float = 0.0
    seed: int = 0
    tokens: int = 1024
    fold: bool = False
    tasks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """What differs from the defaults."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        said = [f"{f.name}={own[f.name]!r}" for f in fields(self) if own[f.name] != f.default]
        return f"{type(self).__name__}({', '.join(said)})"
