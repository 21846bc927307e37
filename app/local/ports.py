"""Finds free TCP ports, and the process that holds a port."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from inference.errors import Conflict, SettingsError

if TYPE_CHECKING:
    import psutil

LOOPBACK = "127.0.0.1"
_LONGEST_COMMAND = 80
#: ports to try after the preferred one
_NEIGHBOURS = 100


def free_port() -> int:
    """Return a loopback port that is free now."""
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
        OSError: the address belongs to another machine, or this process may not use it.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # servers do the same: a connection in TIME_WAIT does not hold the port
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def require_free(host: str, port: int, setting: str) -> None:
    """Check that no process listens on a port. `setting`: the setting to change, such as `[api] port`.

    Raises:
        Conflict: the port is taken; the message names the process if the system tells.
        SettingsError: no process of this machine can listen there.
    """
    try:
        free = is_free(host, port)
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port} ({error.strerror}): change {setting}") from error
    if not free:
        holder = port_holder(port)
        raise Conflict(
            f"port {port} is taken{f' by {holder}' if holder else ''}: stop that, or change {setting}", field=setting
        )


def port_holder(port: int) -> str:
    """Return the process that listens on a port, as in "python3 server.py (pid 12)"; "" if the system does not tell."""
    try:
        import psutil
    except ModuleNotFoundError:  # an install without the extra `embedded`
        return ""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return _described(psutil.Process(connection.pid))
    except psutil.Error:
        return ""  # the system hides the sockets of other users
    return ""


def _described(process: psutil.Process) -> str:
    # cut: a long command line does not fit, and its end may contain a password
    command = " ".join(process.cmdline()) or process.name()
    shown = command if len(command) <= _LONGEST_COMMAND else command[:_LONGEST_COMMAND] + "…"
    suffix = ", this very process" if process.pid == os.getpid() else ""
    return f"{shown} (pid {process.pid}{suffix})"
