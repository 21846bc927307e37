"""A lively day of a deployment, written into Redis by the product's own counters, records and messages.

Requests rise and fall with the hour, the night has minutes without any, a version is on trial, one run has failed,
another is in progress, and chunks wait for workers.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from inference.batch.gates import Gate
from inference.deployment import Deployment
from inference.economics.promises import DayFigures
from inference.gpus import GpuUse
from inference.monitoring.asked_filters import DAY_S
from inference.monitoring.counters import HitRecorder
from inference.monitoring.presence import API_PROCESSES, Presence, WorkerBeat
from inference.outcomes import Outcome
from inference.schema import DType, TensorSpec
from inference.stored_data import json_text_of
from tests.support.history import log_accesses
from tests.support.redis_server import RedisServer

#: lines for `forecache.toml` behind the section `[models.delay]`
TOML = """features = "flights.parquet"
[models.delay.batch]
schedule = "0 */6 * * *"
ttl = "12h"
[models.delay.realtime]
default = 0.0
[models.fare]
path = "models/fare"
features = "fares.parquet"
"""
ROWS = 200_000
CHUNKS = 48
STABLE, CANARY = 7, 8
#: minutes of the day (UTC of the newest minute, backwards) without any request: from 14 to 11 hours ago
QUIET = range(11 * 60, 14 * 60)
#: minutes in which the workers were too slow: two hours ago
TROUBLE = range(120, 131)


@dataclass(frozen=True)
class LivelyDay:
    """Writes the day. `now`: its end, epoch seconds."""

    deployment: Deployment
    server: RedisServer
    now: float

    def write(self) -> None:
        """Write all of it: some seconds of work."""
        generations = [self._publish(version) for version in (STABLE - 1, STABLE)]
        self._runs(generations)
        self._label()
        self._promise()
        asyncio.run(self._count())
        asyncio.run(log_accesses(self.server, days=8, entities=50_000, each_s=8))

    def _publish(self, version: int) -> int:
        table = self.deployment.predictions("delay")
        fields = (TensorSpec("delay", DType.FLOAT32),)
        run_id = f"delay-{version}"
        manifest = table.generations.begin(
            fields, rows_expected=ROWS, model_version=version, contract_hash="b", keep_s=DAY_S, run_id=run_id
        )
        ids = pa.array([f"F{number}" for number in range(ROWS)])
        table.generations.write(manifest, ids, {"delay": np.ones(ROWS, np.float32)}, np.full(ROWS, self.now - 3600))
        table.versions.activate(version)
        table.generations.publish(manifest.number)
        return manifest.number

    def _label(self) -> None:
        versions = self.deployment.predictions("delay").versions
        versions.label("stable", STABLE)
        versions.label("canary", CANARY, share=0.05)

    # --- runs

    def _runs(self, generations: list[int]) -> None:
        gates = json.dumps([vars(gate) for gate in (
            Gate("rows", True, f"{ROWS:,} rows, 100.0 % of the current generation"),
            Gate("coverage", True, f"{ROWS:,} of {ROWS:,} rows have a prediction"),
            Gate("drift", True, "population stability index 0.021, at most 1"),
        )])  # fmt: skip
        good = {"state": "published", "gates": gates}
        for back, number, version in ((7 * 3600, generations[0], STABLE - 1), (3600, generations[1], STABLE)):
            self._run(f"delay-{version}", back, generation=number, model_version=version, **good)
        index = "population stability index 1.84, at most 1"
        refused = [Gate("rows", True, "119,000 rows"), Gate("drift", False, index)]
        self._run("delay-drifted", 13 * 3600, state="failed", error="refused by the gate drift",
                  gates=json.dumps([vars(gate) for gate in refused]), trigger="cli")  # fmt: skip
        self._run("delay-broken", 19 * 3600, rows_done=ROWS * 2 // 3, chunks_done=CHUNKS * 2 // 3, state="failed",
                  error="chunk 32 failed at every attempt: MemoryError: 1.9 GiB")  # fmt: skip
        self._running("delay-now")

    def _run(self, run_id: str, back: float, **more: Any) -> None:
        """Leave the record of a run behind that began `back` seconds ago."""
        created = self.now - back
        record: dict[str, Any] = {
            "run_id": run_id, "model": "delay", "state": "published", "trigger": "beat", "source": "flights.parquet",
            "engine": "celery", "created_at": created, "started_at": created + 3, "scored_at": created + 171,
            "finished_at": created + 175, "rows_total": ROWS, "rows_done": ROWS, "chunks_total": CHUNKS,
            "chunks_done": CHUNKS, "attempts": CHUNKS, "model_version": STABLE, **more,
        }  # fmt: skip
        keys, client = self.deployment.keys, self.deployment.cache
        client.hset(keys.run(run_id), mapping={name: value for name, value in record.items() if value != ""})
        client.zadd(keys.runs("delay"), {run_id: created})
        client.hset(keys.run_part(run_id, "done"), mapping={str(n): "{}" for n in range(record["chunks_done"])})

    def _running(self, run_id: str) -> None:
        """Leave a run behind that is under way: workers hold some chunks, and others wait on the queue."""
        done = 29
        unknown = {"scored_at": "", "finished_at": ""}
        self._run(run_id, 104, state="running", rows_done=ROWS * done // CHUNKS, chunks_done=done, attempts=done + 3,
                  **unknown)  # fmt: skip
        ledger, keys = self.deployment.ledger, self.deployment.keys
        self.deployment.cache.set(keys.active_run("delay"), run_id)
        self.deployment.cache.zadd(keys.run_part(run_id, "sent"), {str(n): self.now for n in range(done, done + 9)})
        for number in range(done, done + 3):
            ledger.claim(run_id, number, f"token-{number}", lease_s=3600)

    # --- requests

    async def _count(self) -> None:
        """Count the requests of the last 24 hours, minute by minute."""
        at = self.now
        async with self.deployment.async_cache() as client:
            recorder = HitRecorder(client, self.deployment.keys, lambda: at)
            for back in range(24 * 60 - 1, -1, -1):
                at = self.now - 60 * back
                self._minute(recorder, back, at)
                await recorder.flush()

    def _minute(self, recorder: HitRecorder, back: int, at: float) -> None:
        if back in QUIET:
            return
        rng = np.random.default_rng(back)
        rate = 60 * (2.5 - 1.5 * math.cos(2 * math.pi * (at % DAY_S) / DAY_S))
        slow = back in TROUBLE
        shares = {
            Outcome.HIT_BATCH: 0.9, Outcome.HIT_REALTIME: 0.04, Outcome.COMPUTED: 0.015 if slow else 0.055,
            Outcome.STALE: 0.03 if slow else 0.003, Outcome.SHED: 0.015 if slow else 0.0,
        }  # fmt: skip
        for outcome, share in shares.items():
            for version, part in self._parts(outcome):
                if count := int(rng.poisson(rate * share * part)):
                    recorder.record("delay", outcome, count, version=version, age_s=float(rng.gamma(4, 900)))
        for _ in range(40):
            recorder.record_latency("delay", float(rng.lognormal(-7.2, 0.35)), hit=True)
        for _ in range(6):
            recorder.record_latency("delay", float(rng.lognormal(-2.6 if slow else -4.3, 0.4)), hit=False)
            recorder.record_micro_batch("delay", int(rng.integers(1, 24)))

    @staticmethod
    def _parts(outcome: Outcome) -> tuple[tuple[int | None, float], ...]:
        """Return the versions that give an outcome, and the share of each."""
        if outcome is Outcome.SHED:
            return ((None, 1.0),)
        if outcome in (Outcome.COMPUTED, Outcome.HIT_REALTIME):
            return ((STABLE, 0.95), (CANARY, 0.05))
        return ((STABLE, 1.0),)

    def _promise(self) -> None:
        """Keep promises of 30 days."""
        today = int(self.now // DAY_S)
        for back in range(1, 31):
            wave = math.sin(back / 3)
            promised = DayFigures("hybrid", 0.945 + 0.01 * wave, 130 + 8 * wave, "USD", 40 + 5 * wave, 2.5, None)
            came = replace(promised, hit_rate=0.943 + 0.012 * wave, cost=131 + 9 * wave, requests=1_000_000)
            fields = {"promised": json_text_of(DayFigures, promised), "came": json_text_of(DayFigures, came)}
            self.deployment.cache.hset(self.deployment.keys.promise("delay", today - back), mapping=fields)

    # --- processes and queues

    @contextmanager
    def processes(self) -> Iterator[None]:
        """Let workers and API processes be there for an hour, and messages wait."""
        presence = Presence(self.deployment.cache, self.deployment.keys, gone_after_s=3600)
        beats = [*self._workers(), *self._api()]
        for beat in beats:
            presence.beat(beat)
        self.deployment.broker.send_chunks("delay-now", range(32, 38))
        try:
            yield
        finally:
            for beat in beats:
                presence.leave(beat)

    def _workers(self) -> list[WorkerBeat]:
        gpu = GpuUse(index=0, name="NVIDIA L4", memory_used=9 << 30, memory_total=24 << 30, busy_share=0.71)
        versions = {"delay": (STABLE, CANARY)}
        common = {"release": "0.9.0", "started_at": self.now - 7200, "ready": True, "versions": versions}
        return [
            WorkerBeat(name=f"{queue}@{host}", process=queue, queues=(queue,), host=host, pid=pid,
                       gpus=(gpu,) if queue == "batch" else (), **common)
            for queue, host, pid in (("realtime", "api-1", 212), ("realtime", "api-2", 207), ("batch", "gpu-1", 88),
                                     ("maintenance", "api-1", 96))
        ]  # fmt: skip

    def _api(self) -> list[WorkerBeat]:
        return [
            WorkerBeat(name=f"api@{host}", process="api", queues=(API_PROCESSES,), host=host, pid=41, release="0.9.0",
                       started_at=self.now - 7200, ready=True, versions={},
                       breakers={"delay": "closed", "fare": "half_open" if host == "api-2" else "closed"})
            for host in ("api-1", "api-2")
        ]  # fmt: skip


def day_of(deployment: Deployment, server: RedisServer) -> LivelyDay:
    """Return the day that ends now."""
    return LivelyDay(deployment, server, time.time())
