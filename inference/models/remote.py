"""The description of a model that an engine elsewhere computes: `remote.toml` in a version's folder."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from inference.errors import ModelError
from inference.field_mistakes import mistake_in_file
from inference.redaction import remember_secret
from inference.settings import parse_duration
from inference.settings.server_urls import split_http_url

REMOTE_FILE = "remote.toml"


class RemoteEngine(BaseModel):
    """Where a model is computed, and how it is asked. Durations in seconds once loaded.

    `url`: may hold a user and a password, so it prints as stars.
    `version` or `label`: what the engine is asked for; neither takes what it serves. `signature`: of TensorFlow
    Serving's. `form`: one object a row, or one array an input. `retries`: how many times a request that was not
    answered, or was turned away, is sent again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: Literal["tensorflow-serving", "open-inference"]
    url: SecretStr
    name: Annotated[str, Field(min_length=1, max_length=200)]
    version: Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)] | None = (
        None
    )
    label: str | None = None
    signature: str = "serving_default"
    form: Literal["columns", "rows"] = "columns"
    timeout: Annotated[float, BeforeValidator(parse_duration)] = 10.0
    retries: Annotated[int, Field(ge=0, le=10)] = 1

    @field_validator("url")
    @classmethod
    def _legal_url(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        remember_secret(text)
        parts = split_http_url(text)
        if parts.query or parts.fragment:
            raise ValueError("a URL of an engine has no ? and no #: give the user and the password before its host")
        return SecretStr(text.rstrip("/"))

    @property
    def place(self) -> str:
        """The engine's URL without user and password."""
        parts = urlsplit(self.url.get_secret_value())
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def login(self) -> tuple[str, str] | None:
        """User and password that the engine asks for; None for none."""
        parts = urlsplit(self.url.get_secret_value())
        if parts.username is None and parts.password is None:
            return None
        return unquote(parts.username or ""), unquote(parts.password or "")

    @model_validator(mode="after")
    def _fits_the_protocol(self) -> RemoteEngine:
        if self.version and self.label:
            raise ValueError("version and label exclude each other")
        others = self.model_fields_set & {"label", "signature", "form"}
        if self.protocol == "open-inference" and others:
            raise ValueError(f"{min(others)} is TensorFlow Serving's: the Open Inference Protocol has none")
        return self


def read_remote(file: Path) -> RemoteEngine:
    """Return what a `remote.toml` says.

    Raises:
        ModelError: it is no TOML, or a key is unknown, missing or malformed.
    """
    try:
        data: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        return RemoteEngine.model_validate(data)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be loaded: {_telling(error)}", field="path") from error


def _telling(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    first = error.errors()[0]
    known = ", ".join(RemoteEngine.model_fields)
    what = f"no such key; known: {known}" if first["type"] == "extra_forbidden" else mistake_in_file(first)
    return f"{'.'.join(map(str, first['loc']))}: {what}".removeprefix(": ")
