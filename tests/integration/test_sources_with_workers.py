"""A deployment whose table lies in a bucket, partitioned by day: whole and partial runs by command and over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest

from inference.batch.quarantine import remove_parts
from tests.support.models import write_sum_model
from tests.support.object_store import SECRET, Store, new_bucket, s3_server
from tests.support.stack import Stack

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TOML = """
[models.sum]
path = "model"
features = "{root}/users"
event_time_column = "at"
[models.sum.realtime]
timeout_ms = 5000
[models.sum.batch]
parquet_path = "{root}/out/{{date}}"
quarantine_path = "{root}/bad"
max_quarantined_fraction = 0.5
"""


def write_day(store: Store, day: int, ids: list[str], a: list[float], at: datetime) -> None:
    """`b` is in the folder's name only: the model adds it to `a`."""
    times = pa.array([at] * len(ids), pa.timestamp("us", "UTC"))
    store.write(f"users/b={day}/part-0.parquet", {"entity_id": ids, "a": a, "at": times})


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Store]]:
    folder = tmp_path_factory.mktemp("bucket")
    write_sum_model(folder / "model", ["a", "b"])
    with s3_server() as endpoint:
        store = new_bucket(endpoint)
        old = datetime.now(UTC) - timedelta(hours=12)
        write_day(store, 1, ["e0", "e1"], [0.0, 1.0], old)
        write_day(store, 2, ["e2", "e3"], [2.0, 3.0], old)
        store.put("users/_SUCCESS", b"")
        with Stack(folder, TOML.format(root=store.root)) as running:
            running.start("gpu", "realtime", "maintenance", "api")
            running.wait_ready()
            done = running.cli("batch", "run", "--wait", "--json")
            assert done.returncode == 0, done.stderr
            yield running, store


def answer(stack: Stack, entity_id: str) -> dict[str, Any]:
    body: dict[str, Any] = httpx.get(f"{stack.url}/predict/{entity_id}").raise_for_status().json()
    return body


def generation(stack: Stack) -> int | None:
    return stack.deployment.predictions("sum").pointer().current


def test_a_whole_run_reads_the_bucket_and_the_folders_names(deployment: tuple[Stack, Store]) -> None:
    stack, _ = deployment

    served = [answer(stack, f"e{n}") for n in range(4)]

    assert [body["prediction"] for body in served] == [1.0, 2.0, 4.0, 5.0]
    assert {body["outcome"] for body in served} == {"hit_batch"}


