"""Versions of a model on disk: numbered folders, or one bare model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from inference.errors import ModelError
from inference.features import read_contract
from inference.models.formats import find_model_file, format_of, known_files, near_miss
from inference.models.record import VersionRecord

#: `latest`, `all`, or the numbers, as in the settings
Wanted = Literal["latest", "all"] | list[int]

_READ_BYTES = 1 << 20
#: the largest number that all who name a version can hold: JSON, the serving protocols, Redis
MAX_VERSION = 2**63 - 1


def find_versions(path: Path) -> dict[int, Path]:
    """Return version → folder: the numbered folders inside `path`, or `path` itself as version 1.

    A numbered folder is listed whether or not it can be loaded; `unusable_folders` are left out where there are others.

    Raises:
        ModelError: there is no such folder, or no model in it, or several; with the fix.
    """
    if not path.exists():
        raise ModelError(f"model folder {path} does not exist: correct the model's path", field="path")
    if path.is_file():
        raise ModelError(f"{path} is a file: give the folder that holds the model, and nothing else", field="path")
    numbered = _numbered(path)
    usable = {number: folders[0] for number, folders in sorted(numbered.items()) if not _fault(number, folders)}
    if usable:
        return usable
    if numbered:
        raise ModelError(f"model folder {path}: {unusable_folders(path)[0]}", field="path")
    if find_model_file(path):
        return {1: path}
    what = f"put one there ({known_files()}), or one in each of 1/, 2/, …{_near(path)}"
    raise near_miss(path) or ModelError(f"model folder {path} holds no model: {what}", field="path")


def _near(path: Path) -> str:
    """Return what to do with a folder in it that holds a model, such as `v1` or one of several models."""
    for one in sorted(path.iterdir()):
        if one.is_dir() and (_numbered(one) or any(format_of(file) for file in one.iterdir() if file.is_file())):
            return f"; {one.name}/ holds one: name that folder, or if it is a version, call it by a number"
    return ""


def unusable_folders(path: Path) -> list[str]:
    """Return a line for each numbered folder inside `path` that is no version, with the fix."""
    faults = (_fault(number, folders) for number, folders in sorted(_numbered(path).items()))
    return [fault for fault in faults if fault]


def _numbered(path: Path) -> dict[int, list[Path]]:
    """Return number → folders: several where one writes it with zeros in front."""
    found: dict[int, list[Path]] = {}
    for one in sorted(path.iterdir()) if path.is_dir() else ():
        if one.name.isascii() and one.name.isdecimal() and int(one.name) and one.is_dir():
            found.setdefault(int(one.name), []).append(one)
    return found


def _fault(number: int, folders: list[Path]) -> str | None:
    if number > MAX_VERSION:
        return f"version {folders[0].name} is too large: a version is at most {MAX_VERSION}, so rename the folder"
    if len(folders) > 1:
        names = " and ".join(folder.name for folder in folders)
        return f"folders {names} are the same version {number}: rename or remove all but one"
    return None


def check_confined(path: Path, folder: Path) -> None:
    """Refuse a version, in `folder`, of which a part lies outside the model's folder `path` by a symbolic link.

    Whoever may put versions there could otherwise have workers read whatever they can, and tell what is in it. Links
    within the model's folder are fine; that folder may be a link itself.

    Raises:
        ModelError: names the link and where it leads.
    """
    home = path.resolve()
    parts = [folder, *folder.rglob("*"), *path.glob("*.json")]
    for part in parts:
        if part.is_symlink() and not part.resolve().is_relative_to(home):
            raise ModelError(
                f"{part} is a link to {part.resolve()}, outside of the model's folder: copy it there, or name the "
                "folder that it leads to as the model's path",
                field="path",
            )


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


def contract_change(record: VersionRecord, path: Path, folder: Path) -> str | None:
    """Return what changed in `features.json` since a worker loaded a version, for the person who changed it; or None.

    `path`: the model's folder; `folder`: the version's. Workers go by what they loaded, whatever the file says now.

    Raises:
        BadInput: the file cannot be read, or does not fit the model.
    """
    now = read_contract(path, folder, record.signature).hash
    if now == record.contract_hash:
        return None
    return f"features.json is not what version {record.version} was loaded with ({now} is not {record.contract_hash})"


def fingerprint(folder: Path) -> str:
    """Return sixteen hex digits over the names and contents of all files of a version."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while part := stream.read(_READ_BYTES):
                digest.update(part)
    return digest.hexdigest()
