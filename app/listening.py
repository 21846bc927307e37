"""The socket on which the HTTP service listens, for whoever opens it: the service itself, or who starts several."""

from __future__ import annotations

import errno
import socket

from inference.errors import SettingsError
from inference.settings import ApiSettings
from inference.settings.addresses import require_allowed

BACKLOG = 2048


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
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        fix = "stop what listens there, or set [api] port"
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            fix = "correct [api] host"
        raise SettingsError(
            f"port {api.port} of {api.host} cannot be used ({error.strerror}): {fix}", field="api.port"
        ) from error
    return listener
