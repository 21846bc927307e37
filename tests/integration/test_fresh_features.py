"""Single updates of features from outside: over HTTP and by the command, with a real worker that computes from them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.support.flights import write_flights
from tests.support.stack import Stack, run_cli_json

pytestmark = [pytest.mark.integration, pytest.mark.timeout(150)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("fresh")
    with Stack(folder, write_flights(folder)) as stack:
        stack.start("realtime", "gpu", "maintenance", "api")
        stack.wait_ready()
        assert stack.cli("features", "load", "delay", "flights.parquet").returncode == 0
        yield stack


def put(stack: Stack, entity_id: str, features: Any, **more: Any) -> httpx.Response:
    return httpx.put(f"{stack.url}/features/{quote(entity_id, safe='')}", json={"features": features, **more})


def predicted(stack: Stack, entity_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{stack.url}/predict/{quote(entity_id, safe='')}", timeout=10).json()
    return answer


def ago(**duration: float) -> str:
    return (datetime.now(UTC) - timedelta(**duration)).isoformat()


def test_the_next_answer_is_computed_from_what_was_put(stack: Stack) -> None:
    assert (predicted(stack, "F7")["prediction"], predicted(stack, "F7")["outcome"]) == (8.0, "hit_realtime")
    done = put(stack, "F7", {"a": 40})
    assert (done.status_code, done.json()["applied"]) == (200, True), done.text
    assert (predicted(stack, "F7")["prediction"], predicted(stack, "F7")["outcome"]) == (41.0, "hit_realtime")


def test_an_entity_that_nobody_knew_is_known_from_then_on(stack: Stack) -> None:
    assert predicted(stack, "new/one ☃")["code"] == "unknown-entity"
    assert put(stack, "new/one ☃", [20, 3]).status_code == 200
    assert predicted(stack, "new/one ☃")["prediction"] == 23.0, "though it was remembered as unknown for 2 s"


def test_older_features_change_nothing_and_the_answer_says_so(stack: Stack) -> None:
    put(stack, "F8", {"a": 1}, event_time=ago(seconds=-1))
    done = put(stack, "F8", {"a": 500}, event_time=ago(days=2)).json()
    assert not done["applied"]
    assert predicted(stack, "F8")["prediction"] == 2.0


def test_a_run_s_older_answer_is_no_hit_any_more(stack: Stack) -> None:
    run = run_cli_json(stack.folder, "batch", "run", "delay", "--wait")
    assert run["state"] == "published"
    assert predicted(stack, "F20")["outcome"] == "hit_batch"
    put(stack, "F20", {"b": 100})
    answer = predicted(stack, "F20")
    assert (answer["prediction"], answer["outcome"]) == (120.0, "computed")
    stack.kill("realtime")
    put(stack, "F21", {"b": 100})
    answer = httpx.get(f"{stack.url}/predict/F21", params={"timeout_ms": 200}, timeout=10).json()
    assert (answer["prediction"], answer["outcome"]) == (22.0, "stale"), "better than nothing, and marked"
    stack.start("realtime")
    wait_until_computed(stack, "F21", 121.0)


def wait_until_computed(stack: Stack, entity_id: str, value: float) -> None:
    end = time.monotonic() + 60
    while predicted(stack, entity_id).get("prediction") != value:
        assert time.monotonic() < end
        time.sleep(0.2)


def test_many_writers_of_one_entity_lose_nothing(stack: Stack) -> None:
    def change(name: str) -> None:
        for number in range(30):
            assert put(stack, "F30", {name: number}).status_code == 200

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(change, ["a", "b"]))
    assert run_cli_json(stack.folder, "features", "get", "delay", "F30")["features"] == {"a": 29.0, "b": 29.0}


def test_a_thousand_entities_are_put_at_once_and_one_too_many_is_refused(stack: Stack) -> None:
    items = [{"entity_id": f"N{n}", "features": {"a": n, "b": 0.5}} for n in range(1000)]
    done = httpx.put(f"{stack.url}/features", params={"model": "delay"}, json={"items": items}, timeout=10)
    assert done.status_code == 200, done.text
    assert [item["applied"] for item in done.json()["items"]] == [True] * 1000
    assert predicted(stack, "N999")["prediction"] == 999.5
    too_many = httpx.put(f"{stack.url}/features", json={"items": [*items, {**items[0], "entity_id": "N"}]})
    assert too_many.status_code == 400


@pytest.mark.parametrize(
    ("item", "status", "field", "says"),
    [
        ({"features": {"aa": 1}}, 400, "items.1.features.aa", "did you mean 'a'"),
        ({"features": {"a": "1"}}, 400, "items.1.features.a", "give a number"),
        ({"features": {"a": 1e300}}, 400, "items.1.features.a", "out of range"),
        ({"features": [1, 2, 3]}, 400, "items.1.features", "3 values"),
        ({"features": {"a": 1}, "event_time": "2999-01-01T00:00:00Z"}, 400, "items.1.event_time", "future"),
        ({"features": {"a": 1}, "event_time": "2020-01-01T00:00:00"}, 400, "items.1.event_time", "with an offset"),
        ({"features": {"a": 1}, "event_time": 1}, 400, "items.1.event_time", "ISO 8601"),
        ({"features": {"a": 1}, "entity_id": "a\nb"}, 400, "items.1.entity_id", "control"),
        ({"features": {"b": 1}, "entity_id": "unheard of"}, 400, "items.1.features", "are stored yet"),
    ],
)
def test_a_bad_item_refuses_all_and_is_named(
    stack: Stack, item: dict[str, Any], status: int, field: str, says: str
) -> None:
    good = {"entity_id": "good", "features": {"a": 1, "b": 2}}
    done = httpx.put(f"{stack.url}/features", json={"items": [good, {"entity_id": "F1", **item}]})
    problem = done.json()
    assert (done.status_code, problem["field"]) == (status, field), done.text
    assert says in problem["detail"]
    assert predicted(stack, "good")["code"] == "unknown-entity"


def test_the_command_puts_too(stack: Stack) -> None:
    assert run_cli_json(stack.folder, "features", "put", "delay", "C1", "a=1.5", "b=2")["applied"]
    assert predicted(stack, "C1")["prediction"] == 3.5
    older = stack.cli("features", "put", "C1", "a=9", f"--event-time={ago(hours=1)}")
    assert (older.returncode, "applied  no" in older.stdout) == (1, True), older.stderr
    wrong = stack.cli("features", "put", "C1", "aa=9")
    assert (wrong.returncode, "did you mean" in wrong.stderr) == (1, True), wrong.stderr
    assert stack.cli("features", "put", "C1").returncode == 2


def test_the_store_s_outage_is_told(stack: Stack) -> None:
    stack.redis.kill()
    try:
        assert put(stack, "F7", {"a": 40}).status_code == 503
    finally:
        stack.redis.start()
