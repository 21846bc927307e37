"""HTTP that the API and the dashboard share: the status of each error, the listening socket, the connection limits."""

from __future__ import annotations

import errno
import os
import resource
import socket
import ssl
from importlib.util import find_spec

from inference.errors import (
    BadInput,
    Conflict,
    Forbidden,
    ForecacheError,
    NotFound,
    RateLimited,
    SettingsError,
    TooHeavy,
    Unauthorized,
    Unavailable,
    UnknownEntity,
    UnknownModel,
    UnsupportedMedia,
)
from inference.settings import ApiSettings, Settings
from inference.settings.processes import require_allowed

BACKLOG = 2048
#: what the extra `grpc` installs
GRPC_MODULES = ("grpc", "grpc_health", "grpc_reflection")
#: descriptors for Redis (up to a hundred connections), the broker, files and the event loop
KEPT = 128
#: connections of one process, unless the settings or the descriptors allow fewer
MOST_CONNECTIONS = 10_000


def raise_descriptors() -> None:
    """Raise the limit of open files to what `MOST_CONNECTIONS` need, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MOST_CONNECTIONS * 3 // 2
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else min(needed, hard), hard)
        )
    except (OSError, ValueError):  # macOS reports no limit but has one: then there are fewer connections
        return


def places(most: int | None = None) -> tuple[int, int]:
    """Return how many connections a process may hold, and how many descriptors it has beyond them.

    The others are for connections that are accepted and not yet checked. `most`: the setting, None for the default.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = MOST_CONNECTIONS * 3 // 2 if soft == resource.RLIM_INFINITY else soft
    spare = max(32, min(BACKLOG, descriptors // 5))
    return max(1, min(most or MOST_CONNECTIONS, descriptors - KEPT - spare)), spare


def backlog() -> int:
    """Return how many connections may wait to be accepted. There is a descriptor for each, even if all come at once."""
    return places()[1]


def listen(api: ApiSettings) -> socket.socket:
    """Return a socket bound to the configured address.

    Raises:
        SettingsError: the port is taken; or other machines can reach the address, and neither keys nor
            `[api] allow_remote` are set.
    """
    require_allowed(api)
    family = socket.AF_INET6 if ":" in api.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((api.host, api.port))
        # listens now: if two services start together, only one is refused
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


def check_grpc(settings: Settings, *, first: bool) -> None:
    """Check, before any process serves gRPC, that the settings allow it; nothing if they want none.

    `first`: no other process of this deployment serves it yet, so its port must be free.

    Raises:
        SettingsError: the extra is not installed, the port is taken, or as `check_grpc_settings` says.
    """
    host, port = settings.grpc.host, settings.grpc.port
    if port is None:
        return
    if any(find_spec(module) is None for module in GRPC_MODULES):
        raise SettingsError("[grpc] port needs gRPC: pip install 'forecache[grpc]'", field="grpc.port")
    check_grpc_settings(settings)
    if not first:
        return
    # the processes share the port, so gRPC itself would share it with anybody of the same user
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"port {port} of {host} cannot be used ({error.strerror}): stop what listens there, or correct [grpc]",
                field="grpc.port",
            ) from error


def check_grpc_settings(settings: Settings) -> None:
    """Check address and certificate of gRPC.

    Raises:
        SettingsError: other machines can reach the address, and neither keys nor `[api] allow_remote` are set; the
            API itself has that port; or the certificate and its key cannot be used.
    """
    grpc, api = settings.grpc, settings.api
    require_allowed(api, grpc.host, "[grpc] host")
    if grpc.port == api.port and (grpc.host == api.host or {grpc.host, api.host} & {"0.0.0.0", "::"}):  # noqa: S104
        raise SettingsError(f"[grpc] port {grpc.port} is the one of [api]: set another one", field="grpc.port")
    if grpc.certificate is None or grpc.private_key is None:
        return
    try:
        # without a password it would ask at the terminal
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.path(grpc.certificate), settings.path(grpc.private_key), password="")
    except ssl.SSLError as error:
        raise SettingsError(
            "[grpc] certificate and private_key are no pair of PEM files without a password", field="grpc.certificate"
        ) from error
    except OSError as error:
        # the error itself does not say which file it was
        files = (settings.path(one) for one in (grpc.certificate, grpc.private_key))
        named = next((str(one) for one in files if not os.access(one, os.R_OK)), "")
        raise SettingsError(
            f"[grpc] certificate or private_key cannot be read: {named} ({error.strerror})", field="grpc.certificate"
        ) from error


# --- errors ---

#: the first class that fits decides; an error of no class here is our fault: 500
_STATUS: tuple[tuple[type[ForecacheError], int], ...] = (
    (Unauthorized, 401),
    (Forbidden, 403),
    (UnknownModel, 404),
    (UnknownEntity, 404),
    (NotFound, 404),
    (Conflict, 409),
    (UnsupportedMedia, 415),
    (BadInput, 400),
    (TooHeavy, 413),
    (RateLimited, 429),
    (Unavailable, 503),
)


def status_of(error: ForecacheError) -> int:
    """Return the HTTP status of an error."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
