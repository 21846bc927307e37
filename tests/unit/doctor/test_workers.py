"""doctor: living workers, schedules, and the broker's patience."""

from __future__ import annotations

from typing import Any

import pytest

from app.cli.doctor.broker import check_broker, check_patience
from app.cli.doctor.findings import Finding, Status
from app.cli.doctor.schedules import check_schedule
from app.cli.doctor.workers import check_workers
from inference.batch import RunState, Trigger
from inference.batch.gates import Gate
from inference.batch.records import RunRecord
from inference.monitoring.presence import Loading, Roster, WorkerBeat
from inference.settings import ModelSettings, Settings
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


# --- schedules ---

NOW = 100 * 3600.0 + 600


def run(state: RunState = RunState.PUBLISHED, *, took_s: float = 60.0, ago_s: float = 600.0, **more: Any) -> RunRecord:
    began = NOW - ago_s
    return RunRecord(
        run_id="delay-1", model="delay", state=state, trigger=Trigger.BEAT, source="t", created_at=began,
        started_at=began, finished_at=began + took_s, **more,
    )  # fmt: skip


def schedule(*runs: RunRecord, **batch: Any) -> list[Finding]:
    model = ModelSettings.model_validate({"path": "m", "features": "t", "batch": {"schedule": "1h", **batch}})
    return check_schedule("delay", model, runs, clock=lambda: NOW)


@pytest.mark.parametrize(("took_s", "status"), [(60.0, Status.OK), (1900.0, Status.WARNING), (3700.0, Status.ERROR)])
def test_a_run_must_be_over_well_before_the_next_is_due(took_s: float, status: Status) -> None:
    (found,) = schedule(run(took_s=took_s))
    assert found.status is status


def test_a_schedule_without_runs_yet_is_fine_and_so_is_none_at_all() -> None:
    assert [one.status for one in schedule()] == [Status.OK]
    assert [one.detail for one in schedule(schedule=None)] == ["no schedule: runs start by hand"]


def test_two_slots_without_a_run_point_at_beat() -> None:
    assert [one.subject for one in schedule(run(ago_s=3600.0))] == ["delay"]
    missed, _ = schedule(run(ago_s=2 * 3600.0))
    assert missed.subject == "delay, beat"
    assert "beat_schedule" in (missed.fix or "")


def test_a_failed_run_is_told_with_its_reason() -> None:
    failed, _ = schedule(run(RunState.FAILED, error="t.parquet does not exist"), run(ago_s=4000.0))
    assert failed.detail == "failed: t.parquet does not exist"
    assert failed.fix == "put it right, then `forecache batch run delay`"


def test_resuming_is_advised_only_where_it_can_work() -> None:
    def fix_of(**more: Any) -> str:
        return schedule(run(RunState.FAILED, **more))[0].fix or ""

    planned = {"fingerprint": {"files": "f"}}
    assert "as they were, `forecache batch resume delay-1`" in fix_of(**planned, error="out of memory")
    assert "resume" not in fix_of(**planned, gates=(Gate("drift", passed=False, detail="x"),))
    assert "resume" not in fix_of(**planned, spent=True)
    assert "resume" not in fix_of()  # it was never planned


# --- the broker ---


def test_a_chunk_longer_than_half_of_the_visibility_timeout_is_told_of() -> None:
    long = run(took_s=8000.0, chunks_total=4)
    assert check_patience(settings(), "delay", [long], 1)[0].status is Status.WARNING
    assert check_patience(settings(), "delay", [run(took_s=8000.0, chunks_total=40)], 1)[0].status is Status.OK
    assert check_patience(settings(), "delay", [long], 4)[0].status is Status.WARNING  # one round of 8000 s


def test_rabbitmq_is_less_patient() -> None:
    rabbit = settings(celery={"broker_url": "amqp://h//"})
    chunky = run(took_s=4000.0, chunks_total=4)
    assert check_patience(settings(), "delay", [chunky], 1)[0].status is Status.OK
    assert check_patience(rabbit, "delay", [chunky], 1)[0].status is Status.WARNING


def test_a_broker_that_refuses_is_an_error_that_holds_no_password() -> None:
    url = "amqp://user:hush@127.0.0.1:1//"
    (found,) = check_broker(settings(celery={"broker_url": url}), results=None)  # type: ignore[arg-type]
    assert (found.status, found.subject) == (Status.ERROR, "127.0.0.1:1//")
    assert "hush" not in str(found)
    assert "Connection refused" in found.detail
