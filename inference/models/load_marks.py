"""Which loads of a model's versions are going on, and which were cut off: what crashes a worker leaves its mark.

A worker that loads a version whose code ends the process is started again by its supervisor, and would end again and
again. So each load is marked before it begins. Whoever finds the mark of a process of this machine that is gone tries
the version in a process of its own first.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import redis

from inference.release import reading
from inference.store.outages import outage_is_an_error

_WHAT = "marking the load of a model"
#: a version that nobody has loaded for so long may crash one more worker
_REMEMBERED_S = 30 * 86_400


class LoadMarks:
    """The marks of one model, a hash in Redis: version, host and process id → when the load began.

    Every method raises StoreUnavailable when Redis does not answer in time.
    """

    def __init__(self, client: redis.Redis, key: str) -> None:
        self._client = client
        self._key = key
        self._host = socket.gethostname()

    def were_cut_off(self, version: int) -> bool:
        """Return whether a process of this host ended while it was loading that version. Not to be asked meanwhile."""
        return any(pid == os.getpid() or not _is_alive(pid) for pid in self._pids(version))

    @contextmanager
    def of_load(self, version: int) -> Iterator[None]:
        """Mark a load while the block runs. When it ends, whatever comes of it, earlier marks of this host go too."""
        mark = self._field(version, os.getpid())
        with outage_is_an_error(_WHAT), self._client.pipeline() as pipe:
            pipe.hset(self._key, mark, str(time.time()))
            pipe.expire(self._key, _REMEMBERED_S)
            pipe.execute()
        try:
            yield
        finally:
            gone = [self._field(version, pid) for pid in self._pids(version) if not _is_alive(pid)]
            with outage_is_an_error(_WHAT):
                self._client.hdel(self._key, mark, *gone)

    def _field(self, version: int, pid: int) -> str:
        return f"{version} {self._host} {pid}"

    def _pids(self, version: int) -> list[int]:
        with outage_is_an_error(_WHAT):
            marks = cast("list[bytes]", self._client.hkeys(self._key))
        with reading(_WHAT):
            split = [mark.decode().split(" ") for mark in marks]
            return [int(pid) for of_version, host, pid in split if (of_version, host) == (str(version), self._host)]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
