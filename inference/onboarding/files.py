"""Writes the files of `init`: settings, contract and model folder, all or none."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.errors import BadInput, Conflict, ForecacheError, ModelError
from inference.features.contract import CONTRACT_FILE
from inference.models.formats import find_model_file, format_of, known_files, near_miss_of
from inference.models.mirror import Downloads
from inference.models.mlflow_client import MlflowRegistry
from inference.models.versions import find_versions
from inference.settings import Settings, read_toml
from inference.settings.registered import RegisteredModel, read_registered


@dataclass
class ModelFolder:
    """The folder of a model: `path` now, and `home` in the end.

    `file`: the file that was copied into it; None for a user's folder, which stays where it is. `version`: the one that
    a registry names, whose model was downloaded to `path`; None for any other model.
    """

    path: Path
    home: Path
    file: Path | None = None
    version: int | None = None

    def settle(self) -> None:
        """Move the folder to its home. Unless `keep` follows, it is removed again.

        Raises:
            ForecacheError: it cannot be moved there.
        """
        if self.path != self.home and self.version is None:
            try:
                self.path.rename(self.home)
            except OSError as error:
                raise ForecacheError(
                    f"{self.home} cannot be written ({error.strerror}): nothing was changed"
                ) from error
            self.path = self.home

    def keep(self) -> None:
        """Keep the copied folder."""
        self.file = None


def check_model(text: str) -> Path:
    """Return a model's folder, or its file if the file is alone. For a version's folder or file: the model's folder.

    Takes a model of a registry as it is.

    Raises:
        ModelError: there is no model; says what is there, and the fix.
    """
    if registered_in(text) is not None:
        return Path(text)
    path = Path(text).expanduser()
    if not path.is_file():
        find_versions(path)
        if path.name.isdecimal() and find_model_file(path):
            # the version's folder alone does not lead to later versions or to the model's features.json
            path = path.absolute().parent
            find_versions(path)
        return path
    format_ = format_of(path)
    if format_ is None:
        raise near_miss_of(path) or ModelError(
            f"{path} is no model: give the folder that holds the model, or its file ({known_files()})", field="path"
        )
    folder = path.absolute().parent
    if folder.name.isdecimal() or path.name in format_.names:
        folder = folder.parent if folder.name.isdecimal() else folder
        find_versions(folder)
        return folder
    return path


def registered_in(path: str | Path) -> RegisteredModel | None:
    """Return the model of a registry that a path names; None for a file or folder.

    Raises:
        ModelError: the path begins with `models:` and has another form.
    """
    try:
        return read_registered(path)
    except ValueError as error:
        raise ModelError(str(error), field="path") from error


def download(registered: RegisteredModel, model: str, settings: Settings) -> ModelFolder:
    """Download the version that a path names in a registry. Its `home` is that path, as the settings spell it.

    Raises:
        ModelError, ModelUnavailable, SettingsError: it cannot be had, in a line.
    """
    source = MlflowRegistry(settings.mlflow_uri)
    found = source.find(registered)
    Downloads(settings, model, source).fetch(found)
    return ModelFolder(settings.model_folder(model), Path(str(registered)), version=found.version)


@contextmanager
def model_folder(path: Path, home: Path) -> Iterator[ModelFolder]:
    """Give the folder of a model. A lone file is copied as version 1 beside `home` and removed at the end unless kept.

    A `features.json` beside the file is copied too.

    Raises:
        Conflict: `home` exists.
        ForecacheError: the copy cannot be written.
    """
    if not path.is_file():
        yield ModelFolder(path, path)
        return
    if home.exists():
        raise Conflict(
            f"{home} is there already: put {path.name} into {home / '2'} (or a higher number), or give --name"
        )
    made = [folder for folder in [home.parent, *home.parent.parents] if not folder.exists()]
    folder = ModelFolder(home.with_name(f".{home.name}.{os.getpid()}.new"), home, path)
    copy = folder.path / "1" / path.name
    try:
        _copy(path, copy)
        yield folder
    except ForecacheError as error:
        text = error.message.replace(str(copy.absolute()), str(path)).replace(str(copy), str(path))
        raise type(error)(text, field=error.field) from error
    finally:
        if folder.file is not None:
            shutil.rmtree(folder.path, ignore_errors=True)
            for each in made:
                if each.is_dir() and not any(each.iterdir()):
                    each.rmdir()


def _copy(file: Path, place: Path) -> None:
    try:
        place.parent.mkdir(parents=True)
        shutil.copy2(file, place)
        if (file.parent / CONTRACT_FILE).is_file():
            shutil.copy2(file.parent / CONTRACT_FILE, place.parent.parent / CONTRACT_FILE)
    except OSError as error:
        raise _cannot_write(place.parent, error) from error


@dataclass(frozen=True)
class SettingsTarget:
    """The settings file to write. `holds`: its present content, None if there is no such file.

    `force`: it may be replaced. `add`: a model may be added to it.
    """

    file: Path
    holds: dict[str, Any] | None
    force: bool
    add: bool = False

    @classmethod
    def find(cls, file: Path, *, force: bool, add: bool = False) -> SettingsTarget:
        """Read the file, if it exists.

        Raises:
            SettingsError: it is not TOML; names line and column.
            ForecacheError: it does not exist, and its folder cannot be written.
        """
        if file.exists():
            return cls(file, read_toml(file), force, add)
        check_writable(file.parent)
        return cls(file, None, force, add)

    @property
    def root(self) -> Path:
        """The folder from which relative paths in the file start."""
        return self.file.parent.absolute()

    def check_model(self, name: str) -> None:
        """Refuse a model that the file already configures, unless it may be replaced.

        Raises:
            Conflict: says what to do instead.
        """
        if self.holds is None or name not in self._models():
            return
        if not self._holds_only(name):
            raise Conflict(f"{self.file} already sets up [models.{name}]: change it there, or choose another --name")
        if not self.force:
            raise Conflict(f"{self.file} already sets up [models.{name}]: --force replaces it")

    def text_with(self, name: str, block: str, whole: str) -> str | None:
        """Return the file's new text with a model's block in it, None if the user has to paste the block.

        `whole`: the text of a file for this model alone.
        """
        if self.holds is None or (self.force and self._holds_only(name)):
            return whole
        if self.add and name not in self._models():
            return f"{self.file.read_text(encoding='utf-8').rstrip()}\n\n{block}"
        return None

    def _models(self) -> dict[str, Any]:
        models = (self.holds or {}).get("models", {})
        return models if isinstance(models, dict) else {}

    def _holds_only(self, name: str) -> bool:
        return set(self.holds or {}) <= {"models"} and set(self._models()) <= {name}


@dataclass(frozen=True)
class StagedFiles:
    """Complete new files beside their destinations: destination → new file."""

    files: Mapping[Path, Path]

    def commit(self) -> None:
        """Move every file to its destination. If one fails, restore those before it.

        Raises:
            ForecacheError: a destination cannot be written; nothing has changed.
        """
        before: dict[Path, bytes | None] = {}
        try:
            for place, new in self.files.items():
                held = place.read_bytes() if place.exists() else None
                new.replace(place)
                before[place] = held
        except OSError as error:
            for written, content in before.items():
                if content is None:
                    written.unlink()
                else:
                    written.write_bytes(content)
            raise _cannot_write(place, error) from error


@contextmanager
def staged(texts: Mapping[Path, str]) -> Iterator[StagedFiles]:
    """Write each text (destination → text) beside its destination. Files that are not committed are removed.

    Raises:
        ForecacheError: a folder cannot be written, or a text is not valid Unicode; no file is left.
    """
    files = {place: place.with_name(f".{place.name}.{os.getpid()}.new") for place in texts}
    try:
        for place, new in files.items():
            try:
                if place.exists():  # keep the mode: others may not read a file with passwords
                    new.touch(mode=stat.S_IMODE(place.stat().st_mode))
                new.write_text(texts[place], encoding="utf-8")
            except OSError as error:
                raise _cannot_write(place, error) from error
            except UnicodeEncodeError as error:
                raise BadInput(
                    f"{place.name} cannot hold a name that is not UTF-8: rename the file or column"
                ) from error
        yield StagedFiles(files)
    finally:
        for new in files.values():
            # also in a folder that cannot be written, where unlink would raise
            if new.exists():
                new.unlink()


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be created, before a long step begins.

    Raises:
        ForecacheError: it does not exist or is read-only.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ForecacheError(f"folder {folder} cannot be written: run this where you may write, nothing was changed")


def _cannot_write(place: Path, error: OSError) -> ForecacheError:
    return ForecacheError(f"{place} cannot be written ({error.strerror}): nothing was changed")
