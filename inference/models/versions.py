"""Versions of a model on disk: numbered folders, or one bare model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from inference.errors import ModelError

#: `latest`, `all`, or the numbers, as in the settings
Wanted = Literal["latest", "all"] | list[int]

_SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
_KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")
_READ_BYTES = 1 << 20


def find_versions(path: Path) -> dict[int, Path]:
    """Return version → folder: the numbered folders inside `path`, or `path` itself as version 1.

    A numbered folder is listed whether or not it can be loaded.

    Raises:
        ModelError: there is no such folder, or no model in it; a Keras file gets the line that exports it.
    """
    if not path.exists():
        raise ModelError(f"model folder {path} does not exist: correct the model's path", field="path")
    if path.is_file():
        raise _not_a_folder(path)
    if _is_saved_model(path):
        return {1: path}
    numbered = {int(one.name): one for one in path.iterdir() if one.is_dir() and one.name.isdecimal() and int(one.name)}
    if numbered:
        return dict(sorted(numbered.items()))
    keras = _keras_file(path)
    if keras:
        raise _needs_export(keras, path / "1")
    raise ModelError(
        f"model folder {path} holds no model: put a SavedModel there, or one in each of 1/, 2/, …",
        field="path",
    )


def check_version_folder(folder: Path) -> None:
    """Refuse a version's folder that holds no SavedModel.

    Raises:
        ModelError: says what is there instead, and the fix.
    """
    if _is_saved_model(folder):
        return
    keras = _keras_file(folder)
    if keras:
        raise _needs_export(keras, folder)
    raise ModelError(f"{folder} holds no saved_model.pb: export the model there with model.export(path)", field="path")


def wanted_versions(found: Iterable[int], wanted: Wanted) -> list[int]:
    """Return the versions to consider, newest first. With `latest` they are tried until one is good.

    Raises:
        ModelError: a version that the settings list is not there.
    """
    known = set(found)
    if isinstance(wanted, str):
        return sorted(known, reverse=True)
    absent = sorted(set(wanted) - known)
    if absent:
        raise ModelError(
            f"version {absent[0]} is not in the model's folder; found: {', '.join(map(str, sorted(known)))}",
            field="versions",
        )
    return sorted(set(wanted), reverse=True)


def fingerprint(folder: Path) -> str:
    """Return sixteen hex digits over the names and contents of all files of a version."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while part := stream.read(_READ_BYTES):
                digest.update(part)
    return digest.hexdigest()


def _is_saved_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SAVED_MODEL_FILES)


def _keras_file(folder: Path) -> Path | None:
    return next((one for one in sorted(folder.iterdir()) if one.suffix in _KERAS_SUFFIXES), None)


def _needs_export(file: Path, target: Path) -> ModelError:
    line = f"""python -c "import keras; keras.models.load_model('{file}').export('{target}')\""""
    return ModelError(f"{file} is a Keras file, which needs its code to load; export it once: {line}", field="path")


def _not_a_folder(path: Path) -> ModelError:
    if path.suffix in _KERAS_SUFFIXES:
        return _needs_export(path, path.with_suffix("") / "1")
    return ModelError(f"{path} is a file: give the folder that holds the SavedModel", field="path")
