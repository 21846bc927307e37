from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.batch.partial_request import check_entities, pack_entities, parse_since, read_entities, unpack_entities
from inference.errors import BadInput

NOON = 1_767_268_800.0  # 2026-01-01T12:00:00Z


def test_a_text_file_has_an_id_a_line_and_spaces_belong_to_it(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes("\ufeffa\r\n\r\n b c \u2028d\né".encode())

    assert read_entities(str(path), "entity_id") == ["a", " b c \u2028d", "é"]


@pytest.mark.parametrize("ids", [[1, 20, 3], ["1", "20", "3"]])
def test_a_parquet_file_has_them_in_the_entity_column(tmp_path: Path, ids: list[Any]) -> None:
    pq.write_table(pa.table({"x": [0, 0, 0], "user": ids}), tmp_path / "ids")

    assert read_entities(str(tmp_path / "ids"), "user") == ["1", "20", "3"]


def test_a_parquet_file_without_the_entity_column_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"users": ["a"]}), tmp_path / "ids")

    with pytest.raises(BadInput, match=r"has no column 'user' .* did you mean 'users'"):
        read_entities(str(tmp_path / "ids"), "user")


@pytest.mark.parametrize(
    ("data", "message"), [(b"\n", "holds no ids: write one a line"), (b"\xff\xfe", "cannot be read as a list of ids")]
)
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "ids").write_bytes(data)

    with pytest.raises(BadInput, match=message):
        read_entities(str(tmp_path / "ids"), "user")


def test_ids_are_taken_once_each_and_survive_their_trip() -> None:
    ids = check_entities(["b", "a", "b", " ", "😀"])

    assert ids == ("b", "a", " ", "😀")
    assert unpack_entities(pack_entities(ids)) == ids


def test_too_many_ids_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.batch.partial_request.MAX_ENTITIES", 2)

    with pytest.raises(BadInput, match="entities holds 3: at most 2"):
        check_entities(["a", "b", "c"])


@pytest.mark.parametrize(
    ("text", "hours_before_noon"),
    [
        ("6h", 6),
        ("30m", 0.5),
        ("2026-01-01", 12),
        ("2026-01-01T06:00", 6),
        ("2026-01-01T06:00:00Z", 6),
        ("2026-01-01 07:00:00+01:00", 6),
    ],
)
def test_since_is_an_instant_or_a_duration(text: str, hours_before_noon: float) -> None:
    assert parse_since(text, now=NOON) == NOON - hours_before_noon * 3600
