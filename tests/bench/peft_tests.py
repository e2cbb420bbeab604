"""PEFT's own generic tests on our method: ``python -m tests.bench.peft_tests``.

Downloads the source distribution of the installed PEFT from the package index into ``build/`` (or
takes an unpacked one, ``--source FOLDER``), puts rows of ours in the place of PEFT's in the tables
of ``tests/test_custom_models.py``, and runs every test that goes over these tables; what
``tests/testing_common.py`` has for language models besides runs on a tiny Llama. Every failure must
be in `EXPLAINED`, by the name of its test; one that is not ends with 1. About four minutes.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("peft_driver.py")

_ALONE = "DoRA changes W and does not add to it: two on one weight take turns, together are refused"
EXPLAINED: dict[str, str] = {
    "*_test_training_layer_indexing-*": (
        "counts tensors, of which ours have as many for one layer as for two: all layers are in one"
    ),
    "*test_active_adapter[[]dora-*": _ALONE,
    "*_test_merge_layers_multi-dora-*": _ALONE,
}
"""Pattern of a test's name -> why it fails; nothing else may."""


def main() -> int:
    """Run them, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--source", type=Path, help="an unpacked source distribution of PEFT")
    parser.add_argument("-k", default="", help="of pytest: which tests")
    parser.add_argument("--show", action="store_true", help="print what failed, in full")
    given = parser.parse_args()
    source = given.source or downloaded(version("peft"))
    if not (source / "tests" / "test_custom_models.py").is_file():
        print(f"{source} has no tests/test_custom_models.py: give --source, a checkout of PEFT")
        return 2
    results = outcomes(source, given.k, show=given.show)
    return told(results)


def downloaded(release: str) -> Path:
    """The unpacked source distribution of a release, kept in ``build/``."""
    home = ROOT / "build" / "peft"
    folder = home / f"peft-{release}"
    if not folder.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet"]
        fetch = [*pip, "--no-deps", "--no-binary=:all:"]
        subprocess.run([*fetch, f"peft=={release}", "-d", str(home)], check=True)
        with tarfile.open(home / f"peft-{release}.tar.gz") as archive:
            archive.extractall(home, filter="data")
    return folder


def outcomes(source: Path, chosen: str, *, show: bool) -> dict[str, tuple[str, str]]:
    """Name of every test -> what came of it, and why."""
    (source / "tests" / "__init__.py").touch()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes.json"
        others = filter(None, [os.environ.get("PYTHONPATH")])  # another PEFT than the environment's
        paths = os.pathsep.join([str(source), str(ROOT), *others])
        command = [sys.executable, "-P", str(DRIVER), str(source), str(file), chosen]
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
            cwd=source,
            stdout=None if show else subprocess.PIPE,
            stderr=None if show else subprocess.STDOUT,
            check=False,
        )
        if not file.is_file():
            sys.exit(f"the run broke off: {(done.stdout or b'').decode()[-2000:]}")
        return {name: tuple(said) for name, said in json.loads(file.read_text()).items()}


def told(results: dict[str, tuple[str, str]]) -> int:
    """Print counts, and every failure with its reason; whether one has none."""
    counts = Counter(outcome for outcome, _ in results.values())
    print(
        f"PEFT {version('peft')}:", ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
    )
    skipped = Counter(why for outcome, why in results.values() if outcome == "skipped")
    for why, n in skipped.most_common():
        print(f"  skipped by PEFT, {n}: {why}")
    unexplained = 0
    for name, (outcome, why) in sorted(results.items()):
        if outcome == "failed":
            reason = next((r for p, r in EXPLAINED.items() if fnmatch.fnmatchcase(name, p)), "")
            unexplained += not reason
            print(f"  failed: {name}: {reason or f'UNEXPLAINED: {why}'}")
    return 1 if unexplained or not counts["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
