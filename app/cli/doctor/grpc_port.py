"""Checks the port of gRPC: may it be served as the settings say, and does an API process answer there?"""

from __future__ import annotations

import socket
import ssl
from importlib.util import find_spec

from app.cli.doctor.findings import Check, Finding, error, ok, warning
from app.http import GRPC_MODULES, check_grpc_settings
from app.local.ports import port_holder
from inference.errors import SettingsError
from inference.monitoring.presence import Roster
from inference.settings import Settings

_WITHIN_S = 2.0
#: the beginning of every HTTP/2 connection, with a frame of settings that changes none
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME_HEAD, _TYPE_AT, _SETTINGS = 9, 3, 4
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what to connect to if a server listens on all


def check_grpc_port(settings: Settings, processes: Roster | None) -> list[Finding]:
    """Return the finding about gRPC. `processes`: of the API; None: Redis does not answer."""
    grpc = settings.grpc
    if grpc.port is None:
        return [ok(Check.GRPC, "port", "off: [grpc] port turns it on")]
    address = f"{grpc.host}:{grpc.port}"
    hosts = {one.host for one in processes.alive} if processes else set()
    here = socket.gethostname()
    if any(find_spec(module) is None for module in GRPC_MODULES):
        level = warning if hosts - {here} and here not in hosts else error
        return [level(Check.GRPC, address, "gRPC is not installed on this machine", "pip install 'forecache[grpc]'")]
    try:
        check_grpc_settings(settings)
    except SettingsError as problem:
        return [error(Check.GRPC, address, problem.message, "put it right, then restart the API")]
    how = f"{'TLS' if grpc.certificate else 'plain text'}, {'with' if settings.api.keys else 'without'} API keys"
    if hosts and here not in hosts:
        return [ok(Check.GRPC, address, f"{how}; served by API processes on other machines, not tried from here")]
    return [_try(address, settings, how, is_served=here in hosts)]


def _try(address: str, settings: Settings, how: str, *, is_served: bool) -> Finding:
    port = settings.grpc.port
    assert port is not None  # noqa: S101 - the caller has looked
    is_grpc = _speaks_http2(settings.grpc.host, port, tls=settings.grpc.certificate is not None)
    if is_grpc is None:
        if is_served:
            fix = "restart the API, and read its log: it runs with other settings, or could not open the port"
            return error(Check.GRPC, address, "an API process runs on this machine, but nothing listens there", fix)
        return ok(Check.GRPC, address, f"{how}; the port is free, no API process runs on this machine")
    if is_grpc and is_served:
        return ok(Check.GRPC, address, f"answers; {how}")
    holder = port_holder(port) or "another process"
    wrong = f"what answers there is no gRPC ({how})" if is_served else "the port is taken"
    detail = f"{wrong}: {holder}"
    return error(Check.GRPC, address, detail, "stop that, or set another [grpc] port, then restart the API")


def _speaks_http2(host: str, port: int, *, tls: bool) -> bool | None:
    """Return whether the server at that address speaks HTTP/2; None if nothing listens there."""
    try:
        plain = socket.create_connection((_ANY_ADDRESS.get(host, host), port), timeout=_WITHIN_S)
    except OSError:
        return None
    try:
        with plain, _unverified().wrap_socket(plain) if tls else plain as connection:
            connection.settimeout(_WITHIN_S)
            connection.sendall(_PREFACE)
            head = b""
            while len(head) < _FRAME_HEAD:
                more = connection.recv(_FRAME_HEAD - len(head))
                if not more:
                    return False
                head += more
    except OSError:  # of TLS, too
        return False
    return head[_TYPE_AT] == _SETTINGS


def _unverified() -> ssl.SSLContext:
    """Return a client's context that takes any certificate: the check asks for the protocol, and sends nothing."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context
