"""What only a table in Redis can show: expiry, compact memory, lost data, outages, several readers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from inference.deployment import Deployment
from inference.errors import StoreUnavailable
from inference.redis.bulk import BulkCommands, Pace
from inference.redis.clients import WORKER, AsyncClient, Client
from inference.redis.keys import Keys, TableKeys, TableKind
from inference.schema import DType, TensorSpec
from inference.settings import BatchSettings, ModelSettings, RedisSettings, Settings
from inference.store import AsyncTableReader, Manifest, Origin, Table
from inference.store.codec import unpack_overlay
from inference.store.generations import to_seconds
from inference.store.overlay import _to_milliseconds
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer

KEYS: TableKeys = Keys("t").table(TableKind.PREDICTIONS, "m")
PRICE = (TensorSpec("price", DType.FLOAT32),)


def make_table(client: Client) -> Table:
    return Table(client, KEYS, kind=TableKind.PREDICTIONS, model="m")


def begin(table: Table, rows: int, *, keep_s: float = 3600, fields: tuple[TensorSpec, ...] = PRICE) -> Manifest:
    return table.generations.begin(fields, rows_expected=rows, model_version=1, contract_hash="c", keep_s=keep_s)


def publish(table: Table, values: dict[str, float]) -> Manifest:
    manifest = begin(table, len(values))
    block = {"price": np.array(list(values.values()), np.float32)}
    table.generations.write(manifest, pa.array(list(values)), block, np.zeros(len(values)))
    table.generations.publish(manifest.number)
    return manifest


def upsert(table: Table, entity_id: str, value: float, keep_s: float = 60) -> None:
    block = {"price": np.array([value], np.float32)}
    table.overlay.upsert(
        [entity_id], PRICE, block, as_of=np.array([1.0]), computed_at=2.0, model_version=0,
        origin=Origin.REALTIME, keep_s=keep_s,
    )  # fmt: skip


def test_no_row_outlives_its_deadline(redis_client: Client) -> None:
    table = make_table(redis_client)
    manifest = publish(table, {f"id-{i}": 1.0 for i in range(1000)})
    upsert(table, "a", 1.0, keep_s=90)
    buckets = redis_client.keys(KEYS.generation(manifest.number) + ":*")
    assert len(buckets) == manifest.buckets
    assert {redis_client.expiretime(key) for key in buckets} == {int(np.ceil(manifest.deadline))}
    assert 80 < redis_client.ttl(KEYS.overlay(b"a")) <= 90


def test_a_part_is_opened_once_and_has_a_place_of_its_own(redis_client: Client) -> None:
    table = make_table(redis_client)
    upsert(table, "a", 1.0)
    upsert(table.part("g"), "a", 2.0)
    upsert(table.part("h"), "a", 3.0)
    assert table.part("g") is table.part("g") is not table.part("h")
    for one, value in ((table, 1.0), (table.part("g"), 2.0), (make_table(redis_client).part("h"), 3.0)):
        [entry] = one.read(["a"])
        assert entry is not None
        assert entry.values == {"price": value}


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_load_rests_between_its_pieces_as_the_models_write_share_says(
    redis_client: Client, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    rests: list[float] = []
    monkeypatch.setattr(Pace, "rest", lambda pace, worked_s: rests.append(pace.share))
    model = ModelSettings(path=Path("m"), batch=BatchSettings(write_share=share))
    settings = Settings(redis=RedisSettings(url=redis_server.url(), cache_url=redis_server.url()), models={"m": model})
    with Deployment(settings, WORKER) as deployment:
        publish(deployment.predictions("m"), {f"id-{i}": 1.0 for i in range(1000)})
    assert set(rests) == ({share} if share < 1 else set())


@pytest.mark.parametrize("come", [True, False])
def test_all_that_is_written_in_bulk_gives_way_to_requests(
    redis_client: Client, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, come: bool
) -> None:
    url = redis_server.url()
    settings = Settings(redis=RedisSettings(url=url, cache_url=url), models={"m": ModelSettings(path=Path("m"))})
    known: list[bool] = []
    with Deployment(settings, WORKER) as deployment:
        if come:
            redis_client.set(deployment.keys.requests, 1, px=60_000)
        send = deployment.cache.send_in_bulk

        def noting(pieces: Iterable[BulkCommands], pace: Pace) -> bytes:
            known.append(pace.requests_come())
            return send(pieces, pace)

        monkeypatch.setattr(deployment.cache, "send_in_bulk", noting)
        table = deployment.predictions("m")
        manifest = publish(table, {"a": 1.0, "b": 2.0})
        generations, copy = table.generations, begin(table, 2)
        generations.copy(manifest, copy)
        generations.set_ages(copy, pa.array(["a"]), np.array([5.0]))
    assert known == [come] * 3


def test_buckets_stay_compact_with_long_ids_and_a_prediction_takes_at_most_30_bytes(
    redis_client: Client,
) -> None:
    table = make_table(redis_client)
    rows = 100_000
    ids = [f"user-{i:08d}" if i % 50 else f"{i:08d}" + "x" * 100 for i in range(rows)]
    manifest = begin(table, rows)
    before = redis_client.info("memory")["used_memory"]
    table.generations.write(manifest, pa.array(ids), {"price": np.ones(rows, np.float32)}, np.full(rows, 1e9))
    used = redis_client.info("memory")["used_memory"] - before
    assert table.generations.count(manifest) == rows
    assert redis_client.object("encoding", KEYS.bucket(manifest.number, 0)) in (b"listpack", b"ziplist")
    assert used / rows <= 30


def test_a_reader_sees_a_generation_that_another_process_published(redis_client: Client) -> None:
    writer, reader = make_table(redis_client), make_table(redis_client)
    for value in (1.0, 2.0, 3.0):
        publish(writer, {"a": value})
        entry = reader.read(["a"])[0]
        assert entry is not None
        assert entry.values == {"price": value}


def test_a_reader_does_not_decode_a_table_built_anew_by_the_lost_ones_manifest(
    redis_client: Client,
) -> None:
    reader = make_table(redis_client)
    first = publish(reader, {"a": 1.0})
    assert reader.read(["a"])[0] is not None
    redis_client.flushall()
    writer = make_table(redis_client)
    fields = (TensorSpec("label", DType.STRING),)
    again = begin(writer, 100_000, fields=fields)
    assert again.number == first.number
    writer.generations.write(again, pa.array(["a"]), {"label": np.array(["new"], object)}, np.zeros(1))
    writer.generations.publish(again.number)
    entry, by_number = reader.read(["a"])[0], make_table(redis_client).read_generation(["a"], again.number)[0]
    assert entry is not None
    assert entry.values == {"label": "new"}
    assert by_number == entry


def test_an_outage_is_an_error_and_never_a_miss(tmp_path: Path) -> None:
    server = RedisServer(tmp_path).start()
    with Client.from_url(server.url(), retry=None) as client:
        table = make_table(client)
        manifest = publish(table, {"a": 1.0})
        server.kill()
        with pytest.raises(StoreUnavailable, match="Redis did not answer"):
            table.read(["a"])
        with pytest.raises(StoreUnavailable):
            table.generations.write(manifest, pa.array(["a"]), {"price": np.ones(1, np.float32)}, np.zeros(1))
        with pytest.raises(StoreUnavailable):
            table.versions.activate(1)


def test_a_refused_write_is_an_error_and_leaves_a_usable_connection(redis_client: Client) -> None:
    table = make_table(redis_client)
    manifest = begin(table, 10)
    redis_client.set(KEYS.bucket(manifest.number, 0), "in the way")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        table.generations.write(manifest, pa.array(["a"]), {"price": np.ones(1, np.float32)}, np.zeros(1))
    assert table.read(["a"]) == [None]
    assert redis_client.ping()


async def test_the_asyncio_reader_reads_what_the_blocking_one_reads(
    redis_client: Client, redis_server: RedisServer
) -> None:
    table = make_table(redis_client)
    async with AsyncClient.from_url(redis_server.url()) as client:
        reader = AsyncTableReader(client, KEYS)
        assert await reader.read(["a"]) == [None]
        first = publish(table, {"a": 1.0, "b": 1.0})
        publish(table, {"a": 2.0, "b": 2.0})
        upsert(table, "b", 3.0)
        upsert(table, "c", 3.0)
        ids = ["c", "b", "a", "nobody"]
        assert await reader.read(ids) == table.read(ids)
        assert await reader.read_generation(ids, first.number) == table.read_generation(ids, first.number)
        assert await reader.pointer() == table.pointer()
        assert await reader.read([]) == []


async def test_the_asyncio_reader_reports_an_outage() -> None:
    async with AsyncClient.from_url(f"redis://127.0.0.1:{free_port()}", retry=None) as client:
        with pytest.raises(StoreUnavailable):
            await AsyncTableReader(client, KEYS).read(["a"])


@pytest.mark.parametrize("writer", ["upsert", "upsert again", "move", "outdate", "replace", "part", "since a change"])
def test_whoever_writes_an_overlay_entry_gives_it_an_expiry(redis_client: Client, writer: str) -> None:
    table = make_table(redis_client)
    block, at = {"price": np.array([1.0], np.float32)}, np.array([5.0])

    def upsert(into: Table, keep_s: float, computed_at: float = 6.0) -> None:
        into.overlay.upsert(["a"], PRICE, block, as_of=at, computed_at=computed_at, model_version=1,
                    origin=Origin.REALTIME, keep_s=keep_s)  # fmt: skip

    if writer == "upsert":
        upsert(table, 60)
    elif writer == "upsert again":
        upsert(table, 7)
        upsert(table, 60)
    elif writer == "move":
        manifest = table.generations.begin(PRICE, rows_expected=1, model_version=1, contract_hash="c", keep_s=7)
        table.generations.write(manifest, pa.array(["a"]), block, at)
        table.generations.move_to_overlay(manifest.number, keep_s=60)
    elif writer == "outdate":
        table.overlay.outdate(["a"], changed_at=at, keep_s=60)
    elif writer == "replace":
        upsert(table, 7)
        expected = redis_client.get("t:p:m:o:a")
        assert table.overlay.replace(["a"], PRICE, block, known_at=at, expected=[expected], keep_s=60) == [True]
    elif writer == "part":
        upsert(table.part("x"), 60)
    else:
        table.overlay.outdate(["a"], changed_at=at, keep_s=7)
        upsert(table, 60, computed_at=table.now() + 1)
    [key] = redis_client.keys("*:o:a")
    assert 50_000 < redis_client.pttl(key) <= 60_000


def test_a_time_to_keep_is_never_rounded_to_nothing(redis_client: Client) -> None:
    assert [_to_milliseconds(seconds) for seconds in (0, 0.0001, 0.001, 0.0011, 2)] == [1, 1, 1, 2, 2000]
    assert to_seconds((b"12", b"345678")) == 12.345678


def test_many_ids_are_outdated_and_replaced_each_by_its_own(
    redis_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.store.overlay._IDS_PER_SCRIPT", 2)
    table = Table(redis_client, Keys("t").table(TableKind.FEATURES, "m"), kind=TableKind.FEATURES, model="m")
    ids = [f"e{n}" for n in range(5)]
    block = {"price": np.arange(5, dtype=np.float32)}
    assert (
        table.overlay.replace(ids, PRICE, block, known_at=np.arange(5.0), expected=[None] * 5, keep_s=60) == [True] * 5
    )
    read = table.read_for_change(ids)
    assert read is not None
    assert (read.rows.block["price"].tolist(), read.known_at.tolist()) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    expected = [None if n % 2 else entry for n, entry in enumerate(read.overlay)]
    done = table.overlay.replace(ids, PRICE, {"price": block["price"] + 10}, known_at=np.arange(5.0), expected=expected, keep_s=60)  # fmt: skip  # noqa: E501
    assert done == [True, False, True, False, True]
    rows = table.read_block(ids)
    assert rows is not None
    assert rows.block["price"].tolist() == [10, 1, 12, 3, 14]
    table.overlay.outdate(ids, changed_at=np.arange(5.0) + 0.5, keep_s=60)
    assert [unpack_overlay(redis_client.get(f"t:f:m:o:{one}"))[0].as_of for one in ids] == [1, 2, 3, 4, 5]
