"""Versions whose load never ends, or ends each worker that tries it: real workers, which supervisors start again."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from inference.errors import ModelError, ModelUnavailable
from inference.models import ModelHost, ModelRegistry, Rollout
from inference.models.host import MOST_INTERRUPTED
from inference.models.registry import VersionRecord
from inference.monitoring.presence import Presence
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.settings import Settings
from tests.support.plain_models import Endless, Times, write_version
from tests.support.stack import Stack, child_environment
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LIMIT = "could not be loaded within 5 s: raise load_timeout under [workers]"
TOML = """
[workers]
load_timeout = "5s"
[models.good]
path = "good"
allow_code = true
[models.endless]
path = "endless"
allow_code = true
"""


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    write_version(tmp_path / "good", 1, Times(2.0))
    write_version(tmp_path / "endless", 1, Endless())
    return Stack(tmp_path, TOML)


def doctor(stack: Stack) -> str:
    return str(json.loads(stack.cli("doctor", "--json").stdout))


def test_a_realtime_worker_ends_says_why_and_serves_its_other_models_when_it_is_started_again(stack: Stack) -> None:
    with stack:
        stack.start("api", "realtime")
        # the other model may be loaded first
        wait_for(lambda: "version 1 of model 'endless' for " in ready(stack), "the load")
        assert "of at most 5 s (load_timeout under [workers])" in ready(stack)
        assert stack.processes["realtime"].wait(60) == 1
        assert f"version 1 of model 'endless' {LIMIT}" in stack.log("realtime")

        stack.start("realtime")  # as a supervisor does
        wait_for(lambda: httpx.get(f"{stack.url}/health/ready").status_code == 200, "the other model", 60)
        told = httpx.get(f"{stack.url}/health/ready").json()
        assert told["models"] == {"good": 1}
        assert LIMIT in told["refused"]["endless"]
        answer = httpx.post(
            f"{stack.url}/predict", json={"model": "good", "instances": [{"x": 4.0}], "timeout_ms": 9000}
        )
        assert answer.json()["predictions"][0]["prediction"] == 8.0
        assert LIMIT in doctor(stack)


def test_a_batch_worker_ends_and_refuses_the_version_when_it_is_started_again(stack: Stack) -> None:
    with stack:
        stack.start("gpu")
        roster = Presence(stack.deployment.cache, stack.deployment.keys).roster
        wait_for(lambda: any(worker.loading for worker in roster("batch").alive), "a load")
        wait_for(lambda: "version 1 of model 'endless' for" in doctor(stack), "doctor's word of the load")
        assert stack.processes["gpu"].wait(60) == 1
        stack.start("gpu")
        wait_for(lambda: any(worker.ready for worker in roster("batch").alive), "a worker that is ready", 60)
        refused = stack.deployment.registry.versions("endless")[1]
        assert (refused.state, LIMIT in str(refused.error)) == ("refused", True)


def ready(stack: Stack) -> str:
    try:
        return httpx.get(f"{stack.url}/health/ready").text
    except httpx.TransportError:
        return ""


HOLDS_THE_INTERPRETER = """
import re
from inference.models import load_limits as limits
limits._SILENT_AFTER_S = 0.1
with limits.bounded_time(limits.LoadLimits(1 << 30, 0.2), "it"):
    re.match("(a+)+$", "a" * 64 + "b")
"""


def test_a_load_that_lets_no_other_thread_run_ends_its_process_all_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOLDS_THE_INTERPRETER], env=child_environment(), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert 'in match\n  File "<string>", line 6' in done.stderr


def test_a_load_in_time_ends_nothing(tmp_path: Path, redis_client: Client) -> None:
    write_version(tmp_path / "m", 1, Times(2.0))
    room = Room(tmp_path, redis_client)
    room.host.start()
    assert room.registry.active_version("m") == 1
    assert room.host.loading() == []


# a version that is good wherever it is tried, and ends the workers all the same: a driver of the GPU, say


class Room:
    """A worker without its process, in which a trial apart finds every version good."""

    def __init__(self, folder: Path, client: Client) -> None:
        models = {"m": {"path": "m", "allow_code": True, "poll_every": "never"}}
        self.settings = Settings.of_folder(folder, models=models)
        self.client, self.registry, self.tried = client, ModelRegistry(client, Keys("t")), 0
        self.now = 0.0
        #: how long a trial takes until its limit ends it; None for one that finds the version good
        self.ends_after_s: float | None = None
        self.host = ModelHost(self.settings, self.registry, try_apart=self._try_apart, monotonic=lambda: self.now)

    def _try_apart(self, _: Settings, model: str, version: int) -> VersionRecord:
        self.tried += 1
        assert self.host.loading() == [(model, version, 0.0)]
        if self.ends_after_s is not None:
            self.now += self.ends_after_s
            raise ModelError("it could not be loaded within 600 s")
        return VersionRecord.refused(version, "nobody looks at it", inspected_at=0.0)

    def cut_off(self, times: int) -> None:
        """Leave what workers leave that have ended during a load."""
        for gone in range(2**22 + 1, 2**22 + 1 + times):  # no process has such a number
            self.client.hincrby(Keys("t").loads("m"), f"1 {socket.gethostname()} {gone}")


@pytest.mark.parametrize("in_containers", [False, True], ids=["own ids", "one id"])
def test_a_version_that_ends_one_worker_after_the_other_is_refused_until_somebody_asks_for_it(
    tmp_path: Path, redis_client: Client, in_containers: bool
) -> None:
    write_version(tmp_path / "m", 1, Times(2.0))
    room = Room(tmp_path, redis_client)
    if in_containers:  # each process may have the id of the one before
        redis_client.hset(Keys("t").loads("m"), f"1 {socket.gethostname()} {os.getpid()}", MOST_INTERRUPTED)
    else:
        room.cut_off(MOST_INTERRUPTED)
    room.host.start()
    refused = room.registry.versions("m")[1]
    assert refused.error == (
        "the last 3 workers that loaded it here ended meanwhile, and their logs say how: put it right, then "
        "`forecache models reload m`"
    )
    assert room.registry.active_version("m") is None

    rollout = Rollout(room.settings, room.host, room.registry, "m", answers=True, others=list)
    rollout.look()
    rollout.look()
    assert room.registry.active_version("m") is None
    assert rollout.look(again=True)
    assert room.registry.active_version("m") == 1


def test_before_that_it_is_tried_once_more_and_a_load_that_ends_makes_up_for_all(
    tmp_path: Path, redis_client: Client
) -> None:
    write_version(tmp_path / "m", 1, Times(2.0))
    room = Room(tmp_path, redis_client)
    room.cut_off(MOST_INTERRUPTED - 1)
    room.host.start()
    assert (room.registry.active_version("m"), room.tried) == (1, 1)
    assert room.registry.unfinished_loads("m").interrupted(1) == 0


def test_a_trial_that_takes_long_is_made_again_the_later_so_that_requests_of_others_are_served(
    tmp_path: Path, redis_client: Client
) -> None:
    write_version(tmp_path / "m", 1, Times(2.0))
    room = Room(tmp_path, redis_client)
    room.cut_off(1)
    room.ends_after_s = 600.0
    for later, tried in ((0, 1), (20, 1), (5300, 1), (100, 2)):
        room.now += later
        with pytest.raises(ModelUnavailable, match="within 600 s"):
            room.host.get("m", 1)
        assert room.tried == tried
