"""Files that hold secrets or mark that this folder is in use."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from inference.errors import Conflict


def private_folder(path: Path) -> Path:
    """Make the folder, readable by its owner alone, and return it."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def write_private(path: Path, text: str) -> None:
    """Replace the file in one step; at no moment can anyone but its owner read it."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock file for the time of the block. The kernel lets go of it when the process dies.

    Raises:
        Conflict: another process holds it; the message names its pid, and since when.
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
