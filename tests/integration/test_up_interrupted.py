"""Ctrl-C in the middle of a run: no process is left, and after the next starts the run is published whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from inference.deployment import Deployment
from inference.redis.clients import WORKER
from inference.settings import load_settings
from tests.support.plain_models import write_slow_sum_model
from tests.support.ports import free_port
from tests.support.stack import run_cli_json
from tests.support.terminal import Terminal
from tests.support.waiting import wait_for

#: three starts with TensorFlow
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(420)]

ROWS, CHUNKS = 60_000, 6


class Folder:
    """A folder whose runs take two seconds or more a chunk, and `up` in a terminal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        write_slow_sum_model(folder / "model", ["a", "b"], seconds=0.0005)
        ids = [f"e{number}" for number in range(ROWS)]
        table = pd.DataFrame({"entity_id": ids, "a": np.arange(float(ROWS)), "b": np.ones(ROWS)})
        table.to_parquet(folder / "features.parquet")
        (folder / "forecache.toml").write_text(
            f"[api]\nport = {port}\n"
            '[models.sum]\npath = "model"\nallow_code = true\nfeatures = "features.parquet"\n'
            # tiny micro-batches make a chunk slow
            f"[models.sum.batch]\nrows_per_chunk = {ROWS // CHUNKS}\nmicro_batch_rows = 3\n"
        )
        self.terminals: list[Terminal] = []

    def up(self) -> Terminal:
        command = (sys.executable, "-P", "-m", "app.cli", "up", "--without", "realtime,beat,dashboard")
        self.terminals.append(Terminal(self.folder, *command))
        self.terminals[-1].wait_said("all ready after", 150)
        return self.terminals[-1]

    def run(self, run_id: str) -> dict[str, Any]:
        run: dict[str, Any] = httpx.get(f"{self.url}/runs/{run_id}").raise_for_status().json()
        return run

    def wait_chunks(self, run_id: str, more_than: int) -> int:
        """Wait until more chunks are done; the run must not be over then."""

        def done() -> int | None:
            run = self.run(run_id)
            assert run["state"] in ("queued", "running"), f"too fast to be interrupted: {run}"
            return int(run["chunks_done"]) if run["chunks_done"] > more_than else None

        return wait_for(done, f"more than {more_than} chunks")


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path)
    yield made
    for terminal in made.terminals:
        terminal.close()


def test_a_run_interrupted_twice_is_published_with_every_row(it: Folder) -> None:
    up = it.up()
    run_id = run_cli_json(it.folder, "batch", "run")["run_id"]
    done = it.wait_chunks(run_id, 0)
    interrupt(up, presses=1)
    assert up.screen().count("chunk.scored") == done + 1, "the chunk in hand was not finished"

    up = it.up()
    it.wait_chunks(run_id, done + 1)
    interrupt(up, presses=2)

    it.up()
    run = wait_for(lambda: (r := it.run(run_id))["state"] == "published" and r, "the run to be published", 120)
    assert (run["rows_done"], run["chunks_done"], run["rows_quarantined"]) == (ROWS, CHUNKS, 0)
    with Deployment(load_settings(it.folder / "forecache.toml"), WORKER) as deployment:
        predictions = deployment.predictions("sum")
        manifest = predictions.generations.manifest(run["generation"])
        assert manifest
        assert predictions.generations.count(manifest) == ROWS
        entries = predictions.read([f"e{number}" for number in range(ROWS)])
    assert [next(iter(entry.values.values())) for entry in entries if entry] == [float(n + 1) for n in range(ROWS)]


def interrupt(up: Terminal, *, presses: int) -> None:
    """Press Ctrl-C; nothing may be left of what `up` had started."""
    children = up.process.children(recursive=True)
    for _ in range(presses):
        up.press("C-c")
        up.wait_said("stopping: workers finish")
    assert up.wait_ended() == 0
    assert [child for child in children if child.is_running()] == []
