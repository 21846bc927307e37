"""Rows leave the parts of a run: locally, and in an object store; the vectors of the others move up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest

from inference.batch.erasing import erase_from_success, erase_rows
from inference.batch.mentions import GONE, mention_remover
from inference.batch.sinks import Window, part_names
from inference.batch.vectors import Facts, TakenVectors, VectorSink, merge_parts, open_vectors
from inference.sources import hash_ids
from inference.storage import Location, open_location


def is_doomed(ids: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.starts_with(ids, "gone"), np.bool_)


def write_parts(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for number, ids in enumerate((["a", "gone", "b", "gone2"], ["c", None, "d"], ["gone3"])):
        table = pa.table({"entity_id": pa.array(ids, pa.string()), "y": np.arange(len(ids), dtype=np.float32)})
        pq.write_table(table, folder / f"part-{number:06d}.parquet", row_group_size=2)


@pytest.mark.parametrize("is_local", [True, False])
def test_rows_leave_their_parts_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_local: bool
) -> None:
    folder = tmp_path / "b"
    write_parts(folder)
    if not is_local:
        bucket = Location(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "b", "s3://")
        monkeypatch.setattr("inference.batch.erasing.open_location", lambda _: bucket)
    called: list[str] = []
    untouched = (folder / "part-000001.parquet").stat().st_mtime_ns

    erased = erase_rows(str(folder), is_doomed, before=lambda: called.append("before"))

    assert (erased.rows, erased.parts, erased.places, called) == (3, 2, [1, 3, 2 << 32], ["before"])
    assert erased.ids == {"gone", "gone2", "gone3"}
    parts = [pq.read_table(path).to_pydict() for path in sorted(folder.glob("*.parquet"))]
    assert [part["entity_id"] for part in parts] == [["a", "b"], ["c", None, "d"], []]
    assert [part["y"] for part in parts] == [[0.0, 2.0], [0.0, 1.0, 2.0], []]
    assert (folder / "part-000001.parquet").stat().st_mtime_ns == untouched
    assert len(list(folder.iterdir())) == 3  # no temporary file
    assert erase_rows(str(folder), is_doomed, before=lambda: called.append("again")).rows == 0
    assert called == ["before"]


def test_a_folder_that_is_not_there_has_no_rows(tmp_path: Path) -> None:
    assert erase_rows(str(tmp_path / "none"), is_doomed).rows == 0
    assert not erase_from_success(str(tmp_path / "none"), str.upper)


def test_a_disk_that_is_full_leaves_the_old_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(tmp_path / "b")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        erase_rows(str(tmp_path / "b"), is_doomed)
    assert pq.read_table(tmp_path / "b" / "part-000000.parquet").num_rows == 4
    assert len(part_names(open_location(str(tmp_path / "b")))) == len(list((tmp_path / "b").iterdir())) == 3


def test_vectors_lose_the_ids_and_keep_the_places_of_the_others(tmp_path: Path) -> None:
    ids = [["a", "gone", "b"], ["c", "gone2", "gone3", "d"]]
    for number, some in enumerate(ids):
        sink = VectorSink(str(tmp_path), chunk=number, token="t", latest=1e9, is_needed=True)
        digests = np.arange(len(some), dtype=np.uint64)
        sink.write(Window(pa.array(some), {}, np.zeros(len(some)), digests=digests))
        sink.commit()
    merge_parts(str(tmp_path), Facts("r", 1, "f", "c", "00", 0, "out"), chunks=2)
    gone = hash_ids(pa.array(["gone", "gone2", "gone3", "never"]))
    taken = TakenVectors(str(tmp_path))
    taken.take()
    assert open_vectors(str(tmp_path)) is None  # a kill costs a full run, and mixes nothing up
    assert taken.put_back(gone, [1, (1 << 32) + 1, (1 << 32) + 2]) == 3

    left = open_vectors(str(tmp_path))
    assert left is not None
    found = left.find(hash_ids(pa.array(["a", "b", "c", "d", "gone"])))
    assert found.known.tolist() == [True, True, True, True, False]
    assert found.places.tolist()[:4] == [0, 1, 1 << 32, (1 << 32) + 1]
    assert TakenVectors(str(tmp_path)).put_back(gone, []) == 0


@pytest.mark.parametrize(
    ("entity_id", "before", "after"),
    [
        ("7", "7 rows repeat an id, such as '7', '77'", f"7 rows repeat an id, such as '{GONE}', '77'"),
        ("e1", '{"rows": 1, "examples": ["e1", "e12"]}', f'{{"rows": 1, "examples": ["{GONE}", "e12"]}}'),
        ("running", '{"state": "running"}', '{"state": "running"}'),
        ("long" * 30, f"such as {('long' * 30)[:60]!r}", f"such as '{GONE}'"),
        ("it's", 'such as "it\'s"', f"such as '{GONE}'"),
    ],
)
def test_only_what_names_the_entity_is_replaced(entity_id: str, before: str, after: str) -> None:
    assert mention_remover(entity_id)(before) == after
