"""Predictions in a Redis Cluster of three primaries, beside one Redis on the same machine.

What a hit costs the API and the Redis servers (CPU time), rows that batch workers' store writes (whole windows, packed
and sent), and reads while a primary is killed and two generations flip all the time: when all are back after Redis' own
election, and whether one answer was wrong, missing, or of two generations.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hit_layers import measure_served, publish
from rig.dataset import Dataset, entity_id
from rig.report import print_report
from rig.stack import MODEL, Stack, temporary_folder

from inference.errors import StoreUnavailable
from inference.redis.clients import REQUEST, WORKER, Client, open_client
from inference.redis.keys import Keys, TableKind
from inference.schema import DType, TensorSpec
from inference.store import Table

# the tests start the same clusters
from tests.support.redis_cluster import RedisCluster

ROWS = 200_000
WINDOW = 250_000
FIELDS = (TensorSpec("prediction", DType.FLOAT32),)
#: how often both sides of a comparison are measured, in turn
ROUNDS = 3
READ_TOGETHER = 100
AFTER_S = 6.0
TAG = "{forecache}"

#: rows of the report, and figures
Found = tuple[list[Sequence[Any]], dict[str, Any]]


def main() -> None:
    """Measure and print."""
    options = _options()
    rows: list[Sequence[Any]] = []
    figures: dict[str, Any] = {}
    with temporary_folder() as folder:
        for part in options.only:
            found, more = _PARTS[part](folder / part, options)
            rows += found
            figures |= more
    print_report("Redis Cluster", ["", "one Redis", "three primaries", ""], rows, figures, as_json=options.json)


def compare_hits(folder: Path, options: argparse.Namespace) -> Found:
    """Return what a hit costs."""
    api, servers = measure_hits(folder, options.seconds)
    ratio = api[1] / api[0]
    rows = [
        ("CPU of a hit, the API's, µs", f"{api[0]:.1f}", f"{api[1]:.1f}", f"{ratio:.2f} (at most 1.15)"),
        ("CPU of a hit, all Redis servers', µs", f"{servers[0]:.1f}", f"{servers[1]:.1f}", ""),
    ]
    figures = {"hit_us": [round(one, 1) for one in api], "redis_us": [round(one, 1) for one in servers]}
    return rows, {"ratio_hit_cpu": round(ratio, 3), **figures}


def compare_writes(folder: Path, options: argparse.Namespace) -> Found:
    """Return the rates of writing."""
    rates = measure_writes(folder, options.windows)
    ratio = rates[1] / rates[0]
    rows = [("rows written a second", f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{ratio:.2f} (at least 1)")]
    return rows, {"ratio_batch_rate": round(ratio, 3), "rows_per_s": [round(one) for one in rates]}


def lose_a_primary(folder: Path, options: argparse.Namespace) -> Found:
    """Return what reads meet while a primary is killed."""
    failover_s, reader = measure_failover(folder, options.answers)
    rows = [
        ("all hits back after the election, s", "", f"{failover_s:.2f}", "at most 5"),
        (f"wrong answers of {reader.answers:,}", "", f"{reader.wrong}", "0"),
        ("generations that readers saw flip", "", f"{reader.flips}", ""),
    ]
    figures = {"wrong": reader.wrong, "answers": reader.answers, "outages": reader.outages, "flips": reader.flips}
    return rows, {"failover_s": round(failover_s, 3), **figures}


def measure_hits(folder: Path, seconds: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the microseconds of CPU time of a hit over one Redis, and over a cluster: the API's, and of all Redis."""
    taken: list[list[tuple[float, float]]] = [[], []]
    cluster = RedisCluster(folder / "cluster", replicas=0)
    with Stack(folder, Dataset(folder, ROWS)) as stack, closing(_Stopped(cluster)):
        urls = (f"redis://127.0.0.1:{stack.redis_port}/1", cluster.start().url())
        for url in urls:
            _use(stack, url)
            publish(stack)
        for _ in range(ROUNDS):
            for side, url in enumerate(urls):
                _use(stack, url)
                stack.start_api()
                servers = [[stack.process_id("redis")], [node.process.pid for node in cluster.nodes if node.process]]
                taken[side].append(measure_served(stack, seconds, servers[side]))
                stack.stop("api")
    one, many = ([min(column) for column in zip(*side, strict=True)] for side in taken)
    return (one[0], many[0]), (one[1], many[1])


def _use(stack: Stack, url: str) -> None:
    stack.use_cache_port(stack.redis_port)
    text = stack.settings_file.read_text()
    stack.settings_file.write_text(text.replace(f"redis://127.0.0.1:{stack.redis_port}/1", url))


def measure_writes(folder: Path, windows: int) -> tuple[float, float]:
    """Return the rows a second that one process writes into one Redis, and into a cluster."""
    taken: list[list[float]] = [[], []]
    cluster = RedisCluster(folder / "cluster", replicas=0)
    with Stack(folder, Dataset(folder, ROWS)) as stack, closing(_Stopped(cluster)):
        urls = (f"redis://127.0.0.1:{stack.redis_port}/1", cluster.start().url())
        for _ in range(ROUNDS):
            for side, url in enumerate(urls):
                with open_client(url, WORKER, tag=_tag(url)) as client:
                    taken[side].append(_write(_table(client), windows))
                _empty(cluster, stack)
    return max(taken[0]), max(taken[1])


