"""Opens clients of Redis by how long they wait. A client connects when it is first used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio

#: nobody waits longer for a connection, however long answers may take
_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Patience:
    """How long a client waits for each answer, and for a connection, though at most 5 s. It sends nothing twice.

    `check_after_s`: a connection that was idle for so long is checked before it is used again; 0: never.
    """

    timeout_s: float
    check_after_s: float = 0


#: somebody waits for the answer: gives up soon
REQUEST = Patience(1.0)
#: a worker, a page or a command may wait for a busy Redis
WORKER = Patience(10.0, check_after_s=30)


def open_client(url: str, patience: Patience) -> redis.Redis:
    """Return a client whose answers are bytes.

    Raises:
        ValueError: the URL cannot be understood.
    """
    return redis.Redis.from_url(url, **_options(patience))


def open_async_client(url: str, patience: Patience) -> redis.asyncio.Redis:
    """Return a client for one event loop, whose answers are bytes; `async with` closes it.

    Raises:
        ValueError: the URL cannot be understood.
    """
    return redis.asyncio.Redis.from_url(url, **_options(patience))


def _options(patience: Patience) -> dict[str, Any]:
    return {
        "socket_timeout": patience.timeout_s,
        "socket_connect_timeout": min(patience.timeout_s, _CONNECT_TIMEOUT_S),
        "health_check_interval": patience.check_after_s,
        "retry": None,
    }
