"""Real time when parts of it die: real processes, really killed, frozen and restarted."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from inference.redis.clients import Client
from tests.integration.test_api_processes import serving
from tests.support.flights import write_flights
from tests.support.stack import Stack
from tests.support.waiting import LONG_S, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(200)]

BUDGET_S = 0.4
#: of requests that have to be computed, on a machine that may be busy
LONG_BUDGET_S = 10.0
CALLERS = 4


@dataclass(frozen=True)
class Seen:
    status: int
    outcome: str


def ask(stack: Stack, entity_id: str, client: httpx.Client | None = None, *, budget_s: float = BUDGET_S) -> Seen:
    """Have a prediction computed, and say what came of it. Fails when it takes far longer than its budget."""
    parameters = {"max_staleness_hours": "0", "timeout_ms": str(int(budget_s * 1000))}
    get = client.get if client else httpx.get
    answer = get(f"{stack.url}/predict/{entity_id}", params=parameters, timeout=budget_s + LONG_S)
    body = answer.json()
    return Seen(answer.status_code, body.get("outcome") or body["code"])


def ask_for_instance(stack: Stack) -> str:
    """Have features computed that no earlier answer can stand in for; return the outcome or the error's code."""
    body = {"instances": [{"a": 1.0, "b": 2.0}], "timeout_ms": int(BUDGET_S * 1000)}
    [item] = httpx.post(f"{stack.url}/predict", json=body, timeout=BUDGET_S + LONG_S).json()["predictions"]
    return str(item["error"]["code"] if "error" in item else item["outcome"])


@dataclass
class Load:
    """Callers that ask for computed predictions until the end."""

    stack: Stack
    budget_s: float = BUDGET_S
    seen: list[Seen] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _call(self, caller: int) -> None:
        with httpx.Client() as client:
            while not self._over.is_set():
                self.seen.append(ask(self.stack, f"F{(len(self.seen) + caller) % 100}", client, budget_s=self.budget_s))
                time.sleep(0.02)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("survives")
    with Stack(folder, write_flights(folder)) as stack:
        stack.start("realtime", "api")
        stack.wait_ready()
        assert stack.cli("features", "load", "delay", "flights.parquet").returncode == 0
        wait_for(lambda: computes(stack), "the first computed prediction", 30)
        yield stack


def computes(stack: Stack) -> bool:
    return ask(stack, "F7").outcome == "computed"


def test_a_worker_that_fell_silent_is_known_to_be_gone_before_anyone_asks(stack: Stack) -> None:
    # the first test of this deployment: the API has heard the worker, and never of an end
    silent = stack.processes["realtime"]
    silent.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: "every heartbeat" in stack.log("api"), "the breaker to open though nobody asks", 30)
    finally:
        silent.send_signal(signal.SIGCONT)
    wait_for(lambda: computes(stack), "computed answers again", 30)


def test_with_all_workers_killed_misses_go_down_the_ladder_at_once_until_one_is_back(stack: Stack) -> None:
    with Load(stack) as load:
        wait_for(lambda: any(one.outcome == "computed" for one in load.seen), "load", 10)
        stack.kill("realtime")
        wait_for(lambda: ask_for_instance(stack) == "workers-unavailable", "the breaker", 30)
        gone_from = len(load.seen)
        wait_for(lambda: len(load.seen) > gone_from + 20, "answers of the ladder", 30)
        gone = load.seen[gone_from:]
        stack.start("realtime")
        wait_for(lambda: load.seen[-1].outcome == "computed", "computed answers again", 60)
    assert {one.outcome for one in gone} <= {"stale", "workers-unavailable", "deadline-exceeded", "overloaded"}


def test_a_frozen_worker_costs_nobody_more_than_the_budget_and_goes_on_when_it_thaws(stack: Stack) -> None:
    frozen = stack.processes["realtime"]
    frozen.send_signal(signal.SIGSTOP)
    try:
        # all of these are answered before it thaws
        with Load(stack) as load:
            wait_for(lambda: len(load.seen) > 40, "answers of the ladder", 30)
            wait_for(lambda: ask_for_instance(stack) == "workers-unavailable", "the breaker", 30)
    finally:
        frozen.send_signal(signal.SIGCONT)
    assert {one.outcome for one in load.seen} <= {
        "computed",
        "stale",
        "workers-unavailable",
        "deadline-exceeded",
        "overloaded",
    }
    wait_for(lambda: computes(stack), "computed answers again", 30)


def test_clients_that_hang_up_leave_the_others_their_answers(stack: Stack) -> None:
    wait_for(lambda: computes(stack), "computed answers", 30)
    with Load(stack, LONG_BUDGET_S) as load:
        for number in range(200):
            with socket.create_connection(("127.0.0.1", stack.api_port)) as client:
                client.sendall(
                    f"GET /predict/F{number % 100}?max_staleness_hours=0 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
                )
        wait_for(lambda: len(load.seen) > 40, "answers of the others", 20)
    assert sum(one.outcome == "computed" for one in load.seen) > 0.8 * len(load.seen), load.seen
    assert {one.status for one in load.seen} <= {200, 503}
    wait_for(lambda: computes(stack), "computed answers", 10)


def cut_subscriber(client: Client, pid: int) -> bool:
    """Have Redis close a process' subscription; False while it has none. (Workers have some too, for control.)"""
    ports = {connection.laddr.port for connection in psutil.Process(pid).net_connections()}
    subscribers: Any = client.client_list(_type="pubsub")
    own = [one for one in subscribers if int(one["addr"].rpartition(":")[2]) in ports]
    return sum(client.client_kill_filter(_id=one["id"]) for one in own) > 0


def test_the_subscriber_cut_off_again_and_again_under_load_costs_nobody_more_than_the_budget(stack: Stack) -> None:
    wait_for(lambda: computes(stack), "computed answers", 30)
    with Client.from_url(stack.redis.url()) as client, Load(stack, LONG_BUDGET_S) as load:
        for _ in range(8):
            wait_for(lambda: cut_subscriber(client, serving(stack)[0].pid), "a subscription", 5)
            time.sleep(0.3)
        wait_for(lambda: len(load.seen) > 40, "answers", 20)
    assert sum(one.outcome == "computed" for one in load.seen) > 0.8 * len(load.seen), load.seen
    wait_for(lambda: computes(stack), "computed answers", 10)


def test_redis_stopped_and_started_again_is_an_outage_within_the_budget_and_then_over(stack: Stack) -> None:
    stack.redis.stop()
    try:
        down = [ask(stack, f"F{number}") for number in range(5)]
    finally:
        stack.redis.start()
    assert {one.status for one in down} == {503}
    wait_for(lambda: computes(stack), "computed answers again", 60)
