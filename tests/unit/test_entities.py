"""Entity ids: what is legal as a request's id and as a column of a table."""

from __future__ import annotations

import pyarrow as pa
import pytest

from inference.entities import check_entity_id, entity_ids_as_text, illegal_entity_ids
from inference.errors import BadEntityId, SourceError

ILLEGAL = ["", "a\x00b", "tab\t", "line\n", "\x7f", "\x85", "x" * 513, "é" * 257]
LEGAL = ["a", "a b", "a/b", "%2F", '"quoted"', "😀", "x" * 512, "é" * 256, ".", ".."]


@pytest.mark.parametrize("text", LEGAL)
def test_a_legal_id_is_returned_unchanged(text: str) -> None:
    assert check_entity_id(text) == text


@pytest.mark.parametrize("text", [*ILLEGAL, "\ud800"])
def test_an_illegal_id_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadEntityId) as caught:
        check_entity_id(text)
    assert caught.value.field == "entity_id"


def test_columns_and_requests_agree_on_what_is_legal() -> None:
    ids = pa.array([*LEGAL, *ILLEGAL, None])
    assert illegal_entity_ids(ids).to_pylist() == [False] * len(LEGAL) + [True] * (len(ILLEGAL) + 1)


@pytest.mark.parametrize("text", ILLEGAL)
def test_one_illegal_id_is_found_among_plain_ones(text: str) -> None:
    ids = pa.array(["left out", "plain", text, "~ "]).slice(1)
    assert illegal_entity_ids(ids).to_pylist() == [False, True, False]


def test_ids_beside_a_slice_do_not_count() -> None:
    assert illegal_entity_ids(pa.array(["\n", "a", "b", "\x7f"]).slice(1, 2)).to_pylist() == [False, False]
    assert illegal_entity_ids(pa.array([], pa.string())).to_pylist() == []


def test_integers_become_decimal_text() -> None:
    assert entity_ids_as_text(pa.array([1, -5, None, 2**63 - 1])).to_pylist() == [
        "1",
        "-5",
        None,
        str(2**63 - 1),
    ]


def test_dictionaries_are_decoded() -> None:
    assert entity_ids_as_text(pa.array(["b", "a", "b"]).dictionary_encode()).to_pylist() == ["b", "a", "b"]


@pytest.mark.parametrize("type_", [pa.float64(), pa.bool_(), pa.timestamp("s"), pa.dictionary(pa.int8(), pa.float32())])
def test_a_column_that_cannot_hold_ids_is_refused(type_: pa.DataType) -> None:
    with pytest.raises(SourceError, match="'user'"):
        entity_ids_as_text(pa.nulls(2, type_), "user")
