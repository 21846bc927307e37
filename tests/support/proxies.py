"""A real nginx or HAProxy in front of a test's servers, with the blocks that the documentation gives."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.redis_server import missing
from tests.support.waiting import wait_for

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "existing.md"
_NGINX = """
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{}}
http {{
access_log off;
client_body_temp_path body; proxy_temp_path proxy;
fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
{}
}}
"""


def documented(language: str, *, listen: int, api: int, dashboard: int = 1) -> str:
    """Return the documentation's block for a proxy, with these ports in the place of its own."""
    found = re.search(rf"^```{language}\n(.*?)^```", _PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found, f"{_PAGE.name} has no block of {language}"
    block = found[1].replace("127.0.0.1:8000", f"127.0.0.1:{api}").replace("127.0.0.1:5555", f"127.0.0.1:{dashboard}")
    return block.replace("listen 80;", f"listen 127.0.0.1:{listen};").replace("bind :80", f"bind 127.0.0.1:{listen}")


@contextmanager
def nginx(folder: Path, servers: str, port: int) -> Iterator[None]:
    """Run nginx with these blocks inside `http`, one of which listens on the port."""
    binary = shutil.which("nginx", path="/usr/sbin:/usr/bin") or missing("nginx")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nginx.conf").write_text(_NGINX.format(servers))
    with _running([str(binary), "-p", str(folder), "-c", "nginx.conf"], folder, port):
        yield


@contextmanager
def haproxy(folder: Path, configuration: str, port: int) -> Iterator[None]:
    """Run HAProxy with a configuration that listens on the port."""
    binary = shutil.which("haproxy", path="/usr/sbin:/usr/bin") or missing("haproxy")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "haproxy.cfg").write_text(configuration)
    with _running([str(binary), "-db", "-f", "haproxy.cfg"], folder, port):
        yield


@contextmanager
def _running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    with (folder / "log").open("wb") as log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process:
        try:
            wait_for(lambda: _listens(port), f"{command[0]}: {(folder / 'log').read_text()}", 10)
            yield
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class MovingServer:
    """A port that leads to another one, and to yet another after `move`. Open connections stay where they are."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def move(self, target: int) -> None:
        self._target = target

    def close(self) -> None:
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def moving_server(target: int) -> Iterator[MovingServer]:
    """Run a port that leads to another one, as a DNS name or a load balancer does that follows a primary."""
    server = MovingServer(target)
    try:
        yield server
    finally:
        server.close()
