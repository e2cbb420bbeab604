"""The commands that this checkout brings by entry points, whatever is installed where tests run."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint

from tdecomp.cli.extensions import GROUP
from tests.imports import ROOT

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENTRIES = [
    EntryPoint(name, value, GROUP) for name, value in _PROJECT["entry-points"][GROUP].items()
]
