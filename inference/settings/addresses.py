"""Where services listen: who can reach an address, and under which URL."""

from __future__ import annotations

import ipaddress

from inference.errors import SettingsError, shown
from inference.settings.processes import ApiSettings


def require_allowed(api: ApiSettings, host: str | None = None) -> None:
    """Refuse an address of the API that other machines could reach, unless keys guard it or that was asked for.

    `host`: of a socket that is open already; None: the settings'.

    Raises:
        SettingsError: there are no `[api.keys.NAME]`, and `[api] allow_remote` is not set.
    """
    if not api.allow_remote and not api.keys and not is_loopback(host or api.host):
        where = "[api] host" if host is None else "the socket's address"
        raise SettingsError(
            f"{where} {shown(host or api.host)} can be reached from other machines: use 127.0.0.1, give keys "
            "(`forecache keys new NAME`), or set allow_remote = true",
            field="api.host",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reachable_url(host: str, port: int) -> str:
    """Return the URL under which this machine reaches what listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - only compared
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
