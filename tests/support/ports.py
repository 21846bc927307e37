"""Free TCP ports on loopback."""

from __future__ import annotations

import os
import random
import socket

#: below the ports that systems give to outgoing connections, so that none of those takes one between here and its use
_FIRST, _LAST = 10_000, 32_000

#: another order in each process: tests run side by side
_random = random.Random(os.getpid())
_given: set[int] = set()


def free_port() -> int:
    """Return a port that is free now and was not returned before."""
    while True:
        port = _random.randrange(_FIRST, _LAST)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
