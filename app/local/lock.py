"""The lock that a running `forecache up` holds: one runs in a folder, and others can see it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from inference.errors import Conflict

#: in the folder of the deployment's state; it holds the pid of the `up` that runs there
LOCK = "up.lock"


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock file during the block. The kernel releases it when the process dies.

    Raises:
        Conflict: another process holds it; the message names its pid and the time of its start.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read().strip() or "unknown"
            since = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
            raise Conflict(
                f"`forecache up` already runs in {path.parent.parent} as pid {pid}, since {since:%Y-%m-%d %H:%M:%S}: "
                f"stop it with `kill {pid}`"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@dataclass(frozen=True)
class RunningUp:
    """A `forecache up` that runs. `since`: its start, in epoch seconds."""

    pid: int
    since: float


def find_up(state_dir: Path) -> RunningUp | None:
    """Return the `forecache up` that runs in the folder with this `state_dir`, None for none."""
    try:
        with (state_dir / LOCK).open() as file:
            pid, since = int(file.read()), os.fstat(file.fileno()).st_mtime
            # before the lock is tried: in the moment of the trial, an `up` that starts would be refused
            os.kill(pid, 0)
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return RunningUp(pid, since)
    except (OSError, ValueError):  # no file, none that may be read, no number in it, no such process
        return None
    return None  # the number is another process' by now
