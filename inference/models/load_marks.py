"""Which loads of a model's versions are going on, and which were cut off: what crashes a worker leaves its mark.

A worker that loads a version whose code ends the process is started again by its supervisor, and would end again and
again. So each load is marked before it begins. Whoever finds the mark of a process of this machine that is gone tries
the version in a process of its own first, and refuses it when it finds several.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from inference.redis.clients import Client
from inference.stored_data import count_in, reading

_WHAT = "marking the load of a model"
#: a version that nobody has loaded for so long may crash one more worker
_REMEMBERED_S = 30 * 86_400


class LoadMarks:
    """The marks of one model, a hash in Redis: version, host and process id → loads that began and did not end.

    Every method raises StoreUnavailable when Redis does not answer in time.
    """

    def __init__(self, client: Client, key: str) -> None:
        self._client = client
        self._key = key
        self._host = socket.gethostname()

    def cut_off(self, version: int) -> int:
        """Return how many loads of that version the end of a process of this host cut off, since one last came to its
        end. Not to be asked during a load.
        """
        # in a container, each process may have the id of the one before
        return sum(count for pid, count in self._loads(version).items() if pid == os.getpid() or not _is_alive(pid))

    @contextmanager
    def of_load(self, version: int) -> Iterator[None]:
        """Mark a load while the block runs. When it ends, whatever comes of it, earlier marks of this host go too."""
        mark = self._field(version, os.getpid())
        with self._client.pipeline() as pipe:
            pipe.hincrby(self._key, mark)
            pipe.expire(self._key, _REMEMBERED_S)
            pipe.execute()
        try:
            yield
        finally:
            gone = [self._field(version, pid) for pid in self._loads(version) if not _is_alive(pid)]
            self._client.hdel(self._key, mark, *gone)

    def forget(self) -> None:
        """Take all marks away: each version may be loaded as if it never had cut a process off."""
        self._client.delete(self._key)

    def _field(self, version: int, pid: int) -> str:
        return f"{version} {self._host} {pid}"

    def _loads(self, version: int) -> dict[int, int]:
        """Return process id → loads of that version which began on this host and did not end."""
        marks = cast("dict[bytes, bytes]", self._client.hgetall(self._key))
        own = f"{version} {self._host} "
        with reading(_WHAT):
            of_this = [(mark.decode(), count) for mark, count in marks.items()]
            return {_pid(mark.removeprefix(own)): count_in(count) for mark, count in of_this if mark.startswith(own)}


def _pid(text: str) -> int:
    pid = int(text)
    if not 0 < pid < 1 << 31:
        raise ValueError("no process has this id")
    return pid


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
