"""A real terminal for tests: a tmux server of its own, in which one command runs."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil

from tests.support.redis_server import missing
from tests.support.stack import child_environment
from tests.support.waiting import wait_for


class Terminal:
    """One command in a window of 160 columns and 50 lines. Its screen stays to be read when it has ended."""

    def __init__(self, folder: Path, *argv: str | Path, colors: bool = False) -> None:
        if shutil.which("tmux") is None:
            missing("tmux")
        # a socket's path may have about 100 characters, which a test's own folder often exceeds
        self._home = tempfile.TemporaryDirectory(prefix="tmux-")
        home = Path(self._home.name)
        self._socket = home / "socket"
        config = home / "tmux.conf"
        config.write_text("set -g remain-on-exit on\nset -g history-limit 20000\n")
        environment = child_environment() | {"LC_ALL": "C.UTF-8"}
        if colors:
            environment.pop("NO_COLOR")
        self._status = home / "status"
        # tmux 3.3 misses the end of a process now and then, so a shell keeps its status; the trap is not inherited
        command = f"trap : INT; {shlex.join(str(word) for word in argv)}; echo $? > {shlex.quote(str(self._status))}"
        subprocess.run(
            ["tmux", "-S", self._socket, "-f", config, "new-session", "-d", "-x", "160", "-y", "50", command],
            cwd=folder, env=environment, check=True,
        )  # fmt: skip
        shell = psutil.Process(int(self._tmux("display-message", "-p", "#{pane_pid}")))
        #: the command's own process
        self.process: psutil.Process = wait_for(lambda: next(iter(shell.children()), None), "the command to start")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def screen(self, *, colors: bool = False) -> str:
        """Everything that was printed; wrapped lines are put together again."""
        return self._tmux("capture-pane", "-p", "-J", "-S", "-", *(["-e"] if colors else []))

    def press(self, *keys: str) -> None:
        """Press keys, by tmux's names: `C-c`, `Enter`, or text."""
        self._tmux("send-keys", *keys)

    def answer(self, text: str) -> None:
        """Type a line."""
        self._tmux("send-keys", "-l", text)
        self.press("Enter")

    def wait_said(self, text: str, within_s: float = 60) -> str:
        """Return the screen once it holds the text."""
        return wait_for(
            lambda: said if text in (said := self.screen()) else None, f"{text!r} on the terminal", within_s
        )

    def wait_ended(self, within_s: float = 40) -> int:
        """Return the command's exit status once it has ended."""

        def status() -> str:
            return self._status.read_text() if self._status.exists() else ""

        return int(wait_for(status, "the command to end", within_s))

    def close(self) -> None:
        """End the command, what it started, and the terminal."""
        alive = [self.process, *self.process.children(recursive=True)] if self.process.is_running() else []
        self._tmux("kill-server")
        for process in alive:
            if process.is_running():
                process.kill()
        self._home.cleanup()

    def _tmux(self, *arguments: str) -> str:
        done = subprocess.run(["tmux", "-S", self._socket, *arguments], capture_output=True, text=True, check=True)
        return done.stdout
