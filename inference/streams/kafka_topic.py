"""Consumes a topic of Kafka as a member of a consumer group. Only this module imports confluent-kafka.

Offsets are committed once a batch is stored. Whoever gets a partition begins there, so what was not stored comes again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, TopicPartition

from inference.logs import get_logger
from inference.settings import StreamSettings
from inference.streams.messages import Lag, Message, StreamUnavailable

log = get_logger(__name__)

MOST_MESSAGES = 2000
_WAIT_S = 1.0
#: for the brokers to tell of a topic, or to take an offset
_ANSWER_S = 5.0
_NO_TOPIC = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
#: no faults: the end of a partition, and a member that was away for long, which joins again
_PASSING = (KafkaError._PARTITION_EOF, KafkaError._MAX_POLL_EXCEEDED)
_DEFAULTS = {
    # the partitions of a listener that was killed go to the others after this
    "session.timeout.ms": 10_000,
    "heartbeat.interval.ms": 2_000,
    # messages that wait in memory
    "queued.max.messages.kbytes": 16_384,
    "topic.metadata.refresh.interval.ms": 10_000,
    # below, a broker waits up to half a second for more bytes
    "fetch.wait.max.ms": 20,
    # errors come by the callback
    "log_level": 2,
}


class KafkaTopic:
    """A consumer of a topic; see `Stream`. Raises StreamUnavailable if there is no such topic, or no answer.

    `consumer`: its name at the brokers.
    """

    def __init__(self, settings: StreamSettings, *, consumer: str) -> None:
        self._brokers, self._topic = settings.brokers or "", settings.stream
        self._error: KafkaError | None = None
        self._held: list[Any] = []
        #: partition → when its last message was written
        self._seen_at: dict[int, float] = {}
        self._consumer = Consumer(self._configuration(settings, consumer))
        try:
            self._require_topic()
            self._consumer.subscribe([self._topic])
        except BaseException:
            self._consumer.close()
            raise

    def read(self) -> Sequence[Message]:
        """See `Stream.read`."""
        found, self._held = self._held, []
        try:
            first = None if found else self._consumer.poll(_WAIT_S)
            if first is not None:
                # waits for nothing: a lone message is read at once
                found = [first, *self._consumer.consume(MOST_MESSAGES - 1, 0)]
        except KafkaException as error:
            raise self._fault(error.args[0]) from error
        messages = [self._message(one) for one in found if self._is_message(one)]
        last, self._error = self._error, None
        if not messages and last is not None:
            raise self._fault(last)
        return messages

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """See `Stream.acknowledge`. Leaves out partitions that have gone to another member, which reads them again."""
        reached: dict[int, int] = {}
        for message in messages:
            partition, _, offset = message.id.partition(":")
            reached[int(partition)] = int(offset) + 1
        own = {one.partition for one in self._consumer.assignment()}
        offsets = [TopicPartition(self._topic, part, offset) for part, offset in reached.items() if part in own]
        try:
            if offsets:
                self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            raise self._fault(error.args[0]) from error

    def stay(self) -> None:
        """See `Stream.stay`."""
        try:
            assigned = self._consumer.assignment()
            self._consumer.pause(assigned)
            one = self._consumer.poll(0)
            if one is not None:
                self._held.append(one)
            self._consumer.resume(assigned)
        except KafkaException as error:
            log.debug("stream.stay_failed", error=str(error))

    def lag(self) -> Sequence[Lag]:
        """See `Stream.lag`. The oldest message is about as old as the last one that was read."""
        lags = []
        try:
            for at in self._consumer.position(self._consumer.assignment()):
                _, end = self._consumer.get_watermark_offsets(at, cached=True)
                behind = max(0, end - at.offset) if at.offset >= 0 else 0
                waits_s = time.time() - self._seen_at.get(at.partition, time.time()) if behind else 0.0
                lags.append(Lag(str(at.partition), behind, max(0.0, waits_s)))
        except KafkaException as error:
            raise self._fault(error.args[0]) from error
        return lags

    def close(self) -> None:
        """See `Stream.close`."""
        self._consumer.close()

    def _configuration(self, settings: StreamSettings, consumer: str) -> dict[str, Any]:
        own: dict[str, Any] = {
            "bootstrap.servers": self._brokers,
            "client.id": consumer,
            "group.id": settings.group,
            "auto.offset.reset": settings.start,
            "enable.auto.commit": False,
            "allow.auto.create.topics": False,
            "error_cb": self._note,
        }
        if settings.password is not None:
            own["sasl.password"] = settings.password.get_secret_value()
        return {**_DEFAULTS, **settings.options, **own}

    def _note(self, error: KafkaError) -> None:
        self._error = error

    def _require_topic(self) -> None:
        try:
            found = self._consumer.list_topics(self._topic, timeout=_ANSWER_S).topics.get(self._topic)
        except KafkaException as error:
            raise self._fault(self._error or error.args[0]) from error
        if found is None or found.error is not None:
            raise self._fault(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART) if found is None else found.error)

    def _is_message(self, one: Any) -> bool:
        error = one.error()
        if error is None:
            return True
        if error.code() not in _PASSING:
            self._error = error
        return False

    def _message(self, one: Any) -> Message:
        kind, milliseconds = one.timestamp()
        written_at = time.time() if kind == TIMESTAMP_NOT_AVAILABLE else milliseconds / 1000
        self._seen_at[one.partition()] = written_at
        return Message(f"{one.partition()}:{one.offset()}", one.value(), written_at, one.key())

    def _fault(self, error: KafkaError) -> StreamUnavailable:
        if error.code() in _NO_TOPIC:
            why = f"there is no topic {self._topic!r} in Kafka at {self._brokers}: create it, or correct stream"
        else:
            why = f"topic {self._topic!r} in Kafka at {self._brokers}: {error.str()}"
        return StreamUnavailable(why, field="stream")
