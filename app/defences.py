"""Defences that the API and the dashboard share: against pages of other sites, and against guessed passwords.

A browser sends any request that a page asks for, to any address that it reaches, and adds the passwords that it knows.
Two things reveal a page of another site. If somebody made that site's name lead to us (DNS rebinding), the `Host`
header has this name. If not, `Sec-Fetch-Site` or `Origin` names the page's site, and no page can change them.
"""

from __future__ import annotations

import ipaddress
import re
import time
from array import array
from collections.abc import Collection, Iterable

from inference.clock import Clock
from inference.errors import Forbidden, cut, quoted

#: methods that change nothing (RFC 9110, 9.2.1)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_USUAL_PORTS = {"http": "80", "https": "443"}
_ENDS_WITH_PORT = re.compile(r":[0-9]*$")
#: Host headers that passed before; there are few, unless somebody invents them
_MOST_REMEMBERED = 256


class KnownHosts:
    """Checks that the Host of a request is an address, `localhost`, or a known name.

    A page can make a name lead to us, but not an address. `names`: "api", "*.example.com" (all names below it), "*".
    `passed`: headers that passed before.
    """

    def __init__(self, names: Iterable[str]) -> None:
        names = set(names)
        self._any = "*" in names
        self._names = {"localhost", *(name for name in names if not name.startswith("*."))}
        self._ends = tuple(name[1:] for name in names if name.startswith("*."))
        self.passed: set[tuple[bytes, bytes]] = set()

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Check the Host header. A request without one, as HTTP/1.0 allows, passes: no browser sends it.

        Raises:
            Forbidden: `Host` is an unknown name.
        """
        for header in headers:
            if header[0] == b"host" and header not in self.passed:
                self._check_host(header)

    def _check_host(self, header: tuple[bytes, bytes]) -> None:
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
    """Refuse a request that changes something and that a page of another site sent.

    `site`, `origin`: its `Sec-Fetch-Site` and `Origin`; a browser sends at least one. `hosts`: its `Host` and, behind a
    proxy, its `X-Forwarded-Host`. `trusted`: other origins whose pages may send it.

    Raises:
        Forbidden: the page has another site, or the same site but another origin.
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
    """Return the host in a proxy's `X-Forwarded-Host` header.

    The Fetch standard does not safelist this header, so a page cannot send it without permission.
    """
    first = (value or "").partition(",")[0].strip()
    return [first] if first else []


def _is_of(origin: str, host: str) -> bool:
    """Tell whether an origin belongs to a host. The scheme of the host is unknown behind a proxy."""
    scheme, _, named = origin.lower().partition("://")
    usual = _USUAL_PORTS.get(scheme, "")
    (name, port), (host_name, host_port) = _name_and_port(named), _name_and_port(host)
    return bool(name) and (name, port or usual) == (host_name, host_port or usual)


def _name_and_port(host: str) -> tuple[str, str]:
    """Return name and port of a Host header: in lower case, without brackets and without a final dot."""
    host = host.strip().lower()
    if _is_address(host):  # IPv6 without its brackets
        return host, ""
    name, _, port = host.rpartition(":") if _ENDS_WITH_PORT.search(host) else (host, "", "")
    return (name[1:-1] if name[:1] == "[" and name[-1:] == "]" else name.removesuffix(".")), port


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


# --- guessed passwords ---

#: so many wrong tries are free; after them, one try per EVERY_S seconds
BURST = 20
EVERY_S = 1.0
#: size of the tables of clients and of keys; two that share a place also share their short wait
_PLACES = 8192
#: a subscriber owns all addresses of an IPv6 network of this size
_SUBSCRIBER_BITS = 64


class WrongTries:
    """Counts wrong keys, per client and per key, in tables of fixed size.

    Many different keys from one client are guesses, so the client waits. The same key many times is a mistake: only
    that key waits, so that others at the same address do not. Tries that have to wait do not count.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        # instants at which the counted tries are paid off, one per EVERY_S (the generic cell rate algorithm)
        self._of_clients = array("d", bytes(8 * _PLACES))
        self._of_keys = array("d", bytes(8 * _PLACES))
        self._last_keys = array("q", bytes(8 * _PLACES))

    def wait_s(self, client: str, key: str) -> float:
        """Return after how many seconds this key of this client is checked; 0 for now."""
        latest = max(self._of_clients[hash(client) % _PLACES], self._of_keys[hash(key) % _PLACES])
        return max(0.0, latest - self._clock() - (BURST - 1) * EVERY_S)

    def count(self, client: str, key: str) -> None:
        """Count a wrong key."""
        now, place = self._clock(), hash(key) % _PLACES
        is_repeated = self._of_keys[place] > now and self._last_keys[place] == hash(key)
        self._last_keys[place] = hash(key)
        self._of_keys[place] = max(self._of_keys[place], now) + EVERY_S
        if not is_repeated:
            place = hash(client) % _PLACES
            self._of_clients[place] = max(self._of_clients[place], now) + EVERY_S


def subscriber_of(address: str) -> str:
    """Return the client of an address: the address, or the IPv6 network that belongs to one subscriber."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # a Unix socket
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip), _SUBSCRIBER_BITS), strict=False))
