"""Becomes another program that dies with its supervisor: `python -P -m app.local.child PARENT_PID PROGRAM …`.

An exec keeps the kernel's parent-death signal, so this costs one short start and no process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

#: <linux/prctl.h>
_PR_SET_PDEATHSIG = 1


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies; on other systems than Linux, do nothing.

    SIGKILL, since a graceful stop needs a Redis that dies at the same moment; runs recover by their leases.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:  # it died before the call above
        sys.exit(1)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - argv comes from the supervisor; there is no shell
