"""A real dashboard process, on a free port, over a real Redis."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import httpx

from tests.support.ports import free_port
from tests.support.stack import child_environment
from tests.support.warm_start import WarmProcess, start_python

_SERVE = """
import sys
from app.dashboard import serve
from inference.errors import ForecacheError
from inference.settings import load_settings
try:
    serve(load_settings())
except ForecacheError as error:
    sys.exit(error.message)
"""


class DashboardProcess:
    """`username` and `password` are fixed by the settings unless `password` is None: then one is generated.

    `more`: further lines of the section `[dashboard]`.
    """

    def __init__(
        self, folder: Path, redis_url: str, *, password: str | None = "sesame", code: str = _SERVE, more: str = ""
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.auth = ("forecache", password or "")
        self.log_file = folder / "dashboard.log"
        self._code = code
        self.process: WarmProcess | subprocess.Popen[bytes] | None = None
        settings = f'[redis]\nurl = "{redis_url}"\ncache_url = "{redis_url}"\n[dashboard]\nport = {self.port}\n'
        settings += f'password = "{password}"\n' if password else ""
        (folder / "forecache.toml").write_text(settings + more + '[models.delay]\npath = "models/delay"\n')

    def start(self, **environment: str) -> DashboardProcess:
        with self.log_file.open("wb") as log:
            own = child_environment() | environment
            self.process = start_python(
                ["-c", self._code], cwd=self.folder, env=own, stdout=log.fileno(), stderr=log.fileno()
            )
        return self

    def wait_ready(self, timeout_s: float = 40, *, path: str = "/healthcheck") -> DashboardProcess:
        end = time.monotonic() + timeout_s
        while True:
            try:
                httpx.get(f"{self.url}{path}").raise_for_status()
                return self
            except httpx.TransportError:
                assert self.process
                assert self.process.poll() is None, self.log()
                assert time.monotonic() < end, self.log()
                time.sleep(0.05)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, auth=self.auth, timeout=20)

    def log(self) -> str:
        return self.log_file.read_text()

    def stop(self, timeout_s: float = 15) -> int:
        assert self.process
        self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        finally:
            self.process.kill()
            self.process.wait(10)
