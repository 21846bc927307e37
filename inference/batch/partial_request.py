"""What a partial run is asked for: some entities, or what changed since an instant. Checked before anything starts."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from inference.entities import check_entity_id
from inference.errors import BadEntityId, BadInput, quoted
from inference.features import EARLIEST_S, check_key_columns
from inference.settings import ModelSettings, parse_duration
from inference.small_files import open_small, read_at_most
from inference.sources import open_source, read_ids, whole_slices
from inference.stored_data import reading

#: entities that one partial run takes; more are a run over a table of their own
MAX_ENTITIES = 1_000_000
#: of a file that lists them
MOST_ID_BYTES = 256 << 20


@dataclass(frozen=True)
class Selection:
    """What a partial run was asked for; with both, rows must meet both. `since`: epoch seconds."""

    entities: tuple[str, ...] | None = None
    since: float | None = None


def read_entities(path: str, entity_column: str) -> list[str]:
    """Return the ids in a file: text with one a line, or Parquet with the entity column.

    Raises:
        BadInput: the file cannot be read, or holds no ids.
    """
    own = Path(path)
    try:
        # opened once: a pipe is read only once
        with open_small(own) as stream:
            is_parquet = stream.peek(4)[:4] == b"PAR1"
            text = "" if is_parquet else read_at_most(stream, MOST_ID_BYTES).decode("utf-8-sig")
        ids = _ids_in_parquet(str(own.absolute()), entity_column) if is_parquet else _ids_in_lines(text)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read as a list of ids: {error}", field="entities") from error
    if not ids:
        raise BadInput(f"{path} holds no ids: write one a line", field="entities")
    return ids


def _ids_in_lines(text: str) -> list[str]:
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [line for line in lines if line]  # other white space may be part of an id


def _ids_in_parquet(path: str, entity_column: str) -> list[str]:
    source = open_source(path, as_text=[entity_column])
    check_key_columns(source, entity_column, None)
    return [
        each for ids in read_ids(source.files, whole_slices(source.files), entity_column) for each in ids.to_pylist()
    ]


def check_entities(ids: Sequence[str]) -> tuple[str, ...]:
    """Return the ids without repetitions, in order.

    Raises:
        BadInput: there are none, too many, or an illegal one, which is named by its place.
    """
    if not ids:
        raise BadInput("entities is empty: give at least one id", field="entities")
    if len(ids) > MAX_ENTITIES:
        raise BadInput(f"entities holds {len(ids):,}: at most {MAX_ENTITIES:,}", field="entities")
    for number, entity_id in enumerate(ids):
        try:
            check_entity_id(entity_id)
        except BadEntityId as error:
            raise BadEntityId(f"entity {number + 1}: {error.message}", field=f"entities.{number}") from error
    return tuple(dict.fromkeys(ids))


def since_of(name: str, model: ModelSettings, text: str, *, now: float) -> float:
    """Return the instant (epoch seconds) since which a model's rows must have changed to be meant.

    Raises:
        BadInput: the model names no event-time column, or `parse_since` refuses the text.
    """
    if model.event_time_column is None:
        told = f"since needs models.{name}.event_time_column: set it to the column that says when a row changed"
        raise BadInput(told, field="since")
    return parse_since(text, now=now)


def parse_since(text: str, *, now: float) -> float:
    """Return epoch seconds of an ISO 8601 instant (UTC unless it says otherwise), or of a duration before `now`.

    Raises:
        BadInput: it is neither, or it lies in the future.
    """
    try:
        since = _instant(text)
    except ValueError:
        try:
            since = now - parse_duration(text)
        except ValueError as error:
            told = f"since {quoted(text)} is no instant: write 2026-01-31T06:00:00Z, or a duration such as 6h"
            raise BadInput(told, field="since") from error
    if since > now:
        raise BadInput(f"since {quoted(text)} lies in the future: nothing has changed after it", field="since")
    return max(since, EARLIEST_S)  # no event time counts as earlier


def pack_entities(ids: Sequence[str]) -> bytes:
    """Return ids, of which none holds a line break, as few bytes."""
    return zlib.compress("\n".join(ids).encode())


def unpack_entities(data: bytes) -> tuple[str, ...]:
    """Return what `pack_entities` packed.

    Raises:
        Unreadable: it is none.
    """
    with reading("the ids of a partial run"):
        return tuple(zlib.decompress(data).decode().split("\n"))


def _instant(text: str) -> float:
    return as_utc(datetime.fromisoformat(text)).timestamp()


def as_utc(instant: datetime) -> datetime:
    """Return an aware instant: one without a zone is UTC."""
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
