"""Colours and lines: every picture has a ground of its own, so that it is legible on any page."""

from __future__ import annotations

__all__ = ["DARK", "LIGHT", "STYLE"]

LIGHT = {
    "ground": "#ffffff",
    "ink": "#1b1f24",
    "tensor": "#0b57a4",
    "on-tensor": "#ffffff",
    "site": "#8a3b00",
    "quiet": "#4a5058",
}
DARK = {
    "ground": "#16191d",
    "ink": "#e8eaed",
    "tensor": "#8ab8f0",
    "on-tensor": "#10151b",
    "site": "#f2b280",
    "quiet": "#b6bcc4",
}
"""By what they are for; no meaning is told by colour alone."""

_RULES = "".join(
    f".td-picture .td-fill-{name}{{fill:{colour}}}.td-picture .td-line-{name}{{stroke:{colour}}}"
    for name, colour in DARK.items()
    if name != "ink"
)
STYLE = f"@media (prefers-color-scheme:dark){{.td-picture{{color:{DARK['ink']}}}{_RULES}}}"
"""What is different in the dark. The rest is in attributes, which stay where styles are removed."""
