"""Workers and Redis: what Celery and kombu read from it as a broker, and how real-time workers write results to it.

A raw `LPUSH` can put anything on a list, in the hash of unacknowledged messages or on a channel. kombu raises on it,
and the worker ends. `Transport` drops it with one line in the log: it is gone from Redis by then.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import kombu.transport
import kombu.transport.redis as stock
import orjson
from celery import states
from celery.backends.redis import RedisBackend, SentinelBackend
from kombu import compression
from kombu.utils.json import loads as load_json

from inference.logs import get_logger
from inference.redis.pipes import Pipe
from workers.messages import MAX_MESSAGE_BYTES

log = get_logger(__name__)

#: the headers and properties of an envelope, without its body
MAX_HEADER_CHARACTERS = 64 << 10
#: a name in an envelope: a tag, an exchange, a routing key
_MAX_NAME = 255
_NO_ENVELOPE = "it is no envelope of kombu's"
_JSON_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError)


class Rubbish:
    """A text in Redis that is no message. `reason` says why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def load_envelope(text: str) -> Any:
    """Return the JSON of a message in Redis, or Rubbish."""
    if len(text) > MAX_MESSAGE_BYTES * 4 // 3 + MAX_HEADER_CHARACTERS:  # as base64
        return Rubbish(f"it is over {MAX_MESSAGE_BYTES} bytes")
    try:
        payload = orjson.loads(text)
    except orjson.JSONDecodeError:  # kombu's, which is slower, also reads NaN and halves of surrogate pairs
        try:
            payload = load_json(text)
        except _JSON_ERRORS as error:  # the last two: nested too deep, or a huge number
            return Rubbish(f"it is no JSON ({type(error).__name__})")
    body = payload.get("body") or "" if isinstance(payload, dict) else None
    if isinstance(body, str) and len(text) - len(body) > MAX_HEADER_CHARACTERS:
        return Rubbish(f"its headers and properties are over {MAX_HEADER_CHARACTERS} characters")
    return payload


def problem_of_envelope(payload: Any) -> str | None:
    """Return why kombu cannot read an envelope; None if it can."""
    if isinstance(payload, Rubbish):
        return payload.reason
    properties = payload.get("properties") if isinstance(payload, dict) else None
    if not isinstance(properties, dict):
        return _NO_ENVELOPE
    delivery = properties.get("delivery_info")
    if not isinstance(delivery, dict):
        return _NO_ENVELOPE
    names = (properties.get("delivery_tag"), delivery.get("exchange"), delivery.get("routing_key"))
    if not all(isinstance(name, str) and len(name) <= _MAX_NAME for name in names) or not names[0]:
        return "its envelope has no delivery tag, exchange or routing key"
    for name in ("reply_to", "correlation_id", "body_encoding"):
        value = properties.get(name)
        if value is not None and not (isinstance(value, str) and len(value) <= _MAX_NAME):
            return f"its {name} is no short text"
    if not isinstance(payload.get("body", ""), str) or not isinstance(payload.get("headers") or {}, dict):
        return "its body is no text, or its headers are no object"
    return None


class Unacknowledged(stock.QoS):  # type: ignore[misc]
    """Kombu's record of unacknowledged messages. Removes one that cannot return to its queue.

    A message leaves the record even if Redis does not take its acknowledgement. kombu keeps it, Celery logs the error
    and goes on, and with a prefetch of 1 the worker never asks for a message again
    (https://github.com/celery/celery/issues/8030). Redis delivers the message once more, and our tasks may run twice.
    """

    def ack(self, delivery_tag: Any) -> None:
        """Acknowledge a message."""
        try:
            super().ack(delivery_tag)
        except BaseException:
            self._forget(delivery_tag)
            raise

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Drop a message, or return it to its queue."""
        try:
            super().reject(delivery_tag, requeue)
        except BaseException:
            self._forget(delivery_tag)
            raise

    def _forget(self, delivery_tag: Any) -> None:
        super(stock.QoS, self).ack(delivery_tag)  # counts it as settled in this process only

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Return a message to its queue."""
        try:
            super().restore_by_tag(tag, client, leftmost)
        except (TypeError, ValueError):  # not a message with its exchange and its routing key
            log.warning("message.refused", reason=_NO_ENVELOPE, place="unacknowledged")
            self._remove_from_indices(tag).execute()


