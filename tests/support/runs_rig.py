"""A deployment whose runs are put through trouble, and the exact truth to hold its answers to."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inference.redis.clients import Client
from inference.store import Table
from tests.support.leaks import assert_nothing_leaks
from tests.support.stack import Stack, wait_for

#: small chunks of tiny micro-batches, each of which takes 2 ms and more: a chunk takes a twentieth of a second even on
#: a fast machine, so a kill usually hits one, and a run of some dozens is still going on when a test lays hands on it
CHUNK_ROWS = 100
CALL_S = 0.002
MODEL = "m"
_TOML = f"""
[models.{MODEL}]
path = "model"
allow_code = true
features = "t.parquet"
[models.{MODEL}.batch]
rows_per_chunk = {CHUNK_ROWS}
micro_batch_rows = 4
max_in_flight = 6
parquet_path = "out"
# each run has other predictions, and another size
max_drift = 1000
min_size_ratio = 0
[models.tick]
path = "model"
allow_code = true
features = "tick.parquet"
[models.tick.batch]
schedule = "2s"
"""


class Rig:
    """One model `m` that adds `a` and `b` up; row i of its table holds a = i and b = `offset`."""

    def __init__(self, folder: Path, *, batch: str = "", cache_url: str | None = None) -> None:
        """`batch`: more settings of the model's runs. `cache_url`: as for `Stack`."""
        toml = _TOML.replace('parquet_path = "out"\n', f'parquet_path = "out"\n{batch}\n')
        self.stack = Stack(folder, toml, cache_url=cache_url)
        self.rows, self.offset = 0, 0

    @property
    def table(self) -> Table:
        return self.stack.deployment.predictions(MODEL)

    def write_table(self, rows: int, *, offset: int, name: str = "t.parquet") -> None:
        columns = {
            "entity_id": [f"e{i}" for i in range(rows)],
            "a": np.arange(rows, dtype=np.float32),
            "b": np.full(rows, offset, np.float32),
        }
        temporary = self.stack.folder / f"new-{name}"
        pq.write_table(pa.table(columns), temporary, row_group_size=5_000)
        temporary.replace(self.stack.folder / name)

    def start_run(self, rows: int, *, offset: int) -> str:
        """Write a table that gives other predictions than the last one, and start a run over it."""
        self.write_table(rows, offset=offset)
        return self.request()

    def request(self, **body: Any) -> str:
        """Start a run over the table as it is."""
        answer = httpx.post(f"{self.stack.url}/runs", json={"model": MODEL, **body})
        run_id: str = answer.raise_for_status().json()["run_id"]
        return run_id

    def run(self, run_id: str) -> dict[str, Any]:
        view: dict[str, Any] = httpx.get(f"{self.stack.url}/runs/{run_id}", timeout=10).raise_for_status().json()
        return view

    def wait_chunks(self, run_id: str, least: int) -> None:
        wait_for(lambda: self.run(run_id)["chunks_done"] >= least, f"{least} chunks of {run_id}", 120)

    def end(self, run_id: str, timeout_s: float = 90) -> dict[str, Any]:
        return self.stack.wait_run(run_id, timeout_s)

    def end_supervised(self, run_id: str) -> dict[str, Any]:
        """The same, with every process that ends meanwhile started again, as a supervisor does."""

        def over() -> dict[str, Any] | None:
            for name in [name for name, process in self.stack.processes.items() if process.poll() is not None]:
                self.stack.start(name)
            return self.stack.run_if_over(run_id)

        return wait_for(over, f"the end of run {run_id} under a supervisor", 150)

    def cancel(self, run_id: str) -> None:
        httpx.post(f"{self.stack.url}/runs/{run_id}/cancel").raise_for_status()

    def assert_serves(self, rows: int, *, offset: int) -> None:
        """Every entity has exactly its prediction, and there is no other."""
        table = self.table
        current = table.pointer().current
        manifest = None if current is None else table.generations.manifest(current)
        assert manifest is not None
        assert table.generations.count(manifest) == rows
        entries = table.read([f"e{i}" for i in range(rows)])
        wrong = {
            f"e{i}": entry and entry.values
            for i, entry in enumerate(entries)
            if entry is None or list(entry.values.values()) != [i + offset]
        }
        assert wrong == {}

    def assert_published(self, run_id: str, rows: int, *, offset: int) -> dict[str, Any]:
        """The run ended well, counted every row once, and its predictions serve; nothing is left behind."""
        done = self.end(run_id)
        assert (done["state"], done["error"]) == ("published", None), done
        assert (done["rows_done"], done["rows_total"], done["rows_quarantined"]) == (rows, rows, 0)
        assert done["chunks"]["done"] == done["chunks_total"]
        self.assert_serves(rows, offset=offset)
        parts = pq.read_table(self.stack.folder / "out" / run_id)
        assert sorted(parts.column("entity_id").to_pylist()) == sorted(f"e{i}" for i in range(rows))
        self.assert_clean()
        return done

    def assert_clean(self) -> None:
        assert_nothing_leaks(self.stack)

    def signal(self, name: str, number: signal.Signals) -> None:
        self.stack.processes[name].send_signal(number)

    def freeze_at_work(self, name: str, run_id: str) -> None:
        """Stop the only worker in the middle of a chunk of the run, not between two."""

        def caught() -> bool:
            self.signal(name, signal.SIGSTOP)
            if self.run(run_id)["chunks"]["scoring"]:
                return True
            self.signal(name, signal.SIGCONT)
            return False

        wait_for(caught, f"{name} in the middle of a chunk")

    def kill_at_work(self, names: list[str], rng: random.Random, *, within_s: float = 0.5) -> str:
        """kill -9 one of the workers at a random moment of its work's first `within_s`, and start it again."""
        marks = {name: len(self.stack.log(name)) for name in names}

        def working() -> list[str]:
            return [name for name in names if "chunk.scored" in self.stack.log(name)[marks[name] :]]

        wait_for(working, "a worker at work", 60)
        time.sleep(rng.random() * within_s)
        victim = rng.choice(working())
        self.stack.kill(victim)
        self.stack.start(victim)
        return victim

    def cache(self) -> Any:
        return Client.from_url(self.stack.settings.cache_url)
