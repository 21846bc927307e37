"""Labels of versions: one that stays the one that answers, one on trial for a share of the entities. Real workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from inference.store.versions import is_on_canary_side
from tests.support.models import add_times_version
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

ENTITIES = [f"e{i}" for i in range(60)]
SHARE = 0.3
MODELS = '[models.m]\npath = "m"\npoll_every = "1s"\n[models.m.realtime]\ntimeout_ms = 5000\n'
CANARYS = {entity_id for entity_id in ENTITIES if is_on_canary_side("m", entity_id, SHARE)}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("labels")
    add_times_version(folder / "m", 1, 1.0)
    values = [float(i + 1) for i in range(len(ENTITIES))]
    pd.DataFrame({"entity_id": ENTITIES, "x": values}).to_parquet(folder / "features.parquet")
    with Stack(folder, MODELS) as stack:
        stack.start("realtime", "realtime-2", "api")
        stack.wait_ready()
        assert stack.cli("features", "load", "features.parquet").returncode == 0
        yield stack


def told(stack: Stack, *arguments: str) -> Any:
    done = stack.cli(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def versions(stack: Stack, outcome: str, **query: Any) -> dict[str, int]:
    """Ask for all entities at once; return which version answered each, having checked what it answered."""
    body = {"entity_ids": ENTITIES, **query}
    answers = httpx.post(f"{stack.url}/predict", json=body, timeout=60).raise_for_status().json()["predictions"]
    assert {one["outcome"] for one in answers} == {outcome}
    assert [one["prediction"] for one in answers] == [
        number * one["model_version"] for number, one in enumerate(answers, 1)
    ]
    return {one["entity_id"]: one["model_version"] for one in answers}


def v1(stack: Stack, label: str) -> httpx.Response:
    return httpx.post(f"{stack.url}/v1/models/m/labels/{label}:predict", json={"inputs": {"x": [3.0]}}, timeout=20)


BY_SIDE = {entity_id: 2 if entity_id in CANARYS else 1 for entity_id in ENTITIES}


def test_a_version_on_trial_waits_beside_the_stable_one(stack: Stack) -> None:
    assert v1(stack, "canary").json() == {"error": "Unrecognized servable version label: canary"}
    assert told(stack, "models", "label", "stable", "1")["labels"] == {"stable": 1}
    add_times_version(stack.folder / "m", 2, 2.0)
    reloaded = told(stack, "models", "reload")
    assert (reloaded["active_version"], reloaded["versions"]) == (1, {"1": "ready", "2": "ready"})
    done = told(stack, "models", "label", "canary", "2", "--share", str(SHARE))
    assert done == {
        "model": "m", "active_version": 1, "labels": {"canary": 2, "stable": 1}, "canary_share": SHARE, "not_done": [],
    }  # fmt: skip


def test_the_canary_computes_its_share_and_its_answers_are_kept(stack: Stack) -> None:
    assert 5 < len(CANARYS) < 40
    assert versions(stack, "computed", max_staleness_hours=0) == BY_SIDE
    assert versions(stack, "hit_realtime") == BY_SIDE
    one, other = min(CANARYS), min(set(ENTITIES) - CANARYS)
    for entity_id in (one, other):
        answer = httpx.get(f"{stack.url}/predict/{entity_id}").json()
        assert (answer["cache_hit"], answer["model_version"]) == (True, BY_SIDE[entity_id])
    enqueued = told(stack, "enqueue", one, other, "--wait")
    assert [item["model_version"] for item in enqueued["result"]["predictions"]] == [2, 1]


def test_v1_answers_by_label(stack: Stack) -> None:
    assert v1(stack, "stable").json() == {"outputs": [3.0]}
    assert v1(stack, "canary").json() == {"outputs": [6.0]}
    refused = v1(stack, "nightly")
    assert (refused.status_code, refused.json()) == (
        400,
        {"error": "Unrecognized servable version label: nightly"},
    )
    assert v1(stack, "canary/versions/2").status_code == 400
    base = f"{stack.url}/v1/models/m/labels"
    assert httpx.get(f"{base}/canary/metadata").json()["model_spec"]["version"] == "2"
    (status,) = httpx.get(f"{base}/canary").json()["model_version_status"]
    assert (status["version"], status["state"]) == ("2", "AVAILABLE")
    assert httpx.get(f"{base}/nightly").status_code == httpx.get(f"{base}/nightly/metadata").status_code == 400


def test_the_command_tells_who_has_which_label(stack: Stack) -> None:
    (listed,) = told(stack, "models", "list")
    assert (listed["labels"], listed["canary_share"]) == ({"canary": 2, "stable": 1}, SHARE)
    shown = told(stack, "models", "show")
    assert {one["version"]: one["labels"] for one in shown["versions"]} == {1: ["stable"], 2: ["canary"]}
    assert "canary 2 (0.3 of the entities), stable 1" in stack.cli("models", "show").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("canary", "1"), "answers already"),
        (("canary", "7"), "has not been loaded by any worker yet"),
        (("nightly", "2", "--share", "0.1"), "only canary has a share"),
        (("a=b", "2"), "is no label"),
    ],
)
def test_a_label_that_makes_no_sense_is_refused(stack: Stack, arguments: tuple[str, ...], words: str) -> None:
    done = stack.cli("models", "label", *arguments)
    assert done.returncode != 0
    assert words in done.stderr
    assert told(stack, "models", "list")[0]["labels"] == {"canary": 2, "stable": 1}


def test_a_worker_that_starts_holds_all_that_has_a_label(stack: Stack) -> None:
    stack.kill("realtime-2")
    stack.kill("realtime")
    stack.start("realtime")
    stack.wait_ready()
    # until it holds the canary too, the stable version answers for it
    again = {"max_staleness_hours": 0, "timeout_ms": 30_000}
    wait_for(lambda: versions(stack, "computed", **again) == BY_SIDE, "both versions to be held", 60)


def test_the_answers_of_a_canary_that_ended_vanish_at_once(stack: Stack) -> None:
    assert versions(stack, "hit_realtime") == BY_SIDE
    assert told(stack, "models", "unlabel", "canary")["labels"] == {"stable": 1}
    for entity_id in sorted(CANARYS)[:3]:
        assert httpx.get(f"{stack.url}/predict/{entity_id}", timeout=20).json()["model_version"] == 1
    wait_for(lambda: v1(stack, "canary").status_code == 400, "the end of the label in /v1", 5)
    assert stack.cli("models", "unlabel", "canary").returncode != 0


def test_labelling_a_version_stable_makes_it_the_one_that_answers(stack: Stack) -> None:
    assert told(stack, "models", "label", "stable", "2")["active_version"] == 2
    assert set(versions(stack, "computed", max_staleness_hours=0).values()) == {2}
    assert told(stack, "models", "label", "stable", "1")["active_version"] == 1
