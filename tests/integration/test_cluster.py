"""A table over a Redis Cluster whose slots move and whose nodes are lost; clusters that cannot be used."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from inference.errors import StoreUnavailable
from inference.redis.clients import REQUEST, WORKER, Client, open_async_client, open_client
from inference.redis.cluster import slot_of
from inference.redis.keys import Keys, TableKind
from inference.redis.replication import Replication
from inference.schema import DType, TensorSpec
from inference.settings.processes import CelerySettings, RedisSettings
from inference.store import AsyncTableReader, Manifest, Origin, Table
from tests.support.redis_cluster import ClusterNode, RedisCluster
from tests.support.redis_server import RedisServer
from tests.support.stack import ROOT
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

PRICE = (TensorSpec("price", DType.FLOAT32),)
ROWS = 600
TAG = "{t}"
KEYS = Keys(TAG).table(TableKind.PREDICTIONS, "m")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@dataclass
class Store:
    """One table, and its generations; row i of each holds i plus an offset."""

    client: Client
    table: Table

    def write(self, offset: float) -> Manifest:
        manifest = self.table.generations.begin(
            PRICE, rows_expected=ROWS, model_version=1, contract_hash="c", keep_s=3600
        )
        ids = pa.array([f"e{i}" for i in range(ROWS)])
        block = {"price": np.arange(ROWS, dtype=np.float32) + np.float32(offset)}
        self.table.generations.write(manifest, ids, block, np.zeros(ROWS))
        return manifest

    def publish(self, offset: float) -> Manifest:
        manifest = self.write(offset)
        self.table.generations.publish(manifest.number)
        return manifest

    def upsert(self, number: int, value: float) -> None:
        self.table.overlay.upsert(
            [f"e{number}"], PRICE, {"price": np.array([value], np.float32)}, as_of=np.array([9e8]), computed_at=1e9,
            model_version=0, origin=Origin.REALTIME, keep_s=3600,
        )  # fmt: skip

    def offsets(self) -> set[float | None]:
        """What the rows hold beyond their numbers; None for a row that is missed."""
        entries = self.table.read([f"e{i}" for i in range(ROWS)])
        return {None if entry is None else entry.values["price"] - i for i, entry in enumerate(entries)}


@pytest.fixture
def store(cluster: RedisCluster) -> Iterator[Store]:
    cluster.empty()
    with open_client(cluster.url(), WORKER, tag=TAG) as client:
        yield Store(client, Table(client, KEYS, kind=TableKind.PREDICTIONS, model="m"))


def move(cluster: RedisCluster, key: str, between: object = int) -> None:
    source = cluster.primary_of(key)
    target = next(node for node in primaries(cluster) if node is not source)
    cluster.move_slot(slot_of(key), source, target, between=between)  # type: ignore[arg-type]


def primaries(cluster: RedisCluster) -> list[ClusterNode]:
    return [node for node in cluster.nodes if node.ask("ROLE")[0] == b"master"]


# --- slots that move -----------------------------------------------------------------------------------


def use(store: Store, manifest: Manifest) -> None:
    """Everything that a table does, beside the one published generation."""
    generations = store.table.generations
    assert generations.count(manifest) == ROWS
    assert sum(len(batch) for batch in generations.scan(manifest)) == ROWS
    second = store.publish(2_000)
    assert store.offsets() == {2_000}
    assert generations.rollback(second.number).current == manifest.number
    store.upsert(5, 7.0)
    assert store.table.read(["e5"])[0].values == {"price": 7.0}  # type: ignore[union-attr]
    copy = generations.begin(PRICE, rows_expected=ROWS, model_version=1, contract_hash="c", keep_s=3600, like=manifest)
    generations.copy(manifest, copy)
    assert generations.count(copy) == ROWS
    generations.collect(second.number, sweep_after_s=0, pause_s=0)


@pytest.mark.parametrize("what", ["the pointer", "a bucket"])
def test_reads_go_on_while_a_slot_moves_and_changes_wait_for_it(cluster: RedisCluster, store: Store, what: str) -> None:
    manifest = store.publish(1_000)
    with ThreadPoolExecutor(1) as thread:
        begun: list[Future[None]] = []

        def between() -> None:
            assert store.offsets() == {1_000}
            assert store.table.generations.count(manifest) == ROWS
            assert sum(len(batch) for batch in store.table.generations.scan(manifest)) == ROWS
            begun.append(thread.submit(use, store, manifest))

        move(cluster, KEYS.pointer if what == "the pointer" else KEYS.bucket(manifest.number, 3), between=between)
        begun[0].result(60)
    assert store.table.read(["e6"])[0].values == {"price": 1_006.0}  # type: ignore[union-attr]
    assert store.client.get(KEYS.sequence) == b"3"


async def test_a_reader_on_an_event_loop_meets_flips_and_moves_and_never_mixes(
    cluster: RedisCluster, store: Store
) -> None:
    first = store.publish(1_000)
    over, seen = asyncio.Event(), set[frozenset[float | None]]()

    async def read() -> None:
        async with open_async_client(cluster.url(), REQUEST, tag=TAG) as client:
            reader = AsyncTableReader(client, KEYS)
            ids = [f"e{i}" for i in range(50)]
            while not over.is_set():
                entries = await reader.read(ids)
                seen.add(frozenset(e and e.values["price"] - i for i, e in enumerate(entries)))

    reading = [asyncio.create_task(read()) for _ in range(3)]
    for offset in range(2_000, 6_000, 1_000):
        manifest = await asyncio.to_thread(store.publish, offset)
        await asyncio.to_thread(store.table.generations.rollback, manifest.number)
        # at once: a reader may have read the pointer, and not yet the rows
        await asyncio.to_thread(store.table.generations.collect, manifest.number, sweep_after_s=0, pause_s=0)
        await asyncio.to_thread(move, cluster, KEYS.bucket(first.number, offset // 1_000))
    over.set()
    await asyncio.gather(*reading)
    assert {len(offsets) for offsets in seen} == {1}
    assert frozenset([None]) not in seen


# --- nodes that are lost -------------------------------------------------------------------------------


@pytest.mark.slow
def test_hits_go_on_from_the_replica_of_a_lost_node_and_writes_after_the_election(
    cluster: RedisCluster, store: Store
) -> None:
    manifest = store.publish(1_000)
    victim = cluster.primary_of(KEYS.bucket(manifest.number, 1))
    victim.kill()
    try:
        assert store.offsets() == {1_000}  # before anybody has noticed
        wait_for(lambda: _written(store), "a new primary", 20)
        assert store.offsets() == {2_000}
    finally:
        victim.start()
        wait_for(cluster.is_whole, "a whole cluster", 30)
    assert store.offsets() == {2_000}


def _written(store: Store) -> bool:
    try:
        store.publish(2_000)
    except StoreUnavailable:
        return False
    return True


@pytest.mark.slow
def test_a_row_that_a_replica_lacks_is_an_outage_and_no_miss(cluster: RedisCluster, store: Store) -> None:
    manifest = store.publish(1_000)
    victim = cluster.primary_of(KEYS.bucket(manifest.number, 1))
    victim.kill()
    try:
        with pytest.raises(StoreUnavailable):
            store.table.read([f"nobody{i}" for i in range(50)])
    finally:
        wait_for(lambda: _written(store), "a new primary", 20)
        victim.start()
        wait_for(cluster.is_whole, "a whole cluster", 30)
    assert store.table.read([f"nobody{i}" for i in range(50)]) == [None] * 50


def frozen_for_a_moment(cluster: RedisCluster, key: str) -> ClusterNode:
    """Freeze the replica of a key's node for 0.2 s, and return it."""
    port = int(cluster.primary_of(key).ask("ROLE")[2][0][1])
    replica = next(node for node in cluster.nodes if node.port == port)
    assert replica.process
    replica.process.send_signal(signal.SIGSTOP)
    threading.Timer(0.2, replica.process.send_signal, (signal.SIGCONT,)).start()
    return replica


