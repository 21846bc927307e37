"""What a message must be."""

from __future__ import annotations

import orjson
import pytest

from inference.errors import BadInput
from inference.features import FeatureUpdate
from inference.streams.messages import MAX_MESSAGE_BYTES, Message, read_update


def read(value: bytes | None, key: bytes | None = None) -> FeatureUpdate:
    return read_update(Message("1-0", value, 7.5, key))


def test_without_an_event_time_the_values_hold_since_the_message_was_written() -> None:
    assert read(b'{"entity_id": "a", "features": {"x": 1}}') == FeatureUpdate("a", {"x": 1}, 7.5)
    at = read(b'{"entity_id": "a", "features": [1], "event_time": "1970-01-01T01:00:02+01:00"}')
    assert at == FeatureUpdate("a", [1], 2.0)


def test_the_key_of_kafka_is_the_entity_unless_the_message_names_one() -> None:
    assert read(b'{"features": {"x": 1}}', b"k").entity_id == "k"
    assert read(b'{"entity_id": "a", "features": {"x": 1}}', b"k").entity_id == "a"


@pytest.mark.parametrize(
    ("value", "field", "says"),
    [
        (None, None, "empty"),
        (b"", None, "empty"),
        (b"{", None, "no JSON"),
        (b"\xff", None, "no JSON"),
        (b"[" * 100_000, None, "no JSON"),
        (b"[]", None, "no object"),
        (b'{"entity_id": "a", "features": {}, "event": 1}', "event", "a message has entity_id"),
        (b'{"features": {"x": 1}}', "entity_id", "entity_id is missing"),
        (b'{"entity_id": 7, "features": {"x": 1}}', "entity_id", "no text"),
        (b'{"entity_id": "a"}', "features", "features is missing"),
        (b'{"entity_id": "a", "features": "x"}', "features", "features is missing"),
        (b'{"entity_id": "a", "features": {"x": 1}, "event_time": 5}', "event_time", "with an offset"),
        (b'{"entity_id": "a", "features": {"x": 1}, "event_time": "2026-01-01T00:00:00"}', "event_time", "offset"),
        (b'{"entity_id": "a", "features": {"x": 1}, "event_time": "yesterday"}', "event_time", "offset"),
        (orjson.dumps({"entity_id": "a", "features": {"x": "y" * 10_000_000}}), None, f"at most {MAX_MESSAGE_BYTES}"),
    ],
)  # fmt: skip
def test_what_is_no_update_is_refused_by_name(value: bytes | None, field: str | None, says: str) -> None:
    with pytest.raises(BadInput, match=says) as refused:
        read(value)
    assert refused.value.field == field
    assert len(refused.value.message) < 500
