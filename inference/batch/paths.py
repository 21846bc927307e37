"""Finds the source that a run reads and the folders that it writes into, from the settings alone.

A run's record and plan in Redis name tables, files and folders too, for people. Whoever may write to Redis may change
them, so a worker opens, writes and removes only what the settings lead to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from inference.batch.records import RunRecord, is_run_id
from inference.clock import to_datetime
from inference.errors import BadInput, SettingsError, SourceError, quoted
from inference.settings import ModelSettings, Settings
from inference.sources import (
    SourceFile,
    TableName,
    absolute_source,
    check_path,
    fixed_part,
    folder_of,
    list_files,
)
from inference.storage import is_uri, open_location

#: the instant of the request, as a run's id tells it
_STAMP = re.compile(r"-(\d{8}T\d{6})-[0-9a-f]{6}")


def locate_source(settings: Settings, name: str, model: ModelSettings, requested: str | None, *, confined: bool) -> str:
    """Return the absolute path or URI of a run's source: the requested one, else the model's `features`.

    `confined`: anyone may have sent the request, so only sources in the folder of `features` are allowed. Sends
    nothing to an object store.

    Raises:
        BadInput: there is no source, its path or URI cannot be read, or it lies outside that folder.
    """
    chosen = requested or model.features
    if not chosen:
        raise BadInput(
            f"model {name!r} has no table of features: set models.{name}.features, or name a source",
            field="source",
        )
    table = TableName.read(chosen)
    check_path(chosen if table is None else table.place)
    path = absolute_source(chosen, settings.root)
    if requested and confined and not _is_allowed(settings, model, path):
        raise BadInput(f"source {quoted(requested)} lies outside the folder of models.{name}.features", field="source")
    return path


def check_source(settings: Settings, name: str, source: str) -> None:
    """Refuse a run's source that is neither its model's `features`, nor in their folder, nor a copy made for a run.

    Raises:
        SourceError: the source lies elsewhere, or its model names no table.
    """
    model = settings.model(name)[1]
    if not (
        _is_configured(settings, model, source)
        or _is_snapshot(settings, name, source)
        or _is_allowed(settings, model, source)
    ):
        raise SourceError(
            f"the run's source lies outside the folder that models.{name}.features has in this worker's settings: give "
            "the worker the same settings, or put the source there, and start a new run",
            field="source",
        )


def check_files(settings: Settings, name: str, source: str, files: Iterable[SourceFile]) -> None:
    """Refuse planned files to which the run's source does not lead.

    Raises:
        SourceError: the source, or a file, lies outside the folder of the model's `features`.
    """
    check_source(settings, name, source)
    model = settings.model(name)[1]
    table = TableName.read(source)
    # a link below `features` may lead elsewhere: the owner of the settings put it there
    trusted = _is_configured(settings, model, source) or _is_snapshot(settings, name, source)
    root = fixed_part(source) if table is None else folder_of(table)
    for file in files:
        if not (trusted and _is_plainly_below(file.path, root)) and not _is_inside(settings, model, file.path):
            raise SourceError(
                f"the run's plan names a file outside the folder that models.{name}.features has in this worker's "
                "settings: start a new run",
                field="source",
            )


def _configured_source(settings: Settings, model: ModelSettings) -> str | None:
    return absolute_source(model.features, settings.root) if model.features else None


def _is_configured(settings: Settings, model: ModelSettings, source: str) -> bool:
    """Return whether a source is the model's `features`, at any version unless the settings name one."""
    configured = _configured_source(settings, model) or ""
    own, table = TableName.read(configured), TableName.read(source)
    if own is None or table is None:
        return source == configured
    return table == own or (own.version is None and replace(table, version=None) == own)


def _is_snapshot(settings: Settings, name: str, source: str) -> bool:
    """Return whether a source was written for a run (see `pin_source`)."""
    return _is_plainly_below(source, snapshots_folder(settings, name, ""))


def _place_of(source: str) -> str | None:
    """Return where the files of a source lie; None for an Iceberg table, whose catalog knows."""
    table = TableName.read(source)
    if table is None:
        return source
    return table.place if table.kind == "delta" else None


def _is_allowed(settings: Settings, model: ModelSettings, source: str) -> bool:
    path = _place_of(source)
    if path is None or not _is_inside(settings, model, path):
        return False
    return is_uri(path) or path != source or all(_is_inside(settings, model, file) for file in _reached(path))


def _is_inside(settings: Settings, model: ModelSettings, path: str) -> bool:
    """Return whether a path or URI leads into the folder of the model's `features`, links followed."""
    home = _place_of(_configured_source(settings, model) or "")
    if not home:
        return False
    if is_uri(home) or is_uri(path):
        return is_uri(home) and is_uri(path) and _is_below(path, _remote_folder(home))
    table = Path(fixed_part(home)).resolve()
    root = table if table.is_dir() else table.parent
    return Path(path).resolve().is_relative_to(root)


