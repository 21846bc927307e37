"""Paths as HTTP callers may see them: without the folders of this machine that they lie in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.settings import Settings
from inference.sources import fixed_part
from inference.storage import is_uri


def without_folders(value: Any, settings: Settings) -> Any:
    """Return text, or JSON with texts in it, whose paths are relative to the deployment or to what is configured.

    `/srv/shop/data/users.parquet` of a deployment in `/srv/shop` is `data/users.parquet`; of a table configured as
    `/data/users`, which lies elsewhere, `/data/users/part-0.parquet` is `users/part-0.parquet`. URIs stay.
    """
    if isinstance(value, str):
        for folder in _folders(settings):
            value = value.replace(f"{folder}/", "")
        return value
    if isinstance(value, dict):
        return {name: without_folders(item, settings) for name, item in value.items()}
    return [without_folders(item, settings) for item in value] if isinstance(value, list) else value


def _folders(settings: Settings) -> list[Path]:
    """Return the folders whose names stay here, longest first; not the root of all, which is in every path."""
    folders = {settings.root}
    for model in settings.models.values():
        for path in (str(model.path), model.features, model.batch.parquet_path, model.batch.quarantine_path):
            if path and not is_uri(path) and Path(path).is_absolute():
                folders.add(Path(fixed_part(path)).parent)
    return sorted((folder for folder in folders if folder != Path("/")), key=lambda folder: -len(str(folder)))
