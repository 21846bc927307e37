"""Replies of a Redis that mean "not now": a worker lives through them, says meanwhile that it is deaf, and recovers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from kombu.transport.redis import Transport
from redis.connection import DefaultParser

from inference.errors import BrokerUnavailable
from inference.monitoring.presence import Roster
from inference.redis.clients import AsyncClient, Client
from inference.settings import MAINTENANCE_QUEUE, CelerySettings, RedisSettings, Settings
from tasks.celery_app import broker_errors, make_celery
from tasks.dispatch.sender import Sender
from tasks.dispatch.waiter import ResultWaiter
from tasks.queues import Queues
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.stack import Stack
from tests.support.waiting import wait_for

NOT_NOW = (
    "READONLY You can't write against a read only replica.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "CLUSTERDOWN The cluster is down",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "NOREPLICAS Not enough good replicas to write.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "NOPERM this user has no permissions to run the 'brpop' command",
    "ERR max number of clients reached",
    # of servers that answer as Redis does, and of proxies before them
    "ERR server closed connection",
    "ERR unhandled upstream error: no upstream host",
)


def settings_of(url: str) -> Settings:
    return Settings(redis=RedisSettings(url=url, cache_url=url), celery=CelerySettings())  # type: ignore[arg-type]


@pytest.mark.parametrize("reply", NOT_NOW, ids=lambda reply: reply.split()[0])
def test_each_of_them_makes_a_worker_reconnect_and_a_result_be_written_again(reply: str) -> None:
    conf = make_celery(settings_of("redis://h/0")).conf
    error = DefaultParser.parse_error(reply)
    recoverable = Transport.connection_errors + (Transport.channel_errors if conf.broker_channel_error_retry else ())
    assert isinstance(error, recoverable)
    assert isinstance(error, make_celery(settings_of("redis://h/0")).backend.connection_errors)


@pytest.mark.parametrize(
    "error", [redis.ReadOnlyError("READONLY"), KeyError("no transport"), ValueError("x"), OSError(), TypeError()]
)
def test_whatever_a_brokers_client_raises_is_an_outage_of_the_broker(error: Exception) -> None:
    with pytest.raises(BrokerUnavailable, match=r"did not take a message: \S"), broker_errors("a message"):
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyError, ImportError, redis.ReadOnlyError, OSError])
def test_a_request_whose_message_no_broker_takes_is_never_told_as_the_models_fault(error: type[Exception]) -> None:
    class Broken:
        def send_task(self, *_: Any, **__: Any) -> None:
            raise error("sesame")

    sender = Sender(Broken(), name="test")  # type: ignore[arg-type]
    with pytest.raises(BrokerUnavailable) as caught:
        sender._send("t", {}, {"task_id": "1"}, None)
    sender.close()
    assert "sesame" not in caught.value.message


def test_a_broker_that_is_read_but_takes_no_message_counts_as_away(
    redis_server: RedisServer, redis_client: Client
) -> None:
    settings = settings_of(redis_server.url())
    assert Queues(settings).read()[0].depth == 0
    assert redis_client.keys("*") == []
    for cause, undo in ((_fill, _empty), (_follow_nobody, _lead)):
        cause(redis_client)
        try:
            with pytest.raises(BrokerUnavailable, match="takes no messages"):
                Queues(settings).read()
        finally:
            undo(redis_client)
    assert Queues(settings).read()[0].depth == 0


def test_what_is_no_result_of_a_task_does_not_end_the_hearing_of_results(
    redis_server: RedisServer, redis_client: Client
) -> None:
    async def hear() -> object:
        async with AsyncClient.from_url(redis_server.url()) as client:
            waiter = ResultWaiter(client, lambda task_id: f"meta-{task_id}".encode(), id_prefix="a-")
            waiter.start()
            await waiter.subscribed(30)
            with waiter.expecting("a-1"):
                for data in (b"\xff", b"[]", b"{}", b'"x"', b'{"status": 3}', b'{"status": "SUCCESS", "result": 1}'):
                    await client.publish("meta-a-1", data)
                payload = await waiter.result("a-1", timeout_s=30)
            await waiter.close()
            return payload["result"]

    assert redis_client.ping()
    assert asyncio.run(hear()) == 1


def _fill(server: Client) -> None:
    server.config_set("maxmemory", 1)


def _empty(server: Client) -> None:
    server.config_set("maxmemory", 0)


def _follow_nobody(server: Client) -> None:
    server.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))


def _lead(server: Client) -> None:
    server.execute_command("REPLICAOF", "NO", "ONE")


def _hide_stale_data(server: Client) -> None:
    server.config_set("replica-serve-stale-data", "no")
    _follow_nobody(server)


def _show_stale_data(server: Client) -> None:
    server.config_set("replica-serve-stale-data", "yes")
    _lead(server)


def _want_replicas(server: Client) -> None:
    server.config_set("min-replicas-to-write", 1)
    server.client_kill_filter(_type="normal", skipme=True)


def _want_none(server: Client) -> None:
    server.config_set("min-replicas-to-write", 0)


def _rotate_password(server: Client) -> None:
    server.execute_command("ACL", "SETUSER", "default", "resetpass", ">other")
    server.client_kill_filter(_type="normal", skipme=True)


def _give_it_back(server: Client) -> None:
    server.execute_command("ACL", "SETUSER", "default", "nopass")


def _allow_nothing(server: Client) -> None:
    server.execute_command("ACL", "SETUSER", "default", "-brpop")


def _allow_all(server: Client) -> None:
    server.execute_command("ACL", "SETUSER", "default", "+brpop")


def _let_nobody_in(server: Client) -> None:
    server.config_set("maxclients", 1)
    server.client_kill_filter(_type="normal", skipme=True)
    server.client_kill_filter(_type="pubsub", skipme=True)


def _let_all_in(server: Client) -> None:
    server.config_set("maxclients", 10000)


@dataclass
class Room:
    stack: Stack
    server: Client

    def roster(self) -> Roster:
        return self.stack.deployment.presence.roster(MAINTENANCE_QUEUE)

    def is_deaf(self) -> bool:
        return any(worker.deaf and not worker.ready for worker in self.roster().alive)

    def answers(self) -> bool:
        """Whether the worker takes a task and says that it is ready."""
        application = make_celery(self.stack.settings)
        result = application.send_task("forecache.start_run", args=("nobody",))
        return bool(result.get(timeout=60)["error"]) and any(worker.ready for worker in self.roster().alive)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    folder: Path = tmp_path_factory.mktemp("not-now")
    cache = RedisServer(folder / "cache")
    with Stack(folder, "", cache_url=cache.url(1)) as stack:
        cache.start()
        try:
            stack.start("maintenance")
            # its one connection is open before the server lets nobody in any more
            with Client(port=stack.redis.port, single_connection_client=True) as server:
                room = Room(stack, server)
                wait_for(lambda: any(worker.ready for worker in room.roster().alive), "the worker")
                yield room
                stack.stop("maintenance", signal.SIGTERM)
        finally:
            cache.stop()


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("cause", "undo"),
    [
        (_follow_nobody, _lead),
        (_hide_stale_data, _show_stale_data),
        (_want_replicas, _want_none),
        (_rotate_password, _give_it_back),
        (_allow_nothing, _allow_all),
        (_let_nobody_in, _let_all_in),
    ],
    ids=["replica", "master-down", "no-replicas", "password", "permission", "max-clients"],
)
def test_a_worker_lives_through_it_and_takes_tasks_again(
    room: Room, cause: Callable[[Client], None], undo: Callable[[Client], None]
) -> None:
    worker = room.stack.processes["maintenance"]
    cause(room.server)
    try:
        wait_for(room.is_deaf, "word that the worker is deaf", 40)
        assert worker.poll() is None
    finally:
        undo(room.server)
    wait_for(room.answers, "the worker", 40)
    assert worker.poll() is None
    before, traceback, after = room.stack.own_log("maintenance").partition("Traceback")
    assert not traceback, before[-1000:] + traceback + after[:3000]