def test_partial_runs_by_command_and_over_http_are_served_beside_the_generation(
    deployment: tuple[Stack, Store],
) -> None:
    stack, store = deployment
    before = generation(stack)
    write_day(store, 2, ["e2", "e3"], [20.0, 30.0], datetime.now(UTC) - timedelta(hours=1))
    (stack.folder / "ids.txt").write_text("e2\nstranger\n")

    done = stack.cli("batch", "run", "--wait", "--json", "--entities", "ids.txt")

    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert (run["rows_done"], run["entities_asked"], run["generation"]) == (1, 2, None)
    assert "1 of 2 entities are not in the table, such as 'stranger'" in done.stdout
    body = answer(stack, "e2")
    assert (body["prediction"], body["outcome"], body["source"], body["stale"]) == (22.0, "hit_batch", "batch", False)
    assert answer(stack, "e3")["prediction"] == 5.0

    asked = httpx.post(f"{stack.url}/runs", json={"since": "6h"})
    assert asked.status_code == 202, asked.text
    assert stack.wait_run(asked.json()["run_id"])["state"] == "published"
    assert [answer(stack, f"e{n}")["prediction"] for n in range(4)] == [1.0, 2.0, 22.0, 32.0]
    assert generation(stack) == before


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"since": "soon"}, "since"),
        ({"entities": []}, "entities"),
        ({"entities": ["a", "b\x00"]}, "entities.1"),
        ({"source": "s3://another/users"}, "source"),
        ({"source": "s3://{bucket}/users/../secret"}, "source"),
    ],
)
def test_a_request_that_cannot_be_meant_names_its_field(
    deployment: tuple[Stack, Store], body: dict[str, Any], field: str
) -> None:
    stack, store = deployment
    told = {name: value.replace("{bucket}", store.base) if name == "source" else value for name, value in body.items()}

    refused = httpx.post(f"{stack.url}/runs", json=told)

    assert (refused.status_code, refused.json()["field"]) == (400, field)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--entities", "nowhere.txt"], "nowhere.txt cannot be read as a list of ids"),
        (["--entities", "empty.txt"], "empty.txt holds no ids: write one a line"),
        (["--since", "soon"], "since 'soon' is no instant"),
    ],
)
def test_a_command_that_cannot_be_meant_says_so_in_one_line(
    deployment: tuple[Stack, Store], arguments: list[str], words: str
) -> None:
    stack, _ = deployment
    (stack.folder / "empty.txt").write_text("\n\n")

    done = stack.cli("batch", "run", *arguments)

    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_features_are_loaded_from_the_bucket_too(deployment: tuple[Stack, Store]) -> None:
    stack, store = deployment

    done = stack.cli("features", "load", "sum", store.uri("users"), "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 4


def test_a_damaged_object_fails_the_run_by_name_and_no_process_tells_the_secret(
    deployment: tuple[Stack, Store],
) -> None:
    stack, store = deployment
    before = generation(stack)
    store.put("users/b=3/part-0.parquet", b"PAR1 and then nothing that a table ends with")

    run = httpx.post(f"{stack.url}/runs", json={}).json()
    failed = stack.wait_run(run["run_id"])

    store.delete("users/b=3/part-0.parquet")
    assert failed["state"] == "failed"
    assert f"{store.root}/users/b=3/part-0.parquet is not readable as Parquet" in failed["error"]
    assert generation(stack) == before
    assert SECRET not in "".join(stack.log(name) for name in stack.processes) + json.dumps(failed)


def test_parts_and_left_out_rows_are_written_to_the_bucket_and_nothing_to_a_folder_here(
    deployment: tuple[Stack, Store],
) -> None:
    stack, store = deployment
    times = pa.array([datetime.now(UTC)] * 2, pa.timestamp("us", "UTC"))
    store.write("users/b=4/part-0.parquet", {"entity_id": ["e4", "bad"], "a": pa.array([4.0, None]), "at": times})

    done = stack.cli("batch", "run", "--wait", "--json")

    store.delete("users/b=4/part-0.parquet")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert (run["rows_done"], run["rows_quarantined"]) == (6, 1)
    assert run["parquet_folder"].startswith(f"{store.root}/out/")
    parts = pq.read_table(run["parquet_folder"].removeprefix("s3://"), filesystem=store.filesystem)
    assert sorted(parts["entity_id"].to_pylist()) == ["e0", "e1", "e2", "e3", "e4"]
    success = json.loads(store.get(f"{run['parquet_folder'].removeprefix(store.root + '/')}/_SUCCESS"))
    names = [info.base_name for info in files(store, run["parquet_folder"])]
    assert len([name for name in names if name.startswith("part-")]) == success["parts"] == len(names) - 1
    left_out = [
        row
        for info in files(store, run["quarantine"]["folder"])
        for row in pq.read_table(info.path, filesystem=store.filesystem).to_pylist()
    ]
    assert [(row["entity_id"], row["feature"]) for row in left_out] == [("bad", "a")]
    assert list(stack.folder.rglob("s3:")) == []
    assert remove_parts(run["quarantine"]["folder"]) == 1
    assert files(store, run["quarantine"]["folder"]) == []


def files(store: Store, folder: str) -> list[fs.FileInfo]:
    """What lies in a folder of the bucket."""
    found: list[fs.FileInfo] = store.filesystem.get_file_info(
        fs.FileSelector(folder.removeprefix("s3://"), allow_not_found=True)
    )
    return found
