"""The versions of a model on disk: numbered folders, or one model without a number."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from inference.errors import ModelError
from inference.features import read_contract
from inference.models.formats import find_model_file, format_of, known_files, near_miss
from inference.models.registry import VersionRecord

#: `latest`, `all`, or numbers, as in the settings
Wanted = Literal["latest", "all"] | list[int]

#: a version has no more files, and no deeper folders: each look at them would take seconds
MOST_FILES = 20_000
DEEPEST = 50
#: at most so many folders are named in a message
_MOST_SHOWN = 5
_READ_BYTES = 1 << 20
_NO_BYTES = bytes(_READ_BYTES)
#: the largest number that JSON, the serving protocols and Redis can hold
MAX_VERSION = 2**63 - 1


def find_versions(path: Path) -> dict[int, Path]:
    """Return version → folder: the numbered folders inside `path`, or `path` itself as version 1.

    Lists numbered folders even if they cannot be loaded, but leaves out `unusable_folders` if there are others.

    Raises:
        ModelError: there is no such folder, or it has no model, or several; names the fix.
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
    """Return the fix if a folder inside it holds a model, such as `v1`; else ""."""
    for one in sorted(path.iterdir()):
        if _holds_model(one):
            return f"; {one.name}/ holds one: name that folder, or if it is a version, call it by a number"
    return ""


def _holds_model(folder: Path) -> bool:
    """Tell whether a folder holds a model, or versions of one."""
    try:
        return folder.is_dir() and bool(
            _numbered(folder) or any(format_of(one) for one in folder.iterdir() if one.is_file())
        )
    except PermissionError:
        return False


def unusable_folders(path: Path) -> list[str]:
    """Return lines with the fix: one for each numbered folder inside `path` that is no version, then one for all that
    hold a model and whose name has a digit, such as `v2` or `1.0`.
    """
    numbered = _numbered(path)
    faults = [_fault(number, folders) for number, folders in sorted(numbered.items())]
    return [fault for fault in [*faults, _misnamed(path, numbered)] if fault]


def _misnamed(path: Path, numbered: Mapping[int, list[Path]]) -> str | None:
    # nobody means `backup` to be a version; a hidden one is not complete yet
    named = [one for one in path.iterdir() if any(map(str.isdigit, one.name)) and not one.name.startswith(".")]
    legal = [one for folders in numbered.values() for one in folders]
    names = sorted(one.name for one in named if numbered and one not in legal and _holds_model(one))
    if not names:
        return None
    free = max((number for number in numbered if number < MAX_VERSION), default=0) + 1
    shown = ", ".join(names[:_MOST_SHOWN]) + (f" and {len(names) - _MOST_SHOWN} more" if names[_MOST_SHOWN:] else "")
    return (
        f"{shown}: a model, but no version: the folder of a version is called by a whole number from 1, so rename it "
        f"(the next free number is {free}), or move it out of {path}"
    )


def _numbered(path: Path) -> dict[int, list[Path]]:
    """Return number → folders. There are several if one has leading zeros."""
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
    """Refuse a version, in `folder`, that is not a folder of plain files.

    No link may lead out of the model's folder `path`. Otherwise, a person who may add versions could have workers read
    any file and show its content. Links within the model's folder are fine, and that folder may be a link itself. A
    pipe or a device gives bytes without end, or none.

    Raises:
        ModelError: names the link and its target, or the pipe or device; or there are too many or too deep files.
    """
    home = path.resolve()
    contracts = [(one, one.lstat()) for one in path.glob("*.json")]
    for number, (part, look) in enumerate([(folder, folder.lstat()), *files_in(folder), *contracts]):
        if number > MOST_FILES:
            raise ModelError(
                f"{folder} holds more than {MOST_FILES} files and folders: leave only the model there", field="path"
            )
        if len(part.parts) - len(folder.parts) > DEEPEST:
            raise ModelError(
                f"{folder} holds more than {DEEPEST} folders inside each other: make it flat", field="path"
            )
        if stat.S_ISLNK(look.st_mode) and not part.resolve().is_relative_to(home):
            raise ModelError(
                f"{part} is a link to {part.resolve()}, outside of the model's folder: copy it there, or name the "
                "folder that it leads to as the model's path",
                field="path",
            )
        if not (stat.S_ISREG(look.st_mode) or stat.S_ISDIR(look.st_mode) or stat.S_ISLNK(look.st_mode)):
            raise ModelError(f"{part} is a pipe, a socket or a device: put a plain file there", field="path")


def files_in(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield all files and folders in a folder, at any depth, with their status. Does not follow links.

    Leaves out files that are removed meanwhile. Stops after `MOST_FILES` + 1, and enters no folder below `DEEPEST`.
    """
    # `rglob` is recursive, and folders may be nested deeper than Python's stack
    left, given = [(folder, 0)], 0
    while left:
        inner, depth = left.pop()
        try:
            with os.scandir(inner) as inside:
                for one in inside:
                    try:
                        look = one.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if one.is_dir(follow_symlinks=False) and depth < DEEPEST:
                        left.append((Path(one.path), depth + 1))
                    yield Path(one.path), look
                    given += 1
                    if given > MOST_FILES:
                        return
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue


def wanted_versions(found: Iterable[int], wanted: Wanted) -> list[int]:
    """Return the versions to consider, newest first. For `latest`, the caller tries them until one is good.

    Raises:
        ModelError: a version in the settings does not exist.
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
    """Return that `features.json` has changed since a worker loaded a version, in words; None if it has not.

    Workers use the contract that they loaded. `path`: the model's folder; `folder`: the version's.

    Raises:
        BadInput: the file cannot be read, or does not fit the model.
    """
    now = read_contract(path, folder, record.signature).hash
    if now == record.contract_hash:
        return None
    return f"features.json is not what version {record.version} was loaded with ({now} is not {record.contract_hash})"


def fingerprint(folder: Path) -> str:
    """Return sixteen hex digits over the names and contents of all files of a version.

    Does not read holes in a file. They count as zeros, so that a copy without holes has the same digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(part for part, _ in files_in(folder) if part.is_file()):
        name = os.fsencode(file.relative_to(folder).as_posix())
        digest.update(name + f"\0{file.stat().st_size}\0".encode() + _content_hash(file))
    return digest.hexdigest()


def bytes_on_disk(folder: Path) -> int:
    """Return the bytes of a version's files, without holes."""
    total = 0
    for file, look in files_in(folder):
        if stat.S_ISREG(look.st_mode):
            # a file system over a network may not count blocks
            total += min(look.st_blocks * 512, look.st_size) if look.st_blocks else _size_but_holes(file)
    return total


def _size_but_holes(file: Path) -> int:
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        return 0 if size and _next_block(stream.fileno(), 0) is None else size


def _content_hash(file: Path) -> bytes:
    """Return the hash of a file's blocks and their places, without blocks of zeros."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        place: int | None = 0
        while place is not None:
            stream.seek(place)
            part = stream.read(_READ_BYTES)
            if not part:
                break
            if part != _NO_BYTES[: len(part)]:
                digest.update(place.to_bytes(8, "big"))
                digest.update(part)
            place = _next_block(stream.fileno(), place + len(part))
    return digest.digest()


def _next_block(descriptor: int, place: int) -> int | None:
    """Return the place of the next block with data; None if only a hole is left."""
    try:
        data = os.lseek(descriptor, place, os.SEEK_DATA)
    except OSError as error:
        # a file system without this call has its holes read
        return None if error.errno == errno.ENXIO else place
    return data - data % _READ_BYTES
