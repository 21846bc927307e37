"""Says which table a run reads, who may ask for it, and which files a worker opens for it.

A run's record and plan in Redis name tables and files too. Whoever may write to Redis may change them, so a worker
opens only what the settings lead to.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from inference.errors import BadInput, SourceError, quoted
from inference.settings import ModelSettings, Settings
from inference.sources import SourceFile, check_path, fixed_part, list_files
from inference.storage import is_uri, open_location, split_uri


def locate_source(settings: Settings, name: str, model: ModelSettings, asked: str | None, *, confined: bool) -> str:
    """Return the absolute path or URI of a run's source: the one asked for, else the model's `features`.

    `confined`: the one who asks may be anyone, so only what lies in the folder of `features` is allowed. Nothing is
    asked of an object store.

    Raises:
        BadInput: there is no source, its path or URI is not one that can be read, or it lies outside that folder.
    """
    chosen = asked or model.features
    if not chosen:
        raise BadInput(
            f"model {name!r} has no table of features: set models.{name}.features, or name a source",
            field="source",
        )
    check_path(chosen)
    path = absolute_source(settings, chosen)
    if asked and confined and not _is_allowed(settings, model, path):
        raise BadInput(f"source {quoted(asked)} lies outside the folder of models.{name}.features", field="source")
    return path


def check_source(settings: Settings, name: str, source: str) -> None:
    """Refuse a run's source that is neither its model's `features` nor below their folder.

    Raises:
        SourceError: the source lies elsewhere, or its model names no table.
    """
    model = settings.model(name)[1]
    if source != _own_source(settings, model) and not _is_allowed(settings, model, source):
        raise SourceError(
            f"the run's source lies outside the folder that models.{name}.features has in this worker's settings: give "
            "the worker the same settings, or put the source there, and start a new run",
            field="source",
        )


def check_files(settings: Settings, name: str, source: str, files: Iterable[SourceFile]) -> None:
    """Refuse planned files that the run's source does not lead to.

    Raises:
        SourceError: the source, or a file, lies outside the folder of the model's `features`.
    """
    check_source(settings, name, source)
    model = settings.model(name)[1]
    own = _own_source(settings, model) or ""
    for file in files:
        # a link below `features` may lead elsewhere: who wrote the settings put it there
        is_own = source == own and _is_plainly_below(file.path, fixed_part(own))
        if not is_own and not _is_inside(settings, model, file.path):
            raise SourceError(
                f"the run's plan names a file outside the folder that models.{name}.features has in this worker's "
                "settings: start a new run",
                field="source",
            )


def _own_source(settings: Settings, model: ModelSettings) -> str | None:
    return absolute_source(settings, model.features) if model.features else None


def absolute_source(settings: Settings, path: str) -> str:
    """Return a path of the settings as an absolute one, or a checked URI.

    Raises:
        BadInput: the path or the URI is not one that can be read.
    """
    if not is_uri(path):
        try:
            return str(settings.path(path))
        except RuntimeError as error:  # ~somebody
            raise BadInput(
                f"source {quoted(path)} lies in a home folder that is not known here", field="source"
            ) from error
    try:
        scheme, authority, within = split_uri(path)
    except BadInput as error:
        raise BadInput(error.message, field="source") from error
    return within if scheme == "file" else f"{scheme}://{authority}{within}"


def _is_allowed(settings: Settings, model: ModelSettings, path: str) -> bool:
    if not _is_inside(settings, model, path):
        return False
    return is_uri(path) or all(_is_inside(settings, model, file) for file in _reached(path))


def _is_inside(settings: Settings, model: ModelSettings, path: str) -> bool:
    """Return whether a path or URI leads into the folder of the model's `features`, links followed."""
    home = _own_source(settings, model)
    if home is None:
        return False
    if is_uri(home) or is_uri(path):
        return is_uri(home) and is_uri(path) and _is_below(path, _remote_folder(home))
    own = Path(fixed_part(home)).resolve()
    root = own if own.is_dir() else own.parent
    return Path(path).resolve().is_relative_to(root)


def _is_plainly_below(path: str, folder: str) -> bool:
    """Return whether a path names `folder` or something in it as it is written, with no step back."""
    return ".." not in path.split("/") and f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _reached(path: str) -> list[str]:
    """Return the files of a local source: links may lead outside."""
    try:
        return list_files(open_location(path))
    except SourceError:  # nothing is read then, and the run says what is wrong
        return []


def _remote_folder(home: str) -> str:
    """Return the folder of a remote `features`: itself, unless its last name looks like a file's."""
    folder = fixed_part(home)
    parent, _, last = folder.rpartition("/")
    return parent if folder == home and "." in last and not parent.endswith("/") else folder


def _is_below(path: str, folder: str) -> bool:
    return f"{path.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/") and "//" not in path.partition("://")[2]
