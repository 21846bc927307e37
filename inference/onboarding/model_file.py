"""A model that is given as a lone file: laid into a version folder, which appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inference.errors import BadInput, Conflict, ForecacheError, ModelError
from inference.features.contract import CONTRACT_FILE
from inference.models.formats import find_model_file, format_of, known_files, near_miss_of
from inference.models.versions import find_versions


@dataclass
class ModelFolder:
    """Where a model lies while it is looked at, `path`, and where it will, `home`.

    `file`: what it is copied from; None for a folder of the user's, which stays where it is.
    """

    path: Path
    home: Path
    file: Path | None = None

    def settle(self) -> None:
        """Put the folder at its home. It is taken away again unless `keep` follows.

        Raises:
            BadInput: it cannot be put there.
        """
        if self.path != self.home:
            try:
                self.path.rename(self.home)
            except OSError as error:
                raise BadInput(f"{self.home} cannot be written ({error.strerror}): nothing was changed") from error
            self.path = self.home

    def keep(self) -> None:
        """Leave what was copied where it is."""
        self.file = None


def check_model(text: str) -> Path:
    """Return a model's folder, or its file if it is alone; of a version's folder, and of a file in one, the model's.

    Raises:
        ModelError: there is no model; says what is there, and the fix.
    """
    path = Path(text).expanduser()
    if not path.is_file():
        find_versions(path)
        if path.name.isdecimal() and find_model_file(path):
            # from the version alone, neither the next version nor the model's features.json would be found
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


@contextmanager
def model_folder(path: Path, home: Path) -> Iterator[ModelFolder]:
    """Return the folder of a model; of a lone file a copy as version 1 beside `home`, removed at the end unless kept.

    A `features.json` beside the file comes along.

    Raises:
        Conflict: `home` is there already.
        BadInput: the copy cannot be written.
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
        told = error.message.replace(str(copy.absolute()), str(path)).replace(str(copy), str(path))
        raise type(error)(told, field=error.field) from error
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
        raise BadInput(f"{place.parent} cannot be written ({error.strerror}): nothing was changed") from error
