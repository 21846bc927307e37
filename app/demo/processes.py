"""The demo's processes: `forecache` commands run in its folder, as a user would run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from app.cli.api_client import Api
from app.demo.data import DemoFolder
from inference.errors import ForecacheError, Unavailable
from inference.settings import ApiSettings

#: seconds that a clean stop of everything may take
_STOP_WITHIN_S = 60.0
_LAST_LINES = 15
#: often enough for a bar that moves
_LOOK_EVERY_S = 0.1


class DemoError(ForecacheError):
    """Raised when a step of the demo did not do what it promises."""

    code = "demo-failed"


class DemoProcesses:
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
            DemoError: time is up, or `forecache up` has ended.
        """
        end = time.monotonic() + within_s
        trouble = ""
        while time.monotonic() < end:
            if self._up is not None and self._up.poll() is not None:
                raise DemoError(f"`forecache up` ended while waiting for {what}")
            try:
                found = look()
            except Unavailable as error:
                found, trouble = None, f" ({error.message})"
            if found is not None:
                return found
            time.sleep(_LOOK_EVERY_S)
        raise DemoError(f"{what}: not within {within_s:g} s{trouble}")

    def last_output(self) -> str:
        """Return the end of what `forecache up` printed; "" before it was started."""
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LAST_LINES:])

    def command(self, *arguments: str) -> Any:
        """Return the JSON that a `forecache` command prints.

        Raises:
            DemoError: it failed; its own words are in the message.
        """
        return json.loads(run_module(self._folder, "app.cli", *arguments, "--json"))


def run_module(folder: DemoFolder, module: str, *arguments: str, on_line: Callable[[str], None] | None = None) -> str:
    """Return what a module prints when it is run in the demo's folder; `on_line` is told each line as it comes.

    Raises:
        DemoError: it failed; the end of what it wrote to stderr is in the message.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own modules
            _command(module, *arguments),
            cwd=folder.root,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            lines = list(_told(process, on_line))
        except BaseException:  # a Ctrl-C too: it must not outlive the demo
            process.kill()
            raise
        finally:
            process.wait()
        if process.returncode:
            errors.seek(0)
            said = errors.read().strip().splitlines()[-_LAST_LINES:] or ["it said nothing"]
            raise DemoError(f"{module} {' '.join(arguments)} failed:\n" + "\n".join(said))
    return "".join(lines)


def _told(process: subprocess.Popen[str], on_line: Callable[[str], None] | None) -> Iterator[str]:
    for line in process.stdout or ():
        if on_line:
            on_line(line)
        yield line


def environment() -> dict[str, str]:
    """Return this environment without Forecache's settings: the demo has its own."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("FORECACHE_")}
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "2"}


def _command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", module, *arguments]
