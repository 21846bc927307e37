"""Keeps forks of this process at work: replaces one that dies or hangs, at once or, when it keeps dying, ever later."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

from inference.logs import get_logger

log = get_logger(__name__)

#: a process that worked for this long is healthy: its next start is not delayed
LONG_LIFE_S = 10.0
LONGEST_WAIT_S = 30.0
#: seconds between two signs of life of a fork, and the silence after which it is killed; a busy machine may take long
SIGN_EVERY_S, HANGS_AFTER_S = 1.0, 30.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Backoff:
    """Counts quick deaths in a row: the first restart comes at once, the next after 1, 2, 4 … 30 seconds."""

    def __init__(self) -> None:
        self.quick_deaths = 0

    def after_death(self, worked_s: float) -> float:
        """Return the seconds to wait. `worked_s`: for how long the process was ready."""
        self.quick_deaths = 0 if worked_s >= LONG_LIFE_S else self.quick_deaths + 1
        return 0.0 if self.quick_deaths <= 1 else min(LONGEST_WAIT_S, 2.0 ** (self.quick_deaths - 2))


def manner(exit_code: int) -> str:
    """Return words for the end of a process. `exit_code`: minus the number of a signal that killed it."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:  # a real-time signal: most have no name
        return f"killed by signal {-exit_code}"


@dataclass
class _Place:
    """A fork, or the time of the next one (`time.monotonic`). `channel`: open while the fork lives."""

    channel: socket.socket | None = None
    pid: int = 0
    began_at: float = 0.0
    heard_at: float = 0.0
    due_at: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)


class Forks:
    """Forks of this process that all do the same work.

    A fork has everything that this process has imported and opened, such as a listening socket, so it works within
    milliseconds. It ends with this process, however this one ends. This process may have no other threads.
    """

    def __init__(
        self, work: Callable[[], None], count: int, *, hopeless: int, on_stop: Callable[[], object] = lambda: None
    ) -> None:
        """`work` returns after SIGTERM. `hopeless`: the exit code of a fork whose successors would fail as well.

        `on_stop`: called in this process while the last forks end; may be called again.
        """
        self._work = work
        self._on_stop = on_stop
        self._places = [_Place() for _ in range(count)]
        self._hopeless = hopeless
        self._exit_code: int | None = None
        #: signals to pass on to the forks
        self._to_pass: list[signal.Signals] = []
        self._woken, self._waker = socket.socketpair()

    def run(self) -> int:
        """Keep all forks at work until SIGINT, SIGTERM or SIGHUP, or until one is hopeless; return the exit code.

        The forks get SIGTERM for SIGTERM, and SIGINT for the others; a second one ends them at once.
        """
        for end in (self._woken, self._waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno())
        for number in _STOP_SIGNALS:
            signal.signal(number, self._stop)
        # a parent may have left it ignored, which hides exit codes from waitpid (python/cpython#76296)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        while self._exit_code is None or any(place.channel for place in self._places):
            for place in self._places:
                self._care_for(place)
            self._pass_signals()
            if self._exit_code is not None:
                self._on_stop()
            channels = {place.channel: place for place in self._places if place.channel}
            ready, _, _ = select.select([self._woken, *channels], [], [], SIGN_EVERY_S)
            for one in ready:
                if one is self._woken:
                    with suppress(BlockingIOError):
                        self._woken.recv(1000)
                else:
                    self._hear(channels[one], one)
        return self._exit_code

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._exit_code = 0
        self._to_pass.append(signal.SIGTERM if number == signal.SIGTERM else signal.SIGINT)

    def _pass_signals(self) -> None:
        while self._to_pass:
            number = self._to_pass.pop(0)
            for place in self._places:
                if place.channel:
                    os.kill(place.pid, number)

    def _care_for(self, place: _Place) -> None:
        now = time.monotonic()
        if place.channel is None:
            if self._exit_code is None and place.due_at <= now:
                self._fork(place)
        elif now - place.heard_at > HANGS_AFTER_S:
            os.kill(place.pid, signal.SIGKILL)

    def _hear(self, place: _Place, channel: socket.socket) -> None:
        """Note a sign of life, or the end of the fork."""
        with suppress(ConnectionError):
            if channel.recv(1000):
                place.heard_at = time.monotonic()
                return
        channel.close()
        place.channel = None
        exit_code = os.waitstatus_to_exitcode(os.waitpid(place.pid, 0)[1])
        if self._exit_code is not None:
            return
        if exit_code == self._hopeless:
            self._exit_code = exit_code
            self._to_pass.append(signal.SIGINT)
            return
        now = time.monotonic()
        wait_s = place.backoff.after_death(now - place.began_at)
        place.due_at = now + wait_s
        log.warning("process.died", pid=place.pid, how=manner(exit_code), next_in_s=wait_s)

    def _fork(self, place: _Place) -> None:
        ours, its = socket.socketpair()
        # a signal waits until the fork has handlers of its own, else it would be lost
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        pid = os.fork()
        if not pid:
            ours.close()
            self._be_a_fork(its)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        its.close()
        now = time.monotonic()
        place.channel, place.pid, place.began_at, place.heard_at = ours, pid, now, now

    def _be_a_fork(self, channel: socket.socket) -> NoReturn:
        """Do the work, and never return to what this process was before."""
        exit_code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            os.setpgid(0, 0)  # a terminal sends Ctrl-C to the first process alone, which passes it on
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
            for one in (self._woken, self._waker, *(place.channel for place in self._places)):
                if one:
                    one.close()
            threading.Thread(target=_live_with, args=(channel,), name="first-process", daemon=True).start()
            self._work()
            exit_code = 0
        except SystemExit as stop:
            exit_code = stop.code if isinstance(stop.code, int) else 1
        except KeyboardInterrupt:
            exit_code = 0
        except BaseException as error:  # noqa: BLE001 - as the interpreter does
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            with suppress(OSError):  # nobody reads the output any more
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(exit_code)


def _live_with(channel: socket.socket) -> None:
    """Give the first process signs of life, and end this one when the first is gone: nothing else would."""
    channel.settimeout(SIGN_EVERY_S)
    with suppress(ConnectionError):
        gone = False
        while not gone:
            channel.send(b".")
            with suppress(TimeoutError):
                gone = channel.recv(1) == b""
    # not SIGTERM: the next first process needs the port, so nobody may drain
    os.kill(os.getpid(), signal.SIGINT)
