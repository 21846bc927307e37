"""The description of a model that a remote engine computes: `remote.toml` in a version's folder."""

from __future__ import annotations

import ipaddress
import socket
import tomllib
from collections.abc import Sequence
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
    ValidationInfo,
    field_validator,
    model_validator,
)

from inference.errors import ModelError
from inference.field_errors import describe_error_in_file
from inference.redaction import remember_secret
from inference.settings import parse_duration
from inference.settings.server_urls import GRPC_SCHEMES, HTTP_SCHEMES, split_engine_url
from inference.small_files import read_small_text

REMOTE_FILE = "remote.toml"
#: the names of the protocols over gRPC end so
_GRPC = "-grpc"

#: the message for an address of `is_metadata_address`
NEVER_ASKED = "is link-local or a cloud's metadata service, which workers never ask: correct the url"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
#: metadata services with other addresses than link-local ones: AWS, Google, Azure, Alibaba, Oracle
_METADATA = tuple(
    map(
        ipaddress.ip_network,
        ("fd00:ec2::/32", "fd20:ce::254/128", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32"),
    )
)


class RemoteEngine(BaseModel):
    """The engine that computes a model, and the form of its requests. Durations in seconds once loaded.

    `url`: may hold a user and a password, so it prints as stars. `version` or `label`: the version to ask for; with
    neither, the engine chooses. `signature`: for TensorFlow Serving. `form`: one object a row, or one array an input,
    in JSON.
    `retries`: how often a request without an answer, or with one that says to try again, is sent again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: Literal["tensorflow-serving", "open-inference", "tensorflow-serving-grpc", "open-inference-grpc"]
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
    def _legal_url(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        text = value.get_secret_value()
        remember_secret(text)
        by_grpc = str(info.data.get("protocol", "")).endswith(_GRPC)
        parts = split_engine_url(text, GRPC_SCHEMES if by_grpc else HTTP_SCHEMES)
        if parts.query or parts.fragment:
            raise ValueError("a URL of an engine has no ? and no #: give the user and the password before its host")
        if by_grpc and (parts.port is None or parts.path.strip("/")):
            raise ValueError(
                "an engine's URL for gRPC is grpc://host:port without a path: TensorFlow Serving's port is 8500, "
                "Triton's 8001"
            )
        return SecretStr(text.rstrip("/"))

    @property
    def by_grpc(self) -> bool:
        """Whether the engine is asked by gRPC, not HTTP."""
        return self.protocol.endswith(_GRPC)

    @property
    def is_open_inference(self) -> bool:
        """Whether the engine speaks the Open Inference Protocol, not TensorFlow Serving's."""
        return self.protocol.startswith("open-inference")

    @property
    def place(self) -> str:
        """The engine's URL without user and password."""
        parts = urlsplit(self.url.get_secret_value())
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def login(self) -> tuple[str, str] | None:
        """The user and the password for the engine; None for none."""
        parts = urlsplit(self.url.get_secret_value())
        if parts.username is None and parts.password is None:
            return None
        return unquote(parts.username or ""), unquote(parts.password or "")

    @model_validator(mode="after")
    def _fits_the_protocol(self) -> RemoteEngine:
        if self.version and self.label:
            raise ValueError("version and label exclude each other")
        others = self.model_fields_set & {"label", "signature", "form"}
        if self.is_open_inference and others:
            raise ValueError(f"{min(others)} is TensorFlow Serving's: the Open Inference Protocol has none")
        if not self.by_grpc or self.is_open_inference:
            return self
        if "form" in others:
            raise ValueError("form is for JSON: gRPC has one form only")
        if self.version and not (self.version.isascii() and self.version.isdecimal()):
            raise ValueError("version is no whole number, as TensorFlow Serving's are")
        return self


def read_remote(file: Path) -> RemoteEngine:
    """Read a `remote.toml`.

    Raises:
        ModelError: it is no TOML, or a key is unknown, missing or malformed.
    """
    try:
        data: dict[str, Any] = tomllib.loads(read_small_text(file))
        return RemoteEngine.model_validate(data)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be loaded: {_reason(error)}", field="path") from error


def check_engine_host(engine: RemoteEngine, allowed: Sequence[str] | None) -> None:
    """Refuse an engine that is not in the settings, or has the address of a metadata service.

    A name may get another address later, so the runtime checks the address of each connection too.

    Raises:
        ModelError: names the host, and the setting.
    """
    url = urlsplit(engine.place)
    host, port = (url.hostname or "").rstrip("."), url.port or (443 if url.scheme == "https" else 80)
    if allowed is not None and not any(_matches(pattern.lower(), host, port) for pattern in allowed):
        raise ModelError(
            f"the engine's host {host}:{port} is not one of engine_hosts under [workers] "
            f"({', '.join(allowed) or 'none'}): add it there if workers may ask it",
            field="url",
        )
    try:
        # also spellings such as 0xa9fea9fe and 2852039166
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return  # the request will say what is wrong
    for *_, address in found:
        if is_metadata_address(str(address[0])):
            raise ModelError(f"the engine's address {address[0]} {NEVER_ASKED}", field="url")


def is_metadata_address(address: str) -> bool:
    """Tell whether an IP address is link-local, or another one of a cloud's metadata service.

    That service gives the machine's credentials to every client, and so to a person who may write a `remote.toml`.
    """
    ip = ipaddress.ip_address(address)
    both = [one for one in (ip, _inner_ipv4(ip)) if one is not None]
    return any(one.is_link_local or any(one in network for network in _METADATA) for one in both)


def _matches(pattern: str, host: str, port: int) -> bool:
    if pattern.startswith("*."):
        return f"{host}:{port}".endswith(pattern[1:]) or host.endswith(pattern[1:])
    return pattern.strip("[]") in (host, f"{host}:{port}", f"[{host}]:{port}")


def _inner_ipv4(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address inside an IPv6 address: mapped, translated (NAT64) or tunnelled (6to4)."""
    if isinstance(ip, ipaddress.IPv4Address):
        return None
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    first = error.errors()[0]
    known = ", ".join(RemoteEngine.model_fields)
    what = f"no such key; known: {known}" if first["type"] == "extra_forbidden" else describe_error_in_file(first)
    return f"{'.'.join(map(str, first['loc']))}: {what}".removeprefix(": ")
