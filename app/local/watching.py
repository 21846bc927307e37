"""Circus' watcher and process, with what they lack: back-off, last words, a start without a fork handler.

Circus 0.19 restarts a dead process at every look for ever, loses what it printed last, and starts it through
a `preexec_fn`, which Python 3.12 warns of in a process with threads, as circus' always is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
from circus.process import Process
from circus.watcher import Watcher
from tornado import gen

from app.local.backoff import Backoff
from app.local.board import Board
from app.local.output import Lines
from app.local.programs import Program


class Child(Process):  # type: ignore[misc]  # circus ships no types
    """One running process: own session, no standard input, everything that it prints in one pipe."""

    def spawn(self) -> None:
        """Start it behind `app.local.child`, so that it dies with this process."""
        self.started = time.time()
        program: Program = self.watcher.program
        self._worker = psutil.Popen(
            [sys.executable, "-P", "-m", "app.local.child", str(os.getpid()), str(program.niceness), *program.argv],
            env=os.environ | program.env | _child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=program.fds,
            start_new_session=True,  # Ctrl-C goes to the supervisor alone, which stops all in order
        )

    def close_output_channels(self) -> None:
        """Hand on what is still in the pipe, and take it from the loop before its number is used again."""
        pipe = self.stdout
        if pipe is not None and not pipe.closed:
            os.set_blocking(pipe.fileno(), False)
            while data := pipe.read(65536):
                self.watcher.lines({"data": data})
            if self.watcher.stream_redirector:
                self.watcher.stream_redirector.remove_redirections(self)
        self.watcher.lines.close()
        super().close_output_channels()


class ProgramWatcher(Watcher):  # type: ignore[misc]  # circus ships no types
    """Keeps one program running."""

    _process_class = Child

    def __init__(self, program: Program, lines: Lines, board: Board) -> None:
        self.program = program
        self.lines = lines
        self.deaths = 0
        #: whether the latest death was an exit, not a signal
        self.ended_by_itself = False
        self._board = board
        self._backoff = Backoff()
        self._not_before = 0.0  # time.monotonic
        lines.on_text = self._look_for_ready
        hooks: dict[str, Any] = {
            "after_spawn": (self._after_spawn, True),
            "after_reap": (self._after_reap, True),
        }
        super().__init__(
            program.name,
            program.name,  # Child takes its argv from the program
            autostart=False,
            graceful_timeout=program.grace_s,
            max_retry=1,  # circus would try again without a pause; the back-off below does it
            stdout_stream={"stream": lines},
            hooks=hooks,
        )

    @gen.coroutine
    def spawn_processes(self) -> Any:
        """Start the process unless it is still made to wait."""
        if time.monotonic() >= self._not_before and self.spawn_process() is False:
            self._wait_before_next(worked_s=0.0)

    @gen.coroutine
    def manage_processes(self) -> Any:
        """Reap what died since the arbiter's own look: circus would drop it without a word."""
        self.reap_dead()
        yield super().manage_processes()

    def reap_dead(self) -> None:
        """Take note of a process that has ended."""
        for pid in set(self.processes) - set(self.get_active_pids()):
            self.reap_process(pid)

    def kill_now(self) -> None:
        """Send SIGKILL to whatever still runs."""
        for process in self.get_active_processes():
            process.send_signal(signal.SIGKILL)

    def _after_spawn(self, *, pid: int, **_: Any) -> bool:
        self._board.started(self.name, pid)
        if self.program.on_start:
            self.program.on_start(pid)
        if self.program.is_ready is None and self.program.says_ready is None:
            self._board.ready(self.name)
        return True

    def _look_for_ready(self, text: str) -> None:
        if self.program.says_ready and self.program.says_ready.search(text):
            self._board.ready(self.name)

    def _after_reap(self, *, exit_code: int | None, **_: Any) -> None:
        if self.is_stopping():
            return
        self.deaths += 1
        self.ended_by_itself = exit_code is None or exit_code >= 0
        wait_s = self._wait_before_next(self._board.worked_s(self.name))
        self._board.died(self.name, _manner(exit_code), wait_s, self._backoff.quick_deaths)

    def _wait_before_next(self, worked_s: float) -> float:
        wait_s = self._backoff.after_death(worked_s)
        self._not_before = time.monotonic() + wait_s
        return wait_s


def _child_environment() -> dict[str, str]:
    # Celery's warning to root comes in eight lines from every worker: `up` says it once
    filters = [os.environ.get("PYTHONWARNINGS", ""), "ignore:You're running the worker with superuser privileges"]
    return {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": ",".join(filter(None, filters))}


def _manner(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    return f"killed by {signal.Signals(-exit_code).name}"
