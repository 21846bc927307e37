"""The demo's processes: `forecache` commands run in its folder, as a user would run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from app.cli.http import Api
from app.demo.data import DemoFolder
from inference.errors import ForecacheError, Unavailable
from inference.settings import ApiSettings

#: seconds that a clean stop of everything may take
_STOP_WITHIN_S = 60.0
_LAST_LINES = 15


class DemoError(ForecacheError):
    """Raised when a step of the demo did not do what it promises."""

    code = "demo-failed"


class Deployment:
    """Everything that `forecache up` runs, in the demo's folder."""

    def __init__(self, folder: DemoFolder, api: ApiSettings) -> None:
        self._folder = folder
        self._log = folder.root / "up.log"
        self._up: subprocess.Popen[bytes] | None = None
        self.api = Api(api)

    def start(self) -> None:
        """Start `forecache up`, its output in `up.log`."""
        with self._log.open("wb") as log:
            self._up = subprocess.Popen(  # noqa: S603 - our own command
                _command("app.cli", "up"),
                cwd=self._folder.root,
                env=environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo, which stops it in order
            )

    def stop(self) -> bool:
        """Stop everything; False when it had to be killed."""
        if self._up is None or self._up.poll() is not None:
            return True
        self._up.send_signal(signal.SIGINT)
        try:
            self._up.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._up.kill()  # the kernel ends its children with it
            self._up.wait()
            return False
        return True

    def wait_for(self, what: str, look: Callable[[], Any], *, within_s: float) -> Any:
        """Return the first answer of `look` that is not None; while the API is not there yet, look again.

        Raises:
            DemoError: time is up, or `forecache up` has ended; the end of its output is in the message.
        """
        end = time.monotonic() + within_s
        trouble = ""
        while time.monotonic() < end:
            if self._up is not None and self._up.poll() is not None:
                raise DemoError(f"`forecache up` ended while waiting for {what}:\n{self.last_output()}")
            try:
                found = look()
            except Unavailable as error:
                found, trouble = None, f" ({error.message})"
            if found is not None:
                return found
            time.sleep(0.25)
        raise DemoError(f"{what}: not within {within_s:g} s{trouble}\n{self.last_output()}")

    def last_output(self) -> str:
        """Return the end of what `forecache up` printed."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LAST_LINES:])

    def command(self, *arguments: str) -> Any:
        """Return the JSON that a `forecache` command prints.

        Raises:
            DemoError: it failed; its own words are in the message.
        """
        return json.loads(run_module(self._folder, "app.cli", *arguments, "--json"))


def run_module(folder: DemoFolder, module: str, *arguments: str) -> str:
    """Return what a module prints when it is run in the demo's folder.

    Raises:
        DemoError: it failed; the last line that it wrote to stderr is in the message.
    """
    done = subprocess.run(  # noqa: S603 - our own modules
        _command(module, *arguments),
        cwd=folder.root,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DemoError(f"{module} {' '.join(arguments)} failed: {last}")
    return done.stdout


def environment() -> dict[str, str]:
    """Return this environment without Forecache's settings: the demo has its own."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("FORECACHE_")}
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "2"}


def _command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", module, *arguments]
