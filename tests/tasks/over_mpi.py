"""``mpiexec -n 3 python -m mpi4py.futures -m tests.tasks.over_mpi BASE TUNED``: MPI, 2 workers."""

from __future__ import annotations

import sys

import numpy as np
from mpi4py.futures import MPIPoolExecutor

import tdecomp as td
from tdecomp.files.delta import open_delta


def main() -> None:
    """Decompose here and by the workers; both have to find the same."""
    for method, rank in ((td.tucker2, 4), (td.svd, 3)):
        with MPIPoolExecutor() as executor:
            one, many = (
                td.decompose(open_delta(*sys.argv[1:]).stacks, method, rank=rank, executor=workers)
                for workers in (None, executor)
            )
        for name, array in one[0].tensor.arrays.items():
            np.testing.assert_array_equal(array, many[0].tensor.arrays[name], str(method))
    print("the same")


if __name__ == "__main__":
    main()
