"""Which table a run reads, and who may ask for it."""

from __future__ import annotations

from pathlib import Path

from inference.errors import BadInput, SourceError, quoted
from inference.settings import ModelSettings, Settings
from inference.sources import check_path, fixed_part, list_files
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
    if not model.features:
        return False
    home = absolute_source(settings, model.features)
    if is_uri(home) or is_uri(path):
        return is_uri(home) and is_uri(path) and _is_below(path, _remote_folder(home))
    own = Path(fixed_part(home)).resolve()
    root = own if own.is_dir() else own.parent
    inside = Path(path).resolve().is_relative_to(root)
    return inside and all(Path(file).resolve().is_relative_to(root) for file in _reached(path))


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
