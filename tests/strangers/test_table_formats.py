"""A folder of Parquet that belongs to a table of another format is refused by name: its deleted rows are no rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as fs
import pytest

from app.cli.doctor.findings import Finding, Status
from app.cli.doctor.tables import open_table
from app.cli.init import Asker, Options
from app.cli.onboarding import Onboarding
from inference.batch import RunState
from inference.errors import SourceError
from inference.features import Feature
from inference.redis.clients import Client
from inference.schema import DType
from inference.sources import open_source
from tests.support.any_table import AnyTable
from tests.support.object_store import Store, new_bucket, s3_server

ROWS: dict[str, Any] = {"id": ["a", "b"], "x": [1.0, 2.0]}
GONE: dict[str, Any] = {"id": ["gone"], "x": [9.0]}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path), fs.LocalFileSystem(), str(tmp_path))
    return new_bucket(request.getfixturevalue("endpoint"))


#: what lies beside the Parquet files of each format's table, and its name
FORMATS: dict[str, tuple[tuple[str, ...], str]] = {
    "delta": (("_delta_log/00000000000000000000.json",), "is a Delta table (_delta_log)"),
    "delta with checkpoints": (
        ("_delta_log/_last_checkpoint", "_delta_log/00000000000000000010.checkpoint.parquet"),
        "is a Delta table (_delta_log)",
    ),
    "iceberg of a hadoop catalog": (
        ("metadata/v2.metadata.json", "metadata/version-hint.text"),
        "is an Iceberg table (metadata)",
    ),
    "iceberg of another catalog": (
        ("metadata/00001-5d6b9f0e-1c2d-4e3f-8a9b-0c1d2e3f4a5b.metadata.json", "metadata/snap-1.avro"),
        "is an Iceberg table (metadata)",
    ),
    "iceberg, compressed": (("metadata/v3.gz.metadata.json",), "is an Iceberg table (metadata)"),
    "hudi": ((".hoodie/hoodie.properties", ".hoodie/20261127.commit"), "is a Hudi table (.hoodie)"),
    "hudi, one partition copied": (
        ("day=1/.hoodie_partition_metadata",),
        "is part of a Hudi table (.hoodie_partition_metadata)",
    ),
    "paimon": (("snapshot/snapshot-1", "schema/schema-0"), "is a Paimon table (snapshot)"),
    "a spark stream": (("_spark_metadata/0",), "is the output of a Spark stream (_spark_metadata)"),
}


def make(store: Store, format_: str, table: str = "lake/users") -> None:
    store.write(f"{table}/day=1/part-0.parquet", ROWS)
    store.write(f"{table}/day=1/part-1.parquet", GONE)
    for path in FORMATS[format_][0]:
        store.put(f"{table}/{path}", b"{}")


@pytest.mark.parametrize("format_", FORMATS)
def test_a_table_of_another_format_is_refused_by_name_wherever_the_path_points(store: Store, format_: str) -> None:
    make(store, format_)
    name = FORMATS[format_][1]

    paths = ["lake/users", "lake/users/day=1/part-0.parquet", "lake/users/*/*.parquet"]
    if not store.root.startswith("s3"):  # whose requests take their time here
        paths += ["lake/users/", "lake", "lake/users/day=1", "lake/**/part-*.parquet", "lake/*"]
    for path in paths:
        with pytest.raises(SourceError, match=re.escape(name)) as caught:
            open_source(store.uri(path))
        fixes = r"name it (delta|iceberg):|write its current rows as plain Parquet, such as "
        assert re.search(fixes, caught.value.message)
        assert "\n" not in caught.value.message
        assert store.uri("lake/users") in caught.value.message


def test_a_table_of_two_formats_is_told_by_the_one_that_writes_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path), fs.LocalFileSystem(), str(tmp_path))
    make(store, "delta")
    make(store, "iceberg of a hadoop catalog")

    for path in ("lake/users", "lake/users/day=1", "lake/**/*.parquet"):
        with pytest.raises(SourceError, match="users is a Delta table"):
            open_source(store.uri(path))


def test_changed_rows_and_checkpoints_of_a_delta_table_are_no_tables_either(store: Store) -> None:
    make(store, "delta with checkpoints")
    store.write("lake/users/_change_data/cdc-0.parquet", GONE)
    store.write("lake/users/_delta_log/00000000000000000010.checkpoint.parquet", GONE)

    for path in ("_change_data", "_change_data/cdc-0.parquet", "_delta_log", "_change_data/*.parquet"):
        with pytest.raises(SourceError, match="users is a Delta table"):
            open_source(store.uri(f"lake/users/{path}"))


@pytest.mark.parametrize(
    "beside",
    [
        "other/_delta_log/0.json",
        "users2/_delta_log/0.json",
        "_delta_log_old.txt",
        "metadata/readme.json",
        "metadata/model.json",
        "snapshot/users.csv",
        "data_delta_log/0.json",
    ],
)
def test_a_folder_that_only_looks_like_one_is_a_table(store: Store, beside: str) -> None:
    store.write("lake/users/p.parquet", ROWS)
    store.put(f"lake/{beside}", b"{}")

    for path in ("lake/users", "lake/users/p.parquet", "lake/users/*.parquet", "lake/u*s"):
        assert open_source(store.uri(path)).rows == 2


@pytest.mark.parametrize(
    "folder", ["delta_20261127", "base_20261127", "delta_20261101_20261130", "metadata", "snapshot"]
)
def test_a_folder_that_is_called_like_one_of_theirs_is_read(store: Store, folder: str) -> None:
    store.write(f"users/{folder}/p.parquet", ROWS)

    assert open_source(store.uri("users")).rows == 2


def test_a_table_beside_one_of_another_format_is_read_by_a_pattern_that_leaves_that_out(store: Store) -> None:
    make(store, "delta")
    store.write("lake/plain/p.parquet", ROWS)

    assert open_source(store.uri("lake/p*/*.parquet")).rows == 2


def test_a_link_into_a_table_of_another_format_is_followed(tmp_path: Path) -> None:
    store = Store(str(tmp_path), fs.LocalFileSystem(), str(tmp_path))
    make(store, "delta")
    (tmp_path / "latest").symlink_to(tmp_path / "lake/users/day=1")

    with pytest.raises(SourceError, match="users is a Delta table"):
        open_source(str(tmp_path / "latest"))


@pytest.mark.parametrize("of", ["folder", "file"])
def test_links_inside_a_folder_are_followed_too(tmp_path: Path, of: str) -> None:
    store = Store(str(tmp_path), fs.LocalFileSystem(), str(tmp_path))
    make(store, "delta")
    store.write("own/p.parquet", ROWS)
    source = tmp_path / "lake/users/day=1"
    (tmp_path / "own/more.parquet").symlink_to(source / "part-1.parquet" if of == "file" else source)

    for path in ("own", "own/*", "own/**/*.parquet"):
        with pytest.raises(SourceError, match="users is a Delta table"):
            open_source(store.uri(path))
    (tmp_path / "own/more.parquet").unlink()
    (tmp_path / "own/more.parquet").symlink_to(store.write("elsewhere/q.parquet", GONE))
    assert open_source(store.uri("own")).rows == 3


DUCKLAKE_FILE = "ducklake-0198b3a0-1c2d-7e3f-8a9b-0c1d2e3f4a5b"


@pytest.mark.parametrize("kind", ["", "-delete"])
def test_files_of_a_ducklake_are_told_by_their_names(store: Store, kind: str) -> None:
    store.write(f"lake/main/users/{DUCKLAKE_FILE}{kind}.parquet", ROWS)

    for path in ("lake/main/users", "lake", f"lake/main/users/{DUCKLAKE_FILE}{kind}.parquet"):
        with pytest.raises(SourceError, match=r"lake/main/users is a table of a DuckLake \(ducklake-"):
            open_source(store.uri(path))


@pytest.mark.parametrize(
    ("mark", "name"),
    [
        ("iceberg.schema", "an Iceberg table"),
        ("org.apache.hudi.bloomfilter", "a Hudi table"),
        ("hoodie_min_record_key", "a Hudi table"),
    ],
)
def test_a_data_file_that_was_copied_out_of_a_table_is_told_by_its_footer(store: Store, mark: str, name: str) -> None:
    store.write("copy/p.parquet", pa.table(ROWS).replace_schema_metadata({mark: "{}"}))

    for path in ("copy", "copy/p.parquet", "copy/*"):
        with pytest.raises(SourceError, match=rf"copy/p\.parquet is a data file of {name} \({re.escape(mark)} in its"):
            open_source(store.uri(path))
    store.write("copy/p.parquet", pa.table(ROWS).replace_schema_metadata({"pandas": "{}"}))
    assert open_source(store.uri("copy")).rows == 2


def part_of(job: int) -> str:
    return f"part-00000-tid-{job}-5d6b9f0e-12-c000.snappy.parquet"


def test_a_databricks_job_that_has_not_ended_is_waited_for(store: Store) -> None:
    store.write(f"users/{part_of(11)}", ROWS)
    for mark in ("_started_11", "_committed_11"):
        store.put(f"users/{mark}", b'{"added": [], "removed": []}')
    assert open_source(store.uri("users")).rows == 2
    store.write(f"users/{part_of(12)}", GONE)
    store.put("users/_started_12", b"")

    with pytest.raises(SourceError, match=r"users holds files of a Databricks job that has not ended \(_started_12"):
        open_source(store.uri("users"))
    store.put("users/_committed_12", b'{"added": [], "removed": []}')
    assert open_source(store.uri("users")).rows == 3


def test_files_that_a_later_databricks_job_replaced_are_no_rows(store: Store) -> None:
    store.write(f"users/{part_of(11)}", GONE)
    store.write(f"users/{part_of(12)}", ROWS)
    store.put("users/_committed_11", b'{"added": [], "removed": []}')
    store.put("users/_committed_vacuum77", b"not JSON")
    store.put("users/_committed_12", json.dumps({"added": [part_of(12)], "removed": [part_of(11)]}).encode())

    with pytest.raises(
        SourceError, match=r"users is written by several Databricks jobs .*also hold deleted or replaced"
    ):
        open_source(store.uri("users"))


def test_what_a_spark_job_has_not_committed_is_no_table(store: Store) -> None:
    store.write("out/part-0.parquet", ROWS)
    store.write("out/_temporary/0/task_1/part-1.parquet", GONE)

    with pytest.raises(SourceError, match=r"out holds _temporary and no _SUCCESS: a Spark job has not ended .*; wait"):
        open_source(store.uri("out"))
    for path in ("out/_temporary/0", "out/_temporary/0/task_1/part-1.parquet", "out/_temporary/*/*/*.parquet"):
        with pytest.raises(SourceError, match="in _temporary, where Spark writes files that do not count yet"):
            open_source(store.uri(path))
    store.put("out/_SUCCESS", b"")
    assert open_source(store.uri("out")).rows == 2


@pytest.mark.parametrize(
    "folder", ["delta_0000001_0000001_0000", "base_0000003_v0000042", "delete_delta_0000002_0000002"]
)
def test_a_transactional_hive_table_is_told_by_its_folders(store: Store, folder: str) -> None:
    store.write(f"users/day=1/{folder}/bucket_0.parquet", ROWS)

    with pytest.raises(SourceError, match=rf"is a transactional Hive table \({folder}\)"):
        open_source(store.uri("users"))


# --- whoever reads tables ---


def test_runs_loads_lists_of_ids_doctor_and_init_refuse_alike(redis_client: Client, tmp_path: Path) -> None:
    world = AnyTable(redis_client, tmp_path, Feature("x", DType.FLOAT64))
    world.write("t/part-0.parquet", **ROWS)
    assert world.run().state is RunState.PUBLISHED
    world.load()
    gone = world.write("t/part-1.parquet", **GONE)
    log = tmp_path / "t/_delta_log"
    log.mkdir()
    (log / "00000000000000000001.json").write_text(json.dumps({"remove": {"path": "part-1.parquet"}}))
    told = f"{tmp_path}/t is a Delta table (_delta_log): its files also hold deleted or replaced rows"

    done = world.run()
    assert (done.state, str(done.error)[: len(told)]) == (RunState.FAILED, told)
    assert str(world.run(entities=["gone"]).error).startswith(told)
    for read in (world.load, lambda: world.ids_in(gone), init(tmp_path).run):
        with pytest.raises(SourceError, match=re.escape(told)):
            read()
    found = open_table(world.settings, "m", world.settings.models["m"])
    assert isinstance(found, Finding)
    assert (found.status, found.detail[: len(told)]) == (Status.ERROR, told)
    assert world.answers("a", "gone") == [1.0, None]
    assert world.loaded("gone") == {}


def init(folder: Path) -> Onboarding:
    (folder / "model" / "1").mkdir(parents=True)
    options = Options(
        model=str(folder / "model"),
        features=str(folder / "t"),
        entity_column=None,
        event_time_column=None,
        columns=None,
        name="m",
        schedule="1h",
        force=False,
    )
    return Onboarding(options, Asker(interactive=False, accepts=True))
