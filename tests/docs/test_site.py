"""The pages of the site that are made from the code, and (slow) the site itself."""

from __future__ import annotations

import importlib
import json
import re
import sys
from html.parser import HTMLParser

import pytest
from typer.main import get_command

from tdecomp.adapters import CATALOGUE
from tdecomp.cli.commands import app
from tests.drawing.svg import texts, view_box
from tests.imports import ROOT

DOCS, SITE = ROOT / "docs", ROOT / "docs" / "site"


@pytest.fixture(scope="module")
def rooms():
    """The modules beside `build.py`, which Python finds when it is run."""
    names = ("api", "bibliography", "catalogue", "citations", "commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SITE))
        patch.syspath_prepend(str(ROOT))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield {name: importlib.import_module(name) for name in names}
        for name in names:
            sys.modules.pop(name, None)


def test_every_command_option_and_example_is_in_the_reference(rooms):
    page = rooms["commands"].commands_page()
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        assert (f"\n## {name}\n" in page) is not command.hidden
        if not command.hidden:
            options = [o for p in command.params if not p.hidden for o in p.opts if o[0] == "-"]
            part = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
            assert not [o for o in options if o not in part]
            assert all(line.strip() in part for line in command.epilog.splitlines()[1:])
    assert "[bold]" not in page


def test_every_row_of_the_catalogue_has_a_page(rooms):
    pages = dict(rooms["catalogue"].catalogue_pages())
    assert set(pages) == {f"catalogue/{name}.md" for name in (*CATALOGUE, "index")}
    for name, spec in CATALOGUE.items():
        page = pages[f"catalogue/{name}.md"]
        (svg,) = re.findall("<svg.*?</svg>", page)
        assert all(line.right <= view_box(svg)[2] for line in texts(svg))
        for said in (f"`{spec.equation}`", str(spec.scale), str(spec.alpha), spec.source):
            assert said in page
        assert all(f"| `{f.name}` |" in page and f"`{f.init}`" in page for f in spec.factors)
        assert f">{name}</a>" in pages["catalogue/index.md"]


def test_every_key_of_the_bibliography_has_an_entry(rooms):
    source = (DOCS / "references.bib").read_text(encoding="utf-8")
    page = rooms["bibliography"].bibliography_page(DOCS / "references.bib")
    keys = re.findall(r"@\w+\{(\w+),", source)
    assert re.findall(r"^\*\*\[(\w+)\]\*\*", page, re.M) == sorted(keys)
    assert "**[halko2011]** Nathan Halko, " in page
    assert {"Beltrán", "Tichavský", "Bürgisser", "Międlar"} <= {*re.findall(r"\w+", page)}
    assert not re.search(r"[{}$]|\\[^*_<\[\]]", page)  # no marks of TeX are left


def test_every_entry_is_verified_or_marked(rooms):
    entries = rooms["bibliography"].entries(DOCS / "references.bib")
    page = rooms["bibliography"].bibliography_page(DOCS / "references.bib")
    lines = dict(re.findall(r"^\*\*\[(\w+)\]\*\* (.*)$", page, re.M))
    for key, body in entries.items():
        record = re.search(r"^  verified = \{(\w+):?(.*)\}$", body, re.M)
        assert lines[key].endswith("**unverified**.") is (record is None), key
        if record is None:
            continue
        kind, name = record.groups()
        assert kind in ("doi", "arxiv", "url", "reference"), key
        if kind == "arxiv":
            assert re.fullmatch(r"\d{4}\.\d{4,5}", name)
            assert lines[key].endswith(f"[arXiv:{name}](https://arxiv.org/abs/{name}).")
        elif kind == "doi":
            assert re.fullmatch(r"10\.\d{4,}/\S+", name)
            assert re.search(r"\(https://doi\.org/10\.[^\s()<>]+\)\.$", lines[key])
        preprint = re.search(r"^\s+eprint\s*= \{(.*?)\}", body, re.M)
        assert preprint is None or (kind, name) == ("arxiv", preprint[1]), key


def test_citations_become_links(rooms):
    linked = rooms["citations"].linked
    keys = {"lim2009", "halko2011"}
    for text, shown in {
        "as [lim2009] says": "as {ref}`[lim2009] <lim2009>` says",
        "([lim2009], [halko2011])": "({ref}`[lim2009] <lim2009>`, {ref}`[halko2011] <halko2011>`)",
        "[nobody1999], x[lim], [lim2009](a.md)": "[nobody1999], x[lim], [lim2009](a.md)",
        "`[halko2011]` is a key": "`[halko2011]` is a key",
        "```\n# [halko2011]\n```\n[halko2011]": (
            "```\n# [halko2011]\n```\n{ref}`[halko2011] <halko2011>`"
        ),
    }.items():
        assert linked(text, keys) == shown
    lines = ["Source: [halko2011],", "x"]
    process = rooms["citations"].link_docstrings(DOCS / "references.bib")
    process(None, "function", "td.svd", None, None, lines)
    assert lines == ["Source: :ref:`[halko2011] <halko2011>`,", "x"]


def test_no_citation_of_the_pages_stays_text(rooms, tmp_path):
    for path in (*DOCS.glob("*.md"), *(DOCS / "notebooks").glob("*.ipynb")):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    rooms["citations"].link_citations(
        tmp_path, rooms["bibliography"].entries(DOCS / "references.bib")
    )
    n_links = 0
    for path in tmp_path.iterdir():
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":  # code stays as it is
            cells = json.loads(text)["cells"]
            text = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        assert not re.search(r"(?<![`\w])\[[a-z]+\d{4}[a-z]*\](?![(:`])", text), path.name
        n_links += len(re.findall(r"\{ref\}`\[(\w+)\] <\1>`", text))
    assert n_links > 20


def test_every_public_name_is_in_the_reference(rooms):
    pages = dict(rooms["api"].api_pages(DOCS))
    described: list[str] = []
    for name in rooms["api"]._MODULES:
        page, module = pages[f"api/{name}.md"], importlib.import_module(name)
        public = [n for n in module.__all__ if rooms["api"]._is_documented(getattr(module, n))]
        assert re.findall(r"^## (\w+)$", page, re.M) == sorted(public, key=str.lower)
        described += re.findall(r"auto(?:class|function):: (\S+)", page)
    assert len(described) == len(set(described))
    assert {"tdecomp.svd", "tdecomp.draw", "tdecomp.jobs.report", "tdecomp_torch.attach"} <= {
        *described
    }
    assert "notebooks/03_cp.ipynb" in pages["api/tdecomp.md"]


class Links(HTMLParser):
    """Places that a page links to, and the names of places in it."""

    def __init__(self, text: str):
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = {key: value or "" for key, value in attrs}
        self.places |= {found[key] for key in ("id", "name") if key in found}
        if tag == "a" and "href" in found:
            self.targets.append(found["href"])
        elif "src" in found or tag == "link":
            self.loaded.append(found.get("src") or found.get("href", ""))


@pytest.mark.slow
@pytest.mark.xdist_group("site")
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(site):
    html, run = site
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in html.rglob("*.html")}
    assert len(pages) > len(CATALOGUE) + 20
    for path, page in pages.items():
        assert not [t for t in page.loaded if re.match(r"(https?:)?//", t)], path
        for target in page.targets:
            file, _, place = target.partition("#")
            if re.match(r"\w+:", file):
                continue
            there = (path.parent / file).resolve() if file else path
            assert there.exists(), f"{path}: {target}"
            if place and there in pages:
                assert place in pages[there].places, f"{path}: {target}"
    cited = pages[html / "notebooks" / "03_cp.html"].targets
    assert "../bibliography.html#desilva2008" in cited
    assert "../bibliography.html#halko2011" in pages[html / "api" / "tdecomp.linalg.html"].targets
    assert not (ROOT / "docs" / "_build").exists()
