"""`report`: one page on factors and explorations, that loads nothing and hides nothing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tdecomp import jobs
from tdecomp.drawing import DARK, LIGHT
from tdecomp.files.factors import load_factors
from tdecomp.jobs.commands import explore_command
from tdecomp.jobs.page.html import HEAT_STRENGTH
from tests.cli import models
from tests.drawing.svg import contrast, texts, view_box
from tests.pairs import write_folder

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """What a page says, and the elements that it is made of."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def said(self) -> str:
        return " ".join(self.words)

    def names(self) -> set[str]:
        return {name for name, _ in self.elements}


@pytest.fixture
def explored(tmp_path, base, tuned, done):
    file = tmp_path / "explore.json"
    done("explore", base, tuned, "--budget", 400, "--budget", 900, "-o", file, "-q")
    return file


def page_of(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_factors_are_told_whole(out, base, tuned, tmp_path, done):
    page = tmp_path / "page.html"
    assert done("report", out, "-o", page).out == f"Written to {page}.\n"
    found, told = page_of(page), json.loads((out / "report.json").read_text())
    for group in told["groups"]:
        assert group["name"] in found.said
        assert f"{group['n_params']:,}" in found.said
        assert f"{group['error']:.4f}" in found.said
    for name in ("q_proj", "down_proj", "Not covered", "embedding", "Rounding floor"):
        assert name in found.said
    assert f"{told['rounding_floor']:.4f}" in found.said
    assert f"{told['uncovered_share']:.2%}" in found.said
    assert f"tdecomp decompose {base} {tuned} -o OUT --method svd --rank=2" in found.said
    assert f"tdecomp verify {out} {base} {tuned}" in found.said


def test_heat_maps_hold_the_figures_of_every_place(out, tmp_path, done):
    done("report", out, "-o", tmp_path / "page.html", "-q")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    tables = re.findall(r'<table class="heat">(.*?)</table>', text)
    factors = load_factors(out)
    sites = [s.labels for part in factors.parts for s in part.group.sites]
    energy = [e for part in factors.parts for e in part.energy]
    residual = [r for part in factors.parts for r in part.residual]
    written = [
        [f"{e / sum(energy):.1%}" for e in energy],
        [f"{(r / e) ** 0.5:.2f}" for r, e in zip(residual, energy, strict=True)],
        ["2"] * len(sites),
    ]
    assert len(tables) == len(written)
    for table, values in zip(tables, written, strict=True):
        columns = re.findall(r'<th scope="col">(.*?)</th>', table)[1:]
        cells = {}
        for row, rest in re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', table):
            for name, cell in zip(columns, re.findall(r"<td.*?>(.*?)</td>", rest), strict=True):
                cells[int(row), name] = cell
        expected = {
            (dict(labels)["layer"], dict(labels)["proj"]): value
            for labels, value in zip(sites, values, strict=True)
        }
        assert cells == expected


def columns_of(page) -> list[str]:
    table = re.search(r'<table class="heat">(.*?)</table>', page.read_text(encoding="utf-8"))
    assert table is not None
    return re.findall(r'<th scope="col">(.*?)</th>', table[1])[1:]


def test_heads_stand_under_their_projection(base, tuned, tmp_path, done):
    chosen = ("--share", "layer,head", "--targets", "q_proj,k_proj,v_proj")
    done("decompose", base, tuned, "-o", tmp_path / "out", "--rank", 2, *chosen, "-q")
    done("report", tmp_path / "out", "-o", tmp_path / "page.html", "-q")
    assert columns_of(tmp_path / "page.html") == ["q_proj", "k_proj", "v_proj"]
    said = page_of(tmp_path / "page.html").said
    assert f"of {models.HEADS} matrices where there are more in a place" in said


def test_towers_stand_beside_each_other(tmp_path, done):
    rng = np.random.default_rng(0)
    names = [f"{t}.layers.{i}.mlp.up_proj.weight" for t in ("text", "vision") for i in range(2)]
    old = {name: rng.standard_normal((8, 6)).astype(np.float32) for name in names}
    new = {name: a + rng.standard_normal(a.shape).astype(np.float32) for name, a in old.items()}
    base = write_folder(tmp_path / "base", old, config={})
    tuned = write_folder(tmp_path / "tuned", new, config={})
    done("decompose", base, tuned, "-o", tmp_path / "out", "--rank", 2, "-q")
    done("report", tmp_path / "out", "-o", tmp_path / "page.html", "-q")
    assert columns_of(tmp_path / "page.html") == ["text up_proj", "vision up_proj"]


def test_an_exploration_is_told_whole(explored, tmp_path, base, tuned, done):
    done("report", explored, "-o", tmp_path / "page.html", "-q")
    found, told = page_of(tmp_path / "page.html"), json.loads(explored.read_text())
    for row in told["rows"]:
        assert row["name"] in found.said
        assert all(cell is None or f"{cell['error']:.4f}" in found.said for cell in row["cells"])
    assert f"tdecomp explore {base} {tuned} --budget 400 --budget 900" in found.said
    assert all(winner["command"] in found.said for winner in told["winners"])
    assert [name for name, _ in found.elements].count("svg") == 1


def test_the_command_of_an_exploration_finds_it_again(explored, done, report):
    told = json.loads(explored.read_text())
    words = told["command"].split()
    assert report(*words[1:]) == told


def test_the_command_that_factors_tell_makes_them_again(base, tuned, tmp_path, done):
    first, again, page = tmp_path / "first", tmp_path / "again", tmp_path / "page.html"
    chosen = ("--targets", "q_proj,v_proj", "--share", "layer", "--layers", "0-1")
    how = ("--method", "tucker", "--modes", "out,in", "--rank", "out=2,in=3", "--dtype", "bfloat16")
    done("decompose", base, tuned, "-o", first, *chosen, *how, "-q")
    done("report", first, "-o", page, "-q")
    line = re.search(r"tdecomp decompose [^\n]*", page_of(page).said)
    assert line is not None
    done(*line[0].replace("OUT", str(again)).split()[1:], "-q")
    old, new = load_factors(first), load_factors(again)
    assert (old.options, old.dtype, old.method) == (new.options, new.dtype, new.method)
    for a, b in zip(old.tensors, new.tensors, strict=True):
        assert a == b


def test_the_page_needs_nothing_else(out, explored, tmp_path, done):
    page = tmp_path / "page.html"
    done("report", out, explored, "-o", page, "-q")
    found, text = page_of(page), page.read_text(encoding="utf-8")
    assert not found.names() & {"script", "link", "img", "iframe", "object", "base"}
    assert not re.search(r"(src=|href=|url\()", text)
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}
    assert any(a.get("content", "") == "default-src 'none';style-src 'unsafe-inline'"
               for name, a in found.elements if name == "meta")  # fmt: skip
    done("report", out, explored, "-o", tmp_path / "again.html", "-q")
    again = (tmp_path / "again.html").read_text(encoding="utf-8")
    assert again.replace("again.html", "page.html") == text


