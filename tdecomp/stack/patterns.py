"""Name patterns: module paths with holes, ``layers.{layer}.self_attn.{proj:q_proj|k_proj}``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from tdecomp.errors import SiteError

Labels = tuple[tuple[str, int | str], ...]
"""Site mode -> label, in mode order: ``(("layer", 3), ("proj", "q_proj"))``."""

NUMBERED = frozenset({"layer", "expert"})
NUMBER = "[0-9]{1,9}"
"""A number in a name, as a regex; longer ones are words."""
RESERVED = frozenset({"out", "in", "hd", "site"})

_TOKEN = re.compile(r"\{(?P<hole>[^{}]*)\}|(?P<star>\*)|(?P<text>[^{}*]+)|(?P<stray>.)")
_HOLE = re.compile(r"(?P<name>[A-Za-z_]\w*)(?::(?P<choices>[^:]+))?")


@dataclass(frozen=True)
class PathMatch:
    """Where a pattern met a module path: what stood before it and the labels it names."""

    prefix: str
    labels: Labels


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A module path with holes, matched on whole dotted segments after an optional free prefix.

    ``{name}`` is one segment and names a site mode, ``{layer}`` and ``{expert}`` are numbers,
    ``{proj:a|b}`` is one of the alternatives, ``*`` is any one segment and belongs to the prefix.

    Attributes
    ----------
    text
        The pattern as written, without ``.weight``.
    modes
        The site modes it names, in order.
    choices
        The alternatives of each mode (empty for a free one), in order.
    constant
        The pattern without its holes: the space that sites of a user's pattern live in.
    """

    text: str
    regex: re.Pattern[str]
    modes: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]
    constant: str

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read a pattern; a trailing ``.weight`` is dropped. `SiteError` for a bad one.

        >>> pattern = Pattern.parse("blocks.{layer}.att.{proj}.weight")
        >>> pattern.match("model.blocks.3.att.key")
        PathMatch(prefix='model', labels=(('layer', 3), ('proj', 'key')))
        """
        return _parse(text.strip().removesuffix(".weight"))

    def match(self, module: str) -> PathMatch | None:
        """Read the labels of a module path; None where it does not match."""
        found = self.regex.fullmatch(module)
        if found is None:
            return None
        prefix, *stars = (v or "" for k, v in _by_position(found) if k not in self.modes)
        labels = ((m, int(found[m]) if m in NUMBERED else found[m]) for m in self.modes)
        return PathMatch(".".join(filter(None, (prefix, *stars))), tuple(labels))


def _by_position(found: re.Match[str]) -> list[tuple[str | None, str | None]]:
    names = {position: name for name, position in found.re.groupindex.items()}
    return [(names.get(i), value) for i, value in enumerate(found.groups(), start=1)]


@cache
def _parse(text: str) -> Pattern:
    regex, modes, choices, constant = "", [], [], ""
    for token in _TOKEN.finditer(text):
        if token["star"]:
            regex += r"([^.]+)"
        elif token["text"]:
            regex += re.escape(token["text"])
            constant += token["text"]
        elif token["hole"] is not None:
            name, options = _read_hole(token["hole"], text)
            if name in modes:
                raise SiteError(f"the mode {name!r} is twice in the pattern {text!r}: use it once")
            modes.append(name)
            choices.append(options)
            regex += f"(?P<{name}>{_alternatives(name, options)})"
        else:
            raise SiteError(f"unbalanced braces in the pattern {text!r}: write {{name}}")
    if not text:
        raise SiteError("empty pattern: write a module path such as 'layers.{layer}.attn.{proj}'")
    segments = ".".join(s for s in constant.split(".") if s)
    return Pattern(
        text=text,
        regex=re.compile(rf"(?:(.*)\.)?{regex}"),
        modes=tuple(modes),
        choices=tuple(choices),
        constant=segments,
    )


def _read_hole(hole: str, text: str) -> tuple[str, tuple[str, ...]]:
    found = _HOLE.fullmatch(hole)
    options = tuple((found["choices"] or "").split("|")) if found else ()
    if found is None or (found["choices"] and "" in options):
        raise SiteError(
            f"cannot read {{{hole}}} in the pattern {text!r}: write {{name}} or {{name:a|b}}"
        )
    if found["name"] in RESERVED:
        raise SiteError(
            f"the mode {found['name']!r} in the pattern {text!r} is not a site mode "
            f"({', '.join(sorted(RESERVED))} are taken): use another name"
        )
    return found["name"], options if found["choices"] else ()


def _alternatives(name: str, options: tuple[str, ...]) -> str:
    if options:
        return "|".join(map(re.escape, options))
    return NUMBER if name in NUMBERED else r"[^.]+"
