"""Whole deployments whose Redis is reached over a Unix socket, or by connections that fall silent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.redis.clients import Client
from tasks.dispatch.envelopes import LEVELS, list_key
from tests.support.deaf_proxy import deaf_proxy_in_thread
from tests.support.plain_models import Times, write_version
from tests.support.redis_server import RedisServer
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(300)]

#: a peer that falls silent is noticed within this time, and a little is left for a busy machine
NOTICED_S = 20.0
SLACK_S = 10.0


def write_model(folder: Path, *, schedule: str = "") -> str:
    """Write a model that doubles, with a table of fifty entities; return its settings."""
    (folder / "model").mkdir(parents=True)
    write_version(folder / "model", 1, Times(2.0))
    table = {"id": [f"e{number}" for number in range(50)], "x": pa.array(range(50), pa.float32())}
    pq.write_table(pa.table(table), folder / "t.parquet")
    batch = f'[models.m.batch]\nschedule = "{schedule}"\n' if schedule else ""
    return (
        '[models.m]\npath = "model"\nallow_code = true\nfeatures = "t.parquet"\nentity_column = "id"\n'
        f"[models.m.realtime]\ntimeout_ms = 5000\n{batch}"
    )


def compute(stack: Stack) -> Any:
    """Have a worker compute something that is stored nowhere; None when it could not."""
    answer = httpx.post(f"{stack.url}/v1/models/m:predict", json={"instances": [{"x": 4.0}]}, timeout=30)
    return answer.json()["predictions"] if answer.status_code == 200 else None


@pytest.fixture(
    params=["unix://{socket}?db={database}", "redis+socket://{socket}?virtual_host={database}"], ids=["unix", "celery"]
)
def over_a_socket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    with ExitStack() as on_exit:
        models = write_model(tmp_path)
        server = RedisServer(tmp_path / "server").start()
        on_exit.callback(server.stop)
        urls = [request.param.format(socket=server.socket, database=database) for database in (2, 3)]
        stack = on_exit.enter_context(Stack(tmp_path, models, url=urls[0], cache_url=urls[1]))
        stack.start("maintenance", "realtime", "gpu", "beat", "api", "dashboard")
        stack.wait_ready()
        yield stack


def test_over_a_unix_socket_everything_works_with_prefix_and_priorities(over_a_socket: Stack) -> None:
    stack = over_a_socket
    assert wait_for(lambda: compute(stack), "a computed answer") == [8.0]
    done = stack.cli("batch", "run", "m", "--wait")
    assert done.returncode == 0, done.stderr
    assert httpx.get(f"{stack.url}/predict/e3").json()["outcome"] == "hit_batch"
    doctor = stack.cli("doctor")
    assert " 0 wrong" in doctor.stdout or "wrong" not in doctor.stdout, doctor.stdout
    with Client.from_url(stack.settings.broker_url) as broker:
        assert broker.connection_pool.connection_kwargs["db"] == 2
        assert [key for key in broker.keys("*") if not key.startswith(b"forecache")] == []
        # without a worker, requests and jobs wait where the right ones are taken first
        stack.kill("realtime")
        stack.cli("enqueue", "e1")
        lists = [list_key("forecache:", "forecache.realtime", level) for level in LEVELS]
        assert [broker.llen(key) for key in lists] == [0, 0, 1, 0]
    for name in ("maintenance", "gpu", "beat", "api", "dashboard"):
        assert stack.processes[name].poll() is None
        assert "Traceback" not in stack.log(name)


def test_connections_that_fall_silent_are_noticed_by_every_process(tmp_path: Path) -> None:
    """As after the restart of a firewall: what is open stays open and passes nothing on, and new connections work."""
    with ExitStack() as on_exit:
        models = write_model(tmp_path, schedule="5s")
        server = RedisServer(tmp_path / "server").start()
        on_exit.callback(server.stop)
        proxy = on_exit.enter_context(deaf_proxy_in_thread(server.port))
        stack = on_exit.enter_context(Stack(tmp_path, models, url=f"redis://127.0.0.1:{proxy.port}/0"))
        stack.start("maintenance", "realtime", "gpu", "beat", "api", "dashboard")
        stack.wait_ready()
        wait_for(lambda: compute(stack), "a computed answer")
        wait_for(lambda: published(stack), "a first run")
        wait_for(lambda: flower_heard_s(stack) < 5, "word of the workers at Flower")

        proxy.fall_silent()
        silent_since = time.time()
        wait_for(lambda: compute(stack), "a computed answer", NOTICED_S)
        assert time.time() - silent_since < NOTICED_S + SLACK_S
        wait_for(lambda: published(stack, since=silent_since), "a run that beat started since", NOTICED_S)
        wait_for(lambda: flower_heard_s(stack) < 5, "word of the workers at Flower", NOTICED_S)
        wait_for(lambda: all_ready(stack), "signs of life", NOTICED_S)


def published(stack: Stack, since: float = 0.0) -> bool:
    runs = httpx.get(f"{stack.url}/runs", timeout=30).json()["runs"]
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since))
    return any(run["state"] == "published" and run["created_at"] > seconds for run in runs)


def flower_heard_s(stack: Stack) -> float:
    """Return for how many seconds Flower has not heard of the worker that it has not heard of for longest."""
    workers = httpx.get(f"{stack.dashboard_url}/workers?json=1", timeout=30).json()["data"]
    return max(time.time() - max(one["heartbeats"] or [0]) for one in workers) if len(workers) == 3 else 1e9


def all_ready(stack: Stack) -> bool:
    presence = stack.deployment.presence
    rosters = [presence.roster(queue) for queue in stack.settings.queues]
    return all(len(one.alive) == 1 and one.alive[0].ready for one in rosters)
