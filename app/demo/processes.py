"""Runs `forecache` commands in the demo's folder, as a user does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from app.cli.api_client import Api
from app.demo.data import DemoFolder
from inference.errors import ForecacheError, Unavailable
from inference.settings import ApiSettings

#: seconds that a clean stop of everything may take
_STOP_WITHIN_S = 60.0
_LAST_LINES = 15
#: a bar on the terminal moves as often
_LOOK_EVERY_S = 0.1


class DemoError(ForecacheError):
    """Raised when a check of the demo fails."""

    code = "demo-failed"


class DemoProcesses:
    """Starts and stops `forecache up` in the demo's folder, and sends requests to its API."""

    def __init__(self, folder: DemoFolder, api: ApiSettings) -> None:
        self._folder = folder
        self._log = folder.root / "up.log"
        self._up: subprocess.Popen[bytes] | None = None
        self.api = Api(api)

    def start(self) -> None:
        """Start `forecache up`; its output goes to `up.log`."""
        with self._log.open("wb") as log:
            self._up = subprocess.Popen(  # noqa: S603 - our own command
                _command("app.cli", "up"),
                cwd=self._folder.root,
                env=_environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C goes to the demo alone, which stops `up`
            )

    def stop(self) -> bool:
        """Stop everything. Return False if `up` had to be killed."""
        if self._up is None or self._up.poll() is not None:
            return True
        self._up.send_signal(signal.SIGINT)
        try:
            self._up.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._up.kill()  # the kernel kills its children with it
            self._up.wait()
            return False
        return True

    def wait_for(self, goal: str, look: Callable[[], Any], *, within_s: float) -> Any:
        """Call `look` until its result is not None, and return that. An API that does not answer yet is asked again.

        Raises:
            DemoError: `within_s` seconds have passed, or `forecache up` has ended.
        """
        end = time.monotonic() + within_s
        trouble = ""
        while time.monotonic() < end:
            if self._up is not None and self._up.poll() is not None:
                raise DemoError(f"`forecache up` ended while waiting for {goal}")
            try:
                found = look()
            except Unavailable as error:
                found, trouble = None, f" ({error.message})"
            if found is not None:
                return found
            time.sleep(_LOOK_EVERY_S)
        raise DemoError(f"{goal}: not within {within_s:g} s{trouble}")

    def last_output(self) -> str:
        """Return the last lines of `forecache up`; "" before its start."""
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LAST_LINES:])

    def command(self, *arguments: str) -> Any:
        """Run a `forecache` command and return the JSON that it prints.

        Raises:
            DemoError: the command failed; the message contains its last lines.
        """
        return json.loads(run_module(self._folder, "app.cli", *arguments, "--json"))


def run_module(folder: DemoFolder, module: str, *arguments: str, on_line: Callable[[str], None] | None = None) -> str:
    """Run a module in the demo's folder and return its output. `on_line` gets each line at once.

    Raises:
        DemoError: the module failed; the message contains the last lines of its stderr.
    """
    lines = []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own modules
            _command(module, *arguments),
            cwd=folder.root,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            for line in process.stdout or ():
                lines.append(line)
                if on_line:
                    on_line(line)
        except BaseException:  # Ctrl-C too: the module must not outlive the demo
            process.kill()
            raise
        finally:
            process.wait()
        if process.returncode:
            errors.seek(0)
            said = errors.read().strip().splitlines()[-_LAST_LINES:] or ["it said nothing"]
            raise DemoError(f"{module} {' '.join(arguments)} failed:\n" + "\n".join(said))
    return "".join(lines)


def _environment() -> dict[str, str]:
    """Return this process's environment without Forecache's settings; the demo has its own."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("FORECACHE_")}
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "2"}


def _command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", module, *arguments]
