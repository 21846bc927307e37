"""Several real-time workers: they share the load, and one that dies takes nobody with it. Really killed processes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import psutil
import pytest

from tests.support.plain_models import DEADLY, Deadly, Times, WhoComputes, write_version
from tests.support.ports import free_port
from tests.support.stack import Stack, child_environment, end_tree
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ENTITIES = 400
CALLERS = 8


@dataclass(frozen=True)
class Seen:
    """One answer: its outcome or error code, its prediction, who asked for it, and since when."""

    outcome: str
    prediction: float | None
    caller: int
    asked_at: float


class Load:
    """Callers that each have one entity after the other computed, until it is left; no entity is asked for twice."""

    def __init__(self, url: str, entities: Iterator[int], seen: list[Seen]) -> None:
        self._url = url
        self._entities = entities
        self._seen = seen
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(caller,)) for caller in range(CALLERS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _call(self, caller: int) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._over.is_set():
                asked_at = time.monotonic()
                query = {"max_staleness_hours": 0}
                body = client.get(f"/predict/e{next(self._entities) % ENTITIES}", params=query).json()
                outcome = body.get("outcome") or body["code"]
                self._seen.append(Seen(outcome, body.get("prediction"), caller, asked_at))


# --- two workers of one model ---

WHO = """
[models.who]
path = "who"
allow_code = true
[models.who.realtime]
timeout_ms = 2000
"""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    write_version(tmp_path / "who", 1, WhoComputes())
    table = pd.DataFrame({"entity_id": [f"e{i}" for i in range(ENTITIES)], "x": 1.0})
    table.to_parquet(tmp_path / "features.parquet")
    with Stack(tmp_path, WHO) as stack:
        stack.start("realtime", "realtime-2", "api")
        stack.wait_ready()
        assert stack.cli("features", "load", "features.parquet").returncode == 0
        yield stack


@pytest.mark.slow
def test_two_workers_share_the_load_and_when_one_is_killed_the_other_computes_all_of_it(stack: Stack) -> None:
    pids = {name: float(stack.processes[name].pid) for name in ("realtime", "realtime-2")}
    seen: list[Seen] = []

    def computed_by(since: int = 0) -> Counter[float | None]:
        return Counter(one.prediction for one in seen[since:] if one.outcome == "computed")

    with Load(stack.url, iter(range(10**9)), seen):
        wait_for(lambda: len(computed_by()) == 2, "work of both workers", 60)
        ready = len(seen)
        wait_for(lambda: len(seen) > ready + 300, "load", 60)
        shares = computed_by(ready)
        stack.kill("realtime-2")
        killed, killed_at = len(seen), time.monotonic()
        callers = set(range(CALLERS))
        wait_for(
            lambda: {one.caller for one in seen if one.asked_at > killed_at} == callers,
            "answers to what was asked after the kill, so that what the dead one held is over",
        )
        later = len(seen)
        wait_for(lambda: len(seen) > later + 100, "load on the one that is left", 60)
    assert set(shares) == set(pids.values())
    assert min(shares.values()) > sum(shares.values()) / 5, shares
    # what the dead worker held: one answer a caller at most, told when its time was up
    lost = [one for one in seen[killed:later] if one.outcome != "computed"]
    assert len(lost) <= CALLERS, lost
    assert {one.outcome for one in lost} <= {"deadline-exceeded", "stale"}
    assert set(computed_by(later)) == {pids["realtime"]}
    assert {one.outcome for one in seen[later:]} == {"computed"}


# --- a model that crashes its worker, under `forecache up` ---


class Up:
    """`forecache up` with two models: one that is good, and one with a queue of its own that a row can crash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_version(folder / "good", 1, Times(2.0))
        write_version(folder / "deadly", 1, Deadly(3.0))
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        (folder / "forecache.toml").write_text(
            f"[api]\nport = {port}\n"
            '[models.good]\npath = "good"\nallow_code = true\n[models.good.realtime]\ntimeout_ms = 5000\n'
            '[models.deadly]\npath = "deadly"\nallow_code = true\n'
            '[models.deadly.realtime]\nqueue = "apart"\ntimeout_ms = 1000\n'
        )
        with (folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "app.cli", "up", "--only", "redis,realtime,api"],
                cwd=folder, env=child_environment(), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return (self.folder / "up.log").read_text(errors="replace")

    def pid(self, word: str) -> int | None:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                line = child.cmdline()
            except psutil.NoSuchProcess:
                continue
            if word in line and "app.local.child" not in line:
                return child.pid
        return None

    def compute(self, model: str, x: float, timeout_ms: int = 5000) -> dict[str, Any]:
        body = {"model": model, "instances": [{"x": x}], "timeout_ms": timeout_ms}
        try:
            answers = httpx.post(f"{self.url}/predict", json=body, timeout=30).json()
        except httpx.TransportError:
            return {"outcome": "no API"}
        one: dict[str, Any] = answers["predictions"][0]
        return one

    def computes(self, model: str) -> bool:
        return self.compute(model, 1.0).get("outcome") == "computed"


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path)
    try:
        for model in ("good", "deadly"):
            wait_for(lambda model=model: up.computes(model), f"{model}; up.log ends:\n{up.log[-2000:]}", 90)
        yield up
    finally:
        end_tree(up.process)


@pytest.mark.slow
def test_a_model_that_segfaults_takes_its_worker_once_and_nothing_else(up: Up) -> None:
    api, good, deadly = (up.pid("api"), up.pid("realtime@%h"), up.pid("realtime-apart@%h"))
    over = threading.Event()
    of_the_good: Counter[Any] = Counter()

    def go_on() -> None:
        while not over.is_set():
            answer = up.compute("good", 4.0)
            of_the_good[answer.get("outcome"), answer.get("prediction")] += 1

    going_on = threading.Thread(target=go_on)
    going_on.start()
    try:
        poisoned = up.compute("deadly", DEADLY, timeout_ms=1000)
        assert poisoned["error"]["code"] == "deadline-exceeded"
        wait_for(lambda: "killed by SIGSEGV" in up.log, "the crash in the log", 20)
        wait_for(lambda: up.computes("deadly"), "the crashed worker's successor", 60)
        successor = up.pid("realtime-apart@%h")
        time.sleep(5)  # the poison is gone with its worker: nobody is given it once more
        assert up.compute("deadly", 2.0)["prediction"] == 6.0
    finally:
        over.set()
        going_on.join()
    assert set(of_the_good) == {("computed", 8.0)}
    assert of_the_good.total() > 20
    assert None not in (api, good, deadly, successor)
    assert successor != deadly
    assert up.pid("realtime-apart@%h") == successor
    assert (up.pid("api"), up.pid("realtime@%h")) == (api, good)
    assert up.log.count("killed by SIGSEGV") == 1
