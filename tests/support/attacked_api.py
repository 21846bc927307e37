"""A real API process with one stored prediction, and plain sockets to attack it by."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from tests.integration.test_api_processes import publish
from tests.support.stack import Stack, child_environment
from tests.support.waiting import LONG_S, wait_for

MIB = 1024 * 1024


class AttackedApi:
    """The process, how much it holds, and connections to it that are closed at the end."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.url = stack.url
        self._process = psutil.Process(stack.processes["api"].pid)
        self._opened: list[socket.socket] = []

    def memory_mib(self) -> float:
        return float(self._process.memory_info().rss) / MIB

    def descriptors(self) -> int:
        return int(self._process.num_fds())

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        client = socket.socket()
        self._opened.append(client)
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(LONG_S)
        client.connect(("127.0.0.1", self.stack.api_port))
        return client

    def close_all(self) -> None:
        while self._opened:
            self._opened.pop().close()

    def assert_serves(self) -> None:
        """A hit is answered on a new connection."""
        answer = httpx.get(f"{self.url}/predict/a", timeout=LONG_S)
        assert (answer.status_code, answer.json()["prediction"]) == (200, 2.5)

    def log(self) -> str:
        return self.stack.log("api")


@contextmanager
def attacked_api(folder: Path, *, descriptors: int = 20_000, max_connections: int = 10_000) -> Iterator[AttackedApi]:
    """Run an API process that may open so many files; without workers, since hits need none."""
    with Stack(folder, '[models.delay]\npath = "m"\n') as stack:
        publish(stack)
        file = stack.folder / "forecache.toml"
        file.write_text(file.read_text().replace("[api]\n", f"[api]\nmax_connections = {max_connections}\n"))
        with (folder / "api.log").open("wb") as log:
            stack.processes["api"] = subprocess.Popen(
                ["/bin/sh", "-c", f'ulimit -n {descriptors}; exec "$0" -P -m app.cli api', sys.executable],
                cwd=folder, env=child_environment(), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        stack.wait_ready()
        api = AttackedApi(stack)
        try:
            yield api
        finally:
            api.close_all()


def pour(client: socket.socket, start: bytes, piece: bytes, most_bytes: int = 16 * MIB) -> int:
    """Send a start and then a piece again and again, until so many bytes are sent or the server has had enough."""
    sent = 0
    with suppress(ConnectionError):
        client.sendall(start)
        while sent < most_bytes:
            client.sendall(piece)
            sent += len(piece)
    return sent


def read_status(client: socket.socket) -> int:
    """Return the status of the next answer, whose bytes are read; 0: the connection ended without one."""
    head = b""
    with suppress(ConnectionError):
        while b"\r\n\r\n" not in head:
            got = client.recv(1)
            if not got:
                return 0
            head += got
        lines = head.lower().split(b"\r\n")
        left = int(next((line[15:] for line in lines if line.startswith(b"content-length:")), b"0"))
        while left:
            left -= len(client.recv(left))
    return int(head.split()[1]) if head else 0


def has_ended(client: socket.socket) -> bool:
    """Whether the server has closed a connection; what it sent before is thrown away."""
    client.setblocking(False)
    try:
        while client.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    finally:
        client.settimeout(LONG_S)
    return True


def wait_until_ended(client: socket.socket) -> None:
    wait_for(lambda: has_ended(client), "the end of a connection")


def post(body: bytes, length: int | None = None) -> bytes:
    """Return a request for predictions that says it has so many bytes of body."""
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


BODY = json.dumps({"entity_ids": ["a"]}).encode()
