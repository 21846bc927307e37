"""Checks a model's Parquet table, the disk for its runs' files, and the Redis memory for its predictions."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.cli.doctor.findings import Check, Finding, error, ok, warning
from inference.batch.active_set import known_bytes
from inference.batch.paths import locate_source
from inference.batch.scoring import Preparer
from inference.batch.vectors import PART_BYTES, PLACE_BYTES, WHOLE_BYTES
from inference.clock import system_clock
from inference.errors import BadInput
from inference.features import Vectoriser, check_key_columns
from inference.models import VersionRecord
from inference.monitoring.asked_filters import DAY_S, filter_bytes
from inference.monitoring.statistics import HitWindows
from inference.outcomes import Outcome
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.schema import TensorSpec
from inference.settings import ModelSettings, Settings
from inference.sources import Source, TableName, open_any, read_slices, whole_slices
from inference.storage import is_uri
from inference.store import Manifest, Table
from inference.store.codec import codec_for
from inference.wording import counted, size_text

#: warn if the disk has room for fewer runs
RUNS_AHEAD = 5
#: so many rows are tried
FIRST_ROWS = 100


def open_table(
    settings: Settings, name: str, model: ModelSettings, record: VersionRecord | None = None
) -> Source | Finding | None:
    """Return a model's table, a finding if it is wrong, or None if there is none. `record`: see `check_table`."""
    if not model.features:
        return None
    try:
        texts = Vectoriser(record.contract, record.signature).text_columns if record else []
        where = locate_source(settings, name, model, None, confined=False)
        source = open_any(where, as_text=[model.entity_column, *texts])
        check_key_columns(source, model.entity_column, model.event_time_column)
    except BadInput as problem:
        return error(Check.TABLE, name, problem.message, _fix(name, model, problem))
    return source


def _fix(name: str, model: ModelSettings, problem: BadInput) -> str:
    """Return the fix for a table that cannot be opened: the setting, or where a library is needed."""
    if isinstance(problem.__cause__, ModuleNotFoundError):
        return f"install it here, and where workers read [models.{name}] features"
    table = TableName.read(model.features or "")
    if table is not None and table.kind == "sql":
        return f"correct {Path(table.place).name}, the file that [models.{name}] features names, or the database"
    columns = {model.entity_column: "entity_column", model.event_time_column: "event_time_column"}
    return f"correct [models.{name}] {columns.get(problem.field, 'features')}, or the table"


def check_table(
    name: str, model: ModelSettings, table: Source | Finding | None, record: VersionRecord | None
) -> Finding:
    """Return the finding about one table. `record`: of the model's version, None if it is not known."""
    if table is None:
        return ok(Check.TABLE, name, "none set: the model answers instances, and has no runs")
    if isinstance(table, Finding):
        return table
    rows = f"{counted(table.rows, 'row')} in {counted(len(table.files), 'file')}"
    if record is None:
        fix = "let a worker load the model, then ask again"
        return warning(Check.TABLE, name, f"{rows}; columns not checked: the model's record is not known", fix)
    try:
        Vectoriser(record.contract, record.signature).check_schema(table.schema, table.name)
    except BadInput as problem:
        return error(Check.TABLE, name, problem.message, "correct the table, or features.json")
    tried = f"{rows}, with every column that the model needs"
    if record.contract.computed:  # the user's code computes them, and only workers run it
        return ok(Check.TABLE, name, tried)
    return _check_first_rows(name, model, table, record, tried)


def _check_first_rows(name: str, model: ModelSettings, table: Source, record: VersionRecord, tried: str) -> Finding:
    """Prepare the first rows for scoring. Does not run the model."""
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
        return ok(Check.TABLE, name, f"{tried}; the first {counted(first.num_rows, 'row')} can be scored")
    why = f"{refused[0].feature}: {refused[0].reason}" if refused[0].feature else refused[0].reason
    detail = f"{bad} of the first {counted(first.num_rows, 'row')} cannot be scored, such as by {why}"
    level = error if bad == first.num_rows else warning
    return level(Check.TABLE, name, detail, "correct the table, or give the feature a default in features.json")


