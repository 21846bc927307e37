"""Predictions in a Redis Cluster of three primaries, beside one Redis on the same machine.

What a hit costs the API (CPU time), rows that batch workers' store writes (whole windows, packed and sent), and hits
while a primary is killed: when all are back after Redis' own election, and whether one answer was wrong.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from contextlib import closing
from pathlib import Path

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
READ_TOGETHER = 20
AFTER_S = 6.0


def main() -> None:
    """Measure and print."""
    options = _options()
    with temporary_folder() as folder:
        hits = measure_hits(folder, options.seconds)
        rates = measure_writes(folder, options.windows)
        failover_s, reads, wrong = measure_failover(folder / "failover")
    ratio_hit_cpu, ratio_batch_rate = hits[1] / hits[0], rates[1] / rates[0]
    rows = [
        ("CPU of a hit, µs", f"{hits[0]:.1f}", f"{hits[1]:.1f}", f"{ratio_hit_cpu:.2f} (at most 1.15)"),
        ("rows written a second", f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{ratio_batch_rate:.2f} (at least 1)"),
        ("all hits back after the election, s", "", f"{failover_s:.2f}", "at most 5"),
        (f"wrong answers of {reads:,}", "", f"{wrong}", "0"),
    ]
    figures = {
        "ratio_hit_cpu": round(ratio_hit_cpu, 3), "ratio_batch_rate": round(ratio_batch_rate, 3),
        "failover_s": round(failover_s, 3), "wrong": wrong, "reads": reads,
        "hit_us": [round(one, 1) for one in hits], "rows_per_s": [round(one) for one in rates],
    }  # fmt: skip
    print_report("Redis Cluster", ["", "one Redis", "three primaries", ""], rows, figures, as_json=options.json)


def measure_hits(folder: Path, seconds: float) -> tuple[float, float]:
    """Return the microseconds of the API's CPU time of a hit over one Redis, and over a cluster."""
    taken: list[list[float]] = [[], []]
    cluster = RedisCluster(folder / "hits", replicas=0)
    with Stack(folder, Dataset(folder, ROWS)) as stack, closing(_Stopped(cluster)):
        urls = (f"redis://127.0.0.1:{stack.redis_port}/1", cluster.start().url())
        for url in urls:
            _use(stack, url)
            publish(stack)
        for _ in range(ROUNDS):
            for side, url in enumerate(urls):
                _use(stack, url)
                stack.start_api()
                taken[side].append(measure_served(stack, seconds))
                stack.stop("api")
    return min(taken[0]), min(taken[1])


def _use(stack: Stack, url: str) -> None:
    stack.use_cache_port(stack.redis_port)
    text = stack.settings_file.read_text()
    stack.settings_file.write_text(text.replace(f"redis://127.0.0.1:{stack.redis_port}/1", url))


def measure_writes(folder: Path, windows: int) -> tuple[float, float]:
    """Return the rows a second that one process writes into one Redis, and into a cluster."""
    taken: list[list[float]] = [[], []]
    cluster = RedisCluster(folder / "writes", replicas=0)
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


def measure_failover(folder: Path) -> tuple[float, int, int]:
    """Kill a primary under reads. Return the seconds from the election to the last failed read, reads, wrong ones."""
    cluster = RedisCluster(folder)
    with closing(_Stopped(cluster)):
        cluster.start()
        with open_client(cluster.url(), REQUEST, tag=_tag(cluster.url())) as client:
            table = _table(client)
            new = table.generations.begin(FIELDS, rows_expected=ROWS, model_version=1, contract_hash="", keep_s=86_400)
            ids = pa.array([entity_id(number) for number in range(ROWS)])
            block = {"prediction": np.arange(ROWS, dtype=np.float32)}
            table.generations.write(new, ids, block, np.zeros(ROWS))
            table.generations.publish(new.number)
            reader = _Reader(table)
            reader.start()
            time.sleep(1)
            victim = cluster.primary_of(Keys(_tag(cluster.url())).hash_key)
            victim.kill()
            while not _is_replaced(cluster, victim.port):
                time.sleep(0.02)
            elected_at = time.monotonic()
            time.sleep(AFTER_S)
            reader.over.set()
            reader.join()
    return max(0.0, reader.failed_at - elected_at), reader.reads, reader.wrong


class _Reader(threading.Thread):
    """Reads random entities until `over`. `failed_at`: when a read last failed."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self._table = table
        self.over = threading.Event()
        self.reads = self.wrong = 0
        self.failed_at = 0.0

    def run(self) -> None:
        chance = random.Random(1)
        while not self.over.is_set():
            numbers = [chance.randrange(ROWS) for _ in range(READ_TOGETHER)]
            try:
                entries = self._table.read([entity_id(number) for number in numbers])
            except StoreUnavailable:
                self.failed_at = time.monotonic()
                continue
            self.reads += len(numbers)
            self.wrong += sum(
                entry is None or entry.values["prediction"] != number
                for number, entry in zip(numbers, entries, strict=True)
            )


class _Stopped:
    """Stops a cluster when it is closed."""

    def __init__(self, cluster: RedisCluster) -> None:
        self.close = cluster.stop


def _is_replaced(cluster: RedisCluster, port: int) -> bool:
    """Whether a replica has taken the slots of the primary at a port."""
    living = next(node for node in cluster.nodes if node.answers())
    return all(primary[1] != port for _, _, primary, *_ in living.ask("CLUSTER", "SLOTS"))


def _tag(url: str) -> str:
    return "{forecache}" if "+cluster" in url else "forecache"


def _table(client: Client) -> Table:
    keys = Keys("{forecache}" if client.is_spread else "forecache").table(TableKind.PREDICTIONS, MODEL)
    return Table(client, keys, kind=TableKind.PREDICTIONS, model=MODEL)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6, help="of load on the API, for each side and round")
    parser.add_argument("--windows", type=int, default=6, help=f"of {WINDOW:,} rows, for each side and round")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