def copied(replica: ClusterNode, *command: str) -> object:
    with replica.client as client, client.pipeline(transaction=False) as pipeline:
        return pipeline.execute_command("READONLY").execute_command(*command).execute()[1]


def test_what_began_or_was_published_has_a_replica(cluster: RedisCluster, store: Store) -> None:
    replica = frozen_for_a_moment(cluster, TAG)
    manifest = store.write(1_000)
    assert copied(replica, "GET", KEYS.sequence) == b"1"
    replica = frozen_for_a_moment(cluster, TAG)
    store.table.generations.publish(manifest.number)
    assert copied(replica, "HGET", KEYS.pointer, "current") == b"1"


async def test_what_the_api_confirms_has_a_replica_on_each_node(cluster: RedisCluster, store: Store) -> None:
    store.publish(1_000)
    key = KEYS.rows + ":o:told"  # a row lies on any node
    async with open_async_client(cluster.url(), REQUEST, tag=TAG) as client:
        replica = frozen_for_a_moment(cluster, key)
        await client.set(key, "stored")
        await Replication(client, f"{TAG}:note").reach()
        assert copied(replica, "GET", key) == b"stored"


# --- users ---------------------------------------------------------------------------------------------


def test_the_users_of_one_redis_serve_a_cluster_with_the_patterns_of_the_docs(
    cluster: RedisCluster, store: Store
) -> None:
    rules = [line for line in (ROOT / "docker/redis/users.acl").read_text().splitlines() if "forecache-" in line]
    for node in cluster.nodes:
        for rule in rules:
            words = rule.replace("PASSWORD", "aPassword1").split()[1:]
            braced = [word.replace("~forecache:", "~{forecache}:") for word in words if "~forecache:" in word]
            node.ask("ACL", "SETUSER", *words, *braced, "+cluster|slots", "+asking", "+readonly", "+wait")
    stores = {role: open_as(cluster, f"forecache-{role}") for role in ("worker", "api", "dashboard")}
    try:
        worker, api, dashboard = stores["worker"], stores["api"], stores["dashboard"]
        first, second = worker.publish(1_000), worker.publish(2_000)
        assert api.offsets() == dashboard.offsets() == {2_000}
        assert dashboard.table.generations.rollback(second.number).current == first.number
        worker.upsert(5, 7.0)
        assert api.table.read(["e5"])[0].values == {"price": 7.0}  # type: ignore[union-attr]
        with pytest.raises(StoreUnavailable, match="permission"):
            api.write(3_000)
        with pytest.raises(StoreUnavailable, match="permission"):
            api.client.get(KEYS.pointer)  # of another deployment
    finally:
        for one in stores.values():
            one.client.close()


