"""Consumers of a topic of Kafka, by librdkafka's mock cluster: what they share, acknowledge and tell of their lag."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from inference.settings import StreamSettings
from inference.streams.kafka_topic import KafkaTopic
from inference.streams.messages import Message
from tests.support.kafka_cluster import KafkaCluster
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Open = Callable[[str], KafkaTopic]


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaCluster]:
    with KafkaCluster() as cluster:
        yield cluster


@pytest.fixture
def consumer(kafka: KafkaCluster) -> Iterator[Open]:
    """Opens consumers of a topic."""
    with ExitStack() as opened:

        def open_one(topic: str) -> KafkaTopic:
            one = KafkaTopic(StreamSettings(stream=topic, url=f"kafka://{kafka.brokers}"), consumer="test")
            opened.callback(one.close)
            return one

        yield open_one


def read(consumer: KafkaTopic, count: int) -> list[Message]:
    """Read so many messages."""
    found: list[Message] = []

    def enough() -> bool:
        found.extend(consumer.read())
        return len(found) >= count

    wait_for(enough, f"{count} messages")
    return found


def test_the_lag_is_what_was_not_read_yet_and_its_age(kafka: KafkaCluster, consumer: Open) -> None:
    written_at = time.time() - 60
    for number in range(3000):
        kafka.producer.produce("lag", value=b"%d" % number, key="one", timestamp=int(written_at * 1000))
    assert kafka.producer.flush(20) == 0
    one = consumer("lag")
    seen = read(one, 1)
    assert len(seen) < 3000, "a read is bounded"
    lag = max(one.lag(), key=lambda lag: lag.messages or 0)
    assert lag.messages == 3000 - len(seen)
    assert 59 < lag.oldest_s < 120
    read(one, 3000 - len(seen))
    assert [(lag.messages, lag.oldest_s) for lag in one.lag()] == [(0, 0.0)] * 4


def test_the_next_consumer_begins_after_what_was_acknowledged(kafka: KafkaCluster, consumer: Open) -> None:
    kafka.send("begins", *(b"%d" % number for number in range(10)), key="one")
    one = consumer("begins")
    one.acknowledge(read(one, 10)[:4])
    one.close()
    assert [message.value for message in read(consumer("begins"), 6)] == [b"%d" % number for number in range(4, 10)]


def test_consumers_of_a_group_share_a_topic(kafka: KafkaCluster, consumer: Open) -> None:
    kafka.send("shared", b"first")
    one = consumer("shared")
    one.acknowledge(read(one, 1))
    other = consumer("shared")

    def both_have_parts() -> bool:
        one.read(), other.read()
        return min(len(one.lag()), len(other.lag())) > 0

    wait_for(both_have_parts, "a part for each")
    assert {lag.part for lag in one.lag()}.isdisjoint(lag.part for lag in other.lag())
    assert len(one.lag()) + len(other.lag()) == 4