def test_pictures_fit_and_heat_is_legible(out, explored, tmp_path, done):
    done("report", out, explored, "-o", tmp_path / "page.html", "-q")
    pictures = re.findall("<svg.*?</svg>", (tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(pictures) > 2
    for svg in pictures:
        assert all(0 <= t.left < t.right <= view_box(svg)[2] for t in texts(svg))
    for colours in (LIGHT, DARK):
        a, b = (np.array([*bytes.fromhex(colours[n][1:])]) for n in ("ground", "tensor"))
        hottest = "#" + bytes((a + HEAT_STRENGTH * (b - a)).astype(np.uint8)).hex()
        assert contrast(colours["ink"], hottest) >= 4.5


def test_names_of_a_file_are_text(explored, tmp_path, done):
    told = json.loads(explored.read_text())
    told["rows"][0]["name"] = told["notes"] = "<script>alert(1)</script>"
    told["notes"] = ["<img src=x onerror=alert(1)>"]
    explored.write_text(json.dumps(told))
    done("report", explored, "-o", tmp_path / "page.html", "-q")
    assert not page_of(tmp_path / "page.html").names() & {"script", "img"}


def test_factors_without_their_report_say_so(out, tmp_path, done):
    (out / "report.json").unlink()
    done("report", out, "-o", tmp_path / "page.html", "-q")
    assert page_of(tmp_path / "page.html").said.count("report.json does not tell it") == 2


def test_equal_models_are_no_error(base, tmp_path, done):
    done("explore", base, base, "-o", tmp_path / "explore.json", "-q")
    done("decompose", base, base, "-o", tmp_path / "out", "--rank", 1, "-q")
    done("report", tmp_path / "explore.json", tmp_path / "out", "-o", tmp_path / "p.html", "-q")
    assert "nothing to compare" in page_of(tmp_path / "p.html").said


def damaged(explored, change):
    told = json.loads(explored.read_text())
    change(told)
    explored.write_text(json.dumps(told))
    return explored


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda told: told.pop("rows"), "has no rows"),
        (lambda told: told["rows"][0].pop("name"), "has no rows[0].name"),
        (lambda told: told["rows"][0].update(name=3), "rows[0].name is 3, not text"),
        (lambda told: told.update(numbers=True), "numbers is True, not a whole number"),
        (lambda told: told.update(groups={}), "groups is no list"),
        (lambda told: told["rows"][0]["cells"].pop(), "one cell for each of the budgets"),
        (lambda told: told["rows"].append(None), "is no object"),
    ],
)
def test_a_damaged_exploration_is_refused(explored, change, said, tmp_path, refused):
    refused(["report", damaged(explored, change), "-o", tmp_path / "page.html"], explored, said)


