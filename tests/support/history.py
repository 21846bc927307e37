"""A history of runs and requests in Redis, without any having been."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from inference.clock import Clock, system_clock
from inference.monitoring.counters import HitRecorder
from inference.outcomes import Outcome
from inference.redis.clients import AsyncClient, Client
from inference.redis.keys import Keys, TableKind
from inference.schema import DType, TensorSpec
from inference.store import Table
from tests.support.redis_server import RedisServer

KEYS = Keys("forecache")
ROWS = 2_000


def publish_generation(client: Client, rows: int = ROWS) -> None:
    table = Table(client, KEYS.table(TableKind.PREDICTIONS, "delay"), kind=TableKind.PREDICTIONS, model="delay")
    spec = TensorSpec("score", DType.FLOAT32, (1,))
    manifest = table.generations.begin([spec], rows_expected=rows, model_version=1, contract_hash="h", keep_s=3600)
    block = {"score": np.ones((rows, 1), np.float32)}
    table.generations.write(manifest, pa.array([f"e{i}" for i in range(rows)]), block, np.full(rows, table.now()))
    table.generations.publish(manifest.number)


def keep_runs(client: Client, *states: str, rows: int = ROWS, engine: str = "celery", **more: Any) -> None:
    """Leave runs behind that were planned after 2 s, and scored all rows in 4 s, two of four chunks twice.

    `more`: fields of their records. Runs with other such fields have names of their own.
    """
    now = float(client.time()[0])
    for number, state in enumerate(states):
        run_id, created = "-".join(["delay", engine, *more, str(number)]), now - 1_000 + number
        fields: dict[str, Any] = {
            "run_id": run_id, "model": "delay", "state": state, "trigger": "beat", "source": "t.parquet",
            "engine": engine,
            "created_at": created, "started_at": created + 2, "scored_at": created + 6, "finished_at": created + 7,
            "rows_total": rows, "rows_done": rows, "chunks_total": 4, "chunks_done": 4, "attempts": 6, **more,
        }  # fmt: skip
        client.hset(KEYS.run(run_id), mapping=fields)
        client.zadd(KEYS.runs("delay"), {run_id: created})


async def count_requests(
    server: RedisServer, *, hits: int, misses: int, entities: int, clock: Clock = system_clock
) -> None:
    async with AsyncClient.from_url(server.url()) as client:
        recorder = HitRecorder(client, KEYS, clock)
        recorder.record("delay", Outcome.HIT_BATCH, hits, age_s=100.0)
        recorder.record("delay", Outcome.COMPUTED, misses, age_s=0.0)
        for _ in range(misses):
            recorder.record_latency("delay", 0.02, hit=False)
        recorder.record_asked("delay", [f"e{i}" for i in range(entities)])
        await recorder.flush()


async def log_accesses(server: RedisServer, *, days: float, entities: int, each_s: float = 60.0) -> None:
    """Log accesses of the last days by Zipf's law: one each `each_s` seconds at night, four at noon."""
    rng, now = np.random.default_rng(7), system_clock()
    chances = np.cumsum(1 / np.arange(1, entities + 1))
    async with AsyncClient.from_url(server.url()) as client:
        at = 0.0
        recorder = HitRecorder(client, KEYS, lambda: at)
        for at in np.arange(now - days * 86_400, now, 1800):
            busy = 2.5 - 1.5 * np.cos(2 * np.pi * at / 86_400)
            chosen = np.searchsorted(chances, rng.random(int(busy * 1800 / each_s)) * chances[-1])
            recorder.record_asked("delay", [f"e{one}" for one in chosen.tolist()])
            await recorder.flush()
