"""Which sites to adapt, asked for as PEFT's users ask: names, suffixes, a regex, layer numbers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tdecomp.errors import ArgumentError
from tdecomp.stack.sites import Site

__all__ = ["ALL_LINEAR", "Targets", "parse_layers", "parse_targets"]

ALL_LINEAR = "all-linear"

Targets = str | Collection[str]
"""Exact module names or dotted suffixes; or one regex for the whole path; or ``"all-linear"``."""

_NAMES = re.compile(r"[\w.\-,\s]*")
_WORD = re.compile(r"\w{2,}")
_LAYERS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def parse_targets(text: str) -> Targets:
    r"""Targets as typed on a command line.

    ``all-linear`` stays as it is; names of word characters, dots and dashes, separated by commas,
    are a list; anything else is one regex that must match the whole module path.

    >>> parse_targets("q_proj,v_proj"), parse_targets(r".*layers\.[02]\..*")
    (['q_proj', 'v_proj'], '.*layers\\.[02]\\..*')
    """
    text = text.strip()
    if text.lower() == ALL_LINEAR:
        return ALL_LINEAR
    if not _NAMES.fullmatch(text):
        compile_regex(text)
        return text
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ArgumentError(f"no target in {text!r}: write names as in 'q_proj,v_proj', or a regex")
    return names


def parse_layers(text: str) -> tuple[int, ...]:
    """Layer numbers as typed on a command line; ranges include both ends.

    >>> parse_layers("0-2,8")
    (0, 1, 2, 8)
    """
    layers: set[int] = set()
    for item in text.split(","):
        found = _LAYERS.fullmatch(item.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise ArgumentError(
                f"cannot read {item!r} in the layers {text!r}: write '0-5,8', at most 99999"
            )
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def compile_regex(text: str) -> re.Pattern[str]:
    """`text` as a regex; `ArgumentError` for a bad one."""
    try:
        return re.compile(text)
    except re.error as error:
        raise ArgumentError(f"{text!r} is neither names nor a regex: {error}") from None


@dataclass(frozen=True)
class Chooser:
    """Whether a module path is among some targets, as PEFT decides it.

    A list matches a path that equals one of its names or ends in ``.name``; a regex must match the
    whole path.
    """

    names: tuple[str, ...] = ()
    regex: re.Pattern[str] | None = None
    by_size: Mapping[int, Collection[str]] = field(default_factory=dict, repr=False)
    """`names` by their number of segments."""

    @classmethod
    def of(cls, targets: Targets) -> Chooser:
        """Read a list of names or a regex."""
        if isinstance(targets, str):
            return cls(regex=compile_regex(targets))
        names = tuple(targets)
        by_size: dict[int, set[str]] = {}
        for name in names:
            by_size.setdefault(name.count(".") + 1, set()).add(name)
        return cls(names=names, by_size=by_size)

    def __call__(self, path: str) -> bool:
        """Whether the path is chosen."""
        if self.regex is not None:
            return self.regex.fullmatch(path) is not None
        return any(last_segments(path, n) in names for n, names in self.by_size.items())


@dataclass(frozen=True, kw_only=True)
class SiteFilter:
    """Which sites to keep: chosen, not excluded, of some layers; None sets no limit."""

    chosen: Chooser | None
    excluded: Chooser | None
    layers: frozenset[int] | None
    anywhere: bool
    """Whether matrices outside the family may be sites."""

    @classmethod
    def of(
        cls, targets: Targets | None, exclude: Targets | None, layers: Collection[int] | None
    ) -> SiteFilter:
        """Read the three arguments of `find_sites`."""
        named = targets is not None and not (
            isinstance(targets, str) and targets.lower() == ALL_LINEAR
        )
        return cls(
            chosen=Chooser.of(targets) if named and targets is not None else None,
            excluded=Chooser.of(exclude) if exclude else None,
            layers=None if layers is None else frozenset(layers),
            anywhere=targets is not None,
        )

    @property
    def by_name(self) -> bool:
        """Whether targets were named, by a list or a regex."""
        return self.chosen is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Targets given as a list."""
        return self.chosen.names if self.chosen else ()

    @property
    def words(self) -> tuple[str, ...]:
        """Words to look for among the names when nothing is chosen."""
        if self.chosen is None or self.chosen.regex is None:
            return self.names
        return tuple(sorted(_WORD.findall(self.chosen.regex.pattern), key=len, reverse=True))

    def refusal(self, site: Site) -> str:
        """Why a site is not kept; empty when it is. A fused part goes by both of its names."""
        names = {site.module, f"{site.module}.{site.part}" if site.part else site.module}
        if self.excluded and any(map(self.excluded, names)):
            return "excluded"
        if self.chosen and not any(map(self.chosen, names)):
            return "not targeted"
        if self.layers is not None and dict(site.labels).get("layer") not in self.layers:
            return "layer not selected"
        return ""


def last_segments(path: str, count: int) -> str:
    """The last `count` dotted segments of a path, or the whole path if it is shorter.

    >>> last_segments("layers.3.mlp.fc1", 2)
    'mlp.fc1'
    """
    return ".".join(path.rsplit(".", count)[-count:])


def matches(name: str, path: str) -> bool:
    """Whether `name` is the path or a dotted suffix of it."""
    return path == name or path.endswith(f".{name}")
