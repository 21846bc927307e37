"""doctor is never green when nothing works: it writes, sends, reads rows, and one fault hides no other."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from celery.exceptions import NotRegistered

from app.cli.doctor.checkup import check_up
from app.cli.doctor.findings import Check, Finding, Status
from app.cli.doctor.models import StoredModel, check_model
from app.cli.doctor.servers import Failure, ask_server
from app.cli.doctor.workers import check_queues
from inference.errors import DeadlineExceeded
from inference.features import Feature, FeatureContract
from inference.models import ModelRegistry, VersionRecord
from inference.monitoring.presence import Roster, WorkerBeat
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.schema import DType, Signature, TensorSpec
from inference.settings import ModelSettings, Settings
from inference.store import Pointer
from tests.support.plain_models import Times, write_version
from tests.support.redis_server import RedisServer
from tests.support.stack import Stack
from tests.support.waiting import wait_for

SIGNATURE = Signature((TensorSpec("x", DType.FLOAT32),), (TensorSpec("y", DType.FLOAT32),))
CONTRACT = FeatureContract((Feature("x", DType.FLOAT32),))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of its own, since tests bend its configuration."""
    own = RedisServer(tmp_path / "redis").start()
    try:
        yield own
    finally:
        own.stop()


def settings(url: str, **models: Any) -> Settings:
    return Settings.model_validate({"redis": {"url": url, "cache_url": url}, "models": models})


def found_in(settings: Settings, check: Check) -> dict[str, Finding]:
    return {one.subject: one for one in check_up(settings) if one.check is check}


# --- a write to each Redis ---


@pytest.mark.integration
@pytest.mark.parametrize(
    ("bend", "told"),
    [
        ("CONFIG SET min-replicas-to-write 1", "NOREPLICAS"),
        ("CONFIG SET maxmemory 1", "used memory > 'maxmemory'"),
        ("ACL SETUSER default -@all +@read +info +config +time", "permissions"),
        ("ACL SETUSER default resetkeys ~other:*", "permissions"),
    ],
)
def test_a_server_that_answers_and_takes_no_writes_is_an_error(server: RedisServer, bend: str, told: str) -> None:
    with Client(port=server.port) as client:
        before = {one.detail for one in found_in(settings(server.url()), Check.REDIS).values()}
        assert not any("takes no writes" in detail for detail in before)
        assert client.dbsize() == 0, "nothing of the question is left"
        client.execute_command(*bend.split())
    lines = [one for one in check_up(settings(server.url())) if one.check is Check.REDIS]
    [refused] = [one for one in lines if "it takes no writes" in one.detail]
    assert refused.status is Status.ERROR
    assert told in refused.detail


@pytest.mark.integration
def test_a_database_that_the_server_does_not_have_is_no_matter_of_its_version(server: RedisServer) -> None:
    looked = ask_server(f"{server.url().rpartition('/')[0]}/99", "[redis] cache_url")
    assert isinstance(looked, Failure)
    assert "DB index is out of range" in looked.detail
    assert looked.fix.startswith("end [redis] cache_url in the number of a database that this server has")


# --- a message through each queue and back ---


def ready(queue: str) -> Roster:
    worker = WorkerBeat(
        name=f"{queue}@host", process=queue, queues=(queue,), host="host", pid=7, release=None, started_at=0.0,
        ready=True, versions={},
    )  # fmt: skip
    return Roster((worker,), {})


def asked(error: Exception | None, queue: str = "realtime", scored_now: str | None = None) -> Finding:
    def ask(_: str) -> None:
        if error is not None:
            raise error

    [line] = check_queues(Settings(), {queue: ready(queue)}, lambda: scored_now, ask=ask)
    return line


def test_a_queue_that_nobody_answers_is_an_error_though_its_worker_says_it_is_ready() -> None:
    late = DeadlineExceeded("nobody answered")
    assert asked(None).status is Status.OK
    assert asked(late).status is asked(late, "batch").status is asked(late, "maintenance").status is Status.ERROR
    assert "no worker took it within 3 s" in asked(late).detail


def test_a_batch_worker_that_scores_a_chunk_is_busy_and_not_deaf() -> None:
    late = DeadlineExceeded("nobody answered")
    busy = asked(late, "batch", scored_now="m-1")
    assert (busy.status, busy.detail) == (Status.OK, "waits behind a chunk of run m-1, which is being scored")
    assert asked(late, "realtime", scored_now="m-1").status is Status.ERROR


def test_a_broker_that_cannot_be_asked_and_an_older_worker_are_told_apart() -> None:
    refused = asked(ValueError("Sentinel of redis://me:hush@host"))
    assert refused.detail == "it cannot be sent: ValueError: Sentinel of redis://***@host"
    assert asked(NotRegistered("forecache.echo")).status is Status.WARNING


def test_a_queue_without_a_ready_worker_is_not_asked() -> None:
    def ask(_: str) -> None:
        raise AssertionError

    assert check_queues(Settings(), {"realtime": Roster((), {"gone": 3.0})}, lambda: None, ask=ask) == []


