"""doctor: tables, disks, and memory in Redis."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.cli.doctor.findings import Finding, Status
from app.cli.doctor.tables import (
    TableSize,
    check_disk,
    check_table,
    disk_finding,
    estimated_bytes_per_row,
    existing_parent,
    memory_finding,
    open_table,
)
from inference.schema import DType, TensorSpec
from inference.settings import ModelSettings, Settings
from inference.sources import Source
from tests.unit.cli.doctor.test_models import ready


def table_of(tmp_path: Path, columns: dict[str, Any] | None, **model: Any) -> tuple[Finding, int | None]:
    if columns is not None:
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    settings = Settings.model_validate(
        {"models": {"delay": {"path": "m", "features": str(tmp_path / "t.parquet"), **model}}}
    )
    table = open_table(settings, "delay", settings.models["delay"])
    found = check_table("delay", settings.models["delay"], table, ready(1))
    return found, table.rows if isinstance(table, Source) else None


def test_a_table_with_every_column_is_fine(tmp_path: Path) -> None:
    found, rows = table_of(tmp_path, {"entity_id": ["a", "b"], "distance": [1.0, 2.0], "time": [3, 4]})
    detail = "2 rows in 1 file, with every column that the model needs; the first 2 rows can be scored"
    assert (found.status, found.detail) == (Status.OK, detail)
    assert rows == 2


@pytest.mark.parametrize(
    ("features", "fix"),
    [
        ("nowhere.parquet", "correct [models.delay] features, or the table"),
        ("delta:nowhere", "correct [models.delay] features, or the table"),
        ("sql:users.toml", "correct users.toml, the file that [models.delay] features names, or the database"),
        ("t.parquet", "correct [models.delay] entity_column, or the table"),
    ],
)
def test_the_fix_of_a_table_that_cannot_be_opened_names_the_setting(tmp_path: Path, features: str, fix: str) -> None:
    assert opening(tmp_path, features) == fix


def test_a_library_that_is_missing_is_to_be_installed_where_the_table_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    assert opening(tmp_path, "delta:t") == "install it here, and where workers read [models.delay] features"


def opening(tmp_path: Path, features: str) -> str | None:
    """Return the fix for a table that has a column `a`."""
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    settings = Settings.of_folder(tmp_path, models={"delay": {"path": "m", "features": features}})
    found = open_table(settings, "delay", settings.models["delay"])
    assert isinstance(found, Finding)
    assert found.status is Status.ERROR
    return found.fix


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (None, "does not exist"),
        ({"entity_id": ["a"], "distanc": [1.0], "time": [1.0]}, "did you mean 'distanc'"),
        ({"entity_id": ["a"], "distance": ["far"], "time": [1.0]}, "is string, but the feature is float32"),
        ({"entity": ["a"], "distance": [1.0], "time": [1.0]}, "has no column 'entity_id'"),
    ],
)
def test_a_table_that_does_not_fit_is_an_error(tmp_path: Path, columns: dict[str, Any] | None, told: str) -> None:
    found, _ = table_of(tmp_path, columns)
    assert found.status is Status.ERROR
    assert told in found.detail


def test_a_model_without_a_table_is_fine(tmp_path: Path) -> None:
    assert table_of(tmp_path, None, features=None)[0].status is Status.OK


# --- disks ---


@pytest.mark.parametrize(("free", "status"), [(99, Status.ERROR), (499, Status.WARNING), (500, Status.OK)])
def test_a_disk_needs_room_for_some_runs(free: float, status: Status) -> None:
    assert disk_finding("delay", "parquet_path", Path("/"), free, 100).status is status


def test_the_disk_is_that_of_the_folder_that_exists(tmp_path: Path) -> None:
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
    model = ModelSettings.model_validate({"path": "m", "batch": {"parquet_path": f"{tmp_path}/out/{{date}}"}})
    (found,) = check_disk(Settings(), "delay", model, 10, ready(1))
    assert f"free at {tmp_path}; a run writes at most about 270 B" in found.detail
    assert check_disk(Settings(), "delay", ModelSettings(path=Path("m")), 10, None) == []
    bucket = ModelSettings.model_validate({"path": "m", "batch": {"parquet_path": "s3://bucket/out/{date}"}})
    assert check_disk(Settings(), "delay", bucket, 10, None) == []


def test_delta_runs_need_room_for_what_tells_which_rows_changed(tmp_path: Path) -> None:
    batch = {"delta": True, "delta_path": f"{tmp_path}/delta"}
    model = ModelSettings.model_validate({"path": "m", "batch": batch})
    (found,) = check_disk(Settings(), "delay", model, 1000, ready(1))
    assert (found.subject, found.status) == ("delay, delta_path", Status.OK)
    assert "a run writes at most about 52.0 kB" in found.detail  # 24 bytes a row, and 28 in the parts of its chunks
    with_parts = ModelSettings.model_validate({"path": "m", "batch": {**batch, "parquet_path": f"{tmp_path}/out"}})
    assert "60.0 kB" in check_disk(Settings(), "delay", with_parts, 1000, ready(1))[1].detail
    bucket = ModelSettings.model_validate({"path": "m", "batch": {"delta": True, "delta_path": "s3://bucket/delta"}})
    assert check_disk(Settings(), "delay", bucket, 1000, None) == []

    tmp_path.chmod(0o500)
    (refused,) = check_disk(Settings(), "delay", model, 1000, ready(1))
    tmp_path.chmod(0o700)
    if os.geteuid():  # root may write everywhere
        assert (refused.status, "delta_path" in refused.fix) == (Status.ERROR, True)


# --- memory ---


def table(rows: int, generations: int = 2) -> TableSize:
    return TableSize(rows, 30.0, measured=True, generations=generations)


def test_three_generations_must_fit_beside_all_else() -> None:
    info = {"maxmemory": 1000, "used_memory": 660}  # of which 600 are the two generations that are there
    assert memory_finding(info, [table(10)], 50.0).status is Status.ERROR  # 900 + 50 + 60
    assert memory_finding(info, [table(10)], 0.0).status is Status.WARNING
    assert memory_finding({**info, "maxmemory": 1100}, [table(10)], 0.0).status is Status.WARNING
    roomy = memory_finding({**info, "maxmemory": 2000}, [table(10)], 0.0)
    assert (roomy.status, "access log" in roomy.detail) == (Status.OK, False)
    tight = memory_finding({**info, "maxmemory": 2000}, [table(10)], 0.0, 1000.0)
    assert (tight.status, "days of the access log to come up to 1.0 kB" in tight.detail) == (Status.WARNING, True)


def test_without_a_limit_of_its_own_it_is_the_machines() -> None:
    info = {"maxmemory": 0, "total_system_memory": 800, "used_memory": 0}
    found = memory_finding(info, [table(10)], 0.0)
    assert found.status is Status.ERROR
    assert found.detail.startswith("too little: 3 generations and answers on demand take 900 B (measured)")
    assert memory_finding({}, [table(10)], 0.0).status is Status.OK


def test_a_row_is_estimated_by_the_models_outputs() -> None:
    assert estimated_bytes_per_row(()) == estimated_bytes_per_row([TensorSpec("y", DType.FLOAT32)]) == 27
    assert estimated_bytes_per_row([TensorSpec("y", DType.FLOAT32, (100,))]) == 4 + 400 + 19
    assert estimated_bytes_per_row([TensorSpec("label", DType.STRING)]) > 50