def open_as(cluster: RedisCluster, user: str) -> Store:
    url = cluster.url().replace("://", f"://{user}:aPassword1@")
    client = open_client(url, WORKER, tag="{forecache}")
    keys = Keys("{forecache}").table(TableKind.PREDICTIONS, "m")
    return Store(client, Table(client, keys, kind=TableKind.PREDICTIONS, model="m"))


# --- clusters that cannot be used ----------------------------------------------------------------------


def read_through(url: str) -> str:
    """Return what a read over a URL says."""
    with open_client(url, WORKER, tag=TAG) as client, pytest.raises(StoreUnavailable) as refused:
        Table(client, KEYS, kind=TableKind.PREDICTIONS, model="m").read(["e1"])
    return refused.value.message


def test_a_single_redis_is_no_cluster(redis_server: RedisServer) -> None:
    told = read_through(f"redis+cluster://127.0.0.1:{redis_server.port}")
    assert "write redis:// in place of redis+cluster:// in [redis] cache_url" in told


def test_a_node_of_a_cluster_is_no_single_redis(cluster: RedisCluster) -> None:
    key_of_another = cluster.nodes.index(cluster.primary_of(KEYS.pointer)) == 0
    told = read_through(f"redis://127.0.0.1:{cluster.nodes[1 if key_of_another else 0].port}/0")
    assert "write redis+cluster:// in [redis] cache_url" in told


