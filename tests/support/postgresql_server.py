"""A real PostgreSQL for tests, on a free port of loopback, in a folder of its own; it refuses to run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.support.ports import free_port
from tests.support.redis_server import missing
from tests.support.waiting import wait_for

_SERVERS = Path("/usr/lib/postgresql")


class PostgresServer:
    """One server, whose database `postgres` anybody on this machine may use while it runs."""

    def __init__(self) -> None:
        found = sorted(_SERVERS.glob("*/bin/initdb"))
        if not found:
            missing("postgresql (Debian's package)")
        self._programs = found[-1].parent
        self._user: dict[str, Any] = {}
        # not below pytest's own folder, which only its user may enter
        self._folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            self._user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(self._folder, account.pw_uid, account.pw_gid)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def create(self) -> PostgresServer:
        self._run("initdb", "-D", "data", "-U", "postgres", "--auth=trust", "--no-sync", "--encoding=UTF8")
        return self.start()

    def start(self) -> PostgresServer:
        self._process = subprocess.Popen(
            [self._programs / "postgres", "-D", "data", "-p", str(self.port), "-h", "127.0.0.1", "-k", self._folder,
             "-c", "fsync=off"],
            cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._user,
        )  # fmt: skip
        wait_for(lambda: self._ready(), "PostgreSQL to start", 30)
        return self

    def sql(self, text: str) -> str:
        """Run statements; what the last one selects."""
        return self._run("psql", "-v", "ON_ERROR_STOP=1", "-tAc", text, self.url).stdout.strip()

    def stop(self) -> None:
        """End it at once, connections and all."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(15)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _ready(self) -> bool:
        done = self._run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port), check=False)
        return done.returncode == 0

    def _run(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self._programs / program, *arguments], cwd=self._folder, capture_output=True, text=True, timeout=60,
            check=False, **self._user,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done
