"""Groups, functions and explanations from outside: real workers and a real API over one real Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from tests.support.models import write_sum_model
from tests.support.stack import Stack, run_cli_json
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

CONTRACT = {
    "features": [
        {"name": "balance", "dtype": "float32", "group": "profile", "min": 0, "max": 1000},
        {"name": "clicks", "dtype": "float32", "group": "activity", "default": 500},
        {"name": "both", "dtype": "float32", "group": "sums"},
        {"name": "weekend", "dtype": "float32", "group": "clock"},
        {"name": "basket", "dtype": "float32", "group": "cart", "default": 0},
    ],
    "groups": {
        "profile": {"event_time_column": "profiled_at"},
        "activity": {"event_time_column": "active_at", "max_age": "1d"},
        "sums": {"source": "function", "function": "shop_features:sums"},
        "clock": {"source": "function", "function": "weekend", "timezone": "Pacific/Kiritimati"},
        "cart": {"source": "request"},
    },
}
FUNCTIONS = """
import pandas as pd

def sums(frame, at):
    if (frame["balance"] == 666).any():
        raise RuntimeError("an unlucky balance")
    return pd.DataFrame({"both": frame["balance"] + frame["clicks"]})
"""
TOML = """
[models.spend]
path = "model"
features = "people.parquet"
allow_code = true
[models.spend.batch]
prediction_table = true
max_quarantined_fraction = 0.9
min_size_ratio = 0
[models.spend.realtime]
timeout_ms = 5000
"""


def people(now: datetime) -> pd.DataFrame:
    fresh, old = now - timedelta(hours=1), now - timedelta(days=3)
    return pd.DataFrame(
        {
            "entity_id": ["fresh", "old", "never"],
            "balance": [10.0, 20.0, 30.0],
            "clicks": [1.0, 2.0, None],
            "basket": [0.0, 0.0, 0.0],
            "profiled_at": pd.to_datetime([old, old, old], utc=True),
            "active_at": pd.to_datetime([fresh, old, None], utc=True),
        }
    )


def is_weekend(now: datetime) -> float:
    return float((now + timedelta(hours=14)).weekday() >= 5)  # Kiritimati is 14 hours ahead


@pytest.fixture(scope="module")
def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, now: datetime) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("groups")
    write_sum_model(folder / "model", [feature["name"] for feature in CONTRACT["features"]])  # type: ignore[index]
    (folder / "model" / "features.json").write_text(json.dumps(CONTRACT))
    (folder / "shop_features.py").write_text(FUNCTIONS)
    people(now).to_parquet(folder / "people.parquet")
    with Stack(folder, TOML) as stack:
        stack.start("realtime", "gpu", "maintenance", "api")
        stack.wait_ready()
        done = stack.cli("features", "load", "spend", "people.parquet")
        assert done.returncode == 0, done.stderr
        yield stack


def explained(stack: Stack, entity_id: str, **query: Any) -> dict[str, Any]:
    reply = httpx.get(f"{stack.url}/predict/{entity_id}", params={"explain": "features", **query}, timeout=10)
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


def iso(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def test_an_explanation_tells_every_value_where_it_is_from_and_how_old_it_is(stack: Stack, now: datetime) -> None:
    answer = explained(stack, "fresh", max_staleness_hours=0)
    assert answer["prediction"] == pytest.approx(10 + 1 + 11 + is_weekend(now))
    assert answer["imputed_features"] == ["basket"]
    told = answer["explanation"]
    assert told["made_this_answer"] is True
    assert told["contract_hash"] == stack.deployment.registry.active("spend").contract_hash  # type: ignore[union-attr]
    assert len(told["vector_hash"]) == 16
    values = {name: one["value"] for name, one in told["features"].items()}
    assert values == {"balance": 10, "clicks": 1, "both": 11, "weekend": is_weekend(now), "basket": 0}
    assert told["groups"]["activity"]["status"] == "present"
    assert told["groups"]["activity"]["as_of"] == iso(now - timedelta(hours=1))
    assert told["features"]["clicks"]["age_s"] == pytest.approx(3600, abs=300)
    assert told["features"]["both"]["source"] == "shop_features:sums"
    assert told["features"]["basket"]["source"] == "default"
    # the prediction is as old as the oldest group that it was made from
    assert answer["as_of"] == told["groups"]["profile"]["as_of"] == iso(now - timedelta(days=3))


def test_what_was_served_from_the_store_says_that_its_explanation_is_of_now(stack: Stack) -> None:
    explained(stack, "fresh", max_staleness_hours=0)
    answer = explained(stack, "fresh", max_staleness_hours=100)
    assert answer["cache_hit"] is True
    assert answer["explanation"]["made_this_answer"] is None
    assert answer["explanation"]["features"]["balance"]["value"] == 10
    plain = httpx.get(f"{stack.url}/predict/fresh").json()
    assert "explanation" not in plain
    refused = httpx.get(f"{stack.url}/predict/fresh", params={"explain": "all"})
    assert refused.status_code == 400


@pytest.mark.parametrize(("entity_id", "status"), [("old", "outside maximum age"), ("never", "not found")])
def test_a_default_stands_for_what_is_too_old_or_not_there_and_is_named(
    stack: Stack, entity_id: str, status: str
) -> None:
    answer = explained(stack, entity_id, max_staleness_hours=0)
    assert answer["explanation"]["groups"]["activity"] == {
        "status": status, "source": None, "as_of": None, "age_s": None,
    }  # fmt: skip
    assert answer["explanation"]["features"]["clicks"]["value"] == 500
    assert answer["imputed_features"] == ["clicks", "basket"]
    many = httpx.post(f"{stack.url}/predict", json={"entity_ids": [entity_id], "max_staleness_hours": 0}, timeout=10)
    assert many.json()["predictions"][0]["imputed_features"] == ["clicks", "basket"]


def test_what_comes_with_the_request_goes_before_its_default(stack: Stack) -> None:
    body = {"entity_ids": ["fresh"], "overrides": {"basket": 7}}
    [answer] = httpx.post(f"{stack.url}/predict", json=body, timeout=10).json()["predictions"]
    assert "imputed_features" not in answer
    base = explained(stack, "fresh", max_staleness_hours=0)["prediction"]
    assert answer["prediction"] == pytest.approx(base + 7)


def test_a_single_update_of_one_group_leaves_the_other_its_age(stack: Stack, now: datetime) -> None:
    before = explained(stack, "old", max_staleness_hours=0)["explanation"]["groups"]
    done = httpx.put(f"{stack.url}/features/old", json={"features": {"clicks": 3}})
    assert done.status_code == 200, done.text
    answer = explained(stack, "old")
    told = answer["explanation"]
    assert told["features"]["clicks"] | {"age_s": 0} == {
        "value": 3, "group": "activity", "source": "table", "as_of": told["groups"]["activity"]["as_of"], "age_s": 0,
    }  # fmt: skip
    assert told["groups"]["profile"]["as_of"] == before["profile"]["as_of"]
    assert answer["prediction"] == pytest.approx(20 + 3 + 23 + is_weekend(now))
    got = run_cli_json(stack.folder, "features", "get", "spend", "old")
    assert got["features"] == {"balance": 20, "clicks": 3}


@pytest.mark.parametrize("value", [-1, 1001])
def test_a_value_out_of_range_is_refused_everywhere_with_group_and_feature(stack: Stack, value: float) -> None:
    wanted = "not 0 to 1000 (group 'profile')"
    put = httpx.put(f"{stack.url}/features/fresh", json={"features": {"balance": value}})
    assert (put.status_code, wanted in put.text, "balance" in put.text) == (400, True, True), put.text
    body = {"instances": [{"balance": value, "clicks": 1}]}
    [item] = httpx.post(f"{stack.url}/predict", json=body, timeout=10).json()["predictions"]
    assert wanted in item["error"]["detail"]
    assert explained(stack, "fresh")["explanation"]["features"]["balance"]["value"] == 10


def test_a_load_with_a_value_out_of_range_is_refused_and_what_was_loaded_stays(stack: Stack, now: datetime) -> None:
    people(now).assign(balance=[10.0, 5000.0, 1.0]).to_parquet(stack.folder / "bad.parquet")
    done = stack.cli("features", "load", "spend", "bad.parquet")
    assert done.returncode != 0
    assert "'balance'" in done.stderr
    assert "not 0 to 1000 (group 'profile')" in done.stderr
    assert explained(stack, "never", max_staleness_hours=0)["explanation"]["features"]["balance"]["value"] == 30


def test_a_function_that_raises_is_an_error_whose_cause_is_in_the_log_and_nothing_is_kept(stack: Stack) -> None:
    httpx.put(f"{stack.url}/features/unlucky", json={"features": {"balance": 666, "clicks": 1}}).raise_for_status()
    reply = httpx.get(f"{stack.url}/predict/unlucky", timeout=10)
    assert reply.status_code == 500
    assert "the worker's log says why" in reply.json()["detail"]
    told = stack.log("realtime")
    assert "features.function_failed" in told
    assert "RuntimeError" in told.partition("features.function_failed")[2]
    assert stack.deployment.predictions("spend").read(["unlucky"]) == [None]


def test_a_run_gives_what_real_time_gives_and_quarantines_what_is_out_of_range(stack: Stack, now: datetime) -> None:
    table = people(now)
    outside = table.iloc[[0]].assign(entity_id="outside", balance=-5.0)
    pd.concat([table, outside]).to_parquet(stack.folder / "people.parquet")
    run = run_cli_json(stack.folder, "batch", "run", "spend")
    view = stack.wait_run(run["run_id"])
    assert view["state"] == "published", view
    stored = stack.deployment.predictions("spend").read(["fresh", "never", "outside"])
    assert stored[2] is None
    assert any("not 0 to 1000 (group 'profile')" in json.dumps(bad) for bad in [view])
    for entity_id, entry in zip(["fresh", "never"], stored, strict=False):
        assert entry is not None
        live = explained(stack, entity_id, max_staleness_hours=0)
        [value] = entry.values.values()
        np.testing.assert_allclose(value, live["prediction"], rtol=1e-5, atol=1e-6)


def test_a_run_whose_function_fails_says_so_and_publishes_nothing(stack: Stack, now: datetime) -> None:
    before = stack.deployment.predictions("spend").pointer()
    people(now).assign(balance=[666.0, 1.0, 2.0]).to_parquet(stack.folder / "people.parquet")
    run = run_cli_json(stack.folder, "batch", "run", "spend")
    view = stack.wait_run(run["run_id"])
    assert view["state"] == "failed"
    assert "feature group 'sums' (both): function shop_features:sums raised RuntimeError" in view["error"]
    assert stack.deployment.predictions("spend").pointer() == before


def test_code_that_the_settings_do_not_allow_is_not_run(tmp_path: Path) -> None:
    write_sum_model(tmp_path / "model", ["a", "b"])
    contract = {
        "features": [{"name": "a", "dtype": "float32"}, {"name": "b", "dtype": "float32", "group": "code"}],
        "groups": {"code": {"source": "function", "function": "evil:run"}},
    }
    (tmp_path / "model" / "features.json").write_text(json.dumps(contract))
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\n")
    with Stack(tmp_path, '[models.m]\npath = "model"\n') as stack:
        stack.start("realtime")
        why = "group 'code' runs code (evil:run): set allow_code = true"
        wait_for(lambda: why in stack.log("realtime"), "the refusal", 60)
    assert not (tmp_path / "ran").exists()
