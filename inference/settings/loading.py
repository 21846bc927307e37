"""Reads the settings from the file and the environment, and explains an error in one sentence."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from inference.errors import SettingsError, shown, shown_name
from inference.field_errors import describe_error_in_file
from inference.settings.model import FALLBACK_KINDS
from inference.settings.settings import Settings
from inference.small_files import read_small, read_small_text

ENV_PREFIX = "FORECACHE_"
ENV_CONFIG = "FORECACHE_CONFIG"
DEFAULT_FILE = "forecache.toml"
#: a variable with this ending names a file with the setting, as containers get secrets
_FROM_FILE = "_FILE"
_NAME = re.compile(r"[\w-]+$")
#: tables of tables with names of the user's choice
_OF_ANY_NAME = (["models"], ["streams"], ["api", "keys"])
_UNION_MARKS = ("float", "int", "str", "bool")


def load_settings(path: str | Path | None = None) -> Settings:
    """Return the settings from the file and the environment. The environment wins.

    `path`: the settings file; None means `FORECACHE_CONFIG`, else `forecache.toml` in the working directory, which may
    be missing. If `redis.url` is not set, takes a running embedded Redis of the same folder.

    Raises:
        SettingsError: the file is missing or malformed, a key is unknown (the message names the nearest one), or a
            value does not fit.
    """
    file = _settings_file(path)
    root = file.parent.absolute() if file else Path.cwd()
    values = _merge(read_toml(file) if file else {}, _read_environment())
    values = _with_embedded_redis(values, root)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise _explain(error, file) from None
    settings._root = root
    return settings


def find_embedded_redis(root: Path) -> dict[str, str] | None:
    """Return {url, cache_url} of the embedded Redis in this folder's `.forecache/redis.json`; None for none."""
    try:
        data = json.loads(read_small_text(root / ".forecache" / "redis.json"))
        return {"url": data["url"], "cache_url": data["cache_url"]}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def settings_file() -> Path:
    """Return the path of the settings file, which may not exist."""
    return Path(os.environ.get(ENV_CONFIG) or DEFAULT_FILE)


def variables_unread(environment: Mapping[str, str] = os.environ) -> Iterator[tuple[str, str]]:
    """Yield environment variables without the second underscore of a setting, each with the correct name."""
    for section, field in Settings.model_fields.items():
        model = field.annotation
        keys = model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else ()
        for key in keys:
            name = f"{ENV_PREFIX}{section}_{key}".upper()
            value = environment.get(name)
            # Kubernetes sets such variables to addresses of services
            if value and not value.startswith(("tcp://", "udp://", "sctp://")):
                yield name, f"{ENV_PREFIX}{section}__{key}".upper()