class Channel(stock.Channel):  # type: ignore[misc]  # kombu has no types
    """Kombu's channel. Drops bodies and stored messages that it cannot read."""

    QoS = Unacknowledged

    def decode_body(self, body: Any, encoding: str | None = None) -> Any:
        """Return a message's body; b"", which is no task, if its encoding is wrong."""
        try:
            return super().decode_body(body, encoding)
        except (ValueError, TypeError, LookupError, AttributeError):  # an unknown encoding, or not this one
            return b""

    def _do_restore_message(self, payload: Any, exchange: Any, routing_key: Any, *rest: Any, **options: Any) -> None:
        problem = problem_of_envelope(payload)
        if problem is None and not (isinstance(exchange, str) and isinstance(routing_key, str)):
            problem = _NO_ENVELOPE
        if problem is None:
            super()._do_restore_message(payload, exchange, routing_key, *rest, **options)
        else:
            log.warning("message.refused", reason=problem, place="unacknowledged")


class Transport(stock.Transport):  # type: ignore[misc]
    """Kombu's transport. Delivers messages, and drops everything else."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        problem = problem_of_envelope(message)
        if problem is None:
            super()._deliver(message, queue)
        else:
            log.warning("message.refused", reason=problem)


class SentinelChannel(Channel, stock.SentinelChannel):  # type: ignore[misc]
    """The same for a broker behind Sentinels."""


class SentinelTransport(Transport, stock.SentinelTransport):  # type: ignore[misc]
    """The same for a broker behind Sentinels."""

    Channel = SentinelChannel


def drop_rubbish() -> None:
    """Have this process read messages from Redis by `Transport`, each of a bounded size."""
    stock.loads = load_envelope  # kombu calls it within large methods
    for scheme in ("redis", "rediss"):
        kombu.transport.TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
    kombu.transport.TRANSPORT_ALIASES["sentinel"] = f"{__name__}:SentinelTransport"


def bound_compression() -> None:
    """Have kombu unpack compressed bodies to the size of a message at most, and refuse kinds without such a bound."""
    kinds: dict[str, tuple[Callable[..., bytes], Callable[[], Any]]] = {
        "application/x-gzip": (zlib.compress, zlib.decompressobj),
        "application/x-bz2": (bz2.compress, bz2.BZ2Decompressor),
        "application/x-lzma": (lzma.compress, lzma.LZMADecompressor),
    }
    for content_type in list(compression.encoders()):
        compress, make = kinds.get(content_type, (None, None))
        compression.register(compress, _bounded(make), content_type)


def _bounded(make: Callable[[], Any] | None) -> Callable[[bytes], bytes]:
    def unpack(packed: bytes) -> bytes:
        if make is None:
            raise ValueError("this kind of compression is not taken")
        body: bytes = make().decompress(packed, MAX_MESSAGE_BYTES + 1)
        if len(body) > MAX_MESSAGE_BYTES:
            raise ValueError(f"it unpacks to over {MAX_MESSAGE_BYTES} bytes")
        return body

    return unpack


class RealtimeResults(RedisBackend):  # type: ignore[misc]  # celery has no types
    """Celery's Redis backend, with one round trip for a success in place of two. Stores and publishes the same.

    Celery reads first, so that nothing replaces a success. Here a success is written at once: each attempt has its own
    id, and either of two successes will do. Other states still read first.
    """

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **options: Any
    ) -> Any:
        if state != states.SUCCESS:
            return super()._store_result(task_id, result, state, traceback, request, **options)
        meta = self._get_result_meta(result, state, traceback, request)
        meta["task_id"] = task_id
        self.ensure(self._write, (self.get_key_for_task(task_id), orjson.dumps(meta)))
        return result

    @cached_property
    def _pipe(self) -> Pipe:
        return Pipe(self.client)

    def _write(self, key: bytes, payload: bytes) -> None:
        self._pipe.send([("SETEX", key, self.expires, payload), ("PUBLISH", key, payload)])


class SentinelResults(RealtimeResults, SentinelBackend):  # type: ignore[misc]
    """The same for a Redis behind Sentinels."""
