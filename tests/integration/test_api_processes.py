"""Several API processes on one port: real ones, really killed."""

from __future__ import annotations

import errno
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pytest

from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.schema import DType, TensorSpec
from inference.store import Table
from tests.support.flights import write_flights
from tests.support.ports import free_port
from tests.support.stack import Stack, child_environment, end_tree
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

MODEL = '[models.delay]\npath = "m"\n'


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with two_processes(tmp_path_factory.mktemp("processes")) as stack:
        yield stack


@contextmanager
def two_processes(folder: Path) -> Iterator[Stack]:
    """Yield two API processes and a published prediction of 2.5 for `a`."""
    with Stack(folder, MODEL) as stack:
        use_two_processes(stack)
        publish(stack)
        stack.start("api")
        stack.wait_ready()
        wait_for(lambda: len(serving(stack)) == 2, "two processes", 10)
        yield stack


def use_two_processes(stack: Stack) -> None:
    file = stack.folder / "forecache.toml"
    file.write_text(file.read_text().replace("[api]\n", "[api]\nprocesses = 2\n"))


def publish(stack: Stack) -> None:
    with Client.from_url(stack.settings.cache_url) as client:
        keys = Keys(stack.settings.redis.prefix).table(TableKind.PREDICTIONS, "delay")
        table = Table(client, keys, kind=TableKind.PREDICTIONS, model="delay")
        fields = [TensorSpec("prediction", DType.FLOAT32)]
        new = table.generations.begin(fields, rows_expected=1, model_version=1, contract_hash="c", keep_s=1000)
        table.generations.write(
            new, pa.array(["a"]), {"prediction": np.array([2.5], np.float32)}, np.array([table.now()])
        )
        table.generations.publish(new.number)
        table.versions.activate(1)


def serving(stack: Stack) -> list[psutil.Process]:
    """Return the processes that serve, without the one that watches over them."""
    alive = []
    for one in psutil.Process(stack.processes["api"].pid).children():
        with suppress(psutil.NoSuchProcess):
            if one.status() != psutil.STATUS_ZOMBIE:
                alive.append(one)
    return alive


def clients_of_both(stack: Stack, open_clients: ExitStack) -> dict[int, httpx.Client]:
    """Return a client that is connected to each of the two processes, by the process' id."""
    by_process: dict[int, httpx.Client] = {}

    def connect() -> bool:
        client = open_clients.enter_context(httpx.Client(base_url=stack.url))
        with client.stream("GET", "/health/live") as response:
            here = response.extensions["network_stream"].get_extra_info("client_addr")[1]
            response.read()
        for one in serving(stack):
            if any(c.raddr and c.raddr.port == here for c in one.net_connections("tcp")):
                by_process[one.pid] = client
        return len(by_process) == 2

    wait_for(connect, "connections to both processes", 30)
    return by_process


def test_both_answer_and_count_into_one_hit_rate(stack: Stack) -> None:
    with ExitStack() as open_clients:
        for client in clients_of_both(stack, open_clients).values():
            for _ in range(10):
                answer = client.get("/predict/a").json()
                assert (answer["prediction"], answer["outcome"]) == (2.5, "hit_batch")

    def counted() -> int:
        total: int = httpx.get(f"{stack.url}/hit-rate").json()["total"]
        return total

    wait_for(lambda: counted() >= 20, "the counts of both", 10)
    assert counted() == 20


def test_one_that_is_killed_comes_back_and_the_other_carries_on(stack: Stack) -> None:
    with ExitStack() as open_clients:
        clients = clients_of_both(stack, open_clients)
        killed, other = sorted(clients)
        psutil.Process(killed).kill()
        for _ in range(20):
            assert clients[other].get("/predict/a").json()["outcome"] == "hit_batch"
    wait_for(lambda: len({one.pid for one in serving(stack)} - {killed}) == 2, "another one", 30)
    with ExitStack() as open_clients:
        for client in clients_of_both(stack, open_clients).values():
            assert client.get("/predict/a").json()["outcome"] == "hit_batch"


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGTERM,
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_all_end_together_however_the_first_one_ends(tmp_path: Path, how: signal.Signals) -> None:
    with two_processes(tmp_path) as stack:
        started = psutil.Process(stack.processes["api"].pid).children(recursive=True)
        stack.stop("api", how)
        _, alive = psutil.wait_procs(started, timeout=10)
        assert alive == []
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{stack.url}/health/live")


