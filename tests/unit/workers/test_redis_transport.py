from __future__ import annotations

import logging

import pytest
from kombu import Connection, Exchange, Queue
from kombu.message import Message

from inference.redis.clients import Client
from tests.support.redis_server import RedisServer
from workers.redis_transport import Rubbish, Transport, load_envelope

log = logging.getLogger(__name__)


@pytest.mark.parametrize("verb", ["ack_log_error", "reject_log_error"])
def test_a_worker_takes_the_next_message_though_redis_did_not_take_the_end_of_the_last(
    redis_server: RedisServer, redis_client: Client, verb: str
) -> None:
    queue = Queue("work", Exchange("work", type="direct"), routing_key="work")
    patience = {"socket_timeout": 0.2, "socket_connect_timeout": 0.2}
    taken: list[Message] = []
    with Connection(redis_server.url(0), transport=Transport, transport_options=patience) as connection:
        channel = connection.channel()
        channel.basic_qos(0, 1, False)  # one message at a time, as workers take them
        with connection.Producer(channel) as producer:
            for number in (1, 2):
                producer.publish(number, exchange=queue.exchange, routing_key="work", declare=[queue])
        with connection.Consumer(queue, channel=channel, on_message=taken.append):
            connection.drain_events(timeout=10)
            redis_client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
            try:
                getattr(taken[0], verb)(log, connection.connection_errors)
            finally:
                redis_client.execute_command("CLIENT", "UNPAUSE")
            connection.drain_events(timeout=10)
    assert [message.payload for message in taken] == [1, 2]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"body": "é", "retries": 1}', {"body": "é", "retries": 1}),
        ('{"body": "\\ud800", "sent": Infinity}', {"body": "\ud800", "sent": float("inf")}),
    ],
    ids=["plain", "beyond the standard"],
)
def test_an_envelope_is_read_as_kombu_reads_it(text: str, found: dict[str, object]) -> None:
    assert load_envelope(text) == found


@pytest.mark.parametrize("text", ["[" * 5000, '{"body": ', "9" * 5000, ""])
def test_a_text_that_is_no_json_is_rubbish(text: str) -> None:
    assert isinstance(load_envelope(text), Rubbish)
