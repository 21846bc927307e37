"""doctor: the Redis servers and the broker."""

from __future__ import annotations

from typing import Any

import pytest

from app.cli.doctor.findings import Finding, Status
from app.cli.doctor.servers import Failure, Server, ask_server, check_broker, check_servers
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
        ({"redis_mode": "cluster"}, Status.ERROR, "it is a node of a cluster"),
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


def test_valkey_is_told_by_its_own_version() -> None:
    told = [one.detail for one in findings(server(redis_version="7.2.4", valkey_version="9.1.2"))]
    assert "answers; Valkey 9.1.2" in told


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


# --- the broker ---


def test_a_broker_that_refuses_is_an_error_that_holds_no_password() -> None:
    url = "amqp://user:hush@127.0.0.1:1//"
    (found,) = check_broker(Settings.model_validate({"celery": {"broker_url": url}}), results=None)  # type: ignore[arg-type]
    assert (found.status, found.subject) == (Status.ERROR, "127.0.0.1:1//")
    assert "hush" not in str(found)
    assert "Connection refused" in found.detail
