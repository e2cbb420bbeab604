"""A quick part of the tests on another kernel of OpenBLAS: ``python -m tests.kernels``.

numpy and scipy bring an OpenBLAS that picks its kernel by the processor, and rounding differs
between them. This runs what decides by numbers (core, decompositions, laws, doctests) once more on
a kernel that the machine would not have picked. Without OpenBLAS, or where it has one kernel only,
there is nothing to run, and it says so.
"""

from __future__ import annotations

import os
import subprocess
import sys

OTHERS = {
    "Nehalem": "Sandybridge",
    "Sandybridge": "Haswell",
    "Haswell": "Nehalem",
    "Zen": "Nehalem",
}
X86 = ("SkylakeX", "Cooperlake", "Sapphirerapids", "Excavator", "Barcelona", "Prescott", *OTHERS)
QUICK = ["tests/core", "tests/decomposition", "tests/laws", "tdecomp"]
LIBRARIES = "not torch and not strict and not jax and not tensorly and not files and not cli"
LIBRARIES += " and not tiles_and_threads"  # asks for threads of its own


def kernel(wanted: str | None = None) -> str | None:
    """The kernel that numpy's OpenBLAS picks, or takes when it is asked for one; None without."""
    code = (
        "import numpy, threadpoolctl\n"
        "print(*{p.get('architecture') for p in threadpoolctl.threadpool_info()"
        " if p['internal_api'] == 'openblas'})"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env=asking(wanted), capture_output=True, text=True, check=True
    )
    return found.stdout.strip() or None


def asking(wanted: str | None) -> dict[str, str]:
    """The environment in which OpenBLAS is asked for a kernel."""
    plain = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    return plain if wanted is None else {**plain, "OPENBLAS_CORETYPE": wanted}


def main() -> int:
    """Run the quick part; the exit code is pytest's."""
    own = kernel()
    other = OTHERS.get(own, "Haswell") if own in X86 else "ARMV8"
    if own is None or own == other or (taken := kernel(other)) == own:
        print(f"kernels: {own or 'no OpenBLAS'} only, nothing to compare with")
        return 0
    print(f"kernels: {taken} in the place of {own}", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "--numprocesses", "auto", *QUICK]
    return subprocess.run([*command, "-k", LIBRARIES], env=asking(other), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
