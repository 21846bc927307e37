"""Has Flower reach a Redis broker as everybody else does: over TLS and Unix sockets, and past dead connections."""

from __future__ import annotations

from typing import Any

from flower.utils import broker
from kombu.transport.redis import Transport

from inference.redis.clients import Patience, open_async_client
from inference.settings import Settings
from inference.settings.server_urls import is_redis

_TIMEOUT_S = 2.0


def watch_for_silence() -> None:
    """Have the connection that hears Celery's events ask Redis for a sign of life whenever none came for a second.

    Kombu asks only in a worker's event loop, so that Flower would listen to a dead connection for ever.
    """

    def heartbeat_check(self: Transport, *_: Any, **__: Any) -> None:
        self.cycle.maybe_check_subclient_health()

    Transport.heartbeat_check = heartbeat_check


def count_by_our_url(settings: Settings) -> None:
    """Have Flower count the messages of a Redis broker by the settings' URL.

    Its own client knows neither the database of a Unix socket nor the options of TLS in a URL.
    """
    if not is_redis(settings.broker_url):
        return

    class OurRedis(broker.RedisBase):  # type: ignore[misc]  # flower has no types
        def __init__(self, broker_url: str, *arguments: Any, **options: Any) -> None:
            super().__init__(broker_url, *arguments, **options)
            self.redis = open_async_client(settings.broker_url, Patience(_TIMEOUT_S))

    for name in ("Redis", "RedisSsl", "RedisSocket"):
        setattr(broker, name, OurRedis)
