"""What somebody who reaches the broker or the API may try: forged messages, and text made to forge log lines."""

from __future__ import annotations

import json
import pickle
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import kombu
import psutil
import pytest

from tasks.celery_app import make_celery
from tests.support.flights import write_flights
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.proof,))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("forged")
    with Stack(folder, write_flights(folder)) as stack:
        stack.start("realtime", "gpu", "maintenance", "api")
        stack.wait_ready()
        assert stack.cli("features", "load", "delay", "flights.parquet").returncode == 0
        wait_for(lambda: computes(stack), "the first computed prediction", 40)
        yield stack


def computes(stack: Stack) -> bool:
    asked = {"max_staleness_hours": 0, "timeout_ms": 2000}
    answer = httpx.get(f"{stack.url}/predict/F1", params=asked)
    return answer.status_code == 200 and answer.json()["outcome"] == "computed"


def send(stack: Stack, queue: str, body: bytes, **properties: Any) -> None:
    """Put a message of any content on a queue of the deployment."""
    with kombu.Connection(stack.settings.broker_url, transport_options=options(stack)) as connection:
        producer = kombu.Producer(connection)
        name = f"forecache.{queue}"
        declared = kombu.Queue(name, kombu.Exchange(name, type="direct"), routing_key=name)
        producer.publish(
            body, exchange=name, routing_key=name, declare=[declared], **{"content_encoding": "utf-8"} | properties
        )


def options(stack: Stack) -> dict[str, Any]:
    return dict(make_celery(stack.settings).conf.broker_transport_options)


def celery_message(task: str, **kwargs: Any) -> dict[str, Any]:
    body = json.dumps([[], kwargs, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()
    return {
        "body": body,
        "content_type": "application/json",
        "headers": {"lang": "py", "task": task, "id": "forged", "root_id": "forged", "retries": 0},
        "correlation_id": "forged",
    }


def workers(stack: Stack) -> dict[str, int]:
    names = ("realtime", "gpu", "maintenance")
    return {name: stack.processes[name].pid for name in names if stack.processes[name].poll() is None}


def is_drained(stack: Stack, queue: str) -> bool:
    with kombu.Connection(stack.settings.broker_url, transport_options=options(stack)) as connection:
        channel = connection.channel()
        try:
            return channel._size(f"forecache.{queue}") == 0
        finally:
            channel.close()


QUEUES = {"realtime": "realtime", "batch": "gpu", "maintenance": "maintenance"}


@pytest.mark.parametrize("queue", QUEUES)
def test_forged_messages_are_thrown_away_run_nothing_and_harm_no_worker(
    stack: Stack, queue: str, tmp_path: Path
) -> None:
    before = workers(stack)
    proof = tmp_path / "ran"
    headers = celery_message("forecache.predict_entities")["headers"]
    send(stack, queue, **celery_message("os.system", command=f"touch {proof}"))
    send(stack, queue, **celery_message("celery.backend_cleanup", x=1))
    send(stack, queue, pickle.dumps(Payload(proof)), content_type="application/x-python-serialize", headers=headers)
    send(stack, queue, pickle.dumps(Payload(proof)), content_type="application/json", content_encoding="binary",
         headers=headers)  # fmt: skip
    send(stack, queue, b"not json", content_type="application/json", headers=headers)
    send(stack, queue, b'"just text"', content_type="application/json", headers=headers)
    send(stack, queue, b"[1, 2, 3]", content_type="application/json", headers=headers)
    send(stack, queue, b"[[], {}, {}]", content_type="application/json", headers={**headers, "task": ["a list"]})
    send(stack, queue, b"[[], {}, {}]", content_type="application/json", headers={**headers, "timelimit": 7})
    send(stack, queue, b"[[], {}, {}]", content_type="application/json", headers={**headers, "eta": {"a": 1}})
    send(stack, queue, b"[[], {}, {}]", content_type="application/json", headers={"task": "forecache.reconcile"})
    send(stack, queue, b"no celery message", content_type="text/plain")
    for wrong in ({"entity_ids": 7}, {"entity_ids": ["F1"], "model": "../../etc"}, {"entity_ids": ["\x1b[31m"]},
                  {"entity_ids": ["F1"], "unheard_of": 1}, {"entity_ids": ["x" * 1000] * 5000}):  # fmt: skip
        send(stack, queue, **celery_message("forecache.predict_entities", **wrong))
    send(stack, queue, **celery_message("forecache.score_chunk", run_id="../x", chunk_number=-1))

    wait_for(lambda: is_drained(stack, queue), f"the queue {queue} to be empty", 30)
    wait_for(lambda: computes(stack), "answers as before", 30)
    time.sleep(1)  # a message that loops would come back now
    assert is_drained(stack, queue)
    assert workers(stack) == before
    assert all(psutil.pid_exists(pid) for pid in before.values())
    assert not proof.exists()


def test_nobody_writes_lines_of_their_own_into_a_log(stack: Stack) -> None:
    forged = "12:00:00 [error] forged.line"
    raw_requests = [
        f"GET /predict/F1%0A{forged.replace(' ', '%20')} HTTP/1.1\r\nHost: localhost\r\n",
        "GET /predict/F1%1B[2J%1B[31m HTTP/1.1\r\nHost: localhost\r\n",
        f"GET /predict/F1?model=a%0d%0a{forged.replace(' ', '+')} HTTP/1.1\r\nHost: localhost\r\n",
        "GET /nowhere/%0a%1b]0;title%07 HTTP/1.1\r\nHost: localhost\r\n",
        f"GET /predict/F1 HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: a\x1b[31m{forged}\r\nUser-Agent: \x1b[2J\r\n",
    ]
    for head in raw_requests:
        with socket.create_connection(("127.0.0.1", stack.api_port), 10) as plain:
            plain.sendall(f"{head}Connection: close\r\n\r\n".encode("latin-1"))
            assert plain.recv(100).startswith(b"HTTP/1.1 ")
    body = {"entity_ids": [f"F1\n{forged}", "\x1b[31mred"], "max_staleness_hours": 0}
    assert httpx.post(f"{stack.url}/predict", json=body).status_code in (200, 400)
    for queue in QUEUES:
        send(stack, queue, **celery_message(f"x\n{forged}", a=f"\n{forged}"))
        send(stack, queue, f"\n{forged}\x1b[31m".encode(), content_type="text/plain")
    for queue in QUEUES:
        wait_for(lambda queue=queue: is_drained(stack, queue), f"the queue {queue} to be empty", 30)
    wait_for(lambda: computes(stack), "answers as before", 30)

    for name in ("api", *QUEUES.values()):
        log = stack.log(name)
        assert "\x1b" not in log, name
        # the line of Celery that it does not know a task quotes it, on a line that begins as it should
        assert [line for line in log.splitlines() if re.match(r"12:00:00 \[error\] forged", line)] == [], name
