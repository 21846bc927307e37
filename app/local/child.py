"""Becomes another program that dies with its supervisor: `python -P -m app.local.child PARENT_PID NICENESS PROGRAM …`.

An exec keeps the kernel's parent-death signal, so this costs one short start and no process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

#: where Linux schedules by session, and each program of ours is one, a process' own niceness counts for nothing
_AUTOGROUP = Path("/proc/self/autogroup")
#: how often a busy kernel is asked again to lower the session's share; three seconds in all
_TRIES = 25
_PAUSE_S = 0.12
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


def give_way(niceness: int) -> None:
    """Take the processor only as far as the others leave it; 0 changes nothing.

    The session keeps its usual share where the system does not let it be lowered.
    """
    if not niceness:
        return
    os.nice(niceness)
    for _ in range(_TRIES):
        try:
            _AUTOGROUP.write_text(str(niceness))
            return
        except BlockingIOError:
            # of all users but root together, the kernel takes one such write in a tenth of a second
            time.sleep(_PAUSE_S)
        except OSError:  # no such file, or a container that may not write it: a wish, not a need
            return


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    give_way(int(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])  # noqa: S606 - argv comes from the supervisor; there is no shell
