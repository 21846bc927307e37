"""How long the head of a queue has waited."""

from __future__ import annotations

import json

from inference.monitoring.queues import SENT_AT_HEADER, HeadAges, QueueHead


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_message_says_itself_since_when_it_waits():
    envelope = json.dumps({"headers": {"id": "a", SENT_AT_HEADER: 990.5}}).encode()
    assert HeadAges(Clock()).age_s("q", QueueHead.of_envelope(envelope)) == 9.5


def test_a_senders_clock_ahead_of_ours_gives_no_negative_age():
    assert HeadAges(Clock()).age_s("q", QueueHead("a", 1003.0)) == 0.0


def test_a_foreign_message_without_a_time_waits_since_it_was_first_seen():
    clock = Clock()
    ages = HeadAges(clock)
    assert ages.age_s("q", QueueHead("a", None)) == 0.0
    clock.now += 30
    assert ages.age_s("q", QueueHead("a", None)) == 30.0
    assert ages.age_s("q", QueueHead("b", None)) == 0.0
    assert ages.age_s("q", None) is None


def test_what_is_no_task_message_has_no_time_and_breaks_nothing():
    for envelope in (b"\xff", b"[]", b"{}", b'{"headers": 3}', b'{"headers": {"forecache_sent_at": "x"}}'):
        assert QueueHead.of_envelope(envelope).sent_at is None
