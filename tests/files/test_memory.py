"""Memory of `decompose` follows the largest group, not the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.pairs import write_folder

LAYERS, OUT, IN = 12, 768, 640
GROUP = 4 * LAYERS * OUT * IN  # bytes in float32

MEASURE = r"""
import re, sys
from pathlib import Path
from tdecomp.cli import main
try:
    main(sys.argv[1:])
finally:  # not ru_maxrss: a child starts with its parent's
    print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
"""


def peak(folder: Path, groups: int, method: str) -> int:
    """Peak resident bytes of one run over `groups` equal groups, generated tensor by tensor."""
    sides = []
    for side, dtype in (("base", "F32"), ("tuned", "BF16")):
        rng = np.random.default_rng(0)
        names = [f"blocks.{i}.w{g}.weight" for i in range(LAYERS) for g in range(groups)]
        arrays = {n: rng.standard_normal((OUT, IN), dtype=np.float32) for n in names}
        sides.append(write_folder(folder / side, arrays, dtype=dtype, config={}))
    words = [
        "decompose",
        *sides,
        "-o",
        folder / "out",
        "--method",
        method,
        "--budget",
        "100k",
        "-q",
    ]
    share = ["--pattern", "blocks.{layer}.{proj}", "--share", "layer"]
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, words), *share],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("method", ["svd", "tucker2"])
def test_six_groups_need_what_one_needs(method, tmp_path):
    """And the bases kept between the two visits, which are bounded by one group."""
    one, six = peak(tmp_path / "one", 1, method), peak(tmp_path / "six", 6, method)
    sizes = f"{one / 1e6:.0f} MB for one group of {GROUP / 1e6:.0f} MB, {six / 1e6:.0f} for six"
    print(f"{method}: {sizes}")
    assert (
        six <= one + 2 * GROUP
    )  # one for kept bases, one for the allocator; the model grew by five