def read_toml(file: Path) -> dict[str, Any]:
    """Return the unchecked content of a settings file.

    Raises:
        SettingsError: it cannot be read, or is not TOML; the message names line and column.
    """
    try:
        data = read_small(file)
    except OSError as error:
        raise SettingsError(f"{file.name} cannot be read: {error.strerror or error}") from error
    try:
        text = data.removeprefix(BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        data = error.object
        place = _place(data[: error.start].decode())
        raise SettingsError(f"{file.name} {place}: byte 0x{data[error.start]:02x} is not UTF-8: save it so") from error
    try:
        return tomllib.loads(text)
    except ValueError as error:
        # tomllib says "(at line 1, column 2)", or "(at end of document)"
        problem, _, where = str(error).rpartition(" (at ")
        if not problem:  # a number is too long for Python, whose message has no place
            raise SettingsError(f"{file.name} is not valid TOML: {error}") from error
        place = _place(text) if where.startswith("end") else where.rstrip(")")
        raise SettingsError(f"{file.name} {place}: not valid TOML: {problem}") from error
    except RecursionError as error:
        raise SettingsError(f"{file.name} is nested too deep: make it flat") from error


def _place(before: str) -> str:
    """Return the line and column after the text `before`, counted from 1."""
    return f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"


def _settings_file(path: str | Path | None) -> Path | None:
    named = path or os.environ.get(ENV_CONFIG)
    file = Path(named) if named else settings_file()
    if file.is_file():
        return file
    if file.exists() or file.is_symlink():
        raise SettingsError(f"settings file {file} is no file, or a link to none: put the settings there, or remove it")
    if named:
        raise SettingsError(f"settings file {named!s} does not exist: create it or unset {ENV_CONFIG}")
    return None


class _Environment(EnvSettingsSource):
    """Reads names with `__` only: container platforms set others, such as FORECACHE_API_PORT."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        prefix = ENV_PREFIX.lower()
        variables = {
            name: value
            for name, value in super()._load_env_vars().items()
            if name.lower().startswith(prefix) and "__" in name
        }
        return dict(_read_named_file(name, value, variables) for name, value in variables.items())


def _read_named_file(name: str, value: str | None, variables: Mapping[str, str | None]) -> tuple[str, str | None]:
    """Return a variable unchanged, or for `…_FILE` the setting's name with the content of the file."""
    setting = name.upper().removesuffix(_FROM_FILE).lower()
    if setting == name.lower() or not value:
        return name, value
    if setting in {other.lower() for other in variables}:
        raise SettingsError(f"{setting.upper()} and {name.upper()} are both set: unset one", field=name.upper())
    try:
        # editors end a file with a line break, but no secret ends so
        return setting, read_small_text(Path(value)).rstrip("\r\n")
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    except UnicodeDecodeError:
        problem = "is not UTF-8 text"
    raise SettingsError(f"{name.upper()}: {value} {problem}", field=name.upper())


class _EnvironmentReader(BaseSettings):
    """Nests and decodes the variables. Validation follows after the merge with the file."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="allow")

    redis: dict[str, Any] = {}
    celery: dict[str, Any] = {}
    api: dict[str, Any] = {}
    dashboard: dict[str, Any] = {}
    workers: dict[str, Any] = {}
    logs: dict[str, Any] = {}
    models: dict[str, Any] = {}
    streams: dict[str, Any] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (_Environment(settings_cls),)


def _read_environment() -> dict[str, Any]:
    for name in os.environ:
        upper = name.upper()
        if upper.startswith(ENV_PREFIX) and "__" in upper:
            section = upper.removeprefix(ENV_PREFIX).split("__")[0].lower()
            if section not in Settings.model_fields:
                raise SettingsError(
                    f"environment variable {name}: {_unknown(section, list(Settings.model_fields))}",
                    field=name,
                )
    return _EnvironmentReader().model_dump(exclude_defaults=True)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _with_embedded_redis(values: dict[str, Any], root: Path) -> dict[str, Any]:
    redis = values.get("redis", {})
    if not isinstance(redis, dict) or redis.get("url"):
        return values
    found = find_embedded_redis(root)
    return _merge({"redis": found}, values) if found else values


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"unknown setting {shown(name)}; " + (
        f"did you mean {shown(near[0])}?" if near else f"known: {', '.join(known)}"
    )


def _explain(error: ValidationError, file: Path | None) -> SettingsError:
    """Explain the first validation error in one sentence, without values of secrets."""
    errors = error.errors(include_url=False, include_input=False)
    # in a union, the member that fits best fails at the deepest place
    outermost = _names(errors[0]["loc"])
    alike = [one for one in errors if _names(one["loc"])[: len(outermost)] == outermost]
    first = max(alike, key=lambda one: len(_names(one["loc"])))
    location = _names(first["loc"])
    section = ".".join(map(shown_name, location[:-1]))
    where = f"{file.name if file else 'settings'}{f' [{section}]' if section else ''}"
    variable = _variable_of(location)
    if first["type"] == "extra_forbidden":
        text = _unknown(location[-1], _known_fields(location[:-1]))
    else:
        about = [describe_error_in_file(one) for one in alike if _names(one["loc"]) == location]
        text = f"{shown_name(location[-1])}: {', or '.join(dict.fromkeys(about))}"
    return SettingsError(f"{variable or where}: {text}", field=".".join(location))


def _names(location: Iterable[Any]) -> list[str]:
    """Return the place of an error, without pydantic's names for the members of a union, such as `list[int]`."""
    names: list[str] = []
    for part in map(str, location):
        if names in _OF_ANY_NAME or (_NAME.match(part) and part not in _UNION_MARKS):
            names.append(part)
    return names


def _variable_of(location: list[str]) -> str | None:
    """Return the environment variable of a setting, or of a table around it; None if the file has it."""
    there = {name.upper(): name for name in os.environ}
    for end in range(len(location), 0, -1):
        name = ENV_PREFIX + "__".join(location[:end]).upper()
        for one in (name, f"{name}{_FROM_FILE}"):
            if "__" in name and one in there:
                return f"environment variable {there[one]}"
    return None


def _known_fields(location: list[str]) -> list[str]:
    model: type[BaseModel] = Settings
    parts = iter(location)
    for part in parts:
        annotation = model.model_fields[part].annotation
        if part in ("models", "streams"):
            next(parts, None)  # the name of the model or stream
            annotation = get_args(annotation)[1]
        if part == "fallbacks":
            next(parts, None)  # its place in the list; then its kind
            annotation = FALLBACK_KINDS.get(next(parts, ""))
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
