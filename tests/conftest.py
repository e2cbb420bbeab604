"""Fixtures and tables shared by all tests."""

from __future__ import annotations

import gc
import importlib

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tdecomp.cli import extensions
from tests.entries import ENTRIES
from tests.tables import BACKENDS

# The commands of this checkout, whatever is installed beside it.
extensions.entry_points = lambda group: ENTRIES if group == extensions.GROUP else ()

# The same examples in every run; `make examples` draws new ones.
settings.register_profile(
    "fixed",
    derandomize=True,
    database=None,
    deadline=None,  # no example is wrong because the machine was busy
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("drawn", print_blob=True, deadline=None)
settings.load_profile("fixed")

collect_ignore_glob = ["bench/shims/*"]  # they import libraries that are only compared with


def pytest_collection_finish() -> None:
    """What is there now stays until the end: no search for garbage looks at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=BACKENDS)
def xp(request):
    """Array library under test, by its own name."""
    return importlib.import_module(request.param)


@pytest.fixture(autouse=True)
def gpu_only(request):
    """Tests marked gpu need CUDA."""
    if request.node.get_closest_marker("gpu"):
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("no CUDA here")
