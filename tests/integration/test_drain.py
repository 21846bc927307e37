"""The end of API processes: no request is lost, whether it is under way, about to arrive, or sent to a full queue."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.integration.test_api_processes import MODEL, is_refused, publish
from tests.support.flights import write_flights
from tests.support.ports import free_port
from tests.support.stack import Stack, child_environment, run_cli
from tests.support.waiting import wait_for
from tests.support.warm_start import start_python

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ASK = b"GET /predict/a HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextmanager
def api_that_drains(folder: Path, drain: str) -> Iterator[Stack]:
    """Yield an API process with a published prediction of 2.5 for `a`."""
    with Stack(folder, MODEL) as stack:
        publish(stack)
        stack.start("api", environment={"FORECACHE_API__DRAIN": drain})
        stack.wait_ready()
        yield stack


def connect(stack: Stack) -> socket.socket:
    return socket.create_connection(("127.0.0.1", stack.api_port), timeout=10)


def answer(client: socket.socket) -> bytes:
    """Return the answer to a request; b"" if the server hung up."""
    client.sendall(ASK)
    return client.recv(10_000)


def readiness(stack: Stack) -> int:
    return httpx.get(f"{stack.url}/health/ready").status_code


def test_a_process_that_is_told_to_stop_says_so_serves_on_and_then_hangs_up(tmp_path: Path) -> None:
    with api_that_drains(tmp_path, "4s") as stack, connect(stack) as idle, connect(stack) as asking:
        assert b" 200 " in answer(idle)
        stack.processes["api"].terminate()
        wait_for(lambda: readiness(stack) == 503, "503", 10)
        assert httpx.get(f"{stack.url}/health/live").status_code == 200
        assert "stopping" in httpx.get(f"{stack.url}/health/ready").json()["detail"]
        # from the second half on, each answer ends its connection
        last = wait_for(lambda: b"connection: close" in (told := answer(asking)) and told, "the last answer", 5)
        assert b" 200 " in last
        assert asking.recv(1) == b""
        with connect(stack) as late:
            assert b"connection: close" in answer(late)
        assert idle.recv(1) == b""
        assert stack.processes["api"].wait(10) == 0
        assert is_refused(stack)


def test_a_request_that_is_arriving_at_the_end_is_answered(tmp_path: Path) -> None:
    with (
        api_that_drains(tmp_path, "1s") as stack,
        connect(stack) as half,
        connect(stack) as open_,
        connect(stack) as fresh,
    ):
        assert b" 200 " in answer(open_)
        half.sendall(ASK[:20])
        stack.processes["api"].terminate()
        assert open_.recv(1) == b""  # this one is idle, so the drain is over
        assert fresh.recv(1) == b""  # this one has never asked, which is no reason to wait for it
        half.sendall(ASK[20:])
        assert b"connection: close" in half.recv(10_000)
        assert stack.processes["api"].wait(10) == 0


@pytest.mark.slow
def test_a_second_sigterm_ends_it_at_once(tmp_path: Path) -> None:
    with api_that_drains(tmp_path, "1h") as stack:
        process = stack.processes["api"]
        process.terminate()
        wait_for(lambda: readiness(stack) == 503, "503", 10)
        process.terminate()
        assert process.wait(5) == 0


@pytest.mark.slow
def test_ctrl_c_does_not_drain(tmp_path: Path) -> None:
    with api_that_drains(tmp_path, "1h") as stack:
        stack.processes["api"].send_signal(signal.SIGINT)
        assert stack.processes["api"].wait(10) == 0


@pytest.mark.slow
def test_a_fork_whose_first_process_was_killed_gives_the_port_back_at_once(tmp_path: Path) -> None:
    with api_that_drains(tmp_path, "1h") as stack:
        stack.processes["api"].kill()
        wait_for(lambda: is_refused(stack), "the end of the port", 10)


@pytest.mark.slow
def test_under_up_workers_answer_until_the_api_has_drained(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "forecache.toml").write_text(f"[api]\nport = {port}\n{write_flights(tmp_path)}")
    url, fresh = f"http://127.0.0.1:{port}", {"max_staleness_hours": "0", "timeout_ms": "10000"}
    with (tmp_path / "up.log").open("wb") as log:
        up = start_python(
            ["-m", "app.cli", "up", "--without", "dashboard,beat,batch"], cwd=tmp_path,
            env=child_environment() | {"FORECACHE_API__DRAIN": "8s"},
            stdout=log.fileno(), stderr=log.fileno(), new_session=True,
        )  # fmt: skip
    try:
        wait_for(lambda: status_of(f"{url}/health/ready") == 200, "readiness", 90)
        assert run_cli(tmp_path, "features", "load", "delay", "flights.parquet").returncode == 0
        up.send_signal(signal.SIGTERM)
        wait_for(lambda: status_of(f"{url}/health/ready") == 503, "503", 10)
        assert httpx.get(f"{url}/predict/F1", params=fresh, timeout=20).json()["outcome"] == "computed"
        assert up.wait(60) == 0
        assert status_of(f"{url}/health/ready") == 0
    finally:
        up.kill()


def status_of(url: str) -> int:
    """The status of an answer; 0 if nobody listens."""
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return 0
