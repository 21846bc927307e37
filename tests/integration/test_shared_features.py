"""Two models over one table of features: one load, and single updates that count for both. Real processes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pandas as pd
import pytest

from inference.redis.keys import TableKind
from tests.support.models import add_times_version
from tests.support.stack import Stack

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(150)]

MODELS = """
[models.double]
path = "double"
[models.double.realtime]
timeout_ms = 5000
[models.triple]
path = "triple"
features_of = "double"
[models.triple.realtime]
timeout_ms = 5000
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("shared")
    for name, factor in (("double", 2.0), ("triple", 3.0)):
        add_times_version(folder / name, 1, factor)
    pd.DataFrame({"entity_id": ["a", "b"], "x": [1.0, 2.0]}).to_parquet(folder / "features.parquet")
    with Stack(folder, MODELS) as stack:
        stack.start("realtime", "api")
        stack.wait_ready()
        yield stack


def predicted(stack: Stack, model: str, entity_id: str) -> float:
    answer = httpx.get(f"{stack.url}/predict/{entity_id}", params={"model": model}, timeout=20)
    return float(answer.raise_for_status().json()["prediction"])


def test_one_load_serves_both(stack: Stack) -> None:
    loaded = stack.cli("features", "load", "triple", "features.parquet")
    assert loaded.returncode == 0, loaded.stderr
    assert [predicted(stack, model, "b") for model in ("double", "triple")] == [4.0, 6.0]
    keys = stack.deployment.keys
    held = [
        stack.deployment.cache.exists(keys.table(TableKind.FEATURES, name).pointer) for name in ("double", "triple")
    ]
    assert held == [1, 0]


@pytest.mark.parametrize("through", ["double", "triple"])
def test_a_single_update_counts_for_both_at_once(stack: Stack, through: str) -> None:
    assert predicted(stack, "triple", "a") == 1.5 * predicted(stack, "double", "a")
    value = {"double": 10.0, "triple": 20.0}[through]
    put = httpx.put(f"{stack.url}/features/a", params={"model": through}, json={"features": {"x": value}})
    assert put.raise_for_status().json()["applied"]
    assert [predicted(stack, model, "a") for model in ("double", "triple")] == [2 * value, 3 * value]


def test_doctor_looks_whether_the_features_are_there(stack: Stack) -> None:
    findings = json.loads(stack.cli("doctor", "--json").stdout)
    [found] = [one for one in findings if one["subject"] == "triple, features of double"]
    assert (found["status"], found["detail"]) == ("ok", "1 of the 1 stored ones")
