"""Checks API keys, their scopes and rates. Without keys, it refuses requests from other sites' pages."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.types import Scope as Connection

from app.defences import SAFE_METHODS, KnownHosts, WrongTries, check_site, forwarded_host, subscriber_of
from inference.clock import system_clock
from inference.errors import Forbidden, RateLimited, TooHeavy, Unauthorized
from inference.settings import ApiSettings, Scope

#: open without a key: probes of load balancers and supervisors have none
OPEN_PATHS = ("/health/", "/v2/health/")
#: this number of bytes in a body weighs as much as a row
BYTES_PER_ROW = 8 * 1024
_BEARER = b"bearer "
#: key in a request's scope: the rows and bytes already counted
_WEIGHT = "forecache.weight"


@dataclass(frozen=True)
class _Holder:
    name: str
    scopes: frozenset[Scope]
    rate: RateLimitItem | None


class AccessControl:
    """Checks each request before all other work on it. Each API process counts rates for itself."""

    def __init__(self, api: ApiSettings) -> None:
        self._holders = {
            key.hash.removeprefix("sha256:"): _Holder(
                name, frozenset(key.scopes), parse(key.rate) if key.rate else None
            )
            for name, key in api.keys.items()
        }
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._wrong = WrongTries()
        self._hosts = KnownHosts([*api.hosts, api.host])
        self._trusted = frozenset(api.cors_origins)

    def check(self, connection: Connection) -> None:
        """Check that a request may pass.

        Raises:
            Unauthorized: it has no key, or an unknown one.
            Forbidden: its key lacks the scope; or there are no keys, and another site's page sent it.
            RateLimited: its key has reached its rate, or too many wrong keys came from its address.
        """
        if not self._holders:
            self._check_browser(connection)
            return
        if connection["path"].startswith(OPEN_PATHS):
            return
        holder = self._holder(connection)
        needed = needed_scope(connection["method"], connection["path"])
        if needed not in holder.scopes:
            raise Forbidden(f"this key may not do that: it lacks the scope {needed.value!r}")
        if holder.rate is not None and not self._limiter.hit(holder.rate, holder.name):
            raise self._used_up(holder.name, holder.rate)

    def charge(self, connection: Connection, *, rows: int = 0, size: int = 0) -> None:
        """Count the weight of a request that has passed. `check` already counted 1, for the first row.

        `size`: bytes of its body so far. Call it again when more is known.

        Raises:
            RateLimited: the weight is over what the key has left in this window.
            TooHeavy: the weight is over the key's rate, in any window.
        """
        if not self._holders:
            return
        counted_rows, counted_bytes = connection.get(_WEIGHT, (1, 0))
        total = max(rows, counted_rows), max(size // BYTES_PER_ROW, counted_bytes)
        more = sum(total) - counted_rows - counted_bytes
        if not more:
            return
        holder = self._holder(connection)
        rate = holder.rate
        if rate is None:
            return
        if sum(total) > rate.amount:
            raise TooHeavy(
                f"this request weighs {sum(total)} (its rows, and 1 for each {BYTES_PER_ROW} bytes of its body), and "
                f"its key may ask {rate}: send it in parts, or raise the key's rate"
            )
        # `hit` alone would count a request that it refuses
        if not (self._limiter.test(rate, holder.name, cost=more) and self._limiter.hit(rate, holder.name, cost=more)):
            raise self._used_up(holder.name, rate)
        connection[_WEIGHT] = total

    def _used_up(self, name: str, rate: RateLimitItem) -> RateLimited:
        left_s = self._limiter.get_window_stats(rate, name).reset_time - system_clock()
        return RateLimited(f"this key may ask {rate}, no more", retry_after_s=max(left_s, 0.0))

    def _check_browser(self, connection: Connection) -> None:
        headers = connection["headers"]
        # most clients send this header first: then a hit need not look at the others
        if connection["method"] == "GET" and headers and headers[0] in self._hosts.passed:
            return
        if connection["path"].startswith(OPEN_PATHS):
            return
        self._hosts.check(headers)
        if connection["method"] in SAFE_METHODS:
            return
        sent = {name: value.decode("latin-1") for name, value in headers}
        hosts = [sent.get(b"host", ""), *forwarded_host(sent.get(b"x-forwarded-host"))]
        try:
            check_site(sent.get(b"sec-fetch-site"), sent.get(b"origin"), hosts, self._trusted)
        except Forbidden as error:
            raise Forbidden(f"{error.message}; if it may, list its origin in [api] cors_origins") from error

    def _holder(self, connection: Connection) -> _Holder:
        key = _shown_key(connection)
        if key is None:
            raise Unauthorized("show a key: Authorization: Bearer KEY, or X-API-Key: KEY")
        # look it up by its hash: so the time does not tell how much of a key is right
        digest = hashlib.sha256(key).hexdigest()
        holder = self._holders.get(digest)
        if holder is None:
            raise self._wrong_key(connection, digest)
        return holder

    def _wrong_key(self, connection: Connection, digest: str) -> Unauthorized | RateLimited:
        # only wrong keys wait: behind a proxy all clients share one address, and nobody can guess the 256 bits of a
        # key from `forecache keys new`
        client = subscriber_of((connection.get("client") or ("",))[0])
        wait_s = self._wrong.wait_s(client, digest)
        if wait_s:
            return RateLimited("this key is not known, and too many like it came from there", retry_after_s=wait_s)
        self._wrong.count(client, digest)
        return Unauthorized("this key is not known")


def needed_scope(method: str, path: str) -> Scope:
    """Return the scope that a request needs: `read` to read, else by its path, else `admin`."""
    if method in ("GET", "HEAD", "OPTIONS") or path == "/predict" or path.startswith(("/v1/", "/v2/")):
        return Scope.READ
    if path == "/features" or path.startswith("/features/"):
        return Scope.WRITE
    if path.startswith("/entities/"):
        return Scope.FORGET
    return Scope.ENQUEUE if path == "/predictions" or path.startswith("/predictions/") else Scope.ADMIN


def _shown_key(connection: Connection) -> bytes | None:
    for name, value in connection["headers"]:
        if name == b"x-api-key":
            return bytes(value)
        if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            return bytes(value[len(_BEARER) :].strip())
    return None
