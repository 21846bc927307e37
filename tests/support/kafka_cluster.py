"""A Kafka for tests: librdkafka's mock cluster, which speaks Kafka's protocol, in a process of its own.

`python kafka_cluster.py`: prints the brokers, and serves until its input ends. Topics appear when they are written to.
"""

from __future__ import annotations

import subprocess
import sys

from confluent_kafka import Producer


class KafkaCluster:
    """One broker; each topic has four partitions."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout
        self.brokers = self._process.stdout.readline().decode().strip()
        self.producer = Producer({"bootstrap.servers": self.brokers, "linger.ms": 0, "log_level": 2})

    def __enter__(self) -> KafkaCluster:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def send(self, topic: str, *messages: bytes | None, key: str | None = None) -> None:
        """Write messages and wait until the broker has them. Those of one key stay in order."""
        for message in messages:
            self.producer.produce(topic, value=message, key=key)
        assert self.producer.flush(20) == 0


def _serve() -> None:
    producer = Producer({"test.mock.num.brokers": 1})
    brokers = producer.list_topics(timeout=20).brokers.values()
    sys.stdout.write(",".join(f"{one.host}:{one.port}" for one in brokers) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    _serve()
