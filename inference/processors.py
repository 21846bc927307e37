"""The processors of this machine: which ones threads and child processes use, and how much time others take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

#: the niceness of a process that works in the background
BACKGROUND_NICENESS = 10
#: a service, or a program with a terminal of its own, is a session. Where Linux schedules by session, it compares the
#: niceness of processes within one session only
_AUTOGROUP = Path("/proc/self/autogroup")
#: attempts to lower the session's share while the kernel is busy; three seconds in all
_TRIES, _PAUSE_S = 25, 0.12
#: a process starves that has waited for a processor for so many seconds, and so many times as long as it ran
STARVED_AFTER_S, _STARVED_TIMES = 10.0, 3


def usable_processors() -> set[int]:
    """Return the processors that this process may use; none where the system does not let it choose."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def work_in_background() -> None:
    """Let other processes go before this one, with all its threads, as long as it lives. Needs no rights.

    If this process leads a session, the session goes behind other sessions too. A process that is nicer already stays
    as it is.
    """
    for thread in _threads():
        with suppress(OSError):  # it has just ended
            if os.getpriority(os.PRIO_PROCESS, thread) < BACKGROUND_NICENESS:
                os.setpriority(os.PRIO_PROCESS, thread, BACKGROUND_NICENESS)
    if os.getsid(0) == os.getpid():
        _lower_session()


def _lower_session() -> None:
    for _ in range(_TRIES):
        try:
            _AUTOGROUP.write_text(str(BACKGROUND_NICENESS))
            return
        except BlockingIOError:
            # the kernel takes one such write in 0.1 s, from all users except root together
            time.sleep(_PAUSE_S)
        except OSError:  # no such file, or a container that may not write it
            return


def _threads() -> list[int]:
    tasks = Path("/proc/self/task")
    # elsewhere all threads of a process have one priority
    return [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else [0]


class Processors:
    """The processors that this process could use when it started."""

    def __init__(self, usable: set[int]) -> None:
        self._usable = usable

    def leave_room(self, leaves: bool) -> None:
        """Keep every thread of this process off the first processor, or let it back. Does nothing if there is only one.

        All libraries of models compute in threads of this process, but few can change their number later. All
        processes of a machine leave the same processor free.
        """
        if len(self._usable) > 1:
            self._move(_threads(), leaves)

    def send_to_background(self, child: int, *, last: bool) -> None:
        """Keep a child process that has just started off the first processor, and let others go first on the rest.

        `last`: it gets only the time that no other process wants (Linux), which may be none: see `is_starved`.
        """
        with suppress(OSError):  # it has just ended
            os.setpriority(os.PRIO_PROCESS, child, os.getpriority(os.PRIO_PROCESS, 0) + BACKGROUND_NICENESS)
            if last and hasattr(os, "SCHED_IDLE"):
                os.sched_setscheduler(child, os.SCHED_IDLE, os.sched_param(0))
        if len(self._usable) > 1:
            self._move([child], True)

    def _move(self, threads: Iterable[int], leaves: bool) -> None:
        kept = self._usable - {min(self._usable)} if leaves else self._usable
        for thread in threads:
            with suppress(OSError):  # it has just ended, or the system has given these processors to others
                os.sched_setaffinity(thread, kept)


def is_starved(pid: int) -> bool:
    """Tell whether a process has waited for a processor for seconds, and for most of its time. Only Linux tells it."""
    with suppress(OSError):  # it has ended
        ran_ns, waited_ns, _ = map(int, Path(f"/proc/{pid}/schedstat").read_text().split())
        return waited_ns > max(STARVED_AFTER_S * 1e9, _STARVED_TIMES * ran_ns)
    return False


class OthersTime:
    """Measures the time of this machine's processors that other processes take, from now on.

    `read` returns the seconds of all processors since the start, those that were busy, and those of this process.
    """

    def __init__(self, read: Callable[[], tuple[float, float, float]] | None = None) -> None:
        self._read = read or _processor_seconds
        self._began = self._read()

    def share(self) -> float:
        """Return it as a share of all processors' time, 0 to 1; 0 where the system does not tell it."""
        passed, busy, own = (now - before for now, before in zip(self._read(), self._began, strict=True))
        return min(max((busy - own) / passed, 0.0), 1.0) if passed > 0 else 0.0


def _processor_seconds() -> tuple[float, float, float]:
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0]
    except FileNotFoundError:  # not Linux
        return 0.0, 0.0, 0.0
    user, nice, system, idle, waiting, interrupts, soft_interrupts, stolen = map(int, line.split()[1:9])
    busy = user + nice + system + interrupts + soft_interrupts + stolen
    ticks = os.sysconf("SC_CLK_TCK")
    own = os.times()
    return (busy + idle + waiting) / ticks, busy / ticks, own.user + own.system
