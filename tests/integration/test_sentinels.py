"""Clients of Redis behind Sentinels: failovers by command, by death and by silence; what `doctor` says of them."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli.doctor.findings import Finding, Status
from app.cli.doctor.sentinels import check_sentinels
from inference.errors import StoreUnavailable
from inference.redis.clients import REQUEST, AsyncClient, Client, open_async_client, open_client
from inference.redis.replication import Replication
from inference.settings import Settings
from tests.support.proxies import moving_server
from tests.support.redis_server import EACH_SERVER, RedisServer, find_redis_binary
from tests.support.sentinel_group import SentinelGroup, fail_over
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module", params=EACH_SERVER)
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelGroup]:
    folder, binary = tmp_path_factory.mktemp("sentinels"), find_redis_binary(request.param)
    passwords = {"password": "hush-data-1", "sentinel_password": "hush-sentinel-2"}
    with SentinelGroup(folder, binary=binary, **passwords) as group:
        yield group


@pytest.fixture(params=EACH_SERVER)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
    """A primary and a replica without Sentinels."""
    binary = find_redis_binary(request.param)
    primary, replica = (RedisServer(tmp_path / name, binary=binary) for name in ("primary", "replica"))
    try:
        with Client.from_url(primary.start().url()) as client:
            client.config_set("repl-diskless-sync-delay", 0)
        with Client.from_url(replica.start().url()) as client:
            client.replicaof("127.0.0.1", primary.port)
            wait_for(lambda: client.info("replication")["master_link_status"] == "up", "the replica", 10)
        yield primary, replica
    finally:
        for server in (primary, replica):
            if server.process and server.process.poll() is None:
                server.process.send_signal(signal.SIGCONT)
            server.stop()


def writes(client: Client) -> bool:
    """Whether all three ways to write work."""
    try:
        client.set("a", 1)
        client.exchange([("SET", "b", "2"), ("GET", "b")])
        client.send([("SET", "c", "3")])
    except StoreUnavailable:
        return False
    return True


async def writes_async(client: AsyncClient) -> bool:
    try:
        await client.set("a", 1)
        await client.exchange([("SET", "b", "2"), ("GET", "b")])
    except StoreUnavailable:
        return False
    return True


async def all_write(client: Client, async_client: AsyncClient) -> None:
    end = time.monotonic() + 60
    while not (writes(client) and await writes_async(async_client)):
        assert time.monotonic() < end, "no write for a minute"
        await asyncio.sleep(0.05)


async def test_clients_and_their_pipes_follow_every_kind_of_failover(group: SentinelGroup) -> None:
    with open_client(group.url(), REQUEST) as client:
        async with open_async_client(group.url(), REQUEST) as async_client:
            await all_write(client, async_client)
            # the primary falls silent, and wakes up as one that believes to be the primary still
            silent = group.primary
            assert silent.process
            silent.process.send_signal(signal.SIGSTOP)
            try:
                await asyncio.to_thread(group.wait_failover, silent)
                await all_write(client, async_client)
            finally:
                silent.process.send_signal(signal.SIGCONT)
            await all_write(client, async_client)
            await asyncio.to_thread(wait_for, lambda: group.replicas() == 1, "the old primary as a replica", 30)
            # by command, for maintenance
            before = group.primary
            with group.sentinel(group.sentinel_ports[0]) as sentinel:
                await asyncio.to_thread(wait_for, lambda: fail_over(sentinel), "a failover by command", 30)
            await asyncio.to_thread(group.wait_failover, before)
            await all_write(client, async_client)
            await asyncio.to_thread(wait_for, lambda: group.replicas() == 1, "the old primary as a replica", 30)


def test_a_demoted_primary_loses_our_connections_so_that_an_address_that_follows_the_primary_works(
    pair: tuple[RedisServer, RedisServer],
) -> None:
    primary, replica = pair
    with moving_server(primary.port) as address:

        async def demote_under_connections() -> None:
            url = f"redis://127.0.0.1:{address.port}/0"
            with open_client(url, REQUEST) as client:
                async with open_async_client(url, REQUEST) as async_client:
                    await all_write(client, async_client)
                    with Client.from_url(replica.url()) as new:
                        new.replicaof("NO", "ONE")
                    with Client.from_url(primary.url()) as old:
                        old.replicaof("127.0.0.1", replica.port)
                    address.move(replica.port)
                    await all_write(client, async_client)

        asyncio.run(demote_under_connections())


async def test_a_write_is_confirmed_only_when_a_replica_has_it(pair: tuple[RedisServer, RedisServer]) -> None:
    primary, replica = pair
    assert replica.process
    async with open_async_client(primary.url(), REQUEST) as client:
        replica.process.send_signal(signal.SIGSTOP)
        threading.Timer(0.2, replica.process.send_signal, (signal.SIGCONT,)).start()
        await client.set("told", "stored")
        while not await client.await_replicas("note", 500):
            pass  # a busy machine wakes the replica late
        with Client.from_url(replica.url()) as copy:
            assert copy.get("told") == b"stored"


async def test_without_a_replica_writes_wait_once_and_go_on(
    redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    at = [100.0]
    async with open_async_client(redis_server.url(), REQUEST) as client:
        replication = Replication(client, "note", clock=lambda: at[0])
        for _ in range(20):
            await replication.reach()
        at[0] += 60
        await replication.reach()
    assert capsys.readouterr().out.count("redis.not_replicated") == 1


async def test_a_replica_that_was_slow_for_a_moment_confirms_the_next_writes(
    pair: tuple[RedisServer, RedisServer], capsys: pytest.CaptureFixture[str]
) -> None:
    primary, replica = pair
    assert replica.process
    async with open_async_client(primary.url(), REQUEST) as client:
        # no time passes: all this is right after the wait in vain
        replication = Replication(client, "note", clock=lambda: 100.0)
        replica.process.send_signal(signal.SIGSTOP)
        try:
            await replication.reach()
        finally:
            replica.process.send_signal(signal.SIGCONT)
        for number in range(500):  # a busy machine wakes the replica late
            await client.set("told", f"{number}")
            await replication.reach()
            if "redis.replicated_again" in capsys.readouterr().out:
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("no write was confirmed")
        with Client.from_url(replica.url()) as copy:
            assert copy.get("told") == f"{number}".encode()


def test_without_sentinels_an_outage_names_none_of_their_clients() -> None:
    with (
        open_client("redis+sentinel://:hush@127.0.0.1:1,127.0.0.1:2/cache/0", REQUEST) as client,
        pytest.raises(StoreUnavailable) as outage,
    ):
        client.get("a")
    assert outage.value.message == "Redis did not answer: no Sentinel names a working primary called cache"


def wrong(url: str) -> list[tuple[Status, str]]:
    settings = Settings.model_validate({"redis": {"url": url, "cache_url": url}})
    found: list[Finding] = check_sentinels(settings)
    assert "hush" not in str(found)
    return [(one.status, one.detail) for one in found if one.status is not Status.OK]


def test_doctor_says_what_is_wrong_with_sentinels(group: SentinelGroup) -> None:
    url, primary = group.url(), group.primary
    # a Sentinel takes a moment to see that a revived server works again
    wait_for(lambda: not wrong(url), "a group without fault", 30, evidence=lambda: str(wrong(url)))
    assert (
        wrong(url.replace("/primary/", "/mymaster/"))
        == [(Status.ERROR, "it knows no primary called mymaster; it knows: primary")] * 3
    )
    assert wrong(url.replace("sentinel-2", "sentinel-9")) == [(Status.ERROR, "it refuses the user or the password")] * 3
    tls = url.replace("redis+", "rediss+") + "&ssl_cert_reqs=none"
    assert wrong(tls) == [(Status.ERROR, "it does not answer")] * 3
    no_sentinel = f"redis+sentinel://127.0.0.1:{primary.port}/primary/0?sentinel_password=hush-data-1"
    assert wrong(no_sentinel) == [(Status.ERROR, "it is no Sentinel")]
    one_of_two = url.replace(f":{group.sentinel_ports[0]}", ":1", 1)
    assert wrong(one_of_two) == [(Status.WARNING, "it does not answer")]
    # the last of this module: two of three Sentinels die, and the replica
    replica = next(server for server in group.servers if server is not primary)
    replica.stop()
    for process in group.sentinels[:2]:
        process.kill()
        process.wait(5)

    def details() -> str:
        return " ".join(detail for _, detail in wrong(url))

    wait_for(lambda: "could elect no primary" in details() and "no working replica" in details(), "both to be told", 20)
    assert f"they announce 127.0.0.1:{replica.port} as replica, which this host cannot reach" in details()
