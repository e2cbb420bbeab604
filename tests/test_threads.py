"""Threads of the BLAS: one for small work, what the machine grants for large, as before after."""

from __future__ import annotations

import math
import os
import threading
from functools import partial

import array_api_compat.numpy as compat
import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

import tdecomp as td
from tdecomp import linalg
from tdecomp._control_groups import control_groups
from tdecomp._threads import (
    _blas,
    cores,
    quota,
    side_by_side,
    threads_by_size,
    threads_for,
    workers,
)
from tests.waiting import PATIENCE

SMALL, LARGE = 1 << 20, (1 << 20) + 1


def in_use() -> set[int]:
    """Threads of the BLAS below numpy; scipy brings one of its own, which may be loaded later."""
    return threads_of(_blas())


def threads_of(blas: ThreadpoolController) -> set[int]:
    return {library.get_num_threads() for library in blas.lib_controllers}


@pytest.fixture(autouse=True)
def _three_threads(monkeypatch):
    monkeypatch.setattr("tdecomp._threads.cores", lambda: 2)
    with threadpool_limits(limits=3, user_api="blas"):
        if in_use() != {3}:
            pytest.skip("no BLAS whose threads can be set")
        yield
        loaded = ThreadpoolController().select(user_api="blas")
        assert threads_of(loaded) == {3}, "left as found"


def test_by_the_size_of_the_work():
    with threads_for(SMALL):
        assert in_use() == {1}
        with threads_for(LARGE):  # what is around it stays small
            assert in_use() == {1}
    with threads_for(LARGE):
        assert in_use() == {2}
        with threads_for(SMALL):
            assert in_use() == {1}
        assert in_use() == {2}


@pytest.mark.parametrize("of", [linalg.singular_values, lambda x: linalg.left_basis(x, 0)])
def test_eigenvalues_take_the_threads_of_the_small_matrix_they_are_of(of, monkeypatch):
    """The products with all of the tensor do not: LAPACK's many small calls wait for no one."""
    seen, product = {}, linalg.gram
    for name in ("eigh", "eigvalsh"):
        solve = getattr(np.linalg, name)
        counted = partial(lambda solve, x: seen.update(solved=in_use()) or solve(x), solve)
        monkeypatch.setattr(compat.linalg, name, counted)
    monkeypatch.setattr(linalg, "gram", lambda *a: seen.update(formed=in_use()) or product(*a))
    of(np.ones((8, 1 << 18), dtype=np.float32))
    assert seen == {"formed": {2}, "solved": {1}}


def test_never_more_than_the_user_allows():
    with threadpool_limits(limits=1, user_api="blas"):
        with threads_for(LARGE):
            assert in_use() == {1}
        assert in_use() == {1}


def test_as_before_after_an_exception():
    with pytest.raises(ZeroDivisionError), threads_for(SMALL):
        raise ZeroDivisionError


def test_threads_that_leave_in_another_order():
    first_is_in, second_is_in = threading.Event(), threading.Event()

    def first() -> None:
        with threads_for(SMALL):
            first_is_in.set()
            second_is_in.wait(PATIENCE)

    other = threading.Thread(target=first)
    other.start()
    assert first_is_in.wait(PATIENCE)
    with threads_for(LARGE):
        second_is_in.set()
        other.join()
    assert in_use() == {3}


def test_a_decomposition_of_small_data_has_one():
    seen = []

    def svd(x, rank):
        seen.append(in_use())
        return linalg.truncated_svd(x, rank)

    td.svd(np.random.default_rng(0).standard_normal((3, 20, 30)), rank=2, svd=svd)
    assert seen == [{1}] * 3


def test_small_steps_of_large_work_have_one():
    with threads_for(LARGE):
        assert threads_by_size(lambda x: in_use())(np.ones(3)) == {1}
        assert threads_by_size(lambda x: in_use())(np.empty(LARGE, dtype=np.int8)) == {2}


# ------------------------------------------------------------------------------ what is granted


def test_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6}, raising=False)
    assert 1 <= cores() <= 3


@pytest.mark.parametrize(
    ("lines", "files", "granted"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/a/b", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 0.5),
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "400000"}, 4),
        ("4:cpu:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": "-1"}, math.inf),
        ("4:memory:/a", {"a/cpu.max": "50000 100000"}, math.inf),
        ("0::/of/the/host", {"cpu.max": "100000 100000"}, 1),  # a container's own group is the top
        ("0::/", {"cpu.max": "what"}, math.inf),
        ("nothing like it", {}, math.inf),
    ],
)
def test_quotas_of_control_groups(lines, files, granted, tmp_path):
    own = tmp_path / "own"
    own.write_text(lines + "\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        if "cfs" in name:
            (tmp_path / name).with_name("cpu.cfs_period_us").write_text("100000")
    assert quota(control_groups("cpu", own, tmp_path)) == granted


def test_no_control_groups(tmp_path):
    assert quota(control_groups("cpu", tmp_path / "own", tmp_path)) == math.inf


# --------------------------------------------------------------------------------- side by side


def test_pieces_side_by_side_have_one_thread_each_and_come_in_order():
    def piece(i: int) -> tuple[int, set[int], int]:
        arrived.wait(PATIENCE)
        return i, in_use(), threading.get_ident()

    arrived = threading.Barrier(2)
    with side_by_side(piece, range(6), 2) as found:
        places, threads, own = zip(*found, strict=True)
    assert places == tuple(range(6))
    assert threads == ({1},) * 6
    assert len(set(own)) == 2
    assert threading.get_ident() not in own


def test_one_worker_is_the_caller():
    with side_by_side(lambda i: (i, threading.get_ident(), in_use()), [4, 5], 1) as found:
        assert list(found) == [(i, threading.get_ident(), {3}) for i in (4, 5)]


def test_what_fails_comes_out_at_its_place_and_nothing_more_is_begun():
    begun = []

    def piece(i: int) -> int:
        begun.append(i)
        return 1 // (i - 3)

    got = []
    with pytest.raises(ZeroDivisionError), side_by_side(piece, range(100), 2) as found:
        got.extend(found)
    assert len(got) == 3
    assert len(begun) <= 3 + 4


@pytest.mark.parametrize(
    ("pieces", "at_most", "threads", "wanted"),
    [(4, None, 3, 2), (3, None, 3, 1), (9, 1, 3, 1), (9, None, 1, 1), (0, None, 3, 1)],
)
def test_workers(pieces, at_most, threads, wanted):
    """Two are granted here: those that could not be kept busy are not started."""
    with threadpool_limits(limits=threads, user_api="blas"):
        assert workers(pieces, at_most) == wanted
