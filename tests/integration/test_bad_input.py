"""Bad tables, models, ids and ports: one clear line naming the thing and the fix, and nothing half-done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.models import write_sum_model
from tests.support.object_store import SECRET, aws_environment
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.stack import Stack, run_cli
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

GOOD = pd.DataFrame({"entity_id": [f"e{i}" for i in range(100)], "a": np.arange(100.0), "b": np.ones(100)})

BAD_TABLES: dict[str, tuple[pd.DataFrame, list[str]]] = {
    "no-entity-column": (GOOD.rename(columns={"entity_id": "id"}), ["'entity_id'", "id"]),
    "float-ids": (GOOD.assign(entity_id=np.arange(100.0)), ["'entity_id'", "cast"]),
    "null-ids": (GOOD.assign(entity_id=[None, *GOOD["entity_id"][1:]]), ["entity_id", "null"]),
    "duplicate-ids": (
        GOOD.assign(entity_id=["e0", "e0", *GOOD["entity_id"][2:]]),
        ["an entity id, such as 'e0'"],
    ),
    "illegal-ids": (GOOD.assign(entity_id=["a\x00b", *GOOD["entity_id"][1:]]), ["entity_id"]),
    "missing-feature": (GOOD.drop(columns="b"), ["'b'"]),
    "text-for-a-number": (GOOD.assign(b="one"), ["'b'", "string"]),
    "no-rows": (GOOD.iloc[:0], ["no rows"]),
    "nan-without-default": (GOOD.assign(b=[np.nan, *GOOD["b"][1:]]), ["'b'", "default"]),
}

BUCKET = "s3://nightly/users"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("bad")
    write_sum_model(folder / "model", ["a", "b"])
    tables = folder / "tables"
    tables.mkdir()
    GOOD.to_parquet(tables / "good.parquet")
    for name, (table, _) in BAD_TABLES.items():
        table.to_parquet(tables / f"{name}.parquet")
    (tables / "not-parquet.parquet").write_text("entity_id,a,b\ne0,1,2\n")
    (tables / "truncated.parquet").write_bytes((tables / "good.parquet").read_bytes()[:-40])
    toml = '[models.sum]\npath = "model"\nfeatures = "tables/good.parquet"\n[models.sum.realtime]\ntimeout_ms = 5000\n'
    # a bucket's server is no more than this port: nobody listens, unless a test does
    endpoint = f"http://127.0.0.1:{free_port()}"
    with mock.patch.dict(os.environ, aws_environment(endpoint)), Stack(folder, toml) as running:
        running.start("gpu", "realtime", "maintenance", "api")
        running.wait_ready()
        yield running


def run_on(stack: Stack, name: str) -> dict[str, object]:
    answer = httpx.post(f"{stack.url}/runs", json={"source": str(stack.folder / "tables" / name)})
    assert answer.status_code == 202, answer.text
    return stack.wait_run(answer.json()["run_id"])


BAD_FILES = {
    **{f"{name}.parquet": words for name, (_, words) in BAD_TABLES.items()},
    "not-parquet.parquet": ["not-parquet.parquet", "Parquet"],
    "truncated.parquet": ["truncated.parquet", "Parquet"],
    "nowhere.parquet": ["nowhere.parquet", "not exist"],
}


@pytest.mark.parametrize("name", sorted(BAD_FILES))
def test_a_bad_table_fails_its_run_by_name_and_serves_nothing(stack: Stack, name: str) -> None:
    before = stack.deployment.predictions("sum").pointer().current
    run = run_on(stack, name)
    assert run["state"] == "failed"
    error = str(run["error"])
    assert "\n" not in error
    assert "Traceback" not in error
    for word in BAD_FILES[name]:
        assert word.lower() in error.lower(), error
    assert stack.deployment.predictions("sum").pointer().current == before


@pytest.fixture
def beside(stack: Stack, tmp_path: Path) -> Path:
    """A folder beside the table of the model: workers read only what is there."""
    folder = stack.folder / "tables" / tmp_path.name
    folder.mkdir()
    return folder


@pytest.fixture
def worker_of_bucket(stack: Stack) -> Iterator[None]:
    """Workers of runs whose settings name a table in a bucket, in the place of the others."""
    workers = ("gpu", "maintenance")
    for name in workers:
        stack.stop(name, signal.SIGTERM)
    stack.start(*workers, environment={"FORECACHE_MODELS__SUM__FEATURES": BUCKET})
    yield
    for name in workers:
        stack.stop(name, signal.SIGTERM)
    stack.start(*workers)


def run_by_command(stack: Stack, folder: Path, features: str) -> tuple[int, dict[str, Any]]:
    """`batch run --wait` in a folder whose settings name another table; its exit code and what became of the run."""
    settings = (stack.folder / "forecache.toml").read_text().replace("tables/good.parquet", features)
    (folder / "forecache.toml").write_text(settings.replace('path = "model"', f'path = "{stack.folder / "model"}"'))
    done = run_cli(folder, "batch", "run", "--wait", "--json")
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def write_night(folder: Path, kind: str) -> list[str]:
    """Write a table of two files with a fault; return what the run's error must name."""
    folder.mkdir()
    GOOD[:50].to_parquet(folder / "monday.parquet", index=False)
    other, rest = folder / "tuesday.parquet", GOOD[50:]
    if kind == "another type":
        rest.assign(b="one").to_parquet(other, index=False)
        return ["monday.parquet", "tuesday.parquet", "'b'", "string", "double"]
    if kind == "another column":
        rest.rename(columns={"b": "c"}).to_parquet(other, index=False)
        return ["monday.parquet", "tuesday.parquet", "'b'"]
    if kind == "truncated":
        rest.to_parquet(other, index=False)
        other.write_bytes(other.read_bytes()[:-40])
        return ["tuesday.parquet", "not readable as Parquet"]
    if kind == "torn in the middle":  # its footer is whole
        rest.to_parquet(other, index=False)
        data = other.read_bytes()
        other.write_bytes(data[:4] + bytes(800) + data[804:])
        return ["tuesday.parquet"]
    if kind == "the same entities":
        GOOD[45:].to_parquet(other, index=False)
        return ["5 rows repeat an entity id", "'e45'"]
    write_with_empty_row_groups(other, rest[:0])
    write_with_empty_row_groups(folder / "monday.parquet", rest[:0])
    return ["no rows"]


