"""Locks between the processes of one user on one host. The kernel frees the lock of a process that dies.

They only decide who goes first: a process that cannot make a lock's file, or waits for too long, goes on without it.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: shared memory: units of systemd often have a folder for temporary files of their own
FOLDER = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())  # noqa: S108 - see `_open`
#: seconds between two attempts to take a lock
_LOOK_EVERY_S = 0.05


@contextmanager
def holding(name: str, *, wait_s: float = 0.0, shared: bool = False) -> Iterator[bool]:
    """Hold a lock within the block, alone or `shared`. Yields False if others still have it after `wait_s`."""
    file = _open(name)
    if file is None:
        yield False
        return
    try:
        yield _take(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait_s)
    finally:
        os.close(file)  # which frees the lock


def is_held(name: str) -> bool:
    """Tell whether a process holds a lock now, alone or shared."""
    file = _open(name)
    if file is None:
        return False
    try:
        return not _take(file, fcntl.LOCK_EX, 0.0)
    finally:
        os.close(file)


def _take(file: int, kind: int, wait_s: float) -> bool:
    until = time.monotonic() + wait_s
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(_LOOK_EVERY_S)


def _open(name: str) -> int | None:
    """Return a lock's file, opened anew: so threads of one process exclude each other too. None if it cannot be."""
    folder = FOLDER / f"forecache-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():  # another user's
            return None
        return os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