def _write(table: Table, windows: int) -> float:
    new = table.generations.begin(
        FIELDS, rows_expected=windows * WINDOW, model_version=1, contract_hash="", keep_s=86_400
    )
    values = np.random.default_rng(1).random(WINDOW).astype(np.float32)
    ids = [pa.array([entity_id(at + n) for n in range(WINDOW)]) for at in range(0, windows * WINDOW, WINDOW)]
    began = time.perf_counter()
    for window in ids:
        table.generations.write(new, window, {"prediction": values}, np.zeros(WINDOW))
    return windows * WINDOW / (time.perf_counter() - began)


def _empty(cluster: RedisCluster, stack: Stack) -> None:
    cluster.empty()
    stack.client().flushall()


def measure_failover(folder: Path, answers: int) -> tuple[float, _Reader]:
    """Kill a primary under reads. Return the seconds from the election to the last failed read, and the reader.

    Two generations take each other's place all the time; row n holds n, or n + ROWS.
    """
    cluster = RedisCluster(folder)
    with closing(_Stopped(cluster)), open_client(cluster.start().url(), REQUEST, tag=TAG) as client:
        table = _table(client)
        for offset in (0, ROWS):
            _publish(table, offset)
        over = threading.Event()
        reader, flipper = _Reader(table, over), threading.Thread(target=_flip, args=(client, over))
        reader.start()
        flipper.start()
        time.sleep(1)
        victim = cluster.primary_of(Keys(TAG).hash_key)
        victim.kill()
        while not _is_replaced(cluster, victim.port):
            time.sleep(0.02)
        elected_at = time.monotonic()
        while reader.is_alive() and (reader.answers < answers or time.monotonic() < elected_at + AFTER_S):
            time.sleep(0.1)
        over.set()
        reader.join()
        flipper.join()
    return max(0.0, reader.failed_at - elected_at), reader


def _publish(table: Table, offset: int) -> None:
    new = table.generations.begin(FIELDS, rows_expected=ROWS, model_version=1, contract_hash="", keep_s=86_400)
    ids = pa.array([entity_id(number) for number in range(ROWS)])
    block = {"prediction": np.arange(ROWS, dtype=np.float32) + np.float32(offset)}
    table.generations.write(new, ids, block, np.zeros(ROWS))
    table.generations.publish(new.number)


def _flip(client: Client, over: threading.Event) -> None:
    """Let the current and the previous generation change places, as a rollback and a publication of the same rows do.

    Nothing is written that way, so readers meet a hundred flips a second.
    """
    keys = Keys(TAG).table(TableKind.PREDICTIONS, MODEL)
    while not over.wait(0.01):
        try:
            current, previous = client.hmget(keys.pointer, "current", "previous")
            client.hset(keys.pointer, mapping={"current": previous, "previous": current})
        except StoreUnavailable:
            continue


class _Reader(threading.Thread):
    """Reads random entities until `over`. `failed_at`: when a read last failed; `flips`: the other generation."""

    def __init__(self, table: Table, over: threading.Event) -> None:
        super().__init__()
        self._table = table
        self._over = over
        self.answers = self.wrong = self.outages = self.flips = 0
        self.failed_at = 0.0

    def run(self) -> None:
        chance = random.Random(1)
        before: float | None = None
        while not self._over.is_set():
            numbers = [chance.randrange(ROWS) for _ in range(READ_TOGETHER)]
            try:
                entries = self._table.read([entity_id(number) for number in numbers])
            except StoreUnavailable:
                self.failed_at = time.monotonic()
                self.outages += 1
                continue
            offsets = {
                entry and entry.values["prediction"] - number for number, entry in zip(numbers, entries, strict=True)
            }
            self.answers += len(numbers)
            if len(offsets) > 1 or not offsets <= {0, ROWS}:
                self.wrong += len(numbers)
                continue
            [offset] = offsets
            self.flips += before not in (None, offset)
            before = offset


class _Stopped:
    """Stops a cluster when it is closed."""

    def __init__(self, cluster: RedisCluster) -> None:
        self.close = cluster.stop


def _is_replaced(cluster: RedisCluster, port: int) -> bool:
    """Whether a replica has taken the slots of the primary at a port."""
    living = next(node for node in cluster.nodes if node.answers())
    return all(primary[1] != port for _, _, primary, *_ in living.ask("CLUSTER", "SLOTS"))


def _tag(url: str) -> str:
    return TAG if "+cluster" in url else "forecache"


def _table(client: Client) -> Table:
    keys = Keys(TAG if client.is_spread else "forecache").table(TableKind.PREDICTIONS, MODEL)
    return Table(client, keys, kind=TableKind.PREDICTIONS, model=MODEL)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6, help="of load on the API, for each side and round")
    parser.add_argument("--windows", type=int, default=6, help=f"of {WINDOW:,} rows, for each side and round")
    parser.add_argument("--answers", type=int, default=1_000_000, help="read around the loss of a primary, at least")
    parser.add_argument("--only", nargs="+", choices=list(_PARTS), default=list(_PARTS), help="parts to measure")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


_PARTS: dict[str, Callable[[Path, argparse.Namespace], Found]] = {
    "hits": compare_hits, "writes": compare_writes, "failover": lose_a_primary,
}  # fmt: skip


if __name__ == "__main__":
    main()