@pytest.mark.integration
@pytest.mark.slow
def test_a_worker_that_stands_still_is_found_by_asking_it(tmp_path: Path) -> None:
    with Stack(tmp_path, "") as stack:
        stack.start("maintenance")
        subject = "maintenance: a message and back"

        def answered() -> Finding | None:
            line = found_in(stack.settings, Check.WORKERS).get(subject)
            return line if line and line.status is Status.OK else None

        wait_for(answered, "an answer", 60)
        stack.processes["maintenance"].send_signal(signal.SIGSTOP)
        try:
            assert found_in(stack.settings, Check.WORKERS)[subject].status is Status.ERROR
        finally:
            stack.processes["maintenance"].send_signal(signal.SIGCONT)
        wait_for(answered, "an answer again", 60)


# --- a look at each table's first rows, and no fault hides another ---


def table(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.fixture
def registry(redis_client: Client) -> ModelRegistry:
    return ModelRegistry(redis_client, Keys("forecache"))


def loaded(registry: ModelRegistry, model: str) -> None:
    registry.put(
        model,
        VersionRecord(
            version=1, state="ready", signature=SIGNATURE, contract=CONTRACT, fingerprint="f", inspected_at=0.0
        ),
    )
    registry.activate(model, 1)


@pytest.mark.integration
def test_rows_that_cannot_be_scored_are_found_in_the_table(
    redis_server: RedisServer, registry: ModelRegistry, tmp_path: Path
) -> None:
    ids = [f"e{i}" for i in range(4)]
    tables = {
        "good": table(tmp_path / "good.parquet", entity_id=ids, x=[1.0, 2.0, 3.0, 4.0]),
        "some": table(tmp_path / "some.parquet", entity_id=ids, x=[1.0, None, 3.0, 4.0]),
        "all": table(tmp_path / "all.parquet", entity_id=ids, x=np.full(4, np.inf)),
        "ids": table(tmp_path / "ids.parquet", entity_id=["", "", "", ""], x=[1.0, 2.0, 3.0, 4.0]),
        "empty": table(tmp_path / "empty.parquet", entity_id=pa.array([], "string"), x=pa.array([], "float32")),
    }
    for name in tables:
        loaded(registry, name)
    own = settings(redis_server.url(), **{name: {"path": "m", "features": path} for name, path in tables.items()})
    found = found_in(own, Check.TABLE)
    assert {name: found[name].status for name in tables} == {
        "good": Status.OK, "some": Status.WARNING, "all": Status.ERROR, "ids": Status.ERROR, "empty": Status.ERROR,
    }  # fmt: skip
    assert "1 of the first 4 rows cannot be scored, such as by x: " in found["some"].detail
    assert "4 of the first 4 rows" in found["ids"].detail


@pytest.mark.integration
def test_a_check_that_fails_for_one_model_names_the_mistake_and_hides_no_other(
    redis_server: RedisServer, registry: ModelRegistry, tmp_path: Path
) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["z"]), pa.array([1.0])], names=["id", "id", "x"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    good = table(tmp_path / "good.parquet", id=["a"], x=[1.0])
    for name in ("twice", "good"):
        loaded(registry, name)
    own = settings(
        redis_server.url(),
        twice={"path": "m", "features": str(tmp_path / "twice.parquet"), "entity_column": "id"},
        good={"path": "m", "features": good, "entity_column": "id"},
    )
    found = found_in(own, Check.TABLE)
    assert found["twice"].status is Status.ERROR
    assert "id" in found["twice"].detail
    assert "(KeyError)" not in found["twice"].detail
    assert found["good"].status is Status.OK


# --- models ---


def wrong(model: Path, *records: VersionRecord, active: int | None = None) -> dict[str, str]:
    known = StoredModel({record.version: record for record in records}, Pointer(active_version=active))
    lines = check_model("m", ModelSettings(path=model, allow_code=True), model, known)
    return {line.subject: line.detail for line in lines if line.status is Status.ERROR}


def test_a_refused_version_is_not_one_that_nobody_has_loaded(tmp_path: Path) -> None:
    write_version(tmp_path, 3, Times())
    refused = VersionRecord.refused(3, "opset 99 is not known", inspected_at=0.0)
    told = wrong(tmp_path, refused)["m, what answers"]
    assert told == "no version answers: version 3 was refused: opset 99 is not known"
    assert "no worker has loaded one yet" in wrong(tmp_path)["m, what answers"]


def test_a_folder_that_is_no_version_is_told_of_beside_one_that_serves(tmp_path: Path) -> None:
    write_version(tmp_path, 3, Times())
    (tmp_path / "003").mkdir()
    write_version(tmp_path, 2, Times())
    lines = check_model("m", ModelSettings(path=tmp_path, allow_code=True), tmp_path, None)
    assert any("folders 003 and 3 are the same version 3" in line.detail for line in lines)
