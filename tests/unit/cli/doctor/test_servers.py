"""doctor: what a Redis server says of itself."""

from __future__ import annotations

from typing import Any

import pytest

from app.cli.doctor.findings import Finding, Status
from app.cli.doctor.servers import Failure, Server, ask_server, check_servers
from app.cli.doctor.tables import TableSize, estimated_bytes_per_row, memory_finding
from inference.schema import DType, TensorSpec
from inference.settings import Settings

SETTINGS = Settings.model_validate({"redis": {"url": "redis://:hush@a:1/0", "cache_url": "redis://:hush@b:2/1"}})
GOOD = {"redis_version": "7.0.15", "redis_mode": "standalone", "role": "master", "maxmemory_policy": "noeviction"}


def server(save: str | None = "3600 1", run_id: str = "cache", **info: Any) -> Server:
    return Server({**GOOD, "run_id": run_id, **info}, save, 0.0)


def findings(cache: Server | Failure) -> list[Finding]:
    """What is said of the cache; the other server is fine."""
    return [one for one in check_servers(SETTINGS, server(run_id="results"), cache) if "cache_url" in one.subject]


def wrong(cache: Server | Failure) -> list[tuple[Status, str]]:
    return [(one.status, one.detail) for one in findings(cache) if one.status is not Status.OK]


def test_a_good_server_has_nothing_wrong() -> None:
    assert wrong(server()) == []
    assert wrong(server(save="", aof_enabled=1)) == []


@pytest.mark.parametrize(
    ("info", "status", "detail"),
    [
        ({"redis_version": "6.0.16"}, Status.ERROR, "Redis 6.0.16"),
        ({"redis_mode": "cluster"}, Status.ERROR, "it runs in cluster mode"),
        ({"role": "slave"}, Status.ERROR, "it is a replica, which takes no writes"),
        (
            {"maxmemory_policy": "allkeys-lru"},
            Status.ERROR,
            "maxmemory-policy is allkeys-lru: it may throw predictions and runs away",
        ),
        ({"rdb_last_bgsave_status": "err"}, Status.ERROR, "its last write to disk failed"),
        ({"aof_enabled": 1, "aof_last_write_status": "err"}, Status.ERROR, "its last write to disk failed"),
    ],
)
def test_what_cannot_be_worked_with_is_an_error(info: dict[str, Any], status: Status, detail: str) -> None:
    assert wrong(server(**info)) == [(status, detail)]


def test_a_server_without_persistence_is_a_warning_and_one_that_does_not_tell_is_left_alone() -> None:
    assert wrong(server(save="")) == [
        (Status.WARNING, "not persistent: a restart loses all predictions until the next run")
    ]
    assert wrong(server(save=None)) == []


def test_redis_6_2_will_do() -> None:
    assert wrong(server(redis_version="6.2.14")) == []


def test_one_server_for_both_is_reported_once() -> None:
    both = check_servers(SETTINGS, server(), server())
    assert {one.subject for one in both} == {"url and cache_url (b:2/1)"}


def test_a_silent_server_is_an_error_and_says_nothing_of_the_rest() -> None:
    (only,) = findings(Failure("it cannot be reached (Connection refused)", "start it"))
    assert (only.status, only.fix) == (Status.ERROR, "start it")


@pytest.mark.parametrize(
    "url", ["redis://:hu?sh@h:1/0", "redis://:hu/sh@h:1/0", "redis://:hu#sh@h:1/0", "redis://h:hush/0"]
)
def test_a_url_that_cannot_be_read_is_not_quoted(url: str) -> None:
    failure = ask_server(url, "[redis] url")
    assert isinstance(failure, Failure)
    assert "hu" not in failure.detail + failure.fix


# --- memory ---


def table(rows: int, generations: int = 2) -> TableSize:
    return TableSize(rows, 30.0, measured=True, generations=generations)


def test_three_generations_must_fit_beside_all_else() -> None:
    info = {"maxmemory": 1000, "used_memory": 660}  # of which 600 are the two generations that are there
    assert memory_finding(info, [table(10)], 50.0).status is Status.ERROR  # 900 + 50 + 60
    assert memory_finding(info, [table(10)], 0.0).status is Status.WARNING
    assert memory_finding({**info, "maxmemory": 1100}, [table(10)], 0.0).status is Status.WARNING
    assert memory_finding({**info, "maxmemory": 2000}, [table(10)], 0.0).status is Status.OK


def test_without_a_limit_of_its_own_it_is_the_machines() -> None:
    info = {"maxmemory": 0, "total_system_memory": 800, "used_memory": 0}
    found = memory_finding(info, [table(10)], 0.0)
    assert found.status is Status.ERROR
    assert found.detail.startswith("too little: 3 generations and answers on demand take 900 B (measured)")
    assert memory_finding({}, [table(10)], 0.0).status is Status.OK


def test_a_row_is_estimated_by_the_models_outputs() -> None:
    assert estimated_bytes_per_row(()) == estimated_bytes_per_row([TensorSpec("y", DType.FLOAT32)]) == 27
    assert estimated_bytes_per_row([TensorSpec("y", DType.FLOAT32, (100,))]) == 4 + 400 + 19
    assert estimated_bytes_per_row([TensorSpec("label", DType.STRING)]) > 50
