"""Servers on loopback that count, wait and fail as they are told: of files, or before another."""

from __future__ import annotations

import hashlib
import html
import re
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.waiting import wait_until

__all__ = ["Loopback", "proxying", "serving"]


_OF_ONE_WAY = ("Connection", "Content-Length", "Date", "Server", "Transfer-Encoding")


@dataclass
class Loopback:
    """What a server does, and what was asked of it.

    Attributes
    ----------
    root
        The folder it shows; None: what the server behind it shows.
    behind
        Port of that server.
    delay
        Seconds before every answer.
    at_least
        How many requests for parts of files have to be waiting at once before any is answered.
    drop_every
        Every how many requests a connection is cut in the middle of the answer; 0: never.
    ranges
        Whether it can send parts of files.
    token
        What requests have to bring as ``?token=``, if anything.
    asked
        (method, path, bytes sent) of every request.
    """

    root: Path | None
    behind: int = 0
    delay: float = 0.0
    at_least: int = 0
    drop_every: int = 0
    ranges: bool = True
    token: str = ""
    port: int = 0
    asked: deque[tuple[str, str, int]] = field(default_factory=deque)
    dropped: int = 0
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def wait_for(self, count: int) -> None:
        """Answer when so many parts of files are asked for at once; count them anew."""
        with self.lock:
            self.at_least, self.most_at_once = count, 0

    def sent(self, ending: str = ".safetensors") -> int:
        """Bytes of the files with such a name that were sent."""
        return sum(n for method, path, n in self.asked if method == "GET" and ending in path)

    def gets(self, ending: str = ".safetensors") -> int:
        return sum(method == "GET" and ending in path for method, path, _ in self.asked)


def serving(root: Path) -> AbstractContextManager[Loopback]:
    """Serve a folder while the block runs."""
    return _running(Loopback(root))


def proxying(port: int) -> AbstractContextManager[Loopback]:
    """Stand in front of a server, for those who read, while the block runs."""
    return _running(Loopback(None, port))


@contextmanager
def _running(told: Loopback) -> Iterator[Loopback]:

    class Handler(_Handler):
        server_told = told

    server = _Server(("127.0.0.1", 0), Handler)
    told.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        told.at_least = 0
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    """Leaves nothing behind: those that are still connected are hung up on, and waited for."""

    daemon_threads = False

    def __init__(self, *arguments: Any) -> None:
        self._connected: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connected.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connected.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        for connection in list(self._connected):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that were hung up on are no news, least of all in another test's output."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body does not wait until its header has been received
    server_told: Loopback
    _next: HTTPConnection | None = None

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer(body=False)

    def do_GET(self) -> None:  # noqa: N802
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        told = self.server_told
        part = self.command == "GET" and "Range" in self.headers
        with told.lock:
            told.at_once += part
            told.most_at_once = max(told.most_at_once, told.at_once)
        time.sleep(told.delay)
        wait_until(lambda: told.most_at_once >= told.at_least or not part)
        with told.lock:
            told.at_once -= part
        with suppress(ConnectionError):  # nobody waits for it any more
            self._send(*self._found(), body=body)

    def _found(self) -> tuple[int, bytes, dict[str, str]]:
        """Status, content and headers."""
        told, (path, _, query) = self.server_told, self.path.partition("?")
        if told.root is None:
            return self._forwarded(told.behind)
        if told.token and query != f"token={told.token}":
            return 403, b"no", {}
        place = told.root / path.strip("/")
        if place.is_dir():
            names = sorted(p.name for p in place.iterdir())
            rows = "".join(f'<a href="{html.escape(n)}">{html.escape(n)}</a>' for n in names)
            return 200, rows.encode(), {"Content-Type": "text/html"}
        if not place.is_file():
            return 404, b"nothing", {}
        stat = place.stat()
        mark = hashlib.md5(f"{stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
        headers = {"ETag": f'"{mark}"', "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or not told.ranges:
            return 200, place.read_bytes(), headers
        first, last = int(asked[1]), int(asked[2])
        with place.open("rb") as file:
            file.seek(first)
            content = file.read(last + 1 - first)
        return 206, content, headers | {"Content-Range": f"bytes {first}-{last}/{stat.st_size}"}

    def _forwarded(self, port: int) -> tuple[int, bytes, dict[str, str]]:
        if self._next is None:
            self._next = HTTPConnection("127.0.0.1", port)
        self._next.request(self.command, self.path, headers=dict(self.headers.items()))
        answer = self._next.getresponse()
        headers = {name: value for name, value in answer.getheaders() if name not in _OF_ONE_WAY}
        if self.command == "HEAD":
            headers["Content-Length"] = answer.headers.get("Content-Length", "0")
        return answer.status, answer.read(), headers

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        told = self.server_told
        told.asked.append((self.command, self.path, len(content) if body else 0))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body:
            return
        if told.drop_every and len(told.asked) % told.drop_every == 0:
            told.dropped += 1
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(content)
