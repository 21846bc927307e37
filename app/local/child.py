"""Turns itself into a program that dies with its supervisor.

The command is `python -P -m app.local.child PARENT_PID NICENESS PROGRAM …`. It costs one short start and no
extra process: the kernel's parent-death signal survives an exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

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


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.nice(int(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])  # noqa: S606 - argv comes from the supervisor; there is no shell
