"""The Parquet tables that runs read, and the disk that they write their own to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from app.cli.doctor.findings import Check, Finding, error, ok, size_text, warning
from app.cli.doctor.memory import estimated_bytes_per_row
from inference.batch.rows import Preparer
from inference.batch.sources import locate_source
from inference.clock import system_clock
from inference.errors import BadInput
from inference.features import Vectoriser, check_key_columns
from inference.models import VersionRecord
from inference.settings import ModelSettings, Settings
from inference.sources import Source, open_source, read_slices, whole_slices
from inference.storage import is_uri

#: on a disk emptier than so many runs it is time to look
RUNS_AHEAD = 5
#: so many rows are looked at
FIRST_ROWS = 100


def open_table(
    settings: Settings, name: str, model: ModelSettings, record: VersionRecord | None = None
) -> Source | Finding | None:
    """Return a model's table, what is wrong with it, or None for a model without one. `record`: as in `check_table`."""
    if not model.features:
        return None
    try:
        texts = Vectoriser(record.contract, record.signature).text_columns if record else []
        where = locate_source(settings, name, model, None, confined=False)
        source = open_source(where, as_text=[model.entity_column, *texts])
        check_key_columns(source, model.entity_column, model.event_time_column)
    except BadInput as problem:
        return error(Check.TABLE, name, problem.message, f"correct the table, or [models.{name}]")
    return source


def check_table(
    name: str, model: ModelSettings, table: Source | Finding | None, record: VersionRecord | None
) -> Finding:
    """Return the line of one table. `record`: of the model's version; None when it is not known."""
    if table is None:
        return ok(Check.TABLE, name, "none set: the model answers instances, and has no runs")
    if isinstance(table, Finding):
        return table
    files = "1 file" if len(table.files) == 1 else f"{len(table.files)} files"
    rows = f"{table.rows:,} rows in {files}"
    if record is None:
        fix = "let a worker load the model, then ask again"
        return warning(Check.TABLE, name, f"{rows}; columns not checked: the model's record is not known", fix)
    try:
        Vectoriser(record.contract, record.signature).check_schema(table.schema, table.path)
    except BadInput as problem:
        return error(Check.TABLE, name, problem.message, "correct the table, or features.json")
    tried = f"{rows}, with every column that the model needs"
    if record.contract.computed:  # computed by code of the user's, which only workers run
        return ok(Check.TABLE, name, tried)
    return _check_first_rows(name, model, table, record, tried)


def _check_first_rows(name: str, model: ModelSettings, table: Source, record: VersionRecord, tried: str) -> Finding:
    """Return whether the first rows could be scored, up to the model itself."""
    vectoriser = Vectoriser(record.contract, record.signature)
    event_time = [model.event_time_column] if model.event_time_column else []
    columns = list(dict.fromkeys([model.entity_column, *event_time, *vectoriser.columns]))
    preparer = Preparer(vectoriser, model.entity_column, model.event_time_column, system_clock())
    try:
        first = next(read_slices(table.files, whole_slices(table.files), columns=columns, batch_rows=FIRST_ROWS), None)
        if first is None:
            return warning(Check.TABLE, name, f"{tried}, but without a row", "write rows into it before the next run")
        refused = preparer.prepare(first).refused
    except BadInput as problem:
        return error(Check.TABLE, name, problem.message, f"correct the table, or [models.{name}]")
    bad = sum(len(refusal.positions) for refusal in refused)
    if not bad:
        return ok(Check.TABLE, name, f"{tried}; the first {first.num_rows} rows can be scored")
    why = f"{refused[0].feature}: {refused[0].reason}" if refused[0].feature else refused[0].reason
    detail = f"{bad} of the first {first.num_rows} rows cannot be scored, such as by {why}"
    level = error if bad == first.num_rows else warning
    return level(Check.TABLE, name, detail, "correct the table, or give the feature a default in features.json")


def check_disk(
    settings: Settings, name: str, model: ModelSettings, rows: int | None, record: VersionRecord | None
) -> list[Finding]:
    """Return whether there is room for the Parquet files that runs write to a disk; nothing when they write none."""
    if not model.batch.parquet_path or is_uri(model.batch.parquet_path):
        return []
    # what comes before the first placeholder is where it begins
    folder = existing_parent(settings.path(model.batch.parquet_path.partition("{")[0] or "."))
    subject = f"{name}, parquet_path"
    if not os.access(folder, os.W_OK | os.X_OK):
        fix = f"let the workers write there, or change [models.{name}.batch] parquet_path"
        return [error(Check.TABLE, subject, f"{folder} is not writable", fix)]
    needed = (rows or 0) * estimated_bytes_per_row(record.signature.outputs if record else ())
    return [disk_finding(subject, folder, shutil.disk_usage(folder).free, needed, name)]


def disk_finding(subject: str, folder: Path, free: float, needed: float, model: str) -> Finding:
    """Return whether `free` bytes are enough for runs that take about `needed` bytes each."""
    detail = f"{size_text(free)} free at {folder}"
    if needed:
        detail += f"; a run writes at most about {size_text(needed)}"
    fix = f"delete old runs there, or change [models.{model}.batch] parquet_path"
    if free < max(needed, 1):
        return error(Check.TABLE, subject, detail, fix)
    if free < RUNS_AHEAD * needed:
        return warning(Check.TABLE, subject, detail, fix)
    return ok(Check.TABLE, subject, detail)


def existing_parent(path: Path) -> Path:
    """Return the nearest folder above (or at) a path that exists."""
    return next(one for one in (path, *path.parents) if one.is_dir())
