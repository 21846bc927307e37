"""Runs the files of `examples/` as a reader would, against a test's deployment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.ports import free_port
from tests.support.stack import ROOT, Stack, end_tree
from tests.support.waiting import wait_for

EXAMPLES = ROOT / "examples"


def example_environment(stack: Stack) -> dict[str, str]:
    """What the examples read from the environment; nothing there leads to Forecache's own code."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FORECACHE_", "PYTHONPATH"))}
    settings = stack.settings
    return kept | {
        "FORECACHE_URL": stack.url,
        "FORECACHE_BROKER_URL": settings.broker_url,
        "FORECACHE_RESULT_URL": settings.redis_url,
        "FORECACHE_PREFIX": settings.redis.prefix,
        # the same servers, without a prefix: an application that was there before
        "SHOP_BROKER_URL": settings.broker_url,
        "SHOP_RESULT_URL": settings.redis_url,
        "PYTHONUNBUFFERED": "1",
    }


def run_example(stack: Stack, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an example to its end."""
    return subprocess.run(
        [sys.executable, "-P", EXAMPLES / name, *arguments],
        cwd=stack.folder, env=example_environment(stack), capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


def run_in_example(stack: Stack, code: str) -> subprocess.CompletedProcess[str]:
    """Run a line of Python in the folder of the examples, with what a reader in the process needs."""
    folder = stack.folder
    of_reader = {"FORECACHE_CONFIG": str(folder / "forecache.toml"), "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=EXAMPLES, env=example_environment(stack) | of_reader, capture_output=True, text=True, timeout=90,
        check=False,
    )  # fmt: skip


@contextmanager
def serving_example(stack: Stack, *words: str, probe: str) -> Iterator[str]:
    """Keep a server of the examples running; `{port}` in its words is replaced. Yields its URL."""
    port = free_port()
    log = Path(stack.folder / f"example-{port}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *(word.format(port=port) for word in words)],
            cwd=EXAMPLES, env=example_environment(stack), stdout=output, stderr=output,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _answers(f"{url}{probe}"), f"{words} to listen; it said: {log.read_text()}", 30)
        yield url
    finally:
        end_tree(process)


@contextmanager
def working_example(stack: Stack, application: str) -> Iterator[None]:
    """Keep the Celery worker of an example's own application running."""
    with (stack.folder / "example-worker.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", application, "worker", "-P", "threads", "-c", "2"],
            cwd=EXAMPLES, env=example_environment(stack), stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield
    finally:
        end_tree(process)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code < 500
    except httpx.TransportError:
        return False
