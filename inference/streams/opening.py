"""Opens the consumers of a deployment's streams, and asks whether a stream is there."""

from __future__ import annotations

from contextlib import closing
from importlib.util import find_spec

from inference.errors import SettingsError, StoreUnavailable
from inference.redis.clients import Patience, open_client
from inference.settings import Settings
from inference.streams.messages import Stream, StreamUnavailable
from inference.streams.redis_stream import RedisStream

#: longer than a read waits for messages
_PATIENCE = Patience(5.0, check_after_s=30)
_ASK_PATIENCE = Patience(2.0)


def require_clients(settings: Settings) -> None:
    """Check that the client of each stream is installed.

    Raises:
        SettingsError: one is missing; names the extra.
    """
    for name in settings.streams:
        require_client(settings, name)


def require_client(settings: Settings, name: str) -> None:
    """Check that the client of one stream is installed; see `require_clients`."""
    if settings.streams[name].brokers is not None and find_spec("confluent_kafka") is None:
        raise SettingsError(
            f"[streams.{name}] needs confluent-kafka: pip install 'forecache[kafka]'", field=f"streams.{name}.url"
        )


def open_stream(settings: Settings, name: str, *, consumer: str) -> Stream:
    """Return a consumer of a stream of the settings. `consumer`: see `RedisStream` and `KafkaTopic`.

    Raises:
        StreamUnavailable: Kafka does not answer, or has no such topic.
    """
    of_stream = settings.streams[name]
    if of_stream.brokers is not None:
        from inference.streams.kafka_topic import KafkaTopic  # an extra, which only listeners load

        return KafkaTopic(of_stream, consumer=consumer)
    url = settings.stream_url(name)
    return RedisStream(
        open_client(url, _PATIENCE),
        stream=of_stream.stream,
        group=of_stream.group,
        start=of_stream.start,
        consumer=consumer,
        place=_place(url),
    )


def require_stream(settings: Settings, name: str) -> None:
    """Check that a stream can be reached, and is there.

    Raises:
        StreamUnavailable: it is not; says why.
    """
    of_stream = settings.streams[name]
    if of_stream.brokers is not None:
        open_stream(settings, name, consumer="doctor").close()
        return
    url = settings.stream_url(name)
    try:
        with closing(open_client(url, _ASK_PATIENCE)) as client:
            kind = client.exchange([("TYPE", of_stream.stream)])[0]
    except StoreUnavailable as error:
        raise StreamUnavailable(f"Redis at {_place(url)}: {error.message}", field="url") from error
    place = f"{of_stream.stream!r} in Redis at {_place(url)}"
    if kind in (b"none", "none"):
        raise StreamUnavailable(f"there is no stream {place}: write to it, or correct stream", field="stream")
    if kind not in (b"stream", "stream"):
        raise StreamUnavailable(f"the key {place} is no stream: correct stream", field="stream")


def _place(url: str) -> str:
    """Return a URL without scheme, user, password and options."""
    return url.partition("://")[2].rpartition("@")[2].partition("?")[0]
