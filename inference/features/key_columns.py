"""The columns that name and date the rows of a table: one sentence for whoever reads them, runs, loads and commands."""

from __future__ import annotations

from inference.entities import check_entity_column_type
from inference.features.event_time import check_event_time_column
from inference.sources import Source, column_type_name, find_column


def check_key_columns(source: Source, entity_column: str, event_time_column: str | None) -> None:
    """Refuses a source without a usable entity column, or without the event-time column that was named.

    Raises:
        SourceError: naming the column and, when it is missing, the nearest one; or how to cast it.
    """
    field = find_column(source.schema, entity_column, source.path, role="entity_column")
    check_entity_column_type(entity_column, field.type, column_type_name(field))
    if event_time_column is not None:
        field = find_column(source.schema, event_time_column, source.path, role="event_time_column")
        check_event_time_column(event_time_column, field.type)