def check_disk(
    settings: Settings, name: str, model: ModelSettings, rows: int | None, record: VersionRecord | None
) -> list[Finding]:
    """Check that the disk has room for the runs' Parquet files, and for what tells delta runs which rows changed.

    Returns nothing if runs write none of them to a disk.
    """
    batch, rows, found = model.batch, rows or 0, []
    if batch.parquet_path and not is_uri(batch.parquet_path):
        # the folder is the part before the first placeholder
        folder = existing_parent(settings.path(batch.parquet_path.partition("{")[0] or "."))
        needed = rows * estimated_bytes_per_row(record.signature.outputs if record else ())
        found.append(_check_folder(name, "parquet_path", folder, needed))
    if batch.delta and not is_uri(batch.delta_path):
        folder = existing_parent(settings.path(batch.delta_path))
        # once the last chunk is done, the parts lie beside the whole file
        each = PART_BYTES + WHOLE_BYTES + (PLACE_BYTES if batch.parquet_path else 0)
        found.append(_check_folder(name, "delta_path", folder, rows * each))
    return found


def _check_folder(name: str, setting: str, folder: Path, needed: float) -> Finding:
    if os.access(folder, os.W_OK | os.X_OK):
        return disk_finding(name, setting, folder, shutil.disk_usage(folder).free, needed)
    fix = f"let the workers write there, or change [models.{name}.batch] {setting}"
    return error(Check.TABLE, f"{name}, {setting}", f"{folder} is not writable", fix)


def disk_finding(model: str, setting: str, folder: Path, free: float, needed: float) -> Finding:
    """Compare `free` bytes with the `needed` bytes of one run. `setting`: the one that names the folder."""
    subject, detail = f"{model}, {setting}", f"{size_text(free)} free at {folder}"
    if needed:
        detail += f"; a run writes at most about {size_text(needed)}"
    fix = f"delete what else is there, or change [models.{model}.batch] {setting}"
    if free < max(needed, 1):
        return error(Check.TABLE, subject, detail, fix)
    if free < RUNS_AHEAD * needed:
        return warning(Check.TABLE, subject, detail, fix)
    return ok(Check.TABLE, subject, detail)


def existing_parent(path: Path) -> Path:
    """Return the path if it is a folder, else the nearest existing folder above it."""
    return next(one for one in (path, *path.parents) if one.is_dir())


# --- memory in Redis ---

#: the current one, the previous one, and the one being loaded
GENERATIONS = 3
#: of a row beside its packed value: id, field header, a share of its bucket (benchmarks/memory.py)
ROW_OVERHEAD_BYTES = 19
#: a guess for text and values of unknown shape
LOOSE_FIELD_BYTES = 32
#: each answer computed on demand has its own key and expiry
OVERLAY_ENTRY_BYTES = 150
#: warn above this share of the limit
TIGHT = 0.7


@dataclass(frozen=True)
class TableSize:
    """The size of one table. `measured`: bytes_per_row is not an estimate; `generations`: how many are stored now."""

    rows: int
    bytes_per_row: float
    measured: bool
    generations: int

    @property
    def needed_bytes(self) -> float:
        """The bytes of three generations."""
        return GENERATIONS * self.rows * self.bytes_per_row

    @property
    def held_bytes(self) -> float:
        """The bytes of the stored generations."""
        return self.generations * self.rows * self.bytes_per_row


def table_sizes(
    cache: Client, keys: Keys, model: str, *, source_rows: int | None, outputs: Sequence[TensorSpec]
) -> list[TableSize]:
    """Return the known sizes of a model's predictions and of its loaded features.

    `source_rows`: rows of the table that runs read, None without one. `outputs`: of the model, for an estimate before
    its first run; without any, one float32 is assumed.
    """
    sizes: list[TableSize] = []
    for kind, rows in ((TableKind.PREDICTIONS, source_rows), (TableKind.FEATURES, None)):
        table = Table(cache, keys.table(kind, model), kind=kind, model=model)
        manifest, generations = _current(table)
        if manifest is not None:
            sizes.append(_measured(table, manifest, generations, rows))
        elif rows is not None:
            sizes.append(TableSize(rows, estimated_bytes_per_row(outputs), measured=False, generations=0))
    return sizes


