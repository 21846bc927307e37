"""doctor: workers and queues."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from app.cli.doctor.findings import Finding, Start, Status
from app.cli.doctor.workers import check_workers, find_start
from app.local.lock import LOCK, hold_lock
from inference.monitoring.presence import Loading, Roster, WorkerBeat
from inference.settings import Settings
from inference.stored_data import installed_release

NOBODY = Roster((), {})


def settings(**extra: Any) -> Settings:
    model = {"path": "m", "features": "t.parquet", "batch": {"schedule": "1h"}}
    return Settings.model_validate({"models": {"delay": model}, **extra})


def worker(queue: str, **fields: Any) -> WorkerBeat:
    given: dict[str, Any] = {
        "name": f"{queue}@h", "process": queue, "queues": (queue,), "host": "h", "pid": 7,
        "release": installed_release(), "started_at": 1000.0, "ready": True, "versions": {"delay": (2,)},
        **fields,
    }  # fmt: skip
    return WorkerBeat(**given)


def of(queue: str, roster: Roster, *, active: int | None = 2) -> Finding:
    (found,) = check_workers(settings(), {queue: roster}, {"delay": active}, clock=lambda: 1090.0)
    return found


def test_a_living_worker_is_shown_with_what_it_holds() -> None:
    found = of("realtime", Roster((worker("realtime"),), {}))
    assert (found.status, found.detail) == (Status.OK, "alive, pid 7, for 90 s, holds delay 2")


def test_a_worker_that_lacks_the_version_that_answers_is_told_of() -> None:
    found = of("realtime", Roster((worker("realtime", versions={"delay": (1,)}),), {}))
    assert found.status is Status.WARNING
    assert found.detail.endswith("holds delay 1, but version 2 of delay answers")


def test_neither_maintenance_nor_a_worker_that_still_loads_is_asked_for_models() -> None:
    assert of("maintenance", Roster((worker("maintenance", versions={}),), {})).status is Status.OK
    loading = of("batch", Roster((worker("batch", versions={}, ready=False),), {}))
    assert loading.status is Status.OK
    assert loading.detail.endswith("still loading its models")
    held_up = of("batch", Roster((worker("batch", ready=False, loading=(Loading("delay", 2, 65.4),)),), {}))
    assert held_up.detail.endswith(
        "loading its models: version 2 of model 'delay' for 65 s, of at most 600 s (load_timeout under [workers])"
    )


def test_a_worker_that_is_deaf_to_the_broker_is_an_error() -> None:
    deaf = of("batch", Roster((worker("batch", ready=False, deaf=True),), {}))
    assert deaf.status is Status.ERROR
    assert "takes nothing from the broker" in deaf.detail


def test_another_release_of_forecache_is_told_of() -> None:
    assert "runs Forecache 0.0.1" in of("batch", Roster((worker("batch", release="0.0.1"),), {})).detail


def test_a_queue_without_a_worker_is_an_error_that_says_when_one_was_last_heard() -> None:
    found = of("realtime", Roster((), {"realtime@h pid 7": 40.0}))
    assert found.status is Status.ERROR
    assert found.detail == "no worker is alive (realtime@h pid 7 was heard 40 s ago): no miss is computed"
    assert found.fix == "start `forecache up`, or `python -P -m workers realtime`"


@pytest.mark.parametrize(
    ("age_s", "fix"),
    [
        (8.2, "`forecache up` (pid 12) began 8.2 s ago and may still be starting it: ask again in a moment"),
        (59.9, "`forecache up` (pid 12) began 60 s ago and may still be starting it: ask again in a moment"),
        (
            61.0,
            "`forecache up` (pid 12) has been running for 61 s: its lines say why; if it runs without this, start "
            "`python -P -m workers realtime`",
        ),
    ],
)
def test_nobody_is_told_to_start_an_up_that_runs(age_s: float, fix: str) -> None:
    start = Start("`forecache up` (pid 12)", age_s)
    (found,) = check_workers(settings(), {"realtime": NOBODY}, {}, start=start)
    assert (found.status, found.fix) == (Status.ERROR, fix)


def test_an_up_in_the_folder_is_the_start_until_it_ends(tmp_path: Path) -> None:
    folder = Settings.of_folder(tmp_path)
    folder.state_dir.mkdir()
    lock = folder.state_dir / LOCK
    assert find_start(folder, []) is None
    with hold_lock(lock):
        began = lock.stat().st_mtime
        assert find_start(folder, [], clock=lambda: began + 9.0) == Start(f"`forecache up` (pid {os.getpid()})", 9.0)
    assert find_start(folder, []) is None
    with hold_lock(lock):  # to look is not to hold it
        pass


def test_elsewhere_processes_that_are_all_young_are_a_start(tmp_path: Path) -> None:
    folder = Settings.of_folder(tmp_path)
    young, older = (Roster((worker("batch", started_at=at),), {}) for at in (1080.0, 1020.0))
    assert find_start(folder, [NOBODY, young], clock=lambda: 1090.0) == Start("the deployment", 10.0)
    assert find_start(folder, [young, older], clock=lambda: 1090.0) is None
    assert find_start(folder, [NOBODY], clock=lambda: 1090.0) is None


def test_a_models_own_queue_is_asked_for_its_workers_and_they_for_its_model_alone() -> None:
    own = {"path": "m", "realtime": {"queue": "own"}}
    both = Settings.model_validate({"models": {"delay": {"path": "m"}, "slow": own}})
    rosters = {"realtime": Roster((worker("realtime"),), {}), "own": NOBODY}
    here, there = check_workers(both, rosters, {"delay": 2, "slow": 1}, clock=lambda: 1090.0)
    assert here.status is Status.OK
    assert (there.status, there.detail.endswith("no miss of slow is computed")) == (Status.ERROR, True)
    assert there.fix == "start `forecache up`, or `python -P -m workers realtime -Q own`"


def test_a_model_without_a_table_needs_no_batch_worker() -> None:
    bare = Settings.model_validate({"models": {"delay": {"path": "m"}}})
    found = check_workers(bare, {"batch": NOBODY, "realtime": NOBODY}, {"delay": None})
    assert [one.status for one in found] == [Status.WARNING, Status.ERROR]


def test_without_redis_nothing_is_said_of_workers() -> None:
    (found,) = check_workers(settings(), None, {})
    assert (found.status, found.detail) == (Status.WARNING, "not checked: no Redis")
