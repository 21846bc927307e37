"""A consumer of a Redis stream, on each Redis that is supported: nothing is lost, whatever becomes of its group."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from inference.redis.clients import Client
from inference.streams import redis_stream
from inference.streams.messages import Message, StreamUnavailable
from inference.streams.redis_stream import RedisStream

STREAM = "in"


@pytest.fixture
def client(each_redis_client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    each_redis_client.flushdb()
    monkeypatch.setattr(redis_stream, "_WAIT_MS", 1)
    return each_redis_client


def consumer(client: Client, name: str = "one", *, start: str = "earliest") -> RedisStream:
    return RedisStream(client, stream=STREAM, group="g", start=start, consumer=name, place="here")


def send(client: Client, *values: str) -> list[str]:
    return [client.xadd(STREAM, {"update": value}).decode() for value in values]  # type: ignore[union-attr]


def values(messages: Sequence[Message]) -> list[bytes | None]:
    return [message.value for message in messages]


def test_what_was_written_before_the_group_is_read_too_unless_it_starts_at_the_end(client: Client) -> None:
    send(client, "a", "b")
    assert values(consumer(client).read()) == [b"a", b"b"]
    late = RedisStream(client, stream=STREAM, group="late", start="latest", consumer="one", place="here")
    assert values(late.read()) == []


def test_a_consumer_that_begins_again_reads_first_what_it_had_in_hand(client: Client) -> None:
    send(client, "a", "b")
    first = consumer(client)
    first.acknowledge(first.read()[:1])
    send(client, "c")
    again = consumer(client)
    assert values(again.read()) == [b"b"]
    assert values(again.read()) == [b"c"]


def test_messages_of_a_consumer_that_is_gone_go_to_another(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    send(client, "a", "b")
    consumer(client, "gone").read()
    other = consumer(client, "other")
    assert values(other.read()) == [], "it may still be at work"
    monkeypatch.setattr(redis_stream, "CLAIM_AFTER_S", 0.0)
    monkeypatch.setattr(redis_stream, "_LOOK_EVERY_S", 0.0)
    claimed = other.read()
    assert values(claimed) == [b"a", b"b"]
    other.acknowledge(claimed)
    assert client.xpending(STREAM, "g")["pending"] == 0  # type: ignore[index,call-overload]


def test_a_message_that_was_trimmed_in_between_is_told_and_waits_no_longer(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(client, "a", "b")
    consumer(client, "gone").read()
    client.xtrim(STREAM, maxlen=1, approximate=False)
    monkeypatch.setattr(redis_stream, "CLAIM_AFTER_S", 0.0)
    monkeypatch.setattr(redis_stream, "_LOOK_EVERY_S", 0.0)
    other, found = consumer(client, "other"), list[Message]()
    for _ in range(4):
        found += (read := other.read())
        if read:
            other.acknowledge(read)
    assert sorted(values(found), key=str) == sorted([None, b"b"], key=str)
    assert all("lost" in message.fault for message in found if message.value is None)
    assert client.xpending(STREAM, "g")["pending"] == 0  # type: ignore[index,call-overload]


def test_a_group_that_was_deleted_is_made_anew_from_the_beginning(client: Client) -> None:
    send(client, "a")
    one = consumer(client, start="latest")
    one.read()
    send(client, "b")
    client.xgroup_destroy(STREAM, "g")
    found = one.read()
    assert values(found) == [b"a", b"b"], "event times keep older values from coming back"
    one.acknowledge(found)
    assert values(one.read()) == []


@pytest.mark.parametrize(
    ("key", "says"), [("nothing", "there is no stream 'in' in Redis at here"), ("text", "is no stream: correct stream")]
)
def test_what_is_no_stream_is_named(client: Client, key: str, says: str) -> None:
    if key == "text":
        client.set(STREAM, "text")
    with pytest.raises(StreamUnavailable, match=says):
        consumer(client).read()


def test_the_lag_is_that_of_the_oldest_message_which_is_not_acknowledged(client: Client) -> None:
    for age_s in (90, 60):
        client.xadd(STREAM, {"update": "a"}, id=f"{int((client.now() - age_s) * 1000)}-0")
    send(client, "b")
    one = consumer(client)
    one._count = 1
    one.acknowledge(one.read())
    assert 59 < one.lag()[0].oldest_s < 90, "nobody has read it"
    one._count = 1
    read = one.read()
    [lag] = one.lag()
    assert 59 < lag.oldest_s < 90
    assert lag.messages in (2, None), "Redis 6.2 does not tell"
    one.acknowledge(read)
    [lag] = one.lag()
    assert lag.oldest_s < 30
    one.acknowledge(one.read())
    assert one.lag()[0].oldest_s == 0


def test_messages_of_one_millisecond_stay_in_order(client: Client) -> None:
    client.xadd(STREAM, {"update": "a"}, id="1700000000000-0")
    client.xadd(STREAM, {"update": "b"}, id="1700000000000-1")
    first, second = consumer(client).read()
    assert 1700000000.0 == first.written_at < second.written_at < 1700000000.001


def test_reads_become_smaller_where_messages_are_large(client: Client) -> None:
    for _ in range(20):
        send(client, "x" * (1 << 20))
    one = consumer(client)
    assert len(one.read()) == 20, "the first read is small anyway"
    for _ in range(20):
        send(client, "x" * (1 << 20))
    assert len(one.read()) == 16
    assert len(one.read()) == 4


def test_names_of_consumers_that_are_long_gone_are_removed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    send(client, "a")
    gone = consumer(client, "gone")
    gone.acknowledge(gone.read())
    one = consumer(client)
    one.read()
    monkeypatch.setattr(redis_stream, "_FORGET_CONSUMER_S", -1.0)
    monkeypatch.setattr(redis_stream, "_LOOK_EVERY_S", 0.0)
    one.read()
    names = {each["name"] for each in client.xinfo_consumers(STREAM, "g")}  # type: ignore[union-attr]
    assert b"gone" not in names
