"""The settings file that is to be written, and what it may already hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.errors import Conflict
from inference.onboarding.writing import check_writable
from inference.settings import read_toml


@dataclass(frozen=True)
class Target:
    """A settings file. `holds`: what stands in it, None when there is no such file."""

    file: Path
    holds: dict[str, Any] | None
    force: bool

    @classmethod
    def find(cls, file: Path, *, force: bool) -> Target:
        """Look at the file.

        Raises:
            SettingsError: it is there but no TOML; line and column are named.
            BadInput: it is not there, and its folder cannot be written.
        """
        if file.exists():
            return cls(file, read_toml(file), force)
        check_writable(file.parent)
        return cls(file, None, force)

    @property
    def root(self) -> Path:
        """Folder that relative paths in the file start from."""
        return self.file.parent.absolute()

    def check_model(self, name: str) -> None:
        """Refuse a model that the file already sets up, unless it may be replaced.

        Raises:
            Conflict: says what to do instead.
        """
        if self.holds is None or name not in self._models():
            return
        if not self._holds_only(name):
            raise Conflict(f"{self.file} already sets up [models.{name}]: change it there, or choose another --name")
        if not self.force:
            raise Conflict(f"{self.file} already sets up [models.{name}]: --force replaces it")

    def may_write(self, name: str) -> bool:
        """Tell whether the whole file may be written for this model, rather than a block to paste into it."""
        return self.holds is None or (self.force and self._holds_only(name))

    def _models(self) -> dict[str, Any]:
        models = (self.holds or {}).get("models", {})
        return models if isinstance(models, dict) else {}

    def _holds_only(self, name: str) -> bool:
        return set(self.holds or {}) <= {"models"} and set(self._models()) <= {name}
