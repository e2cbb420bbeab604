"""Build the documentation: ``python docs/site/build.py [FOLDER]``, by default into build/docs.

The sources are staged in a folder of their own: the Markdown files and notebooks of docs/ as they
are, and pages that are made from the code (commands, catalogue, Python interface, bibliography).
Citations on them become links.
Nothing is fetched, and a warning is an error.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

# PEFT, of the page on its adapters, imports it; what it lacks for speed is no warning of the site
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

SITE = Path(__file__).resolve().parent
DOCS = SITE.parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from api import api_pages  # noqa: E402 - after the path
from bibliography import bibliography_page, entries  # noqa: E402
from catalogue import catalogue_pages  # noqa: E402
from citations import link_citations  # noqa: E402
from commands import commands_page  # noqa: E402

_SECTION = re.compile(r"<!-- README: (.*?) -->")
_LINK = re.compile(r"\]\(docs/")


def staged(place: Path) -> Path:
    """Put everything that Sphinx reads below a folder, which is emptied first."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(DOCS, place, ignore=shutil.ignore_patterns("site", "__pycache__"))
    shutil.copytree(SITE / "static", place / "_static")
    shutil.copy(SITE / "conf.py", place)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    _write(place / "changelog.md", _LINK.sub("](", changes))
    _write(place / "index.md", front_page())
    _write(place / "commands.md", commands_page())
    for name, text in (*catalogue_pages(), *api_pages(DOCS)):
        _write(place / name, text)
    link_citations(place, entries(DOCS / "references.bib"))
    _write(place / "bibliography.md", bibliography_page(DOCS / "references.bib"))
    return place


def front_page() -> str:
    """The front page, sections of the README in the places that it names."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = (SITE / "index.md").read_text(encoding="utf-8")
    return _SECTION.sub(lambda found: _section(readme, found[1]), page)


def _section(text: str, heading: str) -> str:
    start = text.index(f"## {heading}\n")
    end = text.find("\n## ", start)
    return _LINK.sub("](", text[start : end if end > 0 else None]).strip()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main() -> int:
    """Build into the folder that is named; the exit code of Sphinx."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "docs")
    folder = parser.parse_args().folder.resolve()
    for name in ("html", "doctrees"):
        shutil.rmtree(folder / name, ignore_errors=True)  # what was renamed is to go
    source = staged(folder / "source")
    return build_main(["-q", "-W", "--keep-going", "-b", "html", "-d", str(folder / "doctrees"),
                       str(source), str(folder / "html")])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
