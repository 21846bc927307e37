"""Event times: when the values of a row were true, as epoch seconds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.errors import SourceError


def check_event_time_column(name: str, type_: pa.DataType) -> None:
    """Refuse a column that holds no instants.

    Raises:
        SourceError: the type is neither a timestamp nor a date.
    """
    if not (pa.types.is_timestamp(type_) or pa.types.is_date(type_)):
        raise SourceError(
            f"event time column {name!r} is {type_}: cast it to a timestamp (text and numbers are ambiguous)",
            field=name,
        )


def event_times(column: pa.Array) -> npt.NDArray[np.float64]:
    """Return epoch seconds, NaN for nulls. Timestamps without a zone, and dates, are taken as UTC."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    zone = column.type.tz if pa.types.is_timestamp(column.type) else None
    # microseconds: nanoseconds would not reach past the year 2262
    micros = pc.cast(pc.cast(column, pa.timestamp("us", tz=zone), safe=False), pa.int64())
    seconds: npt.NDArray[np.float64]
    seconds = pc.fill_null(micros, 0).to_numpy(zero_copy_only=False).astype(np.float64) / 1e6
    if column.null_count:
        seconds[column.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return seconds
