"""The site and a report in a browser, where there is one: on a phone and a desk, by day and night.

No page is wider than the screen, pictures are seen, text has a contrast of 4.5:1 at least, the
search finds, and the catalogue sorts and filters.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tdecomp import jobs
from tests.pairs import make_pair

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
WIDTHS = (360, 1280)
SEARCH = "search.html?q=train"
DARK = "--blink-settings=preferredColorScheme=0"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no browser here: chromium or chrome"),
]


def seen(folder: Path, *options: str) -> dict:
    """What `look.js` finds fault with on all pages of a folder."""
    pages = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*.html"))]
    pages = [SEARCH if page == "search.html" else page for page in pages]
    script = (Path(__file__).parent / "look.js").read_text(encoding="utf-8")
    call = f"main({json.dumps(pages)}, {list(WIDTHS)})"
    looker = folder / "looker.htm"
    looker.write_text(f"<!DOCTYPE html><body><script>{script}\n{call}</script>", encoding="utf-8")
    words = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom")
    words += ("--disable-web-security", "--virtual-time-budget=900000")
    words += (f"--user-data-dir={folder.parent / 'profile'}",)  # of which nothing stays
    run = subprocess.run(
        [str(BROWSER), *words, *options, looker.as_uri()], capture_output=True, text=True
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', run.stdout, re.S)
    assert found is not None, run.stderr[-2000:]
    told = json.loads(html.unescape(found[1]))
    assert told.pop("pages") == len(pages)
    return told


@pytest.mark.xdist_group("site")
@pytest.mark.parametrize("options", [(), (DARK,)], ids=["day", "night"])
def test_the_site(site, options):
    html, _ = site
    assert seen(html, *options) == {str(width): {} for width in WIDTHS}


@pytest.mark.parametrize("options", [(), (DARK,)], ids=["day", "night"])
def test_a_report(tmp_path, options):
    pair = make_pair(tmp_path / "pair")
    jobs.explore(*pair, out=tmp_path / "explore.json")
    jobs.decompose(*pair, tmp_path / "out", method="tucker", budget=900)
    (tmp_path / "page").mkdir()
    jobs.report([tmp_path / "explore.json", tmp_path / "out"], tmp_path / "page" / "report.html")
    assert seen(tmp_path / "page", *options) == {str(width): {} for width in WIDTHS}


def test_the_look_finds_faults(tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "bad.html").write_text(
        '<main><p style="color:#999">faint</p><pre style="width:2000px">wide</pre>'
        '<svg class="td-picture" width="1" height="1"></svg></main>'
    )
    for faults in seen(tmp_path / "page").values():
        said = " ".join(faults["bad.html"])
        assert all(word in said for word in ("wide", "faint: P 'faint'", "picture is not seen"))
