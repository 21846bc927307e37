"""doctor: runs, their schedules, and the broker's timeout."""

from __future__ import annotations

from typing import Any

import pytest

from app.cli.doctor.findings import Finding, Status
from app.cli.doctor.runs import check_active_set, check_patience, check_run_engine, check_schedule
from inference.batch import RunState, Trigger
from inference.batch.gates import Gate
from inference.batch.records import RunRecord
from inference.economics.miss_capacity import MissCapacity
from inference.settings import ModelSettings, Settings
from tests.support.ports import free_port


def settings(**extra: Any) -> Settings:
    model = {"path": "m", "features": "t.parquet", "batch": {"schedule": "1h"}}
    return Settings.model_validate({"models": {"delay": model}, **extra})


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


# --- the broker's timeout ---


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


RULE = "hit rate 0.9"
CAPACITY = MissCapacity(100.0, 0.9, 8.0, "measured", workers=2, workers_if_a_run_fails=19)


def active_set(
    last: RunRecord | None, *, entities: str = RULE, capacity: MissCapacity | None = CAPACITY, workers: int = 2
) -> list[Finding]:
    batch = {"entities": entities, "feature_table": True}
    model = ModelSettings.model_validate({"path": "m", "features": "t", "batch": batch})
    return check_active_set("delay", model, last, capacity, workers)


@pytest.mark.parametrize(("workers", "status"), [(2, Status.OK), (1, Status.WARNING)])
def test_real_time_must_bear_what_an_active_set_leaves_out(workers: int, status: Status) -> None:
    (found,) = active_set(run(entities_rule=RULE), workers=workers)

    assert (found.status, found.subject) == (status, "delay, active set")
    assert "at the peak 10 of 100/s are computed" in found.detail
    assert "that takes 2 real-time workers" in found.detail
    assert "if a run fails, it takes 19" in found.detail


def test_a_set_that_the_last_run_could_not_tell_is_told_with_the_reason() -> None:
    (found,) = active_set(run(entities_note="too little traffic"))
    assert (found.status, found.detail) == (Status.OK, "the last run scored all rows: too little traffic")
    (before,) = active_set(run())
    assert "came before the setting" in before.detail


def test_without_a_set_there_is_nothing_to_check_and_without_traffic_nothing_to_say() -> None:
    assert active_set(run(), entities="all") == []
    (found,) = active_set(None, capacity=None)
    assert "too little is known" in found.detail


def _engine_findings(**batch: Any) -> list[Finding]:
    return check_run_engine("delay", ModelSettings.model_validate({"path": "m", "features": "t", "batch": batch}))


def test_batch_workers_need_nothing_that_doctor_could_look_for() -> None:
    assert _engine_findings() == []


def test_a_ray_cluster_that_does_not_listen_is_an_error_with_the_key_to_correct() -> None:
    pytest.importorskip("ray")
    (finding,) = _engine_findings(engine="ray", ray={"address": f"ray://127.0.0.1:{free_port()}"})
    assert finding.status is Status.ERROR
    assert "correct `ray.address`" in finding.detail


def test_a_missing_extra_of_an_engine_is_an_error_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (finding,) = _engine_findings(engine="ray")
    assert finding.status is Status.ERROR
    assert "pip install 'forecache[ray]'" in finding.detail