def write_with_empty_row_groups(path: Path, table: pd.DataFrame) -> None:
    rows = pa.Table.from_pandas(table, preserve_index=False)
    with pq.ParquetWriter(path, rows.schema) as writer:
        for part in (rows[:0], rows, rows[:0]):
            writer.write_table(part)


FAULTS = ["another type", "the same entities"]
RARER_FAULTS = ["another column", "truncated", "torn in the middle", "empty row groups only"]


@pytest.mark.parametrize("kind", [*FAULTS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in RARER_FAULTS)])
def test_a_table_of_several_files_with_a_fault_fails_the_command_by_name(stack: Stack, beside: Path, kind: str) -> None:
    before = stack.deployment.predictions("sum").pointer().current
    words = write_night(beside / "night", kind)

    code, run = run_by_command(stack, beside, "night")

    assert (code, run["state"]) == (1, "failed")
    assert "\n" not in run["error"]
    for word in words:
        assert word in run["error"]
    assert stack.deployment.predictions("sum").pointer().current == before


def test_empty_row_groups_between_others_are_nothing_to_complain_of(stack: Stack, beside: Path) -> None:
    (beside / "night").mkdir()
    write_with_empty_row_groups(beside / "night" / "monday.parquet", GOOD[:50])
    write_with_empty_row_groups(beside / "night" / "nobody.parquet", GOOD[:0])
    write_with_empty_row_groups(beside / "night" / "tuesday.parquet", GOOD[50:])

    code, run = run_by_command(stack, beside, "night")

    assert (code, run["state"], run["rows_done"]) == (0, "published", 100), run["error"]
    entries = stack.deployment.predictions("sum").read(list(GOOD["entity_id"]))
    assert [entry and entry.values["y"] for entry in entries] == [i + 1.0 for i in range(100)]


