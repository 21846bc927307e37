"""Workers' signs of life in a real Redis."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from inference.errors import StoreUnavailable
from inference.monitoring.presence import Presence, WorkerBeat
from inference.redis.clients import Client
from inference.redis.keys import Keys

pytestmark = pytest.mark.integration

KEYS = Keys("t")
WORKER = WorkerBeat(
    name="realtime@host", process="realtime", queues=("realtime", "fast"), host="host", pid=7, release="1.0",
    started_at=1000.0, ready=True, versions={"delay": (1, 2)},
)  # fmt: skip


def test_a_worker_is_alive_on_each_of_its_queues_with_all_that_it_said(each_redis_client: Client) -> None:
    presence = Presence(each_redis_client, KEYS)
    presence.beat(replace(WORKER, ready=False))
    presence.beat(WORKER)
    for queue in ("realtime", "fast"):
        assert presence.roster(queue).alive == (WORKER,)
    assert presence.roster("batch").alive == ()


def test_workers_that_share_a_name_are_told_apart(redis_client: Client) -> None:
    presence = Presence(redis_client, KEYS)
    twin = replace(WORKER, pid=8, queues=("batch",))
    presence.beat(WORKER)
    presence.beat(twin)
    assert presence.roster("realtime").alive == (WORKER,)
    assert presence.roster("batch").alive == (twin,)


def test_a_worker_that_falls_silent_is_gone_and_remembered_and_one_that_leaves_is_not(
    redis_client: Client,
) -> None:
    presence = Presence(redis_client, KEYS, gone_after_s=1)
    presence.beat(WORKER)
    presence.beat(replace(WORKER, pid=8))
    presence.leave(replace(WORKER, pid=8))
    assert presence.roster("realtime").gone == {}
    time.sleep(1.1)
    roster = presence.roster("realtime")
    assert roster.alive == ()
    assert list(roster.gone) == ["realtime@host pid 7"]
    assert 1 <= roster.gone["realtime@host pid 7"] < 10


def test_nothing_of_a_worker_stays_for_good(redis_client: Client) -> None:
    Presence(redis_client, KEYS).beat(WORKER)
    assert all(redis_client.ttl(key) > 0 for key in redis_client.keys("t:*"))


def test_an_outage_is_no_empty_roster() -> None:
    presence = Presence(Client(port=1, retry=None), KEYS)
    for call in (lambda: presence.roster("realtime"), lambda: presence.beat(WORKER), lambda: presence.leave(WORKER)):
        with pytest.raises(StoreUnavailable):
            call()
