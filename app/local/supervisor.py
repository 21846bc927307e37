"""Starts a list of programs, restarts each one that dies, and stops all of them in order."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from app.local.forks import Backoff, manner
from app.local.output import Board, Lines, Output
from app.local.programs import LAST_STAGE, Program
from inference.errors import Unavailable
from inference.failures import Failures

#: seconds between two calls of `Program.is_ready`
LOOK_EVERY_S = 0.1
#: seconds that a program may take until it is ready; a Redis with much data loads for a while
READY_WITHIN_S = 300.0
#: seconds after which the table shows the programs that are not ready
SLOW_START_S = 60.0
#: starts of a program that is killed each time before it is ready
_TRIES = 3
#: seconds that the supervisor reads on when a process has ended and one of its children keeps the pipe open
_DRAIN_S = 0.3
#: the exit code that shells report for a program that cannot be started
_NOT_STARTED = 127
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Process(asyncio.SubprocessProtocol):
    """One running process: its own process group, no standard input, one pipe for all that it prints.

    `asyncio.create_subprocess_exec` would not do: its `wait` also waits until the last grandchild has closed the pipe
    (python/cpython#119710), and its streams refuse lines of more than 64 KiB.
    """

    def __init__(self, lines: Lines) -> None:
        self.exited = asyncio.Event()
        self._disconnected = asyncio.Event()
        self._lines = lines
        self._transport: asyncio.SubprocessTransport

    @classmethod
    async def start(cls, program: Program, lines: Lines) -> _Process:
        """Start the program behind `app.local.child`, so that it dies with this process.

        asyncio forks in the thread that calls this. It must be the main thread: the kernel sends the parent-death
        signal when the forking thread ends.

        Raises:
            OSError: the system starts no more processes.
        """
        transport, process = await asyncio.get_running_loop().subprocess_exec(
            lambda: cls(lines),
            sys.executable,
            *("-P", "-m", "app.local.child", str(os.getpid()), str(program.niceness), *program.argv),
            env=os.environ | program.env | _child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=program.fds,
            # the terminal sends Ctrl-C to the supervisor alone, which stops all in order. No session of its own: where
            # Linux schedules by session, it does not compare the niceness of two sessions' processes
            process_group=0,
        )
        process._transport = transport
        return process

    @property
    def pid(self) -> int:
        return self._transport.get_pid()

    @property
    def exit_code(self) -> int | None:
        """The exit code, or minus the signal's number; None while the process runs."""
        return self._transport.get_returncode()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself: it stops its own children."""
        # not by the transport: before Python 3.12.5 its signals may steal the exit code (python/cpython#87744)
        if self.exit_code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL to the process and to its children."""
        if self.exit_code is None:
            with suppress(ProcessLookupError, PermissionError):  # macOS refuses a group of zombies
                os.killpg(self.pid, signal.SIGKILL)

    async def close(self) -> int:
        """Wait for the end of the process and for its last words, close the pipe, and return the exit code."""
        await self.exited.wait()
        with suppress(TimeoutError):
            # not `wait_for`: before Python 3.12 it may swallow the cancellation of this task (python/cpython#86296)
            async with asyncio.timeout(_DRAIN_S):
                await self._disconnected.wait()
        self._transport.close()
        await self._disconnected.wait()
        return self.exit_code or 0

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002 - asyncio's signature
        self._lines.take(data)

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._lines.close()
        self._disconnected.set()


class ProgramRunner:
    """Runs one program and starts it again whenever it ends."""

    def __init__(self, program: Program, output: Output, board: Board, after: ProgramRunner | None) -> None:
        self.program = program
        #: set once `program.is_ready` has returned True
        self.was_ready = asyncio.Event()
        self._after = after
        self._board = board
        self._failures = Failures(__name__, "look")
        self._lines = Lines(program.name, output, on_text=self._look_for_ready)
        self._process: _Process | None = None

    async def run(self) -> None:
        """Run the program, when the one before it is ready, until this task is cancelled. `stop` then ends the process.

        Raises:
            Unavailable: other programs wait for this one, and it does not become ready.
        """
        if self._after:
            await self._after.was_ready.wait()
        backoff, deaths = Backoff(), 0
        while True:
            exit_code = await self._run_once()
            deaths += 1
            # a killed program gets another try; one that exits by itself would do so for ever
            if self._must_become_ready and (exit_code >= 0 or deaths >= _TRIES):
                raise Unavailable(self._explain_death())
            wait_s = backoff.after_death(self._board.worked_s(self.program.name))
            self._board.died(self.program.name, manner(exit_code), wait_s, backoff.quick_deaths)
            await asyncio.sleep(wait_s)

    async def stop(self, *, hasty: bool = False) -> None:
        """End the process: SIGTERM, or its hasty signal, and SIGKILL when its grace is over."""
        if self._process is None:
            return
        self._process.send_signal(self.program.hasty_signal if hasty else signal.SIGTERM)
        try:
            async with asyncio.timeout(self.program.grace_s):
                await self._process.exited.wait()
        except TimeoutError:
            self._process.kill()
        await self._process.close()

    def kill(self) -> None:
        """End the process at once."""
        if self._process:
            self._process.kill()

    async def _run_once(self) -> int:
        """Run the program until it ends and return its exit code."""
        name, program = self.program.name, self.program
        try:
            process = self._process = await _Process.start(program, self._lines)
        except OSError as error:
            self._lines.take(f"cannot be started: {error.strerror}\n".encode())
            return _NOT_STARTED
        self._board.started(name, process.pid)
        if program.on_start:
            with self._failures.kept_here(name, program=name):
                program.on_start(process.pid)
        if program.is_ready:
            await self._wait_until_ready(process)
        elif program.says_ready is None:
            self._board.ready(name)
        exit_code = await process.close()
        self._process = None
        return exit_code

    @property
    def _must_become_ready(self) -> bool:
        return self.program.is_ready is not None and not self.was_ready.is_set()

    async def _wait_until_ready(self, process: _Process) -> None:
        """Return when the program is ready or has ended."""
        name, is_ready = self.program.name, self.program.is_ready
        try:
            async with asyncio.timeout(READY_WITHIN_S if self._must_become_ready else None):
                while is_ready and not process.exited.is_set():
                    with self._failures.kept_here(name, program=name):
                        if await asyncio.to_thread(is_ready):
                            self._board.ready(name)
                            self.was_ready.set()
                            return
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            raise Unavailable(f"{name} is not ready after {READY_WITHIN_S:g} s") from None

    def _look_for_ready(self, text: str) -> None:
        if self.program.says_ready and self.program.says_ready.search(text):
            self._board.ready(self.program.name)

    def _explain_death(self) -> str:
        if self.program.explain:
            return self.program.explain(list(self._lines.last))
        return f"{self.program.name} does not start"


class Supervisor:
    """Runs programs until a signal stops it. Must run on the main thread."""

    def __init__(
        self, programs: Sequence[Program], output: Output, on_stop: Callable[[], object] = lambda: None
    ) -> None:
        """`on_stop`: called when it begins to stop the programs."""
        self._output = output
        self._on_stop = on_stop
        self._board = Board(programs, output.say)
        self._runners: list[ProgramRunner] = []
        awaited: ProgramRunner | None = None
        for program in programs:
            self._runners.append(ProgramRunner(program, output, self._board, after=awaited))
            if program.is_ready:
                awaited = self._runners[-1]
        self._told_to_stop = asyncio.Event()
        self._stops_asked = 0
        self._hasty = True

    async def run(self) -> None:
        """Start all programs, keep them running until SIGINT, SIGTERM or SIGHUP, then stop them.

        After SIGTERM, API processes drain. A second signal kills the programs that are still stopping, but not those
        of the last stage; a third kills these too.

        Raises:
            Unavailable: a program that others wait for does not become ready; all others are stopped.
        """
        # a parent may have left it ignored, which hides exit codes from waitpid (python/cpython#76296)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._take_stop_signal, number)
        slow_start = loop.call_later(SLOW_START_S, self._board.tell_if_waiting)
        told_to_stop = asyncio.create_task(self._told_to_stop.wait())
        running = [asyncio.create_task(each.run()) for each in self._runners]
        try:
            await asyncio.wait([told_to_stop, *running], return_when=asyncio.FIRST_COMPLETED)
        finally:
            slow_start.cancel()
            for task in (told_to_stop, *running):
                task.cancel()  # from here on, nothing is started again
            await asyncio.wait(running)
            self._on_stop()
            for stage in range(LAST_STAGE + 1):
                stopping = (each for each in self._runners if each.program.stop_stage == stage)
                await asyncio.gather(*(each.stop(hasty=self._hasty) for each in stopping))
        for task in running:
            if not task.cancelled():
                task.result()

    def _take_stop_signal(self, number: signal.Signals) -> None:
        """Begin to stop; at the second signal, kill."""
        self._stops_asked += 1
        if self._stops_asked == 1:
            self._hasty = number != signal.SIGTERM
            self._output.say("stopping: workers finish what they have in hand; Ctrl-C again kills them")
        else:
            self._output.say("killing what still runs; a chunk cut off here is scored again at the next start")
            for runner in self._runners:
                # the data of Redis is complete only after an orderly end
                if self._stops_asked > 2 or runner.program.stop_stage < LAST_STAGE:
                    runner.kill()
        self._told_to_stop.set()


def _child_environment() -> dict[str, str]:
    # Celery warns root in eight lines from every worker: `up` says it once
    filters = [os.environ.get("PYTHONWARNINGS", ""), "ignore:You're running the worker with superuser privileges"]
    return {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": ",".join(filter(None, filters))}
