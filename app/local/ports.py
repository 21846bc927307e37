"""Which TCP ports are taken, and by whom."""

from __future__ import annotations

import errno
import os
import socket

from inference.errors import Conflict, SettingsError

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now.

    Raises:
        OSError: the address is not one of this machine's, or may not be used.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # as servers do: a connection still in TIME_WAIT does not take the port
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def require_free(host: str, port: int, setting: str) -> None:
    """Refuse a port that someone listens on. `setting` is what the user changes, such as `[api] port`.

    Raises:
        Conflict: the port is taken; the message says by whom where the system tells.
        SettingsError: nobody on this machine could listen there.
    """
    try:
        free = is_free(host, port)
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port} ({error.strerror}): change {setting}") from error
    if not free:
        raise Conflict(f"port {port} is taken{_by_whom(port)}: stop that, or change {setting}", field=setting)


def _by_whom(port: int) -> str:
    import psutil  # comes with circus; a plain API install has neither

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                name = psutil.Process(connection.pid).name()
                own = " (this very process)" if connection.pid == os.getpid() else ""
                return f" by {name}, pid {connection.pid}{own}"
    except psutil.Error:
        return ""  # other users' sockets are not ours to see
    return ""
