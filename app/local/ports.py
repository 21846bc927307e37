"""Which TCP ports are taken, and by whom."""

from __future__ import annotations

import errno
import os
import socket

import psutil

from inference.errors import Conflict, SettingsError

LOOPBACK = "127.0.0.1"
_LONGEST_COMMAND = 80
#: how many ports after the preferred one are tried
_NEIGHBOURS = 100


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def free_port_from(preferred: int) -> int:
    """Return the preferred loopback port, or the next one that is free now."""
    tried = range(preferred, preferred + _NEIGHBOURS)
    return next((port for port in tried if is_free(LOOPBACK, port)), None) or free_port()


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
        holder = by_whom(port)
        raise Conflict(
            f"port {port} is taken{f' by {holder}' if holder else ''}: stop that, or change {setting}", field=setting
        )


def by_whom(port: int) -> str:
    """Return who listens on a port, as in "python3 server.py (pid 12)"; "" when the system does not tell."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return _described(psutil.Process(connection.pid))
    except psutil.Error:
        return ""  # other users' sockets are not ours to see
    return ""


def _described(process: psutil.Process) -> str:
    # a whole command line may hold a password far behind, and would not fit one line
    command = " ".join(process.cmdline()) or process.name()
    shown = command if len(command) <= _LONGEST_COMMAND else command[:_LONGEST_COMMAND] + "…"
    own = ", this very process" if process.pid == os.getpid() else ""
    return f"{shown} (pid {process.pid}{own})"
