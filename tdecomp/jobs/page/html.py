"""HTML as text: paragraphs, tables, commands, and the page around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tdecomp.drawing import DARK, LIGHT
from tdecomp.drawing.text import clean

__all__ = [
    "HEAT_STRENGTH",
    "MADE_BY",
    "code",
    "folded",
    "heat_table",
    "heading",
    "paragraph",
    "plain_table",
    "whole_page",
]

MADE_BY = "tdecomp report"
"""By which a page is known again: the name of its generator."""

HEAT_STRENGTH = 0.5
"""How much of the colour the hottest cell has: what is written there stays legible."""


def heading(text: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{_text(text)}</h{level}>"


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{_text(text)}</p>"


def code(lines: Iterable[str]) -> str:
    """Commands, one a line, to be copied as they are."""
    text = "\n".join(map(_text, lines))
    return f'<pre tabindex="0"><code>{text}</code></pre>'


def folded(summary: str, content: str, *, opened: bool = False) -> str:
    """Content that is shown on demand."""
    return f"<details{' open' * opened}><summary>{_text(summary)}</summary>{content}</details>"


def plain_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1) -> str:
    """A table; its first columns are names, the others numbers."""
    kinds = [""] * names + [' class="number"'] * (len(headings) - names)
    head = "".join(
        f'<th scope="col"{kind}>{_text(name)}</th>'
        for kind, name in zip(kinds, headings, strict=True)
    )
    body = "".join(f"<tr>{_cells(row, kinds)}</tr>" for row in rows)
    return _scrolled(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _cells(row: Sequence[str], kinds: Sequence[str]) -> str:
    first, *rest = row
    cells = (f"<td{kind}>{_text(c)}</td>" for kind, c in zip(kinds[1:], rest, strict=True))
    return f'<th scope="row">{_text(first)}</th>{"".join(cells)}'


def heat_table(
    corner: str,
    columns: Sequence[str],
    rows: Iterable[tuple[str, Sequence[tuple[str, float] | None]]],
) -> str:
    """Numbers on coloured ground: each cell is what is written, and its heat from 0 to 1."""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in (corner, *columns))
    body = "".join(
        f'<tr><th scope="row">{_text(name)}</th>{"".join(map(_heat_cell, cells))}</tr>'
        for name, cells in rows
    )
    table = f'<table class="heat"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return _scrolled(table)


def _heat_cell(cell: tuple[str, float] | None) -> str:
    if cell is None:
        return "<td>–</td>"
    text, heat = cell
    share = HEAT_STRENGTH * min(max(heat, 0.0), 1.0)
    return f'<td style="--heat:{share:.3f}">{_text(text)}</td>'


def _scrolled(content: str) -> str:
    """Content that scrolls by itself where it is wider than the page."""
    return f'<div class="wide" tabindex="0">{content}</div>'


def _text(text: str) -> str:
    return escape(clean(text))


def _variables(colours: dict[str, str]) -> str:
    channels = " ".join(str(int(colours["tensor"][k : k + 2], 16)) for k in (1, 3, 5))
    names = ("ground", "ink", "quiet", "faint")
    return "".join(f"--{name}:{colours[name]};" for name in names) + f"--hot:{channels}"


_STYLE = f"""
:root{{{_variables(LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}
body{{margin:0 auto;padding:1rem;max-width:62rem;background:var(--ground);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}}
h1{{font-size:1.5rem}}h2{{font-size:1.25rem;margin-top:2.5rem}}h3{{font-size:1.05rem}}
table{{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;
overflow-wrap:normal}}
th,td{{padding:.25rem .6rem;border-bottom:1px solid var(--faint);text-align:left;
font-weight:normal}}
thead th{{font-weight:bold}}.number,.heat td{{text-align:right}}
.heat td{{background:rgb(var(--hot)/var(--heat,0))}}
.wide{{overflow-x:auto}}pre{{overflow-x:auto;padding:.75rem;border:1px solid var(--faint)}}
svg{{max-width:100%}}summary{{cursor:pointer}}footer{{margin-top:3rem;color:var(--quiet)}}
"""


_LOADS_NOTHING = "default-src 'none';style-src 'unsafe-inline'"


def whole_page(title: str, parts: Iterable[str], footer: str) -> str:
    """The page: readable on a phone, in the dark, and on paper."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="generator" content="{MADE_BY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_LOADS_NOTHING}">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{_text(title)}</h1>{''.join(parts)}</main>"
        f"<footer>{paragraph(footer)}</footer></body></html>\n"
    )
