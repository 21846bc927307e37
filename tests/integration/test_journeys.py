"""The three journeys that docs/architecture.md tells, held against the calls of real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.models import write_sum_model
from tests.support.stack import ROOT, Stack, child_environment, end_tree
from tests.support.waiting import wait_for
from tests.support.warm_start import WarmProcess, start_python

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

TRACED = ROOT / "tests/support/traced.py"
MODELS = """
[models.m]
path = "m"
# else the look for new versions falls into every slow journey
poll_every = "1h"
features = "t.parquet"
[models.m.batch]
prediction_table = true
feature_table = true
[models.m.realtime]
timeout_ms = 60_000
"""
#: at least three of each journey are compared, and more while they seem too long: what goes on beside all of them
#: (flushes of counters, looks at clocks) falls into some, and a busy machine passes what only a slow one needs
TIMES, MOST_TIMES = 3, 10
#: timers that are due more often than a slow journey is over
BESIDE = {"inference/monitoring/presence.py", "workers/heartbeat.py", "workers/watching.py"}
STEP = re.compile(r"^\d+\. `([\w/.]+\.py):([\w.]+)`", re.MULTILINE)
IN_ALL = re.compile(r"\bin all (\d+) files")


class Traced:
    """A deployment whose processes note what they call."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack, self.folder = stack, folder
        self.pids: dict[str, int] = {}
        self.mark = 0
        (folder / "mark").write_bytes(b"\0")

    def start(self, name: str) -> WarmProcess | subprocess.Popen[bytes]:
        command = [str(TRACED), str(self.folder), *self.stack._command(name, name, None)[1:]]
        with (self.stack.folder / f"{name}.log").open("ab") as log:
            process = start_python(
                command, cwd=self.stack.folder, env=child_environment(), stdout=log.fileno(), stderr=log.fileno(),
                new_session=True,
            )  # fmt: skip
        self.pids[name] = process.pid
        return process

    def check(self, name: str, journey: Callable[[], None], *processes: str) -> None:
        """Compare what each such journey calls with its section of docs/architecture.md: steps in order, and files."""
        text = (ROOT / "docs/architecture.md").read_text("utf-8")
        section = text.partition(f"\n### {name}\n")[2].partition("\n#")[0]
        steps = [f"{file}:{function}" for file, function in STEP.findall(section)]
        assert steps, f"docs/architecture.md does not tell {name!r}"
        in_all = IN_ALL.search(section)
        assert in_all is not None
        calls = self._trace(journey, processes)
        for times in range(2, MOST_TIMES + 1):
            again = set(self._trace(journey, processes))
            calls = [call for call in calls if call in again]
            files = {call.partition(":")[0] for call in calls} - BESIDE
            if times >= TIMES and len(files) <= int(in_all[1]):
                break
        if os.environ.get("SHOW_JOURNEYS"):
            sys.stderr.write(f"{name} ({len(files)} files) {json.dumps(calls, indent=1)}\n")
        assert [step for step in steps if step not in calls] == []
        assert steps == sorted(steps, key=calls.index)
        assert len(files) <= int(in_all[1]), "\n".join(sorted(files))

    def _trace(self, journey: Callable[[], None], processes: tuple[str, ...]) -> list[str]:
        """Make a journey; return `file:function` of all that the processes called, by their first calls."""
        self._begin()
        journey()
        time.sleep(0.2)  # what is written after the answer
        return self._places(*processes)

    def _begin(self) -> None:
        self.mark += 1
        with (self.folder / "mark").open("r+b") as mark:
            mark.write(bytes([self.mark]))

    def _places(self, *processes: str) -> list[str]:
        noted = sorted(line for name in processes for line in self._noted(name))
        return list(dict.fromkeys(place for _, place in noted))

    def _noted(self, name: str) -> list[tuple[int, str]]:
        lines = [line.split(" ", 2) for line in (self.folder / str(self.pids[name])).read_text().splitlines()]
        return [(int(at), place) for mark, at, place in lines if mark == str(self.mark)]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    folder = tmp_path_factory.mktemp("journeys")
    notes = tmp_path_factory.mktemp("calls")
    write_sum_model(folder / "m", ["x"])
    pq.write_table(
        pa.table({"entity_id": [f"e{n}" for n in range(100)], "x": [float(n) for n in range(100)]}),
        folder / "t.parquet",
    )
    with Stack(folder, MODELS) as stack:
        traced = Traced(stack, notes)
        processes = []
        try:
            processes += [traced.start(name) for name in ("maintenance", "gpu", "realtime", "api")]
            stack.wait_ready(120)
            run(stack)
            wait_for(lambda: source_of(stack, "e1") == "batch", "a stored answer")
            compute(stack, "e1")
            yield traced
        finally:
            for process in processes:
                end_tree(process)


def run(stack: Stack) -> None:
    started = httpx.post(f"{stack.url}/runs", json={"model": "m"}, timeout=60).raise_for_status().json()
    assert stack.wait_run(started["run_id"], 120)["state"] == "published"


def source_of(stack: Stack, entity_id: str) -> str:
    return str(httpx.get(f"{stack.url}/predict/{entity_id}", timeout=60).raise_for_status().json()["source"])


def compute(stack: Stack, entity_id: str) -> None:
    url = f"{stack.url}/predict/{entity_id}?max_staleness_hours=0"
    assert httpx.get(url, timeout=60).raise_for_status().json()["source"] == "realtime"


def test_a_hit_goes_the_way_that_is_told(traced: Traced) -> None:
    traced.check("A hit", lambda: assert_hit(traced.stack), "api")


def assert_hit(stack: Stack) -> None:
    assert source_of(stack, "e7") == "batch"


def test_a_miss_goes_the_way_that_is_told(traced: Traced) -> None:
    traced.check("A miss", lambda: compute(traced.stack, "e3"), "api", "realtime")


def test_a_run_goes_the_way_that_is_told(traced: Traced) -> None:
    traced.check("A run", lambda: run(traced.stack), "maintenance", "gpu")
