"""doctor: workers and queues."""

from __future__ import annotations

from typing import Any

from app.cli.doctor.findings import Finding, Status
from app.cli.doctor.workers import check_workers
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
