"""Plugin of pytest: puts the stand-ins for a peer in place, and writes down how each test went.

``pytest -p tests.bench.shims.plugin --shim pyttb --shim-report FILE tests``
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.shims.stand_ins import LEFT, OURS

_ROWS: dict[str, dict[str, Any]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which peer, and where the report goes."""
    parser.addoption("--shim", required=True)
    parser.addoption("--shim-report", required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Before the tests are collected: they take the peer's names as they are imported."""
    peer = str(config.getoption("--shim"))
    importlib.import_module(f"tests.bench.shims.of_{peer}").put_in_place()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[Any]:
    """Count the calls of each test by themselves."""
    OURS.clear()
    LEFT.clear()
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """The outcome of a test: of its call, or of what went wrong before or after."""
    if report.when != "call" and report.passed:
        return
    line = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else _last(report)
    _ROWS[report.nodeid] = {
        "outcome": report.outcome,
        "ours": dict(OURS),
        "left": dict(LEFT),
        "message": line,
    }


def _last(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return "" if crash is None else f"line {crash.lineno}: {crash.message.splitlines()[0]}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report."""
    Path(str(session.config.getoption("--shim-report"))).write_text(json.dumps(_ROWS))
