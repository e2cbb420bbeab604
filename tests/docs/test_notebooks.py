"""The notebooks run, show what their files say, and check their exercises."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from tests.docs.notebooks import FOLDER, Notebook, Session, same_form, same_text
from tests.docs.wrong_answers import WRONG

GUIDE = FOLDER.parent / "guide.md"
DEMO = FOLDER.parent / "demo"
PATHS = sorted(FOLDER.glob("*.ipynb"))
TRAINED = {"07", "12"}
SLOW = {"09"}
READ = [Notebook(path) for path in PATHS]
RUN = [
    pytest.param(
        notebook,
        id=notebook.path.stem,
        marks=[pytest.mark.slow] if notebook.path.stem[:2] in SLOW else [],
    )
    for notebook in READ
    if notebook.path.stem[:2] not in TRAINED
]
every = pytest.mark.parametrize("notebook", READ, ids=lambda n: n.path.stem)


@every
def test_every_cell_has_run_in_order_without_an_error(notebook):
    assert [c["execution_count"] for c in notebook.code] == [*range(1, len(notebook.code) + 1)]
    for output in (o for c in notebook.code for o in c["outputs"]):
        assert output["output_type"] in ("stream", "display_data", "execute_result")
        assert output.get("name") != "stderr"


@every
def test_nothing_in_the_file_is_of_one_machine_or_moment(notebook):
    text = notebook.path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.:/<])/(home|root|tmp|work|usr|opt|Users)\b|[A-Z]:\\\\", text)
    assert not any(cell["metadata"] for cell in notebook.cells)
    assert "<dc:date>" not in text
    assert len(text) < 400_000


@every
def test_links_resolve(notebook):
    prose = "".join("".join(c["source"]) for c in notebook.cells if c["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
        assert (FOLDER / target).exists(), target


@every
def test_the_guide_lists_it(notebook):
    title = "".join(notebook.cells[0]["source"]).partition("\n")[0].split(". ", 1)[1]
    assert f"[{title}](notebooks/{notebook.path.name})" in GUIDE.read_text(encoding="utf-8")


@every
def test_each_exercise_has_a_solution_and_a_wrong_answer(notebook):
    numbers = [number for number, _ in notebook.exercises]
    assert numbers == [1, 2, 3]
    assert sorted(notebook.solutions) == numbers
    assert sorted(WRONG[notebook.path.stem[:2]]) == numbers


@pytest.mark.parametrize("notebook", RUN)
def test_shows_what_is_committed_and_checks_its_exercises(notebook):
    session = Session()
    shown = notebook.run(session)
    compare(notebook, shown, same_text)
    check_exercises(notebook, shown, session)


@pytest.fixture(scope="module")
def few_steps(tmp_path_factory):
    """A folder for notebooks beside the demo and its models, after three steps."""
    place = tmp_path_factory.mktemp("checkout")
    shutil.copytree(DEMO, place / "docs" / "demo")
    make_models(place / "demo-output")
    folder = place / "docs" / "notebooks"
    folder.mkdir()
    yield folder
    for path in DEMO.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.slow
@pytest.mark.parametrize("number", sorted(TRAINED))
def test_notebooks_of_trained_models_run_on_models_of_few_steps(number, few_steps, monkeypatch):
    """Their numbers are those of the demo's models, which take minutes to make."""
    (notebook,) = (n for n in READ if n.path.stem[:2] == number)
    monkeypatch.setattr(sys, "path", [*sys.path])
    session = Session(few_steps)
    shown = notebook.run(session)
    compare(notebook, shown, same_form)
    check_exercises(notebook, shown, session)


def compare(notebook, shown, same):
    """Pictures and text of every cell, beside those of the file."""
    for source, now, committed in zip(notebook.sources, shown, notebook.committed, strict=True):
        assert now.n_pictures == committed.n_pictures, source
        assert same(now.text, committed.text), f"{source}\n{now.text}\nnot\n{committed.text}"


def check_exercises(notebook, shown, session):
    """Open as committed; a near miss is refused, and the solution is right."""
    for number, place in notebook.exercises:
        assert shown[place + 1].text.startswith(f"Exercise {number} is open:")
        near = WRONG[notebook.path.stem[:2]][number]
        wrong = notebook.answered(session, place, near)
        assert wrong.startswith(f"Exercise {number}: not yet."), near
        right = notebook.answered(session, place, notebook.solutions[number])
        assert right == f"Exercise {number}: right.\n", right


def make_models(place):
    """MiniLM before and after three steps of the demo's fine-tuning, and with a LoRA."""
    code = (
        "import sys; from pathlib import Path; import quiet; quiet.quietly();"
        "import adapter, finetune; from docstrings import task;"
        "place, train, few = Path(sys.argv[1]), task(0).train, finetune.Recipe(steps=3);"
        "finetune.cached_models(place / 'models', train, few);"
        "adapter.cached_lora(place / 'lora', train, few)"
    )
    subprocess.run([sys.executable, "-c", code, str(place)], cwd=DEMO, check=True)


def test_examples_of_the_checker():
    session = Session()
    session.run("import doctest, exercises")
    assert session.run("doctest.testmod(exercises)").text == "TestResults(failed=0, attempted=3)\n"


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("error 0.0411", "error  0.0412\n", True),
        ("error 0.0411", "error 0.0414", False),
        ("rank 2", "rank 3", False),
        ("flops 1.72e+10", "flops 1.73e+10", True),
        ("met: True", "met: False", False),
        ("[1, 2]", "[1, 2, 3]", False),
    ],
)
def test_texts_agree_up_to_the_last_digit(a, b, same):
    assert same_text(a, b) == same
