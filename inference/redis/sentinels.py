"""Finds the primary of a Redis behind Sentinels: clients and pools that ask again whenever they connect.

A failover closes connections, or a server answers READONLY; the next connection goes to the new primary. While the
Sentinels elect one, nothing connects, which is an outage like any other.
"""

from __future__ import annotations

import threading
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from inference.logs import get_logger
from inference.settings.sentinel_urls import SentinelUrl
from inference.settings.server_urls import tls_options

log = get_logger(__name__)

#: seconds for one Sentinel to connect and to answer: the next one may know, and a request waits
_ANSWER_S = 0.4

Address = tuple[str, int]


class Primaries:
    """Remembers the primary of each name that this process found last, and logs each change once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, Address] = {}

    def found(self, service: str, address: Address) -> None:
        """Note that the Sentinels name this primary now."""
        with self._lock:
            before = self._found.get(service)
            self._found[service] = address
        if before not in (None, address):
            log.warning("redis.failover", name=service, primary=_spelled(address), before=_spelled(before))


_primaries = Primaries()


def sentinel_options(url: SentinelUrl, timeout_s: float = _ANSWER_S) -> dict[str, Any]:
    """Return the arguments of a connection to a Sentinel itself: its own user and password, TLS, and no second try."""
    names = {"sentinel_username": "username", "sentinel_password": "password"}
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        # by default redis-py tries a dead Sentinel ten times before it asks the next one
        "retry": Retry(NoBackoff(), 0),
        **{name: url.options[option] for option, name in names.items() if option in url.options},
        **({"ssl": True, **tls_options(url.options)} if url.tls else {}),
    }


def blocking_client(url: SentinelUrl, kind: type[redis.Redis], **options: Any) -> Any:
    """Return a client of this kind for the primary. `options`: of its connections. Closing it closes all of them."""
    make: Any = _Sentinels
    sentinels = make(url.sentinels, sentinel_kwargs=sentinel_options(url), **_options_of_data(url), **options)
    return sentinels.master_for(url.service, redis_class=kind, connection_pool_class=_Pool)


def async_client(url: SentinelUrl, kind: type[redis.asyncio.Redis], **options: Any) -> Any:
    """Return the same for an event loop."""
    make: Any = _AsyncSentinels
    sentinels = make(url.sentinels, sentinel_kwargs=sentinel_options(url), **_options_of_data(url), **options)
    return sentinels.master_for(url.service, redis_class=kind, connection_pool_class=_AsyncPool)


def _options_of_data(url: SentinelUrl) -> dict[str, Any]:
    """Return the arguments of a connection to a data server."""
    found: dict[str, Any] = {"db": url.database, "username": url.username or None, "password": url.password or None}
    if "client_name" in url.options:
        found["client_name"] = url.options["client_name"]
    for name in ("protocol", "health_check_interval"):
        if name in url.options:
            found[name] = int(url.options[name])
    return {**found, **({"ssl": True, **tls_options(url.options)} if url.tls else {})}


class _Sentinels(redis.sentinel.Sentinel):
    def discover_master(self, service_name: str) -> Address:
        """Return the primary's address."""
        try:
            address: Address = super().discover_master(service_name)  # type: ignore[no-untyped-call]
        except BaseException as error:
            # whoever asks next, asks another one first
            self.sentinels.append(self.sentinels.pop(0))
            raise _clear(error, service_name) from error
        _primaries.found(service_name, address)
        return address


class _AsyncSentinels(redis.asyncio.sentinel.Sentinel):
    async def discover_master(self, service_name: str) -> Address:
        """Return the primary's address."""
        try:
            address: Address = await super().discover_master(service_name)
        except BaseException as error:
            self.sentinels.append(self.sentinels.pop(0))
            raise _clear(error, service_name) from error
        _primaries.found(service_name, address)
        return address


class _Pool(redis.sentinel.SentinelConnectionPool):
    def close(self) -> None:
        """Close the connections to the Sentinels, too."""
        super().close()
        self.sentinel_manager.close()


class _AsyncPool(redis.asyncio.sentinel.SentinelConnectionPool):
    async def aclose(self) -> None:
        """Close the connections to the Sentinels, too."""
        await super().aclose()
        await self.sentinel_manager.aclose()


def _clear(error: BaseException, service: str) -> BaseException:
    """Return an error without the list of clients that redis-py's has."""
    if isinstance(error, MasterNotFoundError | redis.asyncio.sentinel.MasterNotFoundError):
        return MasterNotFoundError(f"no Sentinel names a working primary called {service}")
    return error


def _spelled(address: Address | None) -> str:
    return "" if address is None else f"{address[0]}:{address[1]}"
