"""A process that was taken over has its Redis user's rights: what each user of docker/redis/users.acl must not do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from inference.batch import RunState
from inference.batch.ledger import Ledger
from inference.batch.records import Chunk
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.sources import Slice
from tests.support.local_reader import Published
from tests.support.redis_server import RedisServer, find_redis_binary
from tests.support.stack import ROOT

pytestmark = pytest.mark.integration

PASSWORD = "aPassword1"
PROCESSES = ("api", "worker", "dashboard", "reader")
RUN = "delay-20260101T000000-abcdef"
SCRIPT = "return redis.call('SET', KEYS[1], ARGV[1])"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("roles"), binary=find_redis_binary(7))
    rules = [line for line in (ROOT / "docker/redis/users.acl").read_text().splitlines() if line.startswith("user ")]
    try:
        server.start()
        with redis.Redis(port=server.port) as admin:
            admin.set("somebody-elses", "1")
            for rule in sorted(rules, reverse=True):  # `default off` last
                admin.execute_command("ACL", "SETUSER", *rule.replace("PASSWORD", PASSWORD).split()[1:])
        yield server
    finally:
        server.stop()


def as_role(server: RedisServer, role: str, kind: type[redis.Redis] = redis.Redis) -> Any:
    return kind(port=server.port, username=f"forecache-{role}", password=PASSWORD, retry=None)


def assert_denied(client: redis.Redis, *words: str) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*words)


@pytest.mark.parametrize("role", [*PROCESSES, "admin"])
def test_no_role_touches_other_keys_or_the_server(server: RedisServer, role: str) -> None:
    with as_role(server, role) as client:
        for words in (
            ("GET", "somebody-elses"), ("SET", "somebody-elses", "1"), ("EVAL", SCRIPT, "1", "somebody-elses", "1"),
            ("COPY", "forecache:x", "somebody-elses"), ("RENAME", "forecache:h:x", "somebody-elses"),
            ("FLUSHALL",), ("FLUSHDB",), ("SWAPDB", "0", "1"), ("CONFIG", "SET", "dir", "/"), ("SHUTDOWN",), ("SAVE",),
            ("ACL", "SETUSER", "me", "on"), ("ACL", "LIST"), ("REPLICAOF", "127.0.0.1", "1"), ("MODULE", "LIST"),
            ("MONITOR",), ("CLIENT", "KILL", "ID", "1"), ("CLIENT", "PAUSE", "1"),
            ("SCRIPT", "FLUSH"), ("SCRIPT", "KILL"), ("FUNCTION", "FLUSH"), ("KEYS", "*"),
            ("MIGRATE", "127.0.0.1", "1", "forecache:x", "0", "1"), ("RESTORE", "forecache:x", "0", "x"),
        ):  # fmt: skip
            assert_denied(client, *words)
        # nor by a script that does not say which keys it touches
        with pytest.raises(redis.ResponseError, match="can't access"):
            client.eval("return redis.call('GET', 'somebody-elses')", 0)


@pytest.mark.parametrize("role", PROCESSES)
def test_no_process_learns_the_names_of_other_keys(server: RedisServer, role: str) -> None:
    with as_role(server, role) as client:
        for words in (("SCAN", "0"), ("RANDOMKEY",), ("DBSIZE",), ("PUBSUB", "CHANNELS"), ("CONFIG", "GET", "*"),
                      ("CLIENT", "TRACKING", "ON", "BCAST"), ("CLIENT", "LIST")):  # fmt: skip
            assert_denied(client, *words)


#: what workers act on: plans, rows, versions
PROTECTED = (
    f"forecache:r:{RUN}:plan", "forecache:r:x:plan", "forecache:p:delay:g:1:{0}", "forecache:p:delay:g:12:{345}",
    "forecache:f:delay:g:1:{0}", "forecache:m:delay:record", "forecache:m:delay:micro", "forecache:m:delay:answers",
    "forecache:m:delay:loads", "forecache:p:delay:seq", f"forecache:r:{RUN}:driver", "forecache:doctor:x",
    "forecache:r:../../x",    "forecache:redbeat::schedule", "forecache:redbeat:x",
)  # fmt: skip


@pytest.mark.parametrize("role", ["api", "dashboard"])
@pytest.mark.parametrize("key", PROTECTED)
def test_what_workers_act_on_is_written_by_workers_only(server: RedisServer, role: str, key: str) -> None:
    with as_role(server, role) as client:
        for words in (("SET", key, "x"), ("HSET", key, "f0", "x"), ("DEL", key), ("ZADD", key, "1", "x"),
                      ("EVAL", SCRIPT, "1", key, "x"), ("RENAME", "forecache:h:x", key),
                      ("EXPIRE", key, "1")):  # fmt: skip
            assert_denied(client, *words)
        client.exists(key)  # it may read


@pytest.mark.parametrize("role", ["api", "dashboard"])
def test_runs_are_asked_for_cancelled_and_taken_up_again_without_the_right_to_write_their_plans(
    server: RedisServer, role: str
) -> None:
    with as_role(server, role, Client) as client, as_role(server, "worker", Client) as of_worker:
        asking, working = (Ledger(one, Keys("forecache")) for one in (client, of_worker))
        run_id = f"{role}-20260101T000000-abcdef"
        asking.plans.keep_entities(run_id, b"packed")
        asking.request(run_id, role, {"trigger": "api", "source": "s"})
        run = asking.load(run_id)
        working.plans.write(run_id, [Chunk(0, (Slice(0, 0, 0, 10),))])
        working.move(run, RunState.RUNNING, expected=[RunState.QUEUED], chunks_total=1)
        assert working.dispatch(run_id, max_in_flight=1).chunks == (0,)

        asking.move(run, RunState.CANCELLED, expected=[RunState.RUNNING])
        asking.reopen(run, RunState.RUNNING, expected=[RunState.CANCELLED])

        assert working.dispatch(run_id, max_in_flight=1).chunks == (0,)
        assert asking.plans.chunk(run_id, 0) is not None
        with asking.lock(role):
            pass
        asking.move(run, RunState.CANCELLED, expected=[RunState.RUNNING])


def test_the_api_gives_no_message_back_to_a_queue(server: RedisServer) -> None:
    with as_role(server, "api") as client:
        for key in ("forecache:unacked", "forecache:unacked_index", "forecache:unacked_mutex"):
            for words in (("SET", key, "x"), ("HSET", key, "x", "x"), ("ZADD", key, "1", "x"), ("DEL", key)):
                assert_denied(client, *words)


def test_the_api_sends_no_remote_control_and_no_results_of_others_channels(server: RedisServer) -> None:
    with as_role(server, "api") as client:
        for channel in ("/0.forecache.pidbox", "forecache:/0.forecache.pidbox", "forecache:celery-task-meta-x"):
            assert_denied(client, "PUBLISH", channel, "{}")
            assert_denied(client, "SPUBLISH", channel, "{}")
            with pytest.raises(redis.ResponseError):
                client.eval("return redis.call('PUBLISH', ARGV[1], '{}')", 0, channel)


def test_the_dashboard_writes_no_predictions_features_jobs_or_results(server: RedisServer) -> None:
    with as_role(server, "dashboard") as client:
        for key in ("forecache:p:delay:o:F1", "forecache:f:delay:o:F1", "forecache:f:delay:u:g:o:F1", "forecache:j:x",
                    "forecache:i:x", "forecache:jobs", "forecache:h:delay:1", "forecache:celery-task-meta-x",
                    "forecache:w:gpu", "forecache:q:batch", "forecache:p:delay:schemas"):  # fmt: skip
            for words in (("SET", key, "x"), ("DEL", key)):
                assert_denied(client, *words)


def test_a_reader_reads_predictions_and_writes_counters_only(server: RedisServer, tmp_path: Path) -> None:
    url = f"redis://forecache-%s:{PASSWORD}@127.0.0.1:{server.port}/0"
    published = Published(tmp_path, url % "worker")
    published.publish(1.0)
    published.client.close()
    with redis.Redis(port=server.port, username="forecache-admin", password=PASSWORD) as admin:
        with Published(tmp_path, url % "reader").reader() as reader:
            reader.wait_ready()
            assert reader.get("e1") is not None
        assert admin.hget("forecache:h:delay:total", "hit_batch") == b"1"
        assert [one for one in admin.acl_log() if one["username"] == "forecache-reader"] == []
    with as_role(server, "reader") as client:
        for key in (*PROTECTED, "forecache:p:delay:pointer", "forecache:p:delay:o:F1", "forecache:j:x"):
            for words in (
                ("SET", key, "x"),
                ("HSET", key, "current", "1"),
                ("DEL", key),
                ("EVAL", SCRIPT, "1", key, "x"),
            ):
                assert_denied(client, *words)
        for key in ("forecache:f:delay:g:1:{0}", "forecache:p:delay:o:F1", "forecache:j:x", "forecache:r:x"):
            assert_denied(client, "TYPE", key)


def test_each_role_may_do_its_work(server: RedisServer) -> None:
    allowed = {
        "api": (f"forecache:r:{RUN}", f"forecache:r:{RUN}:entities", "forecache:m:delay:active_run", "forecache:j:x",
                "forecache:p:delay:pointer", "forecache:p:delay:g:12", "forecache:p:delay:o:F1", "forecache:h:delay:1",
                "forecache:forecache.batch", "forecache:celery-task-meta-x", "forecache:w:api"),
        "dashboard": (f"forecache:r:{RUN}", "forecache:m:delay:slots", "forecache:p:delay:pointer",
                      "forecache:forecache.maintenance", "forecache:x.reply.forecache.pidbox"),
        "worker": PROTECTED,
        "admin": PROTECTED,
    }  # fmt: skip
    for role, keys in allowed.items():
        with as_role(server, role) as client:
            for key in keys:
                assert client.eval(SCRIPT, 1, key, "x") == b"OK", (role, key)
                assert client.delete(key) == 1


def test_nobody_gets_in_without_a_password_but_to_ask_whether_the_server_lives(server: RedisServer) -> None:
    with redis.Redis(port=server.port, retry=None) as nobody, pytest.raises(redis.AuthenticationError):
        nobody.get("forecache:x")
    with redis.Redis(port=server.port, username="health", password="any", retry=None) as health:
        assert health.ping()
        for words in (("GET", "forecache:x"), ("INFO",), ("SUBSCRIBE", "x")):
            assert_denied(health, *words)