def _is_plainly_below(path: str, folder: str) -> bool:
    """Return whether a path as it is written names `folder` or something in it, without `..`."""
    return ".." not in path.split("/") and f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _reached(path: str) -> list[str]:
    """Return the files of a local source; links among them may lead outside."""
    try:
        return list_files(open_location(path))
    except SourceError:  # the run reads nothing then, and says what is wrong
        return []


def _remote_folder(home: str) -> str:
    """Return the folder of a remote `features`: the URI itself, unless its last name looks like a file's."""
    folder = fixed_part(home)
    parent, _, last = folder.rpartition("/")
    return parent if folder == home and "." in last and not parent.endswith("/") else folder


def _is_below(path: str, folder: str) -> bool:
    return f"{path.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/") and "//" not in path.partition("://")[2]


def parquet_folder(pattern: str, *, model: str, run_id: str, created_at: float) -> str:
    """Return a run's folder: fill in `{date}` (UTC), `{model}` and `{run_id}`; add the run id if it is missing.

    Raises:
        SettingsError: the pattern holds other braces.
    """
    if "{run_id}" not in pattern:
        pattern = f"{pattern.rstrip('/')}/{{run_id}}"  # runs of one day must not mix
    values = {"{date}": to_datetime(created_at).date().isoformat(), "{model}": model, "{run_id}": run_id}
    for name, value in values.items():
        pattern = pattern.replace(name, value)
    if "{" in pattern or "}" in pattern:
        raise SettingsError(f"parquet_path {pattern!r}: only {', '.join(values)} are filled in", field="parquet_path")
    return pattern


def run_folder(settings: Settings, pattern: str, *, model: str, run_id: str, created_at: float) -> str:
    """Return a run's folder as an absolute path, or a URI; `parquet_folder` fills in the pattern.

    Raises:
        SettingsError: the pattern holds other braces.
    """
    folder = parquet_folder(pattern, model=model, run_id=run_id, created_at=created_at)
    return folder if is_uri(folder) else str(settings.path(folder))


def parquet_folder_of(settings: Settings, run: RunRecord) -> str | None:
    """Return the folder of a run's Parquet parts, or None when it writes none.

    Raises:
        SettingsError: record and settings name different folders; parts must not be spread over two.
        UnknownModel: the settings do not name the run's model any more.
    """
    if not run.parquet_folder:
        return None
    pattern = settings.model(run.model)[1].batch.parquet_path
    folder = pattern and run_folder(settings, pattern, model=run.model, run_id=run.run_id, created_at=run.created_at)
    if folder != run.parquet_folder:
        raise SettingsError(
            f"models.{run.model}.batch.parquet_path does not lead to the folder that the record of run {run.run_id} "
            "names: start a new run",
            field="parquet_path",
        )
    return folder


def vectors_folder(settings: Settings, model: str, run_id: str) -> str:
    """Return the folder of a run's vectors; without a run id, the folder of all runs of the model.

    Raises:
        UnknownModel: the settings do not name the model.
        BadInput: no run has such an id.
    """
    name, of_model = settings.model(model)
    if run_id and not is_run_id(run_id):
        raise BadInput(f"no run has the id {quoted(run_id)}", field="run_id")
    root = of_model.batch.delta_path.rstrip("/")
    folder = f"{root}/{name}/{run_id}".rstrip("/")
    return folder if is_uri(folder) else str(settings.path(folder))


def snapshots_folder(settings: Settings, model: str, run_id: str) -> str:
    """Return the folder of the rows that were written as Parquet for a run; without a run id, of all runs of the model.

    Raises:
        UnknownModel: the settings do not name the model.
    """
    name, of_model = settings.model(model)
    folder = f"{of_model.batch.snapshot_path.rstrip('/')}/{name}/{run_id}".rstrip("/")
    return folder if is_uri(folder) else str(settings.path(folder))


def quarantine_folder_of(settings: Settings, run: RunRecord) -> str:
    """Return the folder of the rows that a run leaves out, whatever its record says.

    Raises:
        UnknownModel: the settings do not name the run's model any more.
    """
    pattern = settings.model(run.model)[1].batch.quarantine_path
    return run_folder(settings, pattern, model=run.model, run_id=run.run_id, created_at=run.created_at)


def quarantine_folder_of_id(settings: Settings, model: str, run_id: str) -> str | None:
    """Return that folder from the id alone, for a run whose record is gone; None when the model has no such ids.

    Raises:
        UnknownModel: the settings do not name the model.
    """
    name, of_model = settings.model(model)
    stamp = _STAMP.fullmatch(run_id.removeprefix(name))
    if stamp is None or not run_id.startswith(name):
        return None
    try:
        created_at = datetime.strptime(stamp[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:  # no such day
        return None
    return run_folder(settings, of_model.batch.quarantine_path, model=name, run_id=run_id, created_at=created_at)
