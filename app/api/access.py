"""Checks who may do what: API keys, their scopes and rates; without keys, that no other site's page asks."""

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

#: probes of load balancers and supervisors bring no key
OPEN_PATHS = ("/health/", "/v2/health/")
#: each so many bytes of a body weigh as much as a row
BYTES_PER_ROW = 8 * 1024
_BEARER = b"bearer "
#: in a request's scope: what has been counted of it
_WEIGHT = "forecache.weight"


@dataclass(frozen=True)
class _Holder:
    name: str
    scopes: frozenset[Scope]
    rate: RateLimitItem | None


class AccessControl:
    """Checks each request before anything else looks at it. Rates are counted by each API process for itself."""

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
        """Let the request pass, or not.

        Raises:
            Unauthorized: it shows no key, or none that is known.
            Forbidden: its key has another scope; or there are no keys, and another site's page sent it.
            RateLimited: its key has used up what it may ask in this window, or too many wrong keys came from there.
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
        """Count what a request that has passed turns out to weigh: 1 is counted already, which pays for its first row.

        `size`: bytes of its body so far. May be called again as more of it is known.

        Raises:
            RateLimited: it weighs more than its key has left in this window.
            TooHeavy: it weighs more than its key may ask in any window.
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
        # `hit` alone would use the window up, also for a request that it refuses
        if not (self._limiter.test(rate, holder.name, cost=more) and self._limiter.hit(rate, holder.name, cost=more)):
            raise self._used_up(holder.name, rate)
        connection[_WEIGHT] = total

    def _used_up(self, name: str, rate: RateLimitItem) -> RateLimited:
        left_s = self._limiter.get_window_stats(rate, name).reset_time - system_clock()
        return RateLimited(f"this key may ask {rate}, no more", retry_after_s=max(left_s, 0.0))

    def _check_browser(self, connection: Connection) -> None:
        headers = connection["headers"]
        # most clients send the header first, and a hit should not pay for looking at the others
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
        # looked up by its hash, so that the time taken tells nothing of how much of a key was right
        digest = hashlib.sha256(key).hexdigest()
        holder = self._holders.get(digest)
        if holder is None:
            raise self._wrong_key(connection, digest)
        return holder

    def _wrong_key(self, connection: Connection, digest: str) -> Unauthorized | RateLimited:
        # a right key never waits for wrong ones: behind a proxy all clients have one address, and nobody guesses
        # the 256 bits of a key that `forecache keys new` made
        client = subscriber_of((connection.get("client") or ("",))[0])
        wait_s = self._wrong.wait_s(client, digest)
        if wait_s:
            return RateLimited("this key is not known, and too many like it came from there", retry_after_s=wait_s)
        self._wrong.count(client, digest)
        return Unauthorized("this key is not known")


def needed_scope(method: str, path: str) -> Scope:
    """Return the scope that a request needs.

    What only reads is `read`, jobs are `enqueue`, features `write`, the rest is `admin`.
    """
    if method in ("GET", "HEAD", "OPTIONS") or path == "/predict" or path.startswith(("/v1/", "/v2/")):
        return Scope.READ
    if path == "/features" or path.startswith("/features/"):
        return Scope.WRITE
    return Scope.ENQUEUE if path == "/predictions" or path.startswith("/predictions/") else Scope.ADMIN


def _shown_key(connection: Connection) -> bytes | None:
    for name, value in connection["headers"]:
        if name == b"x-api-key":
            return bytes(value)
        if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            return bytes(value[len(_BEARER) :].strip())
    return None
