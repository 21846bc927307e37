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
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import redis
from hit_layers import measure_served, publish
from rig.cpu import cpu_s
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
#: the figures of one round
Taken = tuple[float, float, float]


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
    """Return what a hit costs: CPU of the API and of all Redis servers in µs, and bytes between them."""
    sides = measure_hits(folder, options.seconds)
    api, servers, sent = ([round(median(column), 1) for column in side] for side in zip(*sides, strict=True))
    ratio = median(many[0] / one[0] for one, many in zip(*sides, strict=True))
    rows = [
        ("CPU of a hit, the API's, µs", *api, f"{ratio:.2f} (at most 1.15)"),
        ("CPU of a hit, all Redis servers', µs", *servers, ""),
        ("bytes of a hit between them", *sent, ""),
    ]
    return rows, {"ratio_hit_cpu": round(ratio, 3), "hit_us": api, "redis_us": servers, "hit_bytes": sent}


def compare_writes(folder: Path, options: argparse.Namespace) -> Found:
    """Return the rates of writing, and what a row costs the Redis servers: CPU in µs, and bytes that they get."""
    sides = measure_writes(folder, options.windows)
    rates, servers, sent = ([round(median(column), 2) for column in side] for side in zip(*sides, strict=True))
    ratio = median(many[0] / one[0] for one, many in zip(*sides, strict=True))
    rows = [
        ("rows written a second", *rates, f"{ratio:.2f} (at least 1)"),
        ("CPU of a row, all Redis servers', µs", *servers, ""),
        ("bytes sent for a row", *sent, ""),
    ]
    figures = {"rows_per_s": [round(rate) for rate in rates], "row_redis_us": servers, "row_bytes": sent}
    return rows, {"ratio_batch_rate": round(ratio, 3), **figures}


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


@dataclass(frozen=True)
class Servers:
    """Some Redis servers, by their ports and process ids."""

    ports: Sequence[int]
    pids: Sequence[int]

    def cpu_s(self) -> float:
        """Return the CPU time that they have used."""
        return sum(map(cpu_s, self.pids))

    def count(self, *names: str) -> int:
        """Return the sum of counters of `INFO stats`."""
        found = 0
        for port in self.ports:
            with redis.Redis(port=port) as client:
                stats = client.info("stats")
            found += sum(int(stats[name]) for name in names)
        return found

    def looked_up(self) -> tuple[int, int]:
        """Return the bytes sent and received, and the entities looked up, of which none has an answer on demand."""
        return self.count("total_net_input_bytes", "total_net_output_bytes"), self.count("keyspace_misses")


def measure_hits(folder: Path, seconds: float) -> tuple[list[Taken], list[Taken]]:
    """Return what hits cost over one Redis, and over a cluster, in turn."""
    taken: tuple[list[Taken], list[Taken]] = [], []
    cluster = RedisCluster(folder / "cluster", replicas=0)
    with Stack(folder, Dataset(folder, ROWS)) as stack, closing(_Stopped(cluster)):
        urls = (f"redis://127.0.0.1:{stack.redis_port}/1", cluster.start().url())
        for url in urls:
            _use(stack, url)
            publish(stack)
        servers = _servers_of(stack, cluster)
        for _ in range(ROUNDS):
            for side, url in enumerate(urls):
                _use(stack, url)
                stack.start_api()
                before = servers[side].looked_up()
                api_us, redis_us = measure_served(stack, seconds, servers[side].pids)
                sent, entities = (new - old for new, old in zip(servers[side].looked_up(), before, strict=True))
                taken[side].append((api_us, redis_us, sent / entities))
                stack.stop("api")
    return taken


def _servers_of(stack: Stack, cluster: RedisCluster) -> tuple[Servers, Servers]:
    nodes = [(node.port, node.process.pid) for node in cluster.nodes if node.process]
    return Servers([stack.redis_port], [stack.process_id("redis")]), Servers(*zip(*nodes, strict=True))


def _use(stack: Stack, url: str) -> None:
    stack.use_cache_port(stack.redis_port)
    text = stack.settings_file.read_text()
    stack.settings_file.write_text(text.replace(f"redis://127.0.0.1:{stack.redis_port}/1", url))


def measure_writes(folder: Path, windows: int) -> tuple[list[Taken], list[Taken]]:
    """Return the rate at which one process writes into one Redis, and into a cluster, and what a row costs there."""
    taken: tuple[list[Taken], list[Taken]] = [], []
    cluster = RedisCluster(folder / "cluster", replicas=0)
    with Stack(folder, Dataset(folder, ROWS)) as stack, closing(_Stopped(cluster)):
        urls = (f"redis://127.0.0.1:{stack.redis_port}/1", cluster.start().url())
        servers = _servers_of(stack, cluster)
        for _ in range(ROUNDS):
            for side, url in enumerate(urls):
                used_s, sent = servers[side].cpu_s(), servers[side].count("total_net_input_bytes")
                with open_client(url, WORKER, tag=_tag(url)) as client:
                    rate = _write(_table(client), windows)
                rows = windows * WINDOW
                used_s, sent = servers[side].cpu_s() - used_s, servers[side].count("total_net_input_bytes") - sent
                taken[side].append((rate, used_s / rows * 1e6, sent / rows))
                _empty(cluster, stack)
    return taken


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
