"""A registry of models in memory, whose versions are folders that a test writes."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from inference.errors import ForecacheError, ModelError
from inference.models.mlflow_client import ORIGIN_FILE, MlflowRegistry, RegisteredVersion
from inference.settings.registered import RegisteredModel


class RegistryInMemory(MlflowRegistry):
    """Stands for the client of an MLflow server. `failure`: what every call raises; None while it answers."""

    def __init__(self, folder: Path) -> None:
        super().__init__("http://127.0.0.1:1")
        self.folder = folder
        self.aliases: dict[str, int] = {}
        self.created_at = 1
        self.failure: ForecacheError | None = None
        self.bad: dict[int, ForecacheError] = {}
        self.asked = 0
        self.downloads: list[int] = []

    def find(self, of: RegisteredModel) -> RegisteredVersion:
        self.asked += 1
        if self.failure:
            raise self.failure
        numbers = [int(one.name) for one in self.folder.iterdir()]
        version = of.version or (max(numbers) if of.alias is None else self.aliases.get(of.alias))
        if version is None:
            raise ModelError(f"{of}: the registry says: alias {of.alias} not found.")
        return RegisteredVersion(of.name, version, self.created_at)

    def download(self, wanted: RegisteredVersion, folder: Path, *, timeout_s: float) -> None:
        self.downloads.append(wanted.version)
        if failure := self.failure or self.bad.get(wanted.version):
            raise failure
        shutil.copytree(self.folder / str(wanted.version), folder)
        origin = RegisteredVersion(wanted.name, wanted.version, self.created_at)
        (folder / ORIGIN_FILE).write_text(json.dumps(asdict(origin)))
