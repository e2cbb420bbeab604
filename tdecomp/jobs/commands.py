"""The `tdecomp decompose` command that does what a report speaks of, ready to be pasted."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tdecomp.errors import ArgumentError
from tdecomp.files.dtypes import NAMES
from tdecomp.files.factors import Factors
from tdecomp.files.storage import shown
from tdecomp.stack import Selection, Targets, parse_targets

__all__ = [
    "decompose_command",
    "explore_command",
    "remaking_command",
    "report_command",
    "typed",
    "typed_layers",
    "verify_command",
]


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
    line = ["tdecomp", "decompose", _as_path(shown(base)), _as_path(shown(tuned)), "-o", "OUT"]
    line += _options(selection, with_share="--share" not in words)
    line += ["--allow-missing"] * allow_missing
    return typed(*line, *words)


def explore_command(
    base: str | Path,
    tuned: str | Path,
    selection: Selection,
    *,
    budgets: Sequence[int],
    methods: Sequence[str] | None = None,
    allow_missing: bool = False,
) -> str:
    """The command that compares formats for the same sites within these budgets.

    >>> explore_command("A", "B", Selection(), budgets=[60000, 240000], methods=["svd", "tucker"])
    'tdecomp explore A B --budget 60000 --budget 240000 --method svd,tucker'
    """
    words = [word for budget in budgets for word in ("--budget", str(budget))]
    words += [] if methods is None else ["--method", ",".join(methods)]
    options = _options(selection, with_share=True)
    return typed(
        "tdecomp",
        "explore",
        _as_path(shown(base)),
        _as_path(shown(tuned)),
        *options,
        *["--allow-missing"] * allow_missing,
        *words,
    )


def remaking_command(factors: Factors) -> str | None:
    """The command that made factors, as far as their file tells; None where it does not."""
    asked = factors.options
    paths = [factors.sources.get(name, {}).get("path") for name in ("base", "tuned")]
    try:
        base, tuned = (str(path) for path in paths if path)
        words = ["--method", factors.method, *_how_small(asked)]
        if factors.dtype != "F32":
            words += ["--dtype", NAMES[factors.dtype]]
        share = asked.get("share")
        selection = Selection(
            targets=asked.get("targets"),
            exclude=asked.get("exclude"),
            layers=asked.get("layers"),
            patterns=tuple(asked.get("patterns") or ()),
            share=None if share is None else tuple(share),
        )
        return decompose_command(
            base, tuned, selection, words, allow_missing=any(site for *_, site in factors.unknown)
        )
    except (ArgumentError, AttributeError, KeyError, TypeError, ValueError):
        return None  # the options may be any JSON


def _how_small(asked: Mapping[str, Any]) -> Iterator[str]:
    if asked.get("modes") is not None:
        yield f"--modes={','.join(map(str, asked['modes']))}"
    rank = asked.get("rank")
    if isinstance(rank, Mapping):
        named = cast("Mapping[str, Any]", rank)
        rank = [f"{mode}={int(n)}" for mode, n in named.items()]
    if rank is not None:
        each = cast("list[Any]", rank) if isinstance(rank, list) else [rank]
        yield f"--rank={','.join(map(str, each))}"
    for name in ("error", "budget", "rank_max"):
        if asked.get(name) is not None:
            yield f"--{name.replace('_', '-')}={asked[name]}"


def report_command(sources: Sequence[str | Path], out: str | Path) -> str:
    """The command that writes a page on these."""
    paths = [_as_path(str(path)) for path in sources]
    return typed("tdecomp", "report", *paths, "-o", _as_path(str(out)))


def verify_command(out: str | Path, base: str | Path, tuned: str | Path) -> str:
    """The command that measures factors again."""
    return typed("tdecomp", "verify", *(_as_path(shown(path)) for path in (out, base, tuned)))


def typed(*words: str | Path) -> str:
    """A command as it is typed in a shell."""
    return " ".join(_quoted(str(word)) for word in words)


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
