from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.batch import quarantine
from inference.batch.quarantine import Quarantine


def batch() -> tuple[pa.RecordBatch, pa.Array]:
    rows = pa.RecordBatch.from_pydict(
        {"reason": pa.array([7, None, 9], pa.int64()), "x": pa.array([1.0, None, np.inf])}
    )
    return rows, pa.array(["7", None, "9"])


def test_rows_are_kept_with_their_reason_and_their_values_as_they_were(tmp_path: Path) -> None:
    rows, ids = batch()
    kept = Quarantine(str(tmp_path / "q"), chunk=3, token="t")

    kept.add(rows, ids, np.array([1]), reason="the id is null")
    kept.add(rows, ids, np.array([2]), reason="infinite", feature="x")
    kept.commit()

    assert [path.name for path in (tmp_path / "q").iterdir()] == ["part-000003.parquet"]
    assert pq.read_table(tmp_path / "q").to_pylist() == [
        {"entity_id": None, "reason": "the id is null", "feature": None, "values": {"reason": None, "x": None}},
        {"entity_id": "9", "reason": "infinite", "feature": "x", "values": {"reason": 9, "x": np.inf}},
    ]


def test_a_chunk_without_bad_rows_leaves_no_file(tmp_path: Path) -> None:
    Quarantine(str(tmp_path / "q"), chunk=0, token="t").commit()

    assert not (tmp_path / "q").exists()


def test_a_table_that_is_bad_throughout_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MAX_ROWS", 4)
    rows, ids = batch()
    kept = Quarantine(str(tmp_path), chunk=0, token="t")
    for _ in range(3):
        kept.add(rows, ids, np.arange(3), reason="r")
    kept.commit()

    assert pq.read_table(tmp_path).num_rows == 4


def test_a_part_that_cannot_be_written_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(table: pa.Table, where: Path) -> None:
        Path(where).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(quarantine.pq, "write_table", full)
    rows, ids = batch()
    kept = Quarantine(str(tmp_path), chunk=0, token="t")
    kept.add(rows, ids, np.arange(3), reason="r")

    with pytest.raises(OSError, match="No space"):
        kept.commit()
    assert list(tmp_path.iterdir()) == []
