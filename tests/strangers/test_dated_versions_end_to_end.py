"""A deployment whose versions are dates and nanoseconds: misses, labels, protocols and jobs name them exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.models import write_features
from tests.support.plain_models import Times, write_version
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]

DATE, NANOSECONDS = 20260131123456, 1769862896123456789
TOML = '[models.m]\npath = "m"\nfeatures = "t.parquet"\nallow_code = true\nrealtime = { timeout_ms = 15000 }\n'


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("dated")
    write_version(folder / "m", DATE, Times(2.0))
    (folder / "m" / "99999999999999999999999").mkdir()
    table = {"entity_id": [f"e{i}" for i in range(50)], "x": pa.array(range(50), pa.float32())}
    pq.write_table(pa.table(table), folder / "t.parquet")
    with Stack(folder, TOML) as stack:
        loaded = stack.cli("features", "load", "m", "t.parquet")
        assert loaded.returncode == 0, loaded.stderr
        stack.start("api", "realtime")
        stack.wait_ready()
        # the API refuses misses until it has heard of the worker
        url = f"{stack.url}/predict/e0"
        wait_for(lambda: httpx.get(url, timeout=20).status_code == 200, "an answer of the worker")
        yield stack


def predict(stack: Stack, entity_id: str, **terms: str) -> dict[str, object]:
    answer = httpx.get(f"{stack.url}/predict/{entity_id}", params=terms, timeout=20)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_miss_is_computed_kept_and_named_exactly(stack: Stack) -> None:
    first, again = predict(stack, "e1"), predict(stack, "e1")
    assert (first["prediction"], first["model_version"], first["outcome"]) == (2.0, DATE, "computed")
    assert (again["prediction"], again["model_version"], again["outcome"]) == (2.0, DATE, "hit_realtime")


def test_a_later_version_takes_over_by_its_number_and_answers_misses(stack: Stack) -> None:
    write_version(stack.folder / "m", NANOSECONDS, Times(3.0))
    done = stack.cli("models", "reload", "m", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["active_version"] == NANOSECONDS
    answer = predict(stack, "e1", max_staleness_hours="0")
    assert (answer["prediction"], answer["model_version"]) == (3.0, NANOSECONDS)
    job = httpx.post(f"{stack.url}/predictions", json={"entity_ids": ["e2"]}).json()
    over = wait_for(lambda: _over(stack, job["task_id"]), "the job", 20)
    assert over["state"] == "done", over


def _over(stack: Stack, job_id: str) -> dict[str, object] | None:
    job: dict[str, object] = httpx.get(f"{stack.url}/predictions/{job_id}").json()
    return None if job["state"] in ("queued", "running") else job


def test_protocols_and_labels_name_both_versions(stack: Stack) -> None:
    path = f"{stack.url}/v1/models/m/versions/{NANOSECONDS}:predict"
    told = httpx.post(path, json={"instances": [{"x": 1.5}]}, timeout=20)
    assert told.status_code == 200, told.text
    assert "4.5" in told.text
    status = httpx.get(f"{stack.url}/v1/models/m").json()["model_version_status"]
    assert {one["version"] for one in status} == {str(DATE), str(NANOSECONDS)}
    metadata = httpx.get(f"{stack.url}/v2/models/m").json()
    assert set(metadata["versions"]) == {str(DATE), str(NANOSECONDS)}
    labelled = stack.cli("models", "label", "stable", str(NANOSECONDS))
    assert labelled.returncode == 0, labelled.stderr


def test_a_features_json_that_is_changed_beside_a_loaded_version_is_told_of(stack: Stack) -> None:
    write_features(stack.folder / "m", [{"name": "x", "dtype": "float32", "default": 1.0}])
    try:
        done = stack.cli("models", "reload", "m")
        assert done.returncode == 1
        assert f"features.json is not what version {NANOSECONDS} was loaded with" in done.stderr
        assert "export a new version" in done.stderr
    finally:
        write_features(stack.folder / "m", [{"name": "x", "dtype": "float32"}])
    assert stack.cli("models", "reload", "m").returncode == 0


def test_a_folder_that_is_too_large_a_version_is_named_by_workers_and_doctor(stack: Stack) -> None:
    assert "99999999999999999999999 is too large" in stack.log("realtime")
    assert "99999999999999999999999 is too large" in stack.cli("doctor").stdout
    assert "Traceback" not in stack.log("realtime")
    assert "Traceback" not in stack.log("api")
