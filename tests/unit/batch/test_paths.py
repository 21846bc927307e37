from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.batch.paths import locate_source, vectors_folder
from inference.errors import BadInput, SourceError
from inference.features import check_key_columns
from inference.settings import BatchSettings, ModelSettings, Settings
from inference.sources import open_source
from tests.support.wide_parquet import write_wide


def write(path: Path, rows: int = 100, *, row_group_size: int = 30, **columns: Any) -> Path:
    table = pa.table({"entity_id": [f"e{i}" for i in range(rows)], "x": [float(i) for i in range(rows)], **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def test_a_missing_entity_column_names_the_nearest(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "t.parquet")))

    with pytest.raises(SourceError, match=r"has no column 'entity_ids' \(entity_column\): did you mean 'entity_id'"):
        check_key_columns(source, "entity_ids", None)


def test_float_ids_are_refused(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "t.parquet")))

    with pytest.raises(SourceError, match="entity column 'x' is double"):
        check_key_columns(source, "x", None)


def test_an_event_time_must_be_a_time(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "t.parquet")))

    with pytest.raises(SourceError, match="'x' is double"):
        check_key_columns(source, "entity_id", "x")


def locate(root: Path, asked: str | None, *, confined: bool, features: str | None = "data/t.parquet") -> str:
    model = ModelSettings(path=root / "m", features=features)
    settings = Settings(models={"m": model})
    settings._root = root
    return locate_source(settings, "m", model, asked, confined=confined)


def test_a_run_reads_the_models_own_table_unless_another_is_named(tmp_path: Path) -> None:
    assert locate(tmp_path, None, confined=True) == str(tmp_path / "data/t.parquet")
    assert locate(tmp_path, "data/other.parquet", confined=True) == str(tmp_path / "data/other.parquet")
    assert locate(tmp_path, "/elsewhere/o.parquet", confined=False) == "/elsewhere/o.parquet"


@pytest.mark.parametrize("asked", ["/etc/passwd", "data/../secret.parquet", "other/t.parquet"])
def test_an_http_caller_cannot_read_outside_the_tables_folder(tmp_path: Path, asked: str) -> None:
    with pytest.raises(BadInput, match=r"lies outside the folder of models\.m\.features"):
        locate(tmp_path, asked, confined=True)


def test_a_link_does_not_lead_an_http_caller_outside(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "way-out").symlink_to("/etc")

    with pytest.raises(BadInput, match="lies outside"):
        locate(tmp_path, "data/way-out/passwd", confined=True)


def test_a_model_without_a_table_has_no_runs(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no table of features: set models\.m\.features"):
        locate(tmp_path, None, confined=False, features=None)


def test_a_link_that_a_pattern_or_a_folder_reaches_does_not_lead_an_http_caller_outside(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "t.parquet")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "way-out").symlink_to(tmp_path / "elsewhere")

    for asked in ("data/*/t.parquet", "data/**", "data"):
        with pytest.raises(BadInput, match="lies outside"):
            locate(tmp_path, asked, confined=True)
    assert locate(tmp_path, "data", confined=False) == str(tmp_path / "data")


def test_patterns_below_the_tables_folder_are_allowed(tmp_path: Path) -> None:
    write(tmp_path / "data" / "date=1" / "t.parquet")

    for features in ("data", "data/*.parquet", "data/*/t.parquet", "data/t.parquet"):
        assert locate(tmp_path, "data/date=*", confined=True, features=features) == str(tmp_path / "data/date=*")


@pytest.mark.parametrize("features", ["s3://b/data", "s3://b/data/*.parquet", "s3://b/data/t.parquet"])
def test_an_http_caller_gets_only_objects_below_the_tables_folder(tmp_path: Path, features: str) -> None:
    for inside in ("s3://b/data/o.parquet", "s3://b/data/day=*/x.parquet", "s3://b/data", "S3://b/data/o"):
        located = locate(tmp_path, inside, confined=True, features=features)
        assert located == inside.replace("S3", "s3")
    for outside in ("s3://b/database/o", "s3://b2/data/o", "s3://b", "gs://b/data/o", "/data/o", "s3://b/da*/o"):
        with pytest.raises(BadInput, match="lies outside"):
            locate(tmp_path, outside, confined=True, features=features)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("s3://b/data/../secret/t.parquet", "holds '.' or '..'"),
        ("s3://b/data/./t.parquet", "holds '.' or '..'"),
        ("s3://key:word@b/data/t.parquet", "must not hold credentials"),
        ("s3:///data/t.parquet", "names no bucket"),
        ("s3://b?endpoint_override=evil/data", "is not a name of a bucket"),
        ("ftp://b/data", r"ftp:// is not a supported file system: use a path, s3://, gs://, hdfs://"),
        ("file://elsewhere/data", "names another machine"),
    ],
)
def test_a_uri_that_is_not_plain_is_refused_without_repeating_a_secret(
    tmp_path: Path, asked: str, message: str
) -> None:
    for confined in (True, False):
        with pytest.raises(BadInput, match=message) as refused:
            locate(tmp_path, asked, confined=confined, features="s3://b/data")
        assert refused.value.field == "source"
        assert "word" not in refused.value.message


def test_a_local_table_does_not_open_a_bucket_to_http_callers(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="lies outside"):
        locate(tmp_path, "s3://b/t.parquet", confined=True)
    with pytest.raises(BadInput, match="lies outside"):
        locate(tmp_path, "file:///etc/passwd", confined=True)
    inside = (tmp_path / "data" / "o.parquet").as_uri()
    assert locate(tmp_path, inside, confined=True) == str(tmp_path / "data" / "o.parquet")


def test_a_table_of_a_million_columns_is_refused_before_its_footer_is_taken_apart(tmp_path: Path) -> None:
    write_wide(tmp_path / "few.parquet", 3)
    assert pq.ParquetFile(tmp_path / "few.parquet").metadata.num_columns == 3
    write_wide(tmp_path / "wide.parquet", 1_000_000)
    started = time.process_time()
    with pytest.raises(SourceError, match="over 200,000 columns or row groups"):
        open_source(str(tmp_path / "wide.parquet"))
    assert time.process_time() - started < 1


def test_the_folder_of_a_runs_vectors_follows_from_the_settings_and_no_run_id_leaves_it(tmp_path: Path) -> None:
    settings = Settings(models={"m": ModelSettings(path=tmp_path, batch=BatchSettings(delta_path="s3://b/d/"))})
    assert vectors_folder(settings, "m", "m-1") == "s3://b/d/m/m-1"
    settings = Settings(models={"m": ModelSettings(path=tmp_path)})
    settings._root = tmp_path
    assert vectors_folder(settings, "m", "") == str(tmp_path / ".forecache/delta/m")
    for forged in ("..", "../m-1", "m/1", ".hidden"):
        with pytest.raises(BadInput, match="no run has the id"):
            vectors_folder(settings, "m", forged)
