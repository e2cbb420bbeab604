"""``python -m tests.bench.storage``: a pair on a server against the same pair on a disk.

One table: wall time against that of the disk, requests, and bytes sent against those that the same
command reads from the disk (headers and hashes among them). The server is on loopback, in a process
of its own: ours, of plain files, or with ``--s3`` one of S3 (moto) behind a proxy of ours. It waits
20 ms before every answer, or drops every 50th connection, where the row says so. Runs alternate;
times are medians. Needs ``pip install "tdecomp-toolkit[remote]" aiohttp``, with ``--s3`` in its
place ``s3fs "moto[server]"``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tdecomp import jobs
from tdecomp.files import load_factors, open_checkpoint, safetensors
from tdecomp.files.storage import protocols
from tdecomp.files.stored import OpenFile
from tests.bench import synthetic
from tests.loopback import proxying, serving

DELAY, DROPS = 0.02, 50
SHARD = 1 << 26  # bytes
METHODS = ("tucker2", "svd")


@dataclass(frozen=True)
class Way:
    """One way to reach the pair."""

    name: str
    delay: float = 0.0
    drop_every: int = 0


WAYS = (Way("server"), Way("server, 20 ms", delay=DELAY), Way("server, drops", drop_every=DROPS))


@dataclass(frozen=True)
class Run:
    """What a command took, and what was sent for it."""

    seconds: float
    factors: Sequence[np.ndarray]
    asked: dict[str, int]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=synthetic.PRESETS, default="1b-part")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--s3", action="store_true", help="a server of S3, by moto")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.serve:
        serve(*asked.serve)
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        _write(asked.preset, Path(folder, "pair"))
        behind = stack.enter_context(_moto(Path(folder, "pair"))) if asked.s3 else 0
        for method in METHODS:
            _table(Path(folder, "pair"), method, {"rank": asked.rank}, behind, asked.repeats)


def _write(preset: str, pair: Path) -> None:
    """A pair in shards, as large models are."""
    with tempfile.TemporaryDirectory() as folder:
        for side, model in synthetic.write_pair(preset, Path(folder, "pair")).items():
            (pair / side).mkdir(parents=True)
            shutil.copy(model / "config.json", pair / side)
            _write_shards(list(open_checkpoint(model).entries.values()), pair / side)


def _write_shards(entries: Sequence[safetensors.Entry], folder: Path) -> None:
    shards: list[list[safetensors.Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(one.nbytes for one in shards[-1]) + entry.nbytes > SHARD:
            shards.append([])
        shards[-1].append(entry)
    index: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        index |= dict.fromkeys((entry.name for entry in shard), name)
        known = {entry.name: entry for entry in shard}
        rows = [(entry.name, entry.dtype, entry.shape) for entry in shard]
        safetensors.write(folder / name, rows, lambda n, known=known: safetensors.raw(known[n]))
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def serve(root: str, delay: str, drop_every: str, behind: str) -> None:
    """Serve until standard input ends; then tell what was asked."""
    with proxying(int(behind)) if int(behind) else serving(Path(root)) as told:
        told.delay, told.drop_every = float(delay), int(drop_every)
        print(told.port, flush=True)
        sys.stdin.read()
        print(json.dumps({"gets": told.gets(), "bytes": told.sent(), "dropped": told.dropped}))


def _table(pair: Path, method: str, options: dict[str, Any], behind: int, repeats: int) -> None:
    runs: dict[str, list[Run]] = {}
    needed = _needed(pair, method, options)
    for _ in range(repeats):
        runs.setdefault("disk", []).append(_run(str(pair), method, options))
        for way in WAYS:
            with _server(pair, way, behind) as (root, asked):
                run = _run(root, method, options)
            runs.setdefault(way.name, []).append(Run(run.seconds, run.factors, asked()))
    disk, server = (statistics.median(r.seconds for r in runs[n]) for n in ("disk", "server"))
    print(f"\n{method}, disk {disk:.2f} s, {needed / 1e6:.0f} MB read from it, {repeats} runs each")
    for name, found in runs.items():
        median = statistics.median(run.seconds for run in found)
        same = all(
            np.array_equal(a, b)
            for run in found
            for a, b in zip(run.factors, runs["disk"][0].factors, strict=True)
        )
        asked = found[-1].asked
        sent = f"{asked['bytes'] / needed:.3f}" if asked else ""
        print(
            f"  {name:16} {median:7.2f} s  {median / disk:5.2f} of disk  {median / server:5.2f} of "
            f"server  bytes {sent:6} requests {asked.get('gets', ''):5}  "
            f"dropped {asked.get('dropped', ''):3}  {'same bits' if same else 'OTHER BITS'}"
        )


def _run(root: str, method: str, options: dict[str, Any]) -> Run:
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        jobs.decompose(
            f"{root}/base", f"{root}/tuned", out, method=method, overwrite=True, **options
        )
        seconds = time.perf_counter() - start
        factors = [a for part in load_factors(out).tensors for a in part.arrays.values()]
    return Run(seconds, factors, {})


def _needed(pair: Path, method: str, options: dict[str, Any]) -> int:
    """Bytes that the command reads from a disk, each as often as it does."""
    read, counts = OpenFile.read_into, list[int]()

    def counted(file: OpenFile, start: int, out: np.ndarray) -> None:
        counts.append(out.nbytes)
        read(file, start, out)

    OpenFile.read_into = counted
    try:
        _run(str(pair), method, options)
    finally:
        OpenFile.read_into = read
    return sum(counts)


@contextmanager
def _server(pair: Path, way: Way, behind: int) -> Iterator[tuple[str, Any]]:
    """Address of the pair, and what was asked once the block is over."""
    words = ["--serve", str(pair), str(way.delay), str(way.drop_every), str(behind)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.storage", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    port = int(process.stdout.readline())
    told: dict[str, int] = {}
    try:
        if behind:
            os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
            protocols.forget()
        yield "s3://pair" if behind else f"http://127.0.0.1:{port}", lambda: told
    finally:
        told |= json.loads(process.communicate()[0])


@contextmanager
def _moto(pair: Path) -> Iterator[int]:
    """Port of an S3 server that has the pair in a bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-c", "from moto.server import main; main()", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, *words], **quiet)
    try:
        _fill(port, pair)
        yield port
    finally:
        process.kill()
        process.wait()


def _fill(port: int, pair: Path) -> None:
    import s3fs

    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    os.environ |= keys | {"AWS_DEFAULT_REGION": "us-east-1"}
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    system = s3fs.S3FileSystem(endpoint_url=f"http://127.0.0.1:{port}")
    system.mkdir("pair")
    for file in (f for f in pair.rglob("*") if f.is_file() and not f.name.startswith(".")):
        system.put_file(str(file), f"pair/{file.relative_to(pair).as_posix()}")


if __name__ == "__main__":
    main()
