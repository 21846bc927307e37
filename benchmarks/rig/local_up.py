"""A `forecache up` in a folder, with the embedded Redis and everything else that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from rig.dataset import Dataset
from rig.stack import MODEL, ROOT, free_port, http_ok, wait_until

#: what is killed → words of its command line, also of the one that Celery gives it where setproctitle is installed
KINDS = {
    "redis": ("-server 127.0.0.1:",),
    "maintenance": ("maintenance -n ",),
    "realtime": ("realtime -Q ",),
    "batch": ("gpu -n ",),
    "beat": ("beat",),
    "api": ("app.cli", "api"),
    "dashboard": ("app.cli", "dashboard"),
}


class LocalUp:
    """Everything on one machine, kept alive by the supervisor. `realtime_toml`, `more_toml`: further settings."""

    def __init__(
        self, folder: Path, dataset: Dataset, *, budget_ms: int, realtime_toml: str = "", more_toml: str = ""
    ) -> None:
        self.folder = folder
        self.api_port = free_port()
        (folder / "forecache.toml").write_text(
            f"[dashboard]\nport = {free_port()}\n[models.{MODEL}]\n"
            f'path = "{dataset.model}"\nfeatures = "{dataset.table}"\n'
            f"[models.{MODEL}.realtime]\ntimeout_ms = {budget_ms}\ndefault = 0.0\n{realtime_toml}"
            f"[api]\nport = {self.api_port}\n{more_toml}"
        )
        own = {name: value for name, value in os.environ.items() if not name.startswith("FORECACHE_")}
        ours = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2", "NO_COLOR": "1", "FORECACHE_API__DRAIN": "0"}
        self._environment = {**own, **ours}
        self._log = (folder / "up.log").open("wb")

    def __enter__(self) -> LocalUp:
        self._process = subprocess.Popen(
            self._command("up"), cwd=self.folder, env=self._environment, stdout=self._log, stderr=self._log
        )
        wait_until(lambda: http_ok(f"http://127.0.0.1:{self.api_port}/health/ready"), "forecache up")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(40)
        finally:
            self._log.close()

    def forecache(self, *arguments: str) -> None:
        """Run a command in the folder."""
        subprocess.run(
            self._command(*arguments), cwd=self.folder, env=self._environment, check=True, stdout=subprocess.DEVNULL
        )

    def processes(self) -> list[tuple[str, psutil.Process]]:
        """Return what the supervisor keeps alive, by kind."""
        found = []
        for child in psutil.Process(self._process.pid).children(recursive=True):
            try:
                line = " ".join(child.cmdline())
            except psutil.NoSuchProcess:
                continue
            kinds = [kind for kind, words in KINDS.items() if all(word in line for word in words)]
            if kinds and "app.local.child" not in line:
                found.append((kinds[0], child))
        return found

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "app.cli", *arguments]