def test_a_taken_port_is_told_and_leaves_nothing_running(stack: Stack) -> None:
    second = stack.cli("api")
    assert (second.returncode, len(serving(stack))) == (2, 2)
    assert "cannot be used" in second.stderr


@pytest.mark.slow
def test_each_gets_the_results_that_it_asked_for(tmp_path: Path) -> None:
    with Stack(tmp_path, write_flights(tmp_path)) as stack, ExitStack() as open_clients:
        use_two_processes(stack)
        stack.start("realtime", "api")
        stack.wait_ready()
        assert stack.cli("features", "load", "delay", "flights.parquet").returncode == 0
        asked = {"max_staleness_hours": "0", "timeout_ms": "10000"}
        for client in clients_of_both(stack, open_clients).values():
            for number in range(20):
                answer = client.get(f"/predict/F{number}", params=asked).json()
                assert (answer["entity_id"], answer["outcome"]) == (f"F{number}", "computed")


def test_the_death_of_the_only_one_refuses_nobody(tmp_path: Path) -> None:
    with Stack(tmp_path, MODEL) as stack:
        publish(stack)
        stack.start("api")
        stack.wait_ready()
        [killed] = serving(stack)
        killed.kill()
        for _ in range(30):
            assert httpx.get(f"{stack.url}/predict/a", timeout=5).json()["outcome"] == "hit_batch"
        assert killed.pid not in {one.pid for one in serving(stack)}
        assert f"pid={killed.pid}" in stack.log("api")
        assert "killed by SIGKILL" in stack.log("api")


def test_while_the_last_requests_end_nobody_else_is_kept_waiting(tmp_path: Path) -> None:
    with Stack(tmp_path, MODEL) as stack, socket.socket() as slow:
        publish(stack)
        stack.start("api")
        stack.wait_ready()
        slow.connect(("127.0.0.1", stack.api_port))
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert httpx.get(f"{stack.url}/predict/a").status_code == 200  # so the first one is accepted, too
        stack.processes["api"].terminate()
        wait_for(lambda: is_refused(stack), "the end of the port", 4)
        assert stack.processes["api"].poll() is None
        assert stack.processes["api"].wait(15) == 0


def is_refused(stack: Stack) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", stack.api_port)) == errno.ECONNREFUSED


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_under_up_the_death_of_any_refuses_nobody(tmp_path: Path, processes: int) -> None:
    port = free_port()
    (tmp_path / "forecache.toml").write_text(f"[api]\nport = {port}\nprocesses = {processes}\n{MODEL}")
    command = [sys.executable, "-P", "-m", "app.cli", "up", "--only", "redis,api"]
    with (tmp_path / "up.log").open("wb") as log:
        up = subprocess.Popen(command, cwd=tmp_path, env=child_environment(), stdout=log, stderr=log)

    def apis() -> list[psutil.Process]:
        found = []
        for one in psutil.Process(up.pid).children():
            with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
                if "--fd" in one.cmdline() and "app.local.child" not in one.cmdline():
                    found.append(one)
        return found

    def said(text: str) -> int:
        return (tmp_path / "up.log").read_text().count(text)

    try:
        wait_for(lambda: said("startup complete") == processes and said("api.stands_by") == 1, "all processes", 60)
        for number, one in enumerate(apis(), start=1):  # one of them stands by
            one.kill()
            for _ in range(30):
                assert httpx.get(f"http://127.0.0.1:{port}/health/live", timeout=5).status_code == 200
            wait_for(lambda: said("api.stands_by") == 1 + number, "another one", 60)  # noqa: B023
        assert said("api.takes_over") >= processes
        assert len(apis()) == processes + 1
    finally:
        end_tree(up)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health/live")
