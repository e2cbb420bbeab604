"""The table of methods in the documentation is the catalogue."""

from __future__ import annotations

import re
from pathlib import Path

from tdecomp.adapters import CATALOGUE
from tdecomp.adapters.inits import INITS

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")


def test_every_row_is_listed_with_its_equation_and_source():
    listed = {
        name: rest for name, *rest in re.findall(r"^\| `(\w+)` \| `([^`]+)` \| (.+) \|", PAGE, re.M)
    }
    assert listed == {
        name: [
            spec.equation.removesuffix(" -> out in"),
            spec.source.removeprefix("arXiv:").replace("equation", "eq."),
        ]
        for name, spec in CATALOGUE.items()
    }


def test_every_init_is_named():
    language = PAGE.partition("## The language")[2].partition("## Groups")[0]
    for name in INITS:
        assert re.search(rf"`{name}[`(]", language), name
