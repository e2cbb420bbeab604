"""Colours and lines: every picture has a ground of its own, so that it is legible on any page."""

from __future__ import annotations

__all__ = ["CURVES", "DARK", "LIGHT", "STYLE"]

LIGHT = {
    "ground": "#ffffff",
    "ink": "#1b1f24",
    "tensor": "#0b57a4",
    "on-tensor": "#ffffff",
    "site": "#8a3b00",
    "quiet": "#4a5058",
    "faint": "#c9ced4",
    "curve-0": "#0b57a4",
    "curve-1": "#b3261e",
    "curve-2": "#1b6e3c",
    "curve-3": "#7b2d8e",
    "curve-4": "#8a5a00",
    "curve-5": "#44515c",
}
DARK = {
    "ground": "#16191d",
    "ink": "#e8eaed",
    "tensor": "#8ab8f0",
    "on-tensor": "#10151b",
    "site": "#f2b280",
    "quiet": "#b6bcc4",
    "faint": "#444b54",
    "curve-0": "#8ab8f0",
    "curve-1": "#f2a19b",
    "curve-2": "#86d3a3",
    "curve-3": "#dba8ea",
    "curve-4": "#e6bd6a",
    "curve-5": "#c0c8d0",
}
"""By what they are for; no meaning is told by colour alone."""

CURVES = tuple(name for name in LIGHT if name.startswith("curve-"))
"""Colours of the curves of a chart, by turns."""

_RULES = "".join(
    f".td-picture .td-fill-{name}{{fill:{colour}}}.td-picture .td-line-{name}{{stroke:{colour}}}"
    for name, colour in DARK.items()
    if name != "ink"
)
STYLE = f"@media (prefers-color-scheme:dark){{.td-picture{{color:{DARK['ink']}}}{_RULES}}}"
"""What is different in the dark. The rest is in attributes, which stay where styles are removed."""
