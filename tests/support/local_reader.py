"""A deployment whose generations a test publishes itself, and readers of it in other processes."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from forecache import LocalReader
from inference.redis.clients import WORKER, Client, open_client
from inference.redis.keys import Keys, TableKind
from inference.schema import DType, TensorSpec
from inference.store import Manifest, Table
from tests.support.stack import ROOT, child_environment

SCORE = (TensorSpec("score", DType.FLOAT32),)
MODEL = "delay"


class Published:
    """A prediction table under its own settings; each row of a generation has the same value."""

    def __init__(self, folder: Path, cache_url: str, *, batch: str = "", prefix: str = "forecache") -> None:
        self.folder = folder
        self.files = folder / "files"
        self.settings = folder / "forecache.toml"
        self.settings.write_text(
            f'[redis]\nurl = "redis://127.0.0.1:1/0"\ncache_url = "{cache_url}"\nprefix = "{prefix}"\n'
            f'[models.{MODEL}]\npath = "model"\n[models.{MODEL}.batch]\n{batch}\n'
        )
        tag = f"{{{prefix}}}" if "cluster" in cache_url else prefix
        self.client: Client = open_client(cache_url, WORKER, tag=tag)
        self.keys = Keys(tag)
        table_keys = self.keys.table(TableKind.PREDICTIONS, MODEL)
        self.table = Table(self.client, table_keys, kind=TableKind.PREDICTIONS, model=MODEL)

    def write(self, value: float, *, rows: int = 500, version: int = 1, age_s: float = 0.0) -> Manifest:
        """Fill a generation with the ids e0, e1, …"""
        generations = self.table.generations
        manifest = generations.begin(
            SCORE, rows_expected=rows, model_version=version, contract_hash="c", keep_s=86_400 * 30
        )
        ids = pa.array([f"e{n}" for n in range(rows)])
        block = {"score": np.full(rows, value, np.float32)}
        generations.write(manifest, ids, block, np.full(rows, time.time() - age_s))
        return manifest

    def publish(self, value: float, **more: Any) -> Manifest:
        manifest = self.write(value, **more)
        self.table.generations.publish(manifest.number)
        return manifest

    def reader(self, **options: Any) -> LocalReader:
        return LocalReader(MODEL, settings=self.settings, folder=self.files, **options)

    def rows_files(self) -> list[Path]:
        return sorted(self.files.glob("*/*.rows"))

    @contextmanager
    def process(self, code: str) -> Iterator[subprocess.Popen[str]]:
        """A process with `reader` open, which prints JSON lines by `tell`; killed at the end, if it still runs."""
        head = f"""
            import json, os, sys, time
            from forecache import LocalReader
            def tell(*what): print(json.dumps(what), flush=True)
            reader = LocalReader({MODEL!r}, settings={str(self.settings)!r}, folder={str(self.files)!r})
        """
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)],
            env=child_environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def heard(process: subprocess.Popen[str]) -> list[Any]:
    """Return what a process tells next."""
    assert process.stdout
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    told: list[Any] = json.loads(line)
    return told


def tell(process: subprocess.Popen[str]) -> None:
    """Let a process go on that waits for a line."""
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def wait_end(process: subprocess.Popen[str]) -> None:
    """Wait until a process has ended well."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
