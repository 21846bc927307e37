"""Blocking look-ups over connections of their own, against a real Redis."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import hiredis
import numpy as np
import pytest
import redis

from inference.errors import StoreUnavailable
from inference.redis.bulk import BulkCommands, Pace, sum_of
from inference.redis.clients import Client, Patience, open_client
from inference.redis.keys import Keys, TableKind
from inference.redis.pipes import Pipe
from inference.schema import DType, TensorSpec
from inference.store import Origin, Table
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.integration

FIELDS = (TensorSpec("y", DType.FLOAT32, ()),)


def table(client: Client) -> Table:
    keys = Keys("t").table(TableKind.PREDICTIONS, "m")
    return Table(client, keys, kind=TableKind.PREDICTIONS, model="m")


def write(to: Table, value: float) -> None:
    to.overlay.upsert(
        ["a"],
        FIELDS,
        {"y": np.array([value], np.float32)},
        as_of=np.array([100.0]),
        computed_at=200.0 + value,
        model_version=1,
        origin=Origin.REALTIME,
        keep_s=60,
    )


def read(of: Table) -> float:
    (entry,) = of.read(["a"])
    assert entry is not None
    return float(entry.values["y"])


def test_connections_that_were_cut_cost_neither_a_look_up_nor_an_answer(redis_client: Client) -> None:
    mine = table(redis_client)
    mine.versions.activate(1)
    write(mine, 1.0)
    assert read(mine) == 1.0
    with redis_client.client() as other:
        other.client_kill_filter(_type="normal", skipme=True)
    assert read(mine) == 1.0
    with redis_client.client() as other:
        other.client_kill_filter(_type="normal", skipme=True)
    write(mine, 2.0)
    assert read(mine) == 2.0


def test_an_answer_is_kept_by_a_redis_that_has_forgotten_its_scripts(redis_client: Client) -> None:
    mine = table(redis_client)
    mine.versions.activate(1)
    write(mine, 1.0)
    redis_client.script_flush()
    write(mine, 2.0)
    assert read(mine) == 2.0


def test_any_number_of_tables_over_a_client_share_its_connections(redis_client: Client) -> None:
    table(redis_client).versions.activate(1)
    write(table(redis_client), 1.0)
    before = redis_client.info("clients")["connected_clients"]
    tables = [table(redis_client) for _ in range(200)]
    assert [read(each) for each in tables] == [1.0] * 200
    assert redis_client.info("clients")["connected_clients"] <= before + 1


def test_threads_get_their_own_replies(redis_client: Client) -> None:
    pipe = Pipe(redis_client)

    def echo(number: int) -> list[bytes]:
        return [reply for _ in range(50) for reply in pipe.send([("ECHO", number), ("ECHO", -number)])]

    with ThreadPoolExecutor(8) as threads:
        for number, replies in enumerate(threads.map(echo, range(8))):
            assert set(replies) == {str(number).encode(), str(-number).encode()}


def test_an_error_is_raised_and_the_next_batch_gets_its_own_replies(redis_client: Client) -> None:
    pipe = Pipe(redis_client)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        pipe.send([("SET", "text", "x"), ("LPUSH", "text", "y"), ("GET", "text")])
    assert pipe.send([("GET", "text")]) == [b"x"]


def test_no_redis_is_an_outage() -> None:
    client = Client(port=free_port(), retry=None)
    with pytest.raises(StoreUnavailable):
        table(client).read(["a"])


def test_idle_connections_are_checked_before_an_exchange_in_bulk_not_within_it(redis_server: RedisServer) -> None:
    pieces = [[("INCR", "bulk")] * 3] * 5
    with open_client(redis_server.url(), Patience(10.0, check_after_s=1e-6)) as client:
        client.delete("bulk")
        packed = [BulkCommands(b"".join(map(hiredis.pack_command, piece)), len(piece)) for piece in pieces]
        assert sum_of(client.send_in_bulk(packed, Pace())) == sum(range(1, 16))
        found = b"".join(one.data for one in client.read_in_bulk(pieces, b"-separator-"))
        assert found.count(b"-separator-") == 15
        assert client.get("bulk") == b"30"
