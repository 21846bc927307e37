"""A command on a real terminal, driven through tmux as a person would."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.redis_server import missing
from tests.support.stack import child_environment, wait_for


class Terminal:
    """One command in a tmux server of its own, 140 columns wide; the screen stays when the command has ended."""

    def __init__(self, folder: Path, argv: Sequence[str]) -> None:
        if not shutil.which("tmux"):
            missing("tmux")
        # a socket's path may have about 100 characters, which a test's own folder often exceeds
        self._home = tempfile.TemporaryDirectory(prefix="tmux-")
        shell = f"cd {shlex.quote(str(folder))} && exec {shlex.join(argv)}"
        self._tmux("set-option", "-g", "remain-on-exit", "on", ";", "new-session", "-d", "-x", "140", "-y", "50", shell)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        self._tmux("kill-server")
        self._home.cleanup()

    def screen(self) -> str:
        """Everything printed so far, wrapped lines joined."""
        return self._tmux("capture-pane", "-p", "-J", "-S", "-")

    def answer(self, text: str) -> None:
        """Type a line."""
        self._tmux("send-keys", "-l", text)
        self.press("Enter")

    def press(self, key: str) -> None:
        """Press a key by tmux's name for it, such as Enter or C-c."""
        self._tmux("send-keys", key)

    def wait_for(self, text: str, timeout_s: float = 60) -> str:
        """Return the screen once the text stands on it."""

        def seen() -> str | None:
            screen = self.screen()
            return screen if text in screen else None

        return wait_for(seen, f"{text!r} on the terminal, which shows:\n{self.screen()}", timeout_s)

    def exit_status(self, timeout_s: float = 60) -> int:
        """Wait for the end of the command and return its exit status."""

        def ended() -> str | None:
            dead, _, status = self._tmux("display-message", "-p", "#{pane_dead} #{pane_dead_status}").partition(" ")
            return status.strip() if dead == "1" else None

        return int(wait_for(ended, "the end of the command", timeout_s))

    def _tmux(self, *arguments: str) -> str:
        options: dict[str, Any] = {"env": {**child_environment(), "LC_ALL": "C.UTF-8"}, "timeout": 20}
        socket = str(Path(self._home.name) / "socket")
        done = subprocess.run(
            ["tmux", "-S", socket, "-f", "/dev/null", *arguments], capture_output=True, text=True, check=True, **options
        )
        return done.stdout
