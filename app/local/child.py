"""Turns itself into a program that dies with its supervisor.

The command is `python -P -m app.local.child PARENT_PID NICENESS PROGRAM …`. It costs one short start and no
extra process: the kernel's parent-death signal survives an exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

#: each program is a session; where Linux schedules by session, it ignores the niceness of a process
_AUTOGROUP = Path("/proc/self/autogroup")
#: attempts to lower the session's share while the kernel is busy; three seconds in all
_TRIES = 25
_PAUSE_S = 0.12
#: <linux/prctl.h>
_PR_SET_PDEATHSIG = 1


def die_with(parent_pid: int) -> None:
    """Make the kernel kill this process when its parent dies. Does nothing on systems other than Linux.

    The signal is SIGKILL: a graceful stop needs Redis, which dies at the same moment. Runs recover by their leases.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:  # the parent died before the call above
        sys.exit(1)


def give_way(niceness: int) -> None:
    """Lower the process's share of the processor by its niceness; 0 changes nothing.

    If the system refuses, the session keeps its share.
    """
    if not niceness:
        return
    os.nice(niceness)
    for _ in range(_TRIES):
        try:
            _AUTOGROUP.write_text(str(niceness))
            return
        except BlockingIOError:
            # the kernel takes one such write in 0.1 s, from all users except root together
            time.sleep(_PAUSE_S)
        except OSError:  # no such file, or a container that may not write it
            return


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    give_way(int(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])  # noqa: S606 - argv comes from the supervisor; there is no shell
