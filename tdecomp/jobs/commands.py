"""The `tdecomp decompose` command that does what a report speaks of, ready to be pasted."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from tdecomp.errors import ArgumentError
from tdecomp.stack import Selection, Targets, parse_targets

__all__ = ["decompose_command", "typed_layers"]


def decompose_command(
    base: str | Path,
    tuned: str | Path,
    selection: Selection,
    words: Sequence[str],
    *,
    allow_missing: bool = False,
) -> str:
    """The command for the same sites with further options.

    >>> chosen = Selection(targets=["q_proj", "v_proj"], layers=range(4))
    >>> decompose_command("A", "my B", chosen, ["--rank", "2"])
    "tdecomp decompose A 'my B' -o OUT --targets=q_proj,v_proj --layers=0-3 --rank 2"
    """
    line = ["tdecomp", "decompose", _as_path(str(base)), _as_path(str(tuned)), "-o", "OUT"]
    line += _options(selection, with_share="--share" not in words)
    line += ["--allow-missing"] * allow_missing
    return " ".join(map(_quoted, [*line, *words]))


def _options(selection: Selection, *, with_share: bool) -> Iterator[str]:
    if selection.targets is not None:
        yield f"--targets={_typed(selection.targets)}"
    if selection.exclude is not None:
        yield f"--exclude={_typed(selection.exclude)}"
    if selection.layers is not None:
        yield f"--layers={typed_layers(sorted(selection.layers))}"
    yield from (f"--pattern={pattern}" for pattern in selection.patterns)
    if with_share and selection.share is not None:
        yield f"--share={','.join(selection.share) or 'none'}"


def _typed(targets: Targets) -> str:
    r"""The text that `parse_targets` reads as just these.

    >>> _typed(["q_proj", "c_attn.q"]), _typed(r".*[qk]_proj"), _typed("q_proj")
    ('q_proj,c_attn.q', '.*[qk]_proj', '(?:q_proj)')
    """
    if isinstance(targets, str):
        return targets if _read(targets) == targets else f"(?:{targets})"
    names = list(targets)
    text = ",".join(names)
    return text if _read(text) == names else rf"(.*\.)?({'|'.join(map(re.escape, names))})"


def _read(text: str) -> Targets | None:
    try:
        return parse_targets(text)
    except ArgumentError:
        return None


def typed_layers(layers: Sequence[int]) -> str:
    """Numbers as ``--layers`` takes them.

    >>> typed_layers([0, 1, 2, 5])
    '0-2,5'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _as_path(text: str) -> str:
    """A path that does not look like an option."""
    return f"./{text}" if text.startswith("-") else text


def _quoted(word: str) -> str:
    r"""A word for the shell; bytes that a terminal would not show are spelled, as bash reads them.

    >>> print(_quoted("a b"), _quoted("a\x1b'b"))
    'a b' $'a\x1b\x27b'
    """
    if word.isprintable():
        return shlex.quote(word)
    plain = set(range(0x20, 0x7F)) - set(b"'\\")
    spelled = (chr(b) if b in plain else f"\\x{b:02x}" for b in os.fsencode(word))
    return f"$'{''.join(spelled)}'"
