"""The socket on which the HTTP service listens, for whoever opens it: the service itself, or who starts several."""

from __future__ import annotations

import errno
import resource
import socket

from inference.errors import SettingsError
from inference.settings import ApiSettings
from inference.settings.processes import require_allowed

BACKLOG = 2048
#: descriptors for Redis (up to a hundred connections), the broker, files and the event loop
KEPT = 128
#: connections of one process, unless the settings or its descriptors allow fewer
MOST_CONNECTIONS = 10_000


def raise_descriptors() -> None:
    """Let the process open as many files as a full house needs, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MOST_CONNECTIONS * 3 // 2
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else min(needed, hard), hard)
        )
    except (OSError, ValueError):  # macOS says that it has no limit and keeps one: then there is place for fewer
        return


def places(most: int | None = None) -> tuple[int, int]:
    """Return how many connections a process may hold, and for how many more it has descriptors.

    Those are for connections that are accepted at once and not looked at yet. `most`: the setting, None for no wish.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = MOST_CONNECTIONS * 3 // 2 if soft == resource.RLIM_INFINITY else soft
    spare = max(32, min(BACKLOG, descriptors // 5))
    return max(1, min(most or MOST_CONNECTIONS, descriptors - KEPT - spare)), spare


def backlog() -> int:
    """Return how many connections may wait to be accepted: if all of them are at once, each finds a descriptor."""
    return places()[1]


def listen(api: ApiSettings) -> socket.socket:
    """Return a socket bound to the configured address.

    Raises:
        SettingsError: other machines could reach the address, and there are neither keys nor `[api] allow_remote`;
            or the port is taken.
    """
    require_allowed(api)
    family = socket.AF_INET6 if ":" in api.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((api.host, api.port))
        # listening at once: of two services that start together, one is refused and not both
        listener.listen(backlog())
    except OSError as error:
        listener.close()
        fix = "stop what listens there, or set [api] port"
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            fix = "correct [api] host"
        raise SettingsError(
            f"port {api.port} of {api.host} cannot be used ({error.strerror}): {fix}", field="api.port"
        ) from error
    return listener
