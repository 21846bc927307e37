"""Finds the folders that a run writes into, from the settings alone.

A run's record names them too, for people. Whoever may write to Redis may change a record, so nothing is written to or
removed from a folder because a record names it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from inference.batch.records import RunRecord
from inference.clock import to_datetime
from inference.errors import SettingsError
from inference.settings import Settings
from inference.storage import is_uri

#: when a run was asked for, as its id tells it
_STAMP = re.compile(r"-(\d{8}T\d{6})-[0-9a-f]{6}")


def parquet_folder(pattern: str, *, model: str, run_id: str, created_at: float) -> str:
    """Return a run's folder: `{date}` (UTC), `{model}`, `{run_id}` filled in; the run id is added if missing.

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
    """Return a run's own folder, filled in as by `parquet_folder`: an absolute path, or a URI as it is.

    Raises:
        SettingsError: the pattern holds other braces.
    """
    folder = parquet_folder(pattern, model=model, run_id=run_id, created_at=created_at)
    return folder if is_uri(folder) else str(settings.path(folder))


def parts_of(settings: Settings, run: RunRecord) -> str | None:
    """Return the folder of a run's Parquet parts, or None when it writes none.

    Raises:
        SettingsError: the record names another folder than the settings: parts must not be spread over two.
        UnknownModel: its model is not configured any more.
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


def quarantine_of(settings: Settings, run: RunRecord) -> str:
    """Return the folder of the rows that a run leaves out, whatever its record says.

    Raises:
        UnknownModel: its model is not configured any more.
    """
    pattern = settings.model(run.model)[1].batch.quarantine_path
    return run_folder(settings, pattern, model=run.model, run_id=run.run_id, created_at=run.created_at)


def quarantine_of_id(settings: Settings, model: str, run_id: str) -> str | None:
    """Return the same for a run whose record is gone, by its id alone; None when it is no id of this model's runs.

    Raises:
        UnknownModel: the model is not configured.
    """
    name, own = settings.model(model)
    stamp = _STAMP.fullmatch(run_id.removeprefix(name))
    if stamp is None or not run_id.startswith(name):
        return None
    try:
        created_at = datetime.strptime(stamp[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:  # no such day
        return None
    return run_folder(settings, own.batch.quarantine_path, model=name, run_id=run_id, created_at=created_at)
