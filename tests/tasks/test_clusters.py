"""Dask's workers, one of them killed, and the ranks of torchrun give what one process gives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tdecomp as td
from tdecomp import jobs
from tdecomp.errors import WorkerError
from tdecomp.files.delta import open_delta
from tdecomp.tasks import dask_cluster
from tdecomp.tasks.dask_cluster import dask_executor
from tests.tasks.test_workers import models as models  # the fixture

distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")


def test_a_scheduler_that_does_not_answer_is_told(monkeypatch):
    monkeypatch.setattr("tdecomp.tasks.dask_cluster._ANSWERS", 0.5)
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(WorkerError, match="no Dask scheduler answers at"),
            dask_executor(address),
        ):
            pass
    with pytest.raises(WorkerError, match="no Dask scheduler answers at"), dask_executor("no such"):
        pass


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(models):
    """One is killed in every pass, with work in its hands; Dask starts another."""
    (one,) = td.decompose(open_delta(*models).stacks, td.tucker2, rank=4)
    with dask_executor("local") as executor:
        client, kills = executor._client, []

        class Killing:
            """Kills a worker after every third task that is handed out, twice at most."""

            _max_workers = 2

            def __init__(self):
                self.tasks = 0

            def submit(self, fn, /, *args):
                self.tasks += 1
                future = executor.submit(fn, *args)
                if self.tasks % 3 == 2 and len(kills) < 2:
                    (pid, *_) = client.run(os.getpid).values()
                    kills.append(pid)
                    os.kill(pid, signal.SIGKILL)
                return future

        (many,) = td.decompose(open_delta(*models).stacks, td.tucker2, rank=4, executor=Killing())
    assert len(kills) == 2
    for name, array in one.tensor.arrays.items():
        np.testing.assert_array_equal(array, many.tensor.arrays[name])


class Client:
    """A cluster as a client sees it: some workers, of which one takes calls and never ends any."""

    scheduler = SimpleNamespace(address="tcp://here:1")

    def __init__(self, *names: str) -> None:
        self.names, self.asked, self.scaled = list(names), list[Any](), list[int]()

    def nthreads(self) -> dict[str, int]:
        return dict.fromkeys(self.names, 1)

    def scale(self, n: int) -> None:
        self.scaled.append(n)

    def get_executor(self, **where: Any) -> Any:
        def submit(fn: Any, *args: Any) -> Future[Any]:
            self.asked.append(where.get("workers"))
            future = Future[Any]()
            if where.get("workers") != ["lost"]:
                future.set_result(fn(*args))
            return future

        return SimpleNamespace(submit=submit)


def test_a_cluster_without_workers_is_told(monkeypatch):
    monkeypatch.setattr(dask_cluster, "_LOOKS", 0.001)
    monkeypatch.setattr(dask_cluster, "_STARTS", 0.05)
    client = Client("lost", "other")
    executor = dask_cluster._DaskExecutor(client, 2, client)
    call = executor.submit_near(0, abs, -3)
    client.names.clear()
    with pytest.raises(WorkerError, match="tcp://here:1 has no workers any more: start some"):
        call.result()
    assert set(client.scaled) == {2}


def test_calls_go_to_the_same_workers_and_elsewhere_when_these_are_lost(monkeypatch):
    monkeypatch.setattr(dask_cluster, "_LOOKS", 0.001)
    client = Client("other", "third", "lost")
    executor = dask_cluster._DaskExecutor(client, 3)
    calls = [executor.submit_near(k, abs, -k) for k in range(5)]
    assert client.asked == [["lost"], ["other"], ["third"], ["lost"], ["other"]]
    client.names.remove("lost")
    assert [call.result() for call in calls] == [0, 1, 2, 3, 4]
    assert client.asked[5:] == [None, None]
    assert executor.submit_near(0, abs, -7).result() == 7
    assert client.asked[-1] == ["other"]


@pytest.mark.slow
def test_workers_of_mpi_find_what_one_process_finds(models):
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    mpiexec = Path(sys.executable).with_name("mpiexec")
    words = [str(mpiexec), "-n", "3", sys.executable, "-m", "mpi4py.futures"]
    found = subprocess.run(
        [*words, "-m", "tests.tasks.over_mpi", *map(str, models)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.stdout.strip() == "the same", found


@pytest.mark.slow
def test_ranks_write_what_one_process_writes(models, tmp_path):
    jobs.decompose(*models, tmp_path / "one", method="tucker2", rank=4)
    words = [sys.executable, "-m", "tdecomp", "decompose", *map(str, models)]
    words += ["--method", "tucker2", "--rank", "4", "--torchrun"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found: dict[int, subprocess.CompletedProcess[str]] = {}

    def run(rank: int) -> None:
        found[rank] = subprocess.run(
            [*words, "-o", str(tmp_path / "many")],
            env={**os.environ, **world, "RANK": str(rank)},
            capture_output=True,
            text=True,
            timeout=240,
        )

    ranks = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert [found[rank].returncode for rank in range(2)] == [0, 0], found
    assert "tasks of this job were done here" in found[1].stdout
    for file in ("factors.safetensors", "report.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "many" / file).read_bytes()


@pytest.mark.slow
def test_parts_write_what_one_process_writes(models, tmp_path):
    """Of three, one is killed and started again."""
    jobs.decompose(*models, tmp_path / "one", method="tucker2", rank=4)
    words = [sys.executable, "-m", "tdecomp", "decompose", *map(str, models)]
    words += ["--method", "tucker2", "--rank", "4", "--scratch", str(tmp_path / "scratch")]
    words += ["-o", str(tmp_path / "many"), "--timeout", "120"]

    def start(number: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*words, "--part", f"{number}/3"], stdout=subprocess.DEVNULL)

    parts = [start(1), start(2), start(3)]
    parts[2].kill()
    parts.append(start(3))
    codes = [process.wait(240) for process in parts]
    assert codes == [0, 0, -signal.SIGKILL, 0]
    for file in ("factors.safetensors", "report.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "many" / file).read_bytes()
