"""Answers of runs and of real time are computed again the other way, over real processes; beat asks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import numpy as np
import pyarrow as pa
import pytest

from tests.support.flights import ROWS, write_flights
from tests.support.stack import Stack, run_cli_json
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("parity")
    toml = write_flights(folder) + '[models.delay.parity]\nevery = "1s"\nsample = 50\n'
    with Stack(folder, toml) as stack:
        stack.start("gpu", "realtime", "maintenance", "api")
        stack.wait_ready()
        assert stack.cli("features", "load", "delay", "flights.parquet").returncode == 0
        run = run_cli_json(folder, "batch", "run", "delay", "--wait")
        assert run["state"] == "published"
        stack.start("beat")
        yield stack


def counts(stack: Stack) -> dict[str, float]:
    """PATH:RESULT → answers, as `/metrics` has them."""
    found = {}
    for line in httpx.get(f"{stack.url}/metrics").text.splitlines():
        if line.startswith("forecache_parity_answers_total{"):
            labels = dict(pair.split("=") for pair in line.partition("{")[2].partition("}")[0].split(","))
            found[f"{labels['path']}:{labels['result']}".replace('"', "")] = float(line.rpartition(" ")[2])
    return found


def wait_for_more(stack: Stack, name: str) -> None:
    before = counts(stack).get(name, 0)
    wait_for(lambda: counts(stack).get(name, 0) > before, f"more {name}", 30)


@pytest.mark.slow
def test_equal_answers_agree_moved_features_are_drift_and_only_other_answers_disagree(stack: Stack) -> None:
    compute(stack, "F1")
    wait_for_more(stack, "batch:agreed")
    wait_for_more(stack, "realtime:agreed")
    assert {name for name, count in counts(stack).items() if count} == {"batch:agreed", "realtime:agreed"}

    items = [{"entity_id": f"F{number}", "features": {"b": 5}} for number in range(ROWS)]
    assert httpx.put(f"{stack.url}/features", json={"items": items}).status_code == 200
    wait_for_more(stack, "batch:drifted")
    wait_for_more(stack, "realtime:drifted")
    assert not sum(count for name, count in counts(stack).items() if "disagreed" in name)

    assert stack.cli("features", "load", "delay", "flights.parquet").returncode == 0
    spoil_the_run(stack)
    wait_for_more(stack, "batch:disagreed")
    spoil_the_sample(stack)
    wait_for_more(stack, "realtime:disagreed")
    assert "parity.disagreed" in stack.log("gpu")
    told = run_cli_json(stack.folder, "hits", "delay")[0]["parity"]
    assert told["batch"]["disagreed"] > 0
    assert "disagreed" in stack.cli("hits").stdout


def compute(stack: Stack, entity_id: str) -> None:
    url = f"{stack.url}/predict/{entity_id}"
    assert httpx.get(url, params={"max_staleness_hours": 0}, timeout=10).json()["outcome"] == "computed"


def spoil_the_run(stack: Stack) -> None:
    """Change what the run has stored by a thousandth."""
    table = stack.deployment.predictions("delay")
    manifest = table.generations.manifest(table.pointer().current or 0)
    assert manifest is not None
    ids = pa.array([f"F{number}" for number in range(ROWS)])
    [name] = [spec.name for spec in manifest.fields]
    wrong = (np.arange(ROWS, dtype=np.float32) + 1) * np.float32(1.001)
    table.generations.write(manifest, ids, {name: wrong}, np.full(ROWS, manifest.created_at))


def spoil_the_sample(stack: Stack) -> None:
    """Have an answer been given that the model does not give."""
    own = stack.deployment
    key = own.keys.answers("delay")
    own.cache.delete(key)
    compute(stack, "F2")
    [text] = wait_for(lambda: own.cache.lrange(key, 0, -1), "a sampled answer", 20)
    answer = json.loads(text)
    own.cache.lset(key, 0, json.dumps({**answer, "prediction": answer["prediction"] * 1.001}))
