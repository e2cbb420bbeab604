"""Memory that control groups leave, of version 1 and 2."""

from __future__ import annotations

import math

import pytest

from tdecomp._control_groups import control_groups
from tdecomp._memory import granted_memory, half_of_the_free_memory


@pytest.mark.parametrize(
    ("lines", "files", "left"),
    [
        ("0::/", {}, math.inf),
        ("0::/", {"memory.max": "max", "memory.current": "5", "memory.stat": "file 1"}, math.inf),
        (
            "0::/a/b",
            {
                "a/memory.max": "1000",
                "a/memory.current": "700",
                "a/memory.stat": "anon 400\nfile 300",
                "a/b/memory.max": "2000",
                "a/b/memory.current": "100",
                "a/b/memory.stat": "file 0",
            },
            600,
        ),
        (
            "5:memory:/job",
            {
                "memory/job/memory.limit_in_bytes": "900",
                "memory/job/memory.usage_in_bytes": "500",
                "memory/job/memory.stat": "cache 0\ntotal_cache 100",
            },
            500,
        ),
        ("0::/", {"memory.max": "10", "memory.current": "50", "memory.stat": "file 0"}, 0),
    ],
)
def test_memory_that_control_groups_leave(lines, files, left, tmp_path):
    own = tmp_path / "own"
    own.write_text(lines + "\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert granted_memory(control_groups("memory", own, tmp_path)) == left


def test_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr("tdecomp._memory._free", lambda: 4000.0)
    monkeypatch.setattr("tdecomp._memory.granted_memory", lambda groups: 1000.0)
    assert half_of_the_free_memory() == 500
    monkeypatch.setattr("tdecomp._memory._free", lambda: math.inf)
    monkeypatch.setattr("tdecomp._memory.granted_memory", lambda groups: math.inf)
    assert half_of_the_free_memory() is None