def test_slots_that_nobody_serves_are_counted(tmp_path: Path) -> None:
    node = ClusterNode(tmp_path, ())
    try:
        node.start()
        wait_for(node.answers, "the node")
        node.ask("CLUSTER", "ADDSLOTSRANGE", 0, 9_999)
        wait_for(lambda: node.ask("CLUSTER", "SLOTS"), "its slots")
        told = read_through(f"redis+cluster://127.0.0.1:{node.port}")
    finally:
        node.stop()
    assert "no node serves 6,384 of the 16,384 slots" in told
    assert "redis-cli --cluster fix" in told


def test_addresses_that_cannot_be_reached_are_named(tmp_path: Path) -> None:
    node = ClusterNode(tmp_path, ("--cluster-announce-ip", "127.0.0.99"))
    try:
        node.start()
        wait_for(node.answers, "the node")
        node.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        wait_for(lambda: node.ask("CLUSTER", "SLOTS"), "its slots")
        told = read_through(f"redis+cluster://127.0.0.1:{node.port}")
    finally:
        node.stop()
    assert f"announce addresses that cannot be reached from here, such as 127.0.0.99:{node.port}" in told
    assert "cluster-announce-ip" in told


def test_no_node_that_answers_is_an_outage() -> None:
    assert "did not answer" in read_through("redis+cluster://127.0.0.1:9,127.0.0.1:10")


# --- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("redis+cluster://a:7000,b", "redis+cluster://a:7000,b:6379"),
        ("redis+cluster://me:s%2Fcret@a:1,[::1]:2/0", "redis+cluster://me:s%2Fcret@a:1,[::1]:2"),
        ("rediss+cluster://a/?ssl_cert_reqs=required", "rediss+cluster://a:6379?ssl_cert_reqs=required"),
    ],
)
def test_a_clusters_url_is_read(given: str, read: str) -> None:
    settings = RedisSettings.model_validate({"cache_url": given})
    assert settings.cache_url is not None
    assert settings.cache_url.get_secret_value() == read
    assert settings.key_prefix == "{forecache}"


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ("redis+cluster://a:7000/1", "no database numbers"),
        ("redis+cluster://a:99999", "port"),
        ("redis+cluster://", "redis\\+cluster://host:6379,other:6379"),
        ("rediss+cluster://a", "ssl_cert_reqs"),
        ("redis+cluster://a?retry=1", "leave it out"),
        ("redis-cluster://a", "redis\\+cluster://"),
    ],
)
def test_a_clusters_url_that_cannot_be_used_names_the_fix(given: str, fix: str) -> None:
    with pytest.raises(ValueError, match=fix):
        RedisSettings.model_validate({"cache_url": given})


@pytest.mark.parametrize("hosts", ["a:7000", "a:7000,b:7000"])
def test_only_the_cache_may_be_a_cluster(hosts: str) -> None:
    told = "holds only predictions and features, in cache_url"
    with pytest.raises(ValueError, match=told):
        RedisSettings.model_validate({"url": f"redis+cluster://{hosts}"})
    with pytest.raises(ValueError, match=told):
        CelerySettings.model_validate({"broker_url": f"redis+cluster://{hosts}"})


def test_a_forgotten_entity_leaves_all_slots_and_stays_away(store: Store) -> None:
    for offset in (1, 2):
        store.publish(offset)
    table = store.table
    table.forgotten.add("e7")
    assert list(table.generations.forget("e7").values()) == [True, True]
    for number in (7, 8):
        store.upsert(number, 5.0)
    assert [entry and entry.values["price"] for entry in table.read(["e7", "e8"])] == [None, 5.0]
    assert table.forgotten.find([b"e7", b"e8"]).tolist() == [True, False]
    assert len(table.forgotten.all().entries) == 1
    assert table.forgotten.lift("e7")
    assert not table.forgotten.find([b"e7"]).any()
