"""Who may do what: API keys, their scopes and rates. Without configured keys every request may do everything."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.types import Scope as Connection

from inference.clock import system_clock
from inference.errors import Forbidden, RateLimited, Unauthorized
from inference.settings import ApiSettings, Scope

#: probes of load balancers and supervisors bring no key
OPEN_PATHS = ("/health/", "/v2/health/")
_BEARER = b"bearer "


@dataclass(frozen=True)
class _Holder:
    name: str
    scopes: frozenset[Scope]
    rate: RateLimitItem | None


class Gate:
    """Checks each request before anything else looks at it. Rates are counted by each API process for itself."""

    def __init__(self, api: ApiSettings) -> None:
        self._holders = {
            key.hash.removeprefix("sha256:"): _Holder(
                name, frozenset(key.scopes), parse(key.rate) if key.rate else None
            )
            for name, key in api.keys.items()
        }
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    def check(self, connection: Connection) -> None:
        """Let the request pass, or not.

        Raises:
            Unauthorized: it shows no key, or none that is known.
            Forbidden: its key has another scope.
            RateLimited: its key has used up what it may ask in this window.
        """
        if not self._holders or connection["path"].startswith(OPEN_PATHS):
            return
        holder = self._holder(connection)
        needed = needed_scope(connection["method"], connection["path"])
        if needed not in holder.scopes:
            raise Forbidden(f"this key may not do that: it lacks the scope {needed.value!r}")
        if holder.rate is not None and not self._limiter.hit(holder.rate, holder.name):
            left_s = self._limiter.get_window_stats(holder.rate, holder.name).reset_time - system_clock()
            raise RateLimited(f"this key may ask {holder.rate}, no more", retry_after_s=max(left_s, 0.0))

    def _holder(self, connection: Connection) -> _Holder:
        key = _shown_key(connection)
        if key is None:
            raise Unauthorized("show a key: Authorization: Bearer KEY, or X-API-Key: KEY")
        # looked up by its hash, so that the time taken tells nothing of how much of a key was right
        holder = self._holders.get(hashlib.sha256(key).hexdigest())
        if holder is None:
            raise Unauthorized("this key is not known")
        return holder


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
