"""An S3 server on this machine (moto's), and files written to it or to a folder by the same calls."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq

SECRET = "moto-secret-that-nobody-must-see"


def aws_environment(endpoint: str) -> dict[str, str]:
    """What a process needs to find the server: AWS' own variables, nothing of ours."""
    return {
        "AWS_ACCESS_KEY_ID": "moto-key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": endpoint,
    }


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server; yield its URL. AWS' variables point to it meanwhile."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        endpoint = f"http://127.0.0.1:{port}"
        with mock.patch.dict(os.environ, aws_environment(endpoint)):
            yield endpoint
    finally:
        server.stop()


@dataclass(frozen=True)
class Store:
    """A place for tables: a folder, or a new bucket. `root` is its path or URI."""

    root: str
    filesystem: Any
    base: str

    def uri(self, path: str = "") -> str:
        return f"{self.root}/{path}".rstrip("/")

    def write(self, path: str, table: pa.Table | dict[str, Any], **how: Any) -> str:
        """Write a table as Parquet; return its path or URI."""
        own = table if isinstance(table, pa.Table) else pa.table(table)
        self._make_room(path)
        pq.write_table(own, f"{self.base}/{path}", filesystem=self.filesystem, **how)
        return self.uri(path)

    def put(self, path: str, data: bytes) -> str:
        self._make_room(path)
        with self.filesystem.open_output_stream(f"{self.base}/{path}") as stream:
            stream.write(data)
        return self.uri(path)

    def get(self, path: str) -> bytes:
        with self.filesystem.open_input_file(f"{self.base}/{path}") as stream:
            return bytes(stream.read())

    def delete(self, path: str) -> None:
        self.filesystem.delete_file(f"{self.base}/{path}")

    def _make_room(self, path: str) -> None:
        if isinstance(self.filesystem, fs.LocalFileSystem):
            self.filesystem.create_dir(f"{self.base}/{path}".rpartition("/")[0])


def new_bucket(endpoint: str) -> Store:
    """Return a bucket that nobody else uses."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    filesystem = fs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True)
    filesystem.create_dir(name)
    return Store(f"s3://{name}", filesystem, name)
