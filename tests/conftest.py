"""Fixtures of every room: a real Redis, emptied before each test that asks for it."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import hypothesis
import pytest
import structlog

from inference.redis.clients import Client
from inference.store import Table
from tests.support import tables
from tests.support.redis_server import EACH_SERVER, RedisServer, find_redis_binary

# a busy machine makes examples slow, which says nothing about the code
hypothesis.settings.register_profile(
    "forecache", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("forecache")
# as each process of ours sets it; structlog's own way takes seconds to draw a traceback
structlog.configure(
    processors=[structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]
)
_LOGGING = structlog.get_config()
# each `httpx.get` reads all certificates that this machine trusts, which takes 25 ms: once is enough
httpx._transports.default.create_ssl_context = functools.cache(httpx.create_ssl_context)  # type: ignore[attr-defined]
# collecting makes millions of objects that stay until the end. Python would search them for rubbish again and again: a
# fifth of the time to collect, and a third of a second each time during the tests
gc.disable()


def pytest_collection_finish() -> None:
    """Leave out from now on what was made before the tests when Python looks for rubbish."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_exception_interact(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Show what a failed test's deployments logged: a failure elsewhere may be the only one of its kind."""
    from tests.support.stack import Stack  # which few tests need

    report.sections.extend((f"logs of {stack.folder.name}", stack.evidence()) for stack in Stack.running)


@pytest.fixture(autouse=True)
def _logging_stays() -> Iterator[None]:
    """Fail a test that configures logging in the tests' process: later tests would find no log line."""
    yield
    changed = structlog.get_config() != _LOGGING
    structlog.configure(**_LOGGING)
    assert not changed, "the test configured logging for all later tests"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis for the whole session, of whichever version is at hand."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="session", params=EACH_SERVER)
def each_redis_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """Each kind of server in turn: for tests of scripts and storage."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), binary=find_redis_binary(request.param))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def redis_client(redis_server: RedisServer) -> Iterator[Client]:
    """A client of an empty Redis database; answers are bytes."""
    with Client.from_url(redis_server.url()) as client:
        client.flushall()
        yield client


@pytest.fixture
def new_table(redis_client: Client) -> Callable[..., Table]:
    """Makes an empty table at each call, of features unless told otherwise."""
    return functools.partial(tables.new_table, redis_client)


@pytest.fixture
def each_redis_client(each_redis_server: RedisServer) -> Iterator[Client]:
    """The same over each kind of server."""
    with Client.from_url(each_redis_server.url()) as client:
        client.flushall()
        yield client


@pytest.fixture
def shared_data() -> Path:
    """Folder with real tables, where a checkout has one beside it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist")
    return folder