@contextmanager
def silent_server(endpoint: str) -> Iterator[None]:
    """Take connections at an endpoint, and never answer."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", int(endpoint.rpartition(":")[2])))
        server.listen(64)
        yield


@pytest.mark.usefixtures("worker_of_bucket")
@pytest.mark.parametrize("silent", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["refuses", "is silent"])
def test_a_bucket_that_cannot_be_read_fails_the_command_soon_and_in_words(
    stack: Stack, tmp_path: Path, silent: bool
) -> None:
    server = silent_server(os.environ["AWS_ENDPOINT_URL"]) if silent else nullcontext()
    started = time.monotonic()

    with server:
        code, run = run_by_command(stack, tmp_path, BUCKET)

    assert (code, run["state"]) == (1, "failed")
    assert "s3://nightly/users cannot be read" in run["error"]
    assert "\n" not in run["error"]
    assert SECRET not in json.dumps(run)
    assert time.monotonic() - started < 60, "and long before the command gives up"


@pytest.mark.parametrize("name", sorted(set(BAD_FILES) - {"illegal-ids.parquet"}))
def test_a_bad_feature_table_is_not_loaded(stack: Stack, name: str) -> None:
    before = stack.deployment.features("sum").pointer()
    done = stack.cli("features", "load", "sum", str(stack.folder / "tables" / name))
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in BAD_FILES[name]:
        assert word.lower() in done.stderr.lower(), done.stderr
    assert stack.deployment.features("sum").pointer() == before


def test_a_good_run_after_bad_ones_is_served(stack: Stack) -> None:
    assert run_on(stack, "good.parquet")["state"] == "published"
    body = httpx.get(f"{stack.url}/predict/e7").raise_for_status().json()
    assert (body["prediction"], body["outcome"], body["cache_hit"]) == (8.0, "hit_batch", True)


def test_a_failed_run_does_not_replace_what_is_served(stack: Stack) -> None:
    test_a_good_run_after_bad_ones_is_served(stack)
    assert run_on(stack, "nan-without-default.parquet")["state"] == "failed"
    assert httpx.get(f"{stack.url}/predict/e7").json()["outcome"] == "hit_batch"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/predict/", 400),
        ("/predict/a%00b", 400),
        ("/predict/a%0Ab", 400),
        (f"/predict/{'x' * 513}", 400),
        ("/predict/stranger", 404),
        ("/predict/e7?model=nothing", 404),
        ("/predict/e7?max_staleness_hours=soon", 400),
        ("/predict/e7?timeout_ms=-1", 400),
        ("/runs/nothing", 404),
        ("/predictions/nothing", 404),
        ("/nowhere", 404),
    ],
)
def test_a_bad_request_gets_a_problem_document(stack: Stack, path: str, status: int) -> None:
    answer = httpx.get(stack.url + path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["title"]
    assert "Traceback" not in answer.text


def test_unusual_ids_are_served(stack: Stack) -> None:
    ids = ["a b", "a/b/c", "it's", '"quoted"', "%2F", "100%", "😀", "é" * 256, ".", "a?b#c", "a+b", "x" * 512]
    table = pd.DataFrame({"entity_id": ids, "a": np.arange(float(len(ids))), "b": 0.5})
    table.to_parquet(stack.folder / "tables" / "unusual.parquet")
    before = stack.deployment.predictions("sum").pointer().current
    run = run_on(stack, "unusual.parquet")
    if before is not None:  # far smaller than what is served: the size gate holds it back
        assert run["state"] == "failed"
        assert "min_size_ratio" in str(run["error"])
        assert stack.cli("batch", "publish", str(run["run_id"]), "--force").returncode == 0
    asked = httpx.post(f"{stack.url}/predict", json={"entity_ids": ids}).json()["predictions"]
    assert [item["prediction"] for item in asked] == [number + 0.5 for number in range(len(ids))]
    for number, entity_id in enumerate(ids):
        if entity_id == ".":
            continue  # clients resolve a path segment of one dot themselves (RFC 3986); the POST form takes it
        body = httpx.get(f"{stack.url}/predict/{quote(entity_id, safe='')}").json()
        assert (body["entity_id"], body["prediction"]) == (entity_id, number + 0.5), body


def test_a_source_outside_the_configured_folder_is_refused(stack: Stack) -> None:
    answer = httpx.post(f"{stack.url}/runs", json={"source": "/etc/passwd"})
    assert answer.status_code == 400
    assert answer.json()["field"] == "source"


def write_model(folder: Path, kind: str) -> None:
    if kind == "empty":
        (folder / "model").mkdir()
    elif kind == "corrupt":
        (folder / "model" / "1").mkdir(parents=True)
        (folder / "model" / "1" / "saved_model.pb").write_bytes(b"no protobuf at all")
    elif kind == "keras":
        (folder / "model.keras").write_bytes(b"PK")


@pytest.mark.parametrize(
    ("kind", "path", "words"),
    [
        ("missing", "model", ["model", "not exist"]),
        ("empty", "model", ["model"]),
        pytest.param("corrupt", "model", ["model"], marks=pytest.mark.slow),
        pytest.param("keras", "model.keras", ["model.keras is a file", "give the folder"], marks=pytest.mark.slow),
    ],
)
def test_a_bad_model_folder_is_named_with_the_fix(tmp_path: Path, kind: str, path: str, words: list[str]) -> None:
    write_model(tmp_path, kind)
    GOOD.to_parquet(tmp_path / "good.parquet")
    with Stack(tmp_path, f'[models.sum]\npath = "{path}"\nfeatures = "good.parquet"\n'):
        done = run_cli(tmp_path, "features", "load", "sum", "good.parquet")
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


def test_a_taken_port_is_named_with_its_setting(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "forecache.toml").write_text(f"[api]\nport = {port}\n")
        done = run_cli(tmp_path, "api")
    assert done.returncode in (1, 2)
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_without_redis_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text(
        '[redis]\nurl = "redis://127.0.0.1:1/0"\ncache_url = "redis://127.0.0.1:1/1"\n[models.sum]\npath = "model"\n'
    )
    done = run_cli(tmp_path, "hits")
    assert done.returncode == 1
    assert "Redis" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_model_without_a_folder_is_not_blamed_on_missing_workers(tmp_path: Path, redis_server: RedisServer) -> None:
    (tmp_path / "forecache.toml").write_text(
        f'[redis]\nurl = "{redis_server.url(0)}"\ncache_url = "{redis_server.url(1)}"\n[models.m]\npath = "gone"\n'
    )
    done = run_cli(tmp_path, "models", "show")
    assert done.returncode == 1
    assert done.stderr == f"forecache: model folder {tmp_path / 'gone'} does not exist: correct the model's path\n"


def test_a_model_replaced_by_a_corrupt_version_keeps_serving(stack: Stack) -> None:
    """The bad version is refused at warm-up; the old one stays active."""
    run_on(stack, "good.parquet")
    bad = stack.folder / "model" / "2"
    bad.mkdir()
    try:
        (bad / "model.onnx").write_bytes(b"no protobuf at all")
        stack.start("realtime-2")
        registry = stack.deployment.registry
        wait_for(lambda: 2 in registry.versions("sum"), "the inspection of version 2", 120)
        assert registry.versions("sum")[2].state == "refused"
        anew = {"max_staleness_hours": 0, "timeout_ms": 20000}
        asked = httpx.get(f"{stack.url}/predict/e7", params=anew, timeout=30).raise_for_status().json()
        assert (asked["model_version"], asked["prediction"]) == (1, 8.0)
        assert stack.deployment.predictions("sum").pointer().active_version == 1
    finally:
        stack.stop("realtime-2", signal.SIGTERM)
        shutil.rmtree(bad)
