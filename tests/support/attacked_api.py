"""Real API processes with one stored prediction, and plain sockets to attack them by."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil

from tests.integration.test_api_processes import publish, serving
from tests.support.stack import Stack, child_environment
from tests.support.waiting import LONG_S, wait_for

MIB = 1024 * 1024


#: one process on a port, two that share one, or one on a Unix socket
Kind = Literal["one process", "two processes", "a Unix socket"]


class AttackedApi:
    """The processes that serve, how much they hold, and connections to them that are closed at the end.

    `unix`: of the socket that they listen on; None for the port.
    """

    def __init__(self, stack: Stack, processes: list[psutil.Process], unix: Path | None = None) -> None:
        self.stack = stack
        self.processes = processes
        self._unix = None if unix is None else str(unix)
        self._opened: list[socket.socket] = []

    def memory_mib(self) -> float:
        return sum(one.memory_info().rss for one in self.processes) / MIB

    def descriptors(self) -> int:
        """Of the process that has most."""
        return max(one.num_fds() for one in self.processes)

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        client = socket.socket(socket.AF_UNIX if self._unix else socket.AF_INET)
        self._opened.append(client)
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if not self._unix:  # with a time limit, a Unix socket whose backlog is full refuses at once
            client.settimeout(LONG_S)
        client.connect(self._unix or ("127.0.0.1", self.stack.api_port))
        client.settimeout(LONG_S)
        return client

    def close_all(self) -> None:
        while self._opened:
            self._opened.pop().close()

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Ask on a new connection, made once the queue of a Unix socket has room. `content`: as httpx takes it."""
        asked = httpx.Request(method, f"http://localhost{path}", **content)
        connection = HTTPConnection("localhost")
        connection.sock = self.connect()
        with closing(connection):
            connection.request(method, path, asked.read() or None, dict(asked.headers))
            answer = connection.getresponse()
            return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())

    def is_ready(self) -> bool:
        with suppress(OSError):
            return self.request("GET", "/health/ready").status_code == 200
        return False

    def assert_serves(self) -> None:
        """A hit is answered on a new connection."""
        answer = self.request("GET", "/predict/a")
        assert answer.status_code == 200, answer.text
        assert answer.json()["prediction"] == 2.5

    def log(self) -> str:
        return self.stack.log("api")


@contextmanager
def attacked_api(
    folder: Path,
    kind: Kind = "one process",
    *,
    descriptors: int = 20_000,
    max_connections: int = 10_000,
    settings: str = "",
) -> Iterator[AttackedApi]:
    """Run API processes that may open so many files each; without workers, since hits need none.

    `settings`: more of them, as TOML.
    """
    count = 2 if kind == "two processes" else 1
    with Stack(folder, '[models.delay]\npath = "m"\n') as stack, socket.socket(socket.AF_UNIX) as listener:
        publish(stack)
        file = stack.folder / "forecache.toml"
        more = f"[api]\nmax_connections = {max_connections}\nprocesses = {count}\n"
        file.write_text(file.read_text().replace("[api]\n", more) + settings)
        command, given, unix = 'exec "$0" -P -m app.cli api', [], None
        if kind == "a Unix socket":
            unix = Path(tempfile.mkdtemp(prefix="fc-")) / "api.sock"  # a path of at most a hundred characters
            listener.bind(str(unix))
            listener.listen(1024)
            command, given = f"{command} --fd {listener.fileno()}", [listener.fileno()]
        with (folder / "api.log").open("wb") as log:
            stack.processes["api"] = process = subprocess.Popen(
                ["/bin/sh", "-c", f"ulimit -n {descriptors}; {command}", sys.executable], pass_fds=given,
                cwd=folder, env=child_environment(), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        api = AttackedApi(stack, [psutil.Process(process.pid)], unix)
        wait_for(api.is_ready, f"readiness; api.log ends:\n{stack.log('api')[-1500:]}")
        if unix is None:
            api.processes = wait_for(
                lambda: of_all if len(of_all := serving(stack)) == count else None, "all processes"
            )
        try:
            yield api
        finally:
            api.close_all()
            if unix is not None:
                shutil.rmtree(unix.parent)


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