def test_what_is_neither_is_refused(base, out, tmp_path, refused):
    page = tmp_path / "page.html"
    refused(["report", tmp_path / "none.json", "-o", page], "does not exist")
    refused(["report", base, "-o", page], base)
    refused(["report", out / "report.json", "-o", page], "neither a folder")
    (out / "report.json").write_text('{"uncovered": 3}')
    refused(["report", out, "-o", page], "report.json", "uncovered is no list")


def test_only_pages_are_replaced(out, tmp_path, done, refused):
    page = tmp_path / "page.html"
    done("report", out, "-o", page, "-q")
    refused(["report", out, "-o", page], "already exists", "--overwrite")
    done("report", out, "-o", page, "-q", "--overwrite")
    page.write_text("<!DOCTYPE html><p>mine")
    refused(["report", out, "-o", page, "--overwrite"], "not an output of tdecomp")
    refused(["report", out, "-o", out / "page.html"], out)


def test_the_job_tells_what_it_wrote(out, explored, tmp_path, report):
    page, again = tmp_path / "page.html", tmp_path / "again.html"
    made = jobs.report([out, explored], page)
    assert made.bytes == page.stat().st_size
    assert [source.kind for source in made.sources] == ["factors", "exploration"]
    printed = report("report", out, explored, "-o", again)
    assert printed == made.to_json() | {"page": str(again), "bytes": again.stat().st_size}


def test_every_format_has_a_page(base, tuned, tmp_path, done):
    for method in ("svd", "tucker2", "tucker", "hosvd", "tensor_train", "interpolative"):
        folder, page = tmp_path / method, tmp_path / f"{method}.html"
        done("decompose", base, tuned, "-o", folder, "--method", method, "--rank", 2, "-q")
        done("report", folder, "-o", page, "-q")
        assert method in page_of(page).said


def test_explore_command_is_read_back(base, tuned, done, report):
    chosen = jobs.Selection(targets=["q_proj"], layers=[0, 1], share=())
    words = explore_command(base, tuned, chosen, budgets=[100], methods=["svd"]).split()
    told = report(*words[1:])
    assert told["command"].split() == words
    assert told["numbers"] < models.NUMBERS