def overlay_bytes(cache: Client, keys: Keys, name: str, model: ModelSettings, rows: int | None) -> float:
    """Return the bytes of answers computed on demand within `keep`, at most one per row."""
    computed = HitWindows(cache, keys).read(name, model.realtime.keep).outcomes[Outcome.COMPUTED]
    return OVERLAY_ENTRY_BYTES * (computed if rows is None else min(computed, rows))


def filters_to_come(cache: Client, keys: Keys, name: str, model: ModelSettings, rows: int | None) -> float:
    """Return the bytes by which the filters of what was asked for grow until all days of the settings have one.

    Counts the filters of known entities too, by which runs with an active set tell new ones.
    """
    log, today = model.access_log, int(cache.now() // DAY_S)
    filters = [keys.asked_filter(name, today - age) for age in range(log.asked_days)] if log.enabled else []
    needed = len(filters) * filter_bytes(rows)
    if not model.batch.rule.is_all and model.batch.new_entities:
        published = Table(cache, keys.table(TableKind.PREDICTIONS, name), kind=TableKind.PREDICTIONS, model=name)
        known = [one.run_id for one in published.generations.published() if one is not None and one.run_id]
        filters += [keys.run_part(run_id, "known") for run_id in known]
        needed += GENERATIONS * known_bytes(rows or 0)
    held: int = sum(cache.exchange([("STRLEN", key) for key in filters]))
    return max(needed - held, 0)


def memory_finding(
    info: Mapping[str, Any], sizes: Sequence[TableSize], overlay: float, filters: float = 0.0
) -> Finding:
    """Compare the needed memory and the memory of other data with the server's limit.

    `overlay`: the bytes of answers computed on demand; `filters`: those of `filters_to_come`.
    """
    limit = float(info.get("maxmemory") or info.get("total_system_memory") or 0)
    needed = sum(size.needed_bytes for size in sizes) + overlay
    others = max(float(info.get("used_memory", 0)) - sum(size.held_bytes for size in sizes), 0.0)
    how = "measured" if sizes and all(size.measured for size in sizes) else "estimated"
    detail = f"{GENERATIONS} generations and answers on demand take {size_text(needed)} ({how}), "
    if filters:
        detail += f"days of the access log to come up to {size_text(filters)}, "
        needed += filters
    detail += f"all else {size_text(others)}"
    if not limit:
        return ok(Check.REDIS, "memory", f"{detail}; it does not tell how much it may take")
    detail += f", of {size_text(limit)} ({'maxmemory' if info.get('maxmemory') else 'all of its machine'})"
    fix = "give the cache Redis more memory (maxmemory, or a larger machine), or score fewer rows"
    if needed + others > limit:
        return error(Check.REDIS, "memory", f"too little: {detail}", fix)
    if needed + others > TIGHT * limit:
        return warning(Check.REDIS, "memory", f"tight: {detail}", fix)
    return ok(Check.REDIS, "memory", detail)


def estimated_bytes_per_row(fields: Sequence[TensorSpec]) -> float:
    """Return the estimated bytes of a row of these fields in Redis; without fields, of one float32."""
    known = codec_for(tuple(fields)).dtype.itemsize if fields else 8
    return known + ROW_OVERHEAD_BYTES + LOOSE_FIELD_BYTES * sum(not field.is_fixed_number for field in fields)


def _current(table: Table) -> tuple[Manifest | None, int]:
    """Return the manifest of the current generation, or None, and the number of generations."""
    current = table.pointer().current
    return (None if current is None else table.generations.manifest(current)), len(table.generations.all())


def _measured(table: Table, manifest: Manifest, generations: int, source_rows: int | None) -> TableSize:
    """Return the size of a table, measured on some of its buckets."""
    per_row = table.generations.row_bytes(manifest)
    expected = manifest.rows_expected if source_rows is None else source_rows
    if per_row is None:
        return TableSize(expected, estimated_bytes_per_row(manifest.fields), measured=False, generations=generations)
    return TableSize(expected, per_row, measured=True, generations=generations)
