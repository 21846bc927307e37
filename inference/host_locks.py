"""Locks between the processes of one host: files and folders that the kernel unlocks when their process dies.

They only decide who goes first: a process that cannot open a lock's place, or waits for too long, goes on without it.
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


def lock_file(name: str) -> Path:
    """Return the place of a lock that all processes of this user on this host know by its name."""
    return FOLDER / f"forecache-{os.getuid()}" / f"{name}.lock"


@contextmanager
def holding(place: Path, *, wait_s: float = 0.0, shared: bool = False) -> Iterator[bool]:
    """Hold a lock within the block, alone or `shared`. Yields False if others still have it after `wait_s`.

    `place`: an existing folder, or a `lock_file`.
    """
    opened = _open(place)
    if opened is None:
        yield False
        return
    try:
        yield _take(opened, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait_s)
    finally:
        os.close(opened)  # which frees the lock


def is_held(place: Path) -> bool:
    """Tell whether a process holds a lock now, alone or shared."""
    opened = _open(place)
    if opened is None:
        return False
    try:
        return not _take(opened, fcntl.LOCK_EX, 0.0)
    finally:
        os.close(opened)


def _take(opened: int, kind: int, wait_s: float) -> bool:
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(opened, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_LOOK_EVERY_S)
        except OSError:  # a file system without locks
            return False
        else:
            return True


def _open(place: Path) -> int | None:
    """Open a lock's place anew: so threads of one process exclude each other too. None if it cannot be opened."""
    with suppress(OSError):
        if place.is_dir():
            return os.open(place, os.O_RDONLY)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        # in a folder where all may write, another user may have put a link there
        if not place.parent.is_symlink() and place.parent.stat().st_uid == os.getuid():
            return os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    return None
