"""Tells requests that another site's page made a browser send.

A browser sends what any page asks for, to any address that it reaches, and adds passwords that it knows by itself. Two
things give such a page away: the `Host` header has its name, when that name was made to lead here (DNS rebinding);
else `Sec-Fetch-Site` or `Origin` says where it comes from, which no page can change.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable

from inference.errors import Forbidden, cut, quoted

#: methods that change nothing (RFC 9110, 9.2.1)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_USUAL_PORTS = {"http": "80", "https": "443"}
_ENDS_WITH_PORT = re.compile(r":[0-9]*$")
#: headers that passed before; there are few, unless somebody makes them up
_MOST_REMEMBERED = 256


class KnownHosts:
    """Checks that a request came for an address, for `localhost`, or for one of some names.

    A page can make only a name lead here, never an address. `names`: "api", "*.example.com" (all below it), "*".
    `passed`: Host headers that need no second look.
    """

    def __init__(self, names: Iterable[str]) -> None:
        names = set(names)
        self._any = "*" in names
        self._names = {"localhost", *(name for name in names if not name.startswith("*."))}
        self._ends = tuple(name[1:] for name in names if name.startswith("*."))
        self.passed: set[tuple[bytes, bytes]] = set()

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Let the request pass, or not; without a name in the header, as HTTP/1.0 allows, no browser sent it.

        Raises:
            Forbidden: `Host` is another name.
        """
        for header in headers:
            if header[0] == b"host" and header not in self.passed:
                self._look_at(header)

    def _look_at(self, header: tuple[bytes, bytes]) -> None:
        host = header[1].decode("latin-1")
        if host and not self._any and not self._is_known(_name_and_port(host)[0]):
            raise Forbidden(
                f"without keys the API answers to addresses, localhost and the names in [api] hosts, and "
                f"{quoted(host)} is none of them: add it there, or give keys (`forecache keys new NAME`)"
            )
        if len(self.passed) == _MOST_REMEMBERED:
            self.passed.clear()
        self.passed.add(header)

    def _is_known(self, host: str) -> bool:
        return host in self._names or host.endswith(self._ends) or _is_address(host)


def check_site(site: str | None, origin: str | None, hosts: Collection[str], trusted: Collection[str] = ()) -> None:
    """Let a request that changes something pass unless another site's page sent it.

    `site`, `origin`: its `Sec-Fetch-Site` and `Origin`; no browser leaves out both. `hosts`: what it came for, by
    `Host` and, behind a proxy, `X-Forwarded-Host`. `trusted`: other origins whose pages may.

    Raises:
        Forbidden: another site's page sent it, or one of the same site but another origin.
    """
    if origin is not None and origin.lower() in trusted:
        return
    if site is None:
        if origin is None or any(_is_of(origin, host) for host in hosts):
            return
        raise Forbidden(
            f"this page is of {cut(origin)}, and the request came for "
            f"{cut(', '.join(hosts)) or 'no host'}: if a proxy stands between, let the proxy pass the Host "
            "header on (nginx: proxy_set_header Host $http_host;)"
        )
    if site not in ("same-origin", "none"):
        raise Forbidden(f"a page of another site sent this request ({cut(origin or 'of no origin')})")


def forwarded_host(value: str | None) -> list[str]:
    """Return the host that a proxy was asked for, by its `X-Forwarded-Host`.

    No page can send the header without asking first (it is not safelisted by the Fetch standard), so a proxy set it.
    """
    first = (value or "").partition(",")[0].strip()
    return [first] if first else []


def _is_of(origin: str, host: str) -> bool:
    """Tell whether an origin is that of a host, whose scheme nobody knows behind a proxy."""
    scheme, _, named = origin.lower().partition("://")
    usual = _USUAL_PORTS.get(scheme, "")
    (name, port), (own_name, own_port) = _name_and_port(named), _name_and_port(host)
    return bool(name) and (name, port or usual) == (own_name, own_port or usual)


def _name_and_port(host: str) -> tuple[str, str]:
    """Return what a Host header names: in lower case, without brackets and the dot that ends full names."""
    host = host.strip().lower()
    if _is_address(host):  # of IPv6, without the brackets that belong there
        return host, ""
    name, _, port = host.rpartition(":") if _ENDS_WITH_PORT.search(host) else (host, "", "")
    return (name[1:-1] if name[:1] == "[" and name[-1:] == "]" else name.removesuffix(".")), port


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
