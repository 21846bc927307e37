"""Opens the file systems of paths and URIs: local, `s3://`, `gs://`, `hdfs://`. Gives up soon on a silent store.

Credentials, regions and endpoints come from the usual places of each store's tools (environment variables, their
configuration files, the machine's role), never from a URI. So no path in a message or a record holds a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as fs

from inference.errors import BadInput, cut, quoted

#: a store that accepts no connection, or sends nothing for this long, gets one more try
CONNECT_TIMEOUT_S = 3.0
SILENCE_TIMEOUT_S = 5.0
ATTEMPTS = 2

REMOTE_SCHEMES = ("s3", "gs", "hdfs")

#: beginning of a Git LFS pointer: it replaces a large file until somebody fetches the file
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/]*)(?P<path>/.*)?", re.DOTALL)
#: longer messages are cut: Google's client repeats a whole page
_REASON_CHARS = 300
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


@dataclass(frozen=True)
class Location:
    """A file or folder: `path` in `filesystem`. `prefix` + `path` is its name for people."""

    filesystem: Any
    path: str
    prefix: str = ""

    @property
    def name(self) -> str:
        """The path as a user writes it."""
        return self.prefix + self.path

    @property
    def is_local(self) -> bool:
        """Whether it lies in this machine's own file system."""
        return not self.prefix

    def at(self, path: str) -> Location:
        """Return another path of the same file system."""
        return Location(self.filesystem, path, self.prefix)


def is_uri(text: str) -> bool:
    """Whether a path names its file system, as in `s3://bucket/table`."""
    return "://" in text


def open_location(text: str) -> Location:
    """Return the location of an absolute path or a URI. Asks a store nothing, except an S3 bucket's region.

    Raises:
        BadInput: the URI has another scheme, holds credentials, or its file system cannot be opened here.
    """
    if not is_uri(text):
        return Location(_local(), text)
    scheme, authority, path = split_uri(text)
    if scheme == "file":
        return Location(_local(), path)
    prefix = f"{scheme}://{authority}" if scheme == "hdfs" else f"{scheme}://"
    within = path if scheme == "hdfs" else authority + path
    with _opening_errors(scheme, authority):
        return Location(_remote(scheme, authority), within.rstrip("/"), prefix)


def split_uri(text: str) -> tuple[str, str, str]:
    """Return (scheme, bucket or host, path with its leading slash) of a URI. Decodes nothing: `%20` stays.

    Raises:
        BadInput: its scheme is unknown, or it has no bucket, holds credentials, or holds `..`.
    """
    match = _URI.fullmatch(text)
    scheme = match["scheme"].lower() if match else ""
    if match is None or scheme not in (*REMOTE_SCHEMES, "file"):
        known = ", ".join(f"{each}://" for each in REMOTE_SCHEMES)
        raise BadInput(f"{cut(scheme) or 'this'}:// is not a supported file system: use a path, {known}")
    authority, path = match["authority"], match["path"] or ""
    if "@" in authority:
        raise BadInput(f"a {scheme}:// path must not hold credentials: put them where the store's own tools find them")
    if re.search(r"[^A-Za-z0-9._:-]", authority):
        raise BadInput(f"{quoted(authority)} is not a name of a bucket or host: use letters, digits, '.', '-' and '_'")
    if not authority and scheme in ("s3", "gs"):
        raise BadInput(f"{cut(text)} names no bucket: write {scheme}://bucket/path")
    if scheme == "file" and authority not in ("", "localhost"):
        raise BadInput(f"{cut(text)} names another machine: write file:///path")
    if any(part in ("..", ".") for part in path.split("/")):
        raise BadInput(f"{cut(text)} holds '.' or '..': write the path itself")
    return scheme, authority, path


def is_lfs_pointer(beginning: bytes) -> bool:
    """Whether a file that begins like this is a Git LFS pointer instead of the file itself."""
    return beginning.startswith(_LFS_POINTER)


def reason_of(error: BaseException) -> str:
    """Return an error's text in one line, without credentials."""
    lines = str(error).strip().splitlines()
    text = re.sub(r" \(Request ID: [^)]*\)|\. Detail: .*", "", lines[0] if lines else type(error).__name__)
    for name in _SECRETS:
        if len(secret := os.environ.get(name, "")) >= 8:
            text = text.replace(secret, "***")
    return text if len(text) <= _REASON_CHARS else f"{text[:_REASON_CHARS]}…"


@contextmanager
def _opening_errors(scheme: str, authority: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{scheme}://{authority} cannot be opened: {reason_of(error)}") from error


@lru_cache(maxsize=1)
def _local() -> Any:
    return fs.LocalFileSystem()


def _remote(scheme: str, authority: str) -> Any:
    """Return the file system of a bucket or host. A process keeps it, since it has a pool of connections."""
    if scheme != "s3":
        return _by_uri(scheme, authority)
    # Arrow does not read these variables itself: https://github.com/apache/arrow/issues/49643
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return _s3(authority, endpoint, region)


@lru_cache(maxsize=16)
def _by_uri(scheme: str, authority: str) -> Any:
    query = f"?retry_limit_seconds={SILENCE_TIMEOUT_S * ATTEMPTS:g}" if scheme == "gs" else ""
    return fs.FileSystem.from_uri(f"{scheme}://{authority}/{query}")[0]


@lru_cache(maxsize=16)
def _s3(bucket: str, endpoint: str | None, region: str | None) -> Any:
    if not region and not endpoint and not _has_aws_config():
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        connect_timeout=CONNECT_TIMEOUT_S,
        # the longest time without a byte, on Linux too (measured with a server that accepts and stays silent)
        request_timeout=SILENCE_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )


def _has_aws_config() -> bool:
    return Path(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")).expanduser().is_file()
