"""What holds of the parts of any deployment, whichever door asks for them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from inference.deployment import Deployment
from inference.errors import BrokerUnavailable
from inference.redis.clients import REQUEST, WORKER, Patience, open_async_client, open_client
from inference.settings import Settings

URL = "redis://127.0.0.1:1/3"
SETTINGS = Settings.model_validate({"redis": {"cache_url": URL}})


class FakeBroker(SimpleNamespace):
    """A broker that takes its time to open, so that all threads meet in it."""

    def __init__(self, opened: list[Any]) -> None:
        opened.append(self)
        for _ in range(100):
            time.sleep(0)  # lets the next thread go on
        super().__init__(is_closed=0)

    def close(self) -> None:
        self.is_closed += 1


def test_threads_that_ask_at_the_same_moment_get_one_part() -> None:
    opened: list[Any] = []
    with Deployment(SETTINGS, WORKER, lambda _: FakeBroker(opened)) as deployment:
        with ThreadPoolExecutor(8) as threads:
            found = set(map(id, threads.map(lambda _: deployment.broker, range(8))))
        assert found == {id(broker) for broker in opened}
        assert len(opened) == 1
    assert opened[0].is_closed == 1


def test_closing_twice_closes_once_and_a_part_that_nobody_asked_for_is_never_opened() -> None:
    opened: list[Any] = []
    deployment = Deployment(SETTINGS, WORKER, lambda _: FakeBroker(opened))
    deployment.close()
    assert opened == []
    _ = deployment.broker
    deployment.close()
    deployment.close()
    assert [broker.is_closed for broker in opened] == [1]


def test_a_process_without_a_broker_has_tables_and_no_runs() -> None:
    with Deployment(SETTINGS, WORKER) as deployment:
        assert deployment.predictions("m") is deployment.predictions("m")
        with pytest.raises(BrokerUnavailable, match="has no broker"):
            _ = deployment.runs


@pytest.mark.parametrize(
    ("patience", "connects_within_s"), [(REQUEST, 1.0), (WORKER, 5.0), (Patience(5.0), 5.0), (Patience(0.5), 0.5)]
)
@pytest.mark.parametrize("open_one", [open_client, open_async_client])
def test_a_client_waits_as_long_as_its_patience_says_and_sends_nothing_twice(
    open_one: Any, patience: Patience, connects_within_s: float
) -> None:
    connection = open_one(URL, patience).connection_pool.make_connection()
    assert (connection.socket_timeout, connection.socket_connect_timeout) == (patience.timeout_s, connects_within_s)
    assert connection.health_check_interval == patience.check_after_s
    assert connection.retry.get_retries() == 0
    assert connection.db == 3


def test_a_deployment_is_as_patient_as_the_door_that_made_it() -> None:
    for patience in (REQUEST, WORKER):
        with Deployment(SETTINGS, patience) as deployment:
            assert deployment.cache.connection_pool.connection_kwargs["socket_timeout"] == patience.timeout_s
            waits_s = deployment.async_cache().connection_pool.connection_kwargs["socket_timeout"]
            assert waits_s == REQUEST.timeout_s
