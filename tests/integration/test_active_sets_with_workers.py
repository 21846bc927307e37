"""An active set with real processes: requests decide the next run, and the rest is computed on demand."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.monitoring.asked_filters import DAY_S, AskedFilters
from tests.support.plain_models import write_slow_sum_model
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

ROWS, ASKED = 2_000, 20
TOML = """
[models.m]
path = "model"
allow_code = true
features = "t.parquet"
[models.m.batch]
feature_table = true
entities = "asked within 1d"
new_entities = false
rows_per_chunk = 100
micro_batch_rows = 4
max_drift = 1000
[models.m.realtime]
timeout_ms = 20_000
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("active")
    write_slow_sum_model(folder / "model", ["a"], seconds=0.002)
    write_table(folder, offset=0)
    with Stack(folder, TOML) as stack:
        stack.start("gpu", "realtime", "maintenance", "api")
        stack.wait_ready(150)
        yield stack


def write_table(folder: Any, *, offset: int) -> None:
    columns = {"entity_id": [f"e{i}" for i in range(ROWS)], "a": np.arange(ROWS, dtype=np.float32) + offset}
    pq.write_table(pa.table(columns), folder / "t.parquet", row_group_size=500)


def predict(stack: Stack, number: int) -> tuple[float, str]:
    answer = httpx.get(f"{stack.url}/predict/e{number}", timeout=30).raise_for_status().json()
    return answer["prediction"], answer["outcome"]


def start(stack: Stack) -> str:
    run_id: str = httpx.post(f"{stack.url}/runs", json={"model": "m"}).raise_for_status().json()["run_id"]
    return run_id


def act(stack: Stack, path: str) -> dict[str, Any]:
    done: dict[str, Any] = httpx.post(f"{stack.url}{path}").raise_for_status().json()
    return done


def ask(stack: Stack, numbers: range) -> None:
    """Ask for entities, until the log has them."""
    for number in numbers:
        predict(stack, number)
    deployment, ids = stack.deployment, [f"e{number}" for number in numbers]

    def logged() -> bool:
        filters = AskedFilters.load(deployment.cache, deployment.keys, "m", 1)
        return filters is not None and bool(filters.history(filters.hashes(ids)).all())

    wait_for(logged, "the log of who was asked for")


@pytest.mark.slow
def test_a_run_scores_who_was_asked_for_and_the_rest_is_computed_on_demand(stack: Stack) -> None:
    first = stack.wait_run(start(stack))
    assert (first["state"], first["rows_outside"], first["entities_rule"]) == ("published", 0, "all"), first["error"]
    ask(stack, range(ASKED))
    young = stack.wait_run(start(stack))
    assert "the access log goes back 0.0 days, and the rule 1" in young["entities_note"]
    deployment = stack.deployment
    # as if it had gone on for three days
    deployment.cache.hset(deployment.keys.access_log("m"), "since", str(deployment.ledger.now() - 3 * DAY_S))
    write_table(stack.folder, offset=10_000)

    stack.processes["gpu"].send_signal(signal.SIGSTOP)  # so that the run is planned and not over
    run_id = start(stack)
    wait_for(lambda: httpx.get(f"{stack.url}/runs/{run_id}").json()["state"] == "running", "the plan")
    act(stack, f"/runs/{run_id}/cancel")
    stack.kill("gpu")
    ask(stack, range(ASKED, 2 * ASKED))  # comes too late for this run
    stack.start("gpu")
    act(stack, f"/runs/{run_id}/resume")
    done = stack.wait_run(run_id)

    assert (done["state"], done["error"]) == ("published", None)
    assert (done["rows_total"], done["rows_done"], done["rows_outside"]) == (ROWS, ROWS, ROWS - ASKED)
    assert (done["entities_rule"], done["entities_note"]) == ("asked within 1d", f"{ASKED} of {ROWS:,} rows")
    assert predict(stack, 3) == (10_003.0, "hit_batch")
    assert predict(stack, ROWS - 1) == (ROWS + 9_999.0, "computed")
    shown = stack.cli("batch", "show", run_id).stdout
    assert "asked within 1d" in shown
    assert str(ROWS - ASKED) in shown
    assert "rows_outside" in stack.cli("batch", "list").stdout


@pytest.mark.slow
def test_a_rollback_serves_the_whole_generation_again(stack: Stack) -> None:
    act(stack, "/models/m/rollback")

    assert predict(stack, 3) == (3.0, "hit_batch")
    assert predict(stack, ROWS - 2) == (ROWS - 2.0, "hit_batch")
