"""A worker refuses in one line whatever stands on its queue, and takes the next message; what is well formed passes."""

from __future__ import annotations

import base64
import binascii
import bz2
import json
import lzma
import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from amqp.exceptions import FrameSyntaxError
from celery import Celery, chain, chord
from kombu import compression

from inference.monitoring.queues import QueueHead
from inference.redis.clients import Client
from tasks.celery_app import make_celery
from tasks.echo import ask_queue
from tests.support import forged
from tests.support.flights import write_flights
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.stack import Stack
from tests.support.waiting import wait_for
from workers import redis_transport

pytestmark = [pytest.mark.integration, pytest.mark.slow]

QUEUES = {"gpu": "batch", "realtime": "realtime"}
_LINKED = '[celery]\nlinked_tasks = { "shop.save" = "shop" }\n'


class Deployment:
    """A batch and a real-time worker, with the broker's password in hand."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.broker = Client.from_url(stack.settings.broker_url)
        self.pids = {name: process.pid for name, process in stack.processes.items()}

    def put(self, worker: str, messages: Iterable[dict[str, Any] | str | bytes]) -> int:
        """Put messages on a worker's queue as they are; return how many."""
        texts = [one if isinstance(one, str | bytes) else json.dumps(one) for one in messages]
        for text in texts:
            self.broker.lpush(f"forecache:forecache.{QUEUES[worker]}", text)
        return len(texts)

    def assert_takes_the_next(self, worker: str) -> None:
        """Everything before was taken off the queue, by the process that was there, which now answers."""
        echo = forged.envelope("forecache.echo", kwargs={"text": "here"})
        self.put(worker, [echo])
        key = f"forecache:celery-task-meta-{echo['headers']['id']}"
        wait_for(lambda: self.broker.get(key), f"an answer of {worker}; its log ends: {self.log(worker)[-2000:]}", 60)
        assert self.stack.processes[worker].poll() is None
        assert self.stack.processes[worker].pid == self.pids[worker]
        wait_for(lambda: not self.broker.hlen("forecache:unacked"), "every message to be acknowledged", 30)

    def log(self, worker: str) -> str:
        return self.stack.log(worker)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("forged")
    with Stack(folder, _LINKED + write_flights(folder)) as stack:
        stack.start(*QUEUES)
        deployment = Deployment(stack)
        for worker in QUEUES:
            deployment.assert_takes_the_next(worker)
        with deployment.broker:
            yield deployment


@pytest.mark.parametrize("worker", QUEUES)
@pytest.mark.parametrize("kind", ["raw_rubbish", *forged.KINDS])
def test_a_worker_outlives_every_forged_message_and_tells_each_in_a_line(
    deployment: Deployment, worker: str, kind: str
) -> None:
    before = len(deployment.log(worker))
    count = deployment.put(worker, getattr(forged, kind)())

    deployment.assert_takes_the_next(worker)

    said = deployment.log(worker)[before:]
    lines = said.splitlines()
    assert said.count("message.refused") > count / 8
    assert "\x1b" not in said
    assert [line for line in lines if line.startswith(forged.LINE)] == []
    assert max(map(len, lines)) < 50_000  # a message of a megabyte makes no line of one
    assert len(said) < count * 10_000
    assert psutil.Process(deployment.pids[worker]).memory_info().rss < 2 << 30
    kept = {key for key in deployment.broker.scan_iter(count=1000) if not key.startswith(b"forecache:")}
    assert kept == set()


@pytest.mark.parametrize("worker", QUEUES)
def test_nothing_that_a_forged_link_names_is_sent(deployment: Deployment, worker: str) -> None:
    deployment.put(worker, forged.links())
    deployment.assert_takes_the_next(worker)
    assert deployment.broker.llen("forecache:shop") == 0
    assert list(deployment.broker.scan_iter("*shop*")) == []


@pytest.fixture(scope="module")
def shop(deployment: Deployment) -> Iterator[Celery]:
    """Another application, which has Forecache's broker and prefix."""
    app = make_celery(deployment.stack.settings, task_create_missing_queues=True, task_routes={})
    try:
        yield app
    finally:
        close(app)
        app.close()


def close(app: Celery) -> None:
    """Close a sender's connections; a result that is collected later has nothing left to unsubscribe."""
    consumer = app.backend.result_consumer
    consumer.subscribed_to.clear()
    consumer.stop()
    app.backend.client.close()


def saved(deployment: Deployment) -> list[Any]:
    """Take what arrived on the shop's queue: the arguments of each message."""
    found = []
    while (item := deployment.broker.rpop("forecache:shop")) is not None:
        message = json.loads(item)
        assert message["headers"]["task"] == "shop.save"
        found.append(json.loads(base64.b64decode(message["body"]))[0])
    return found


@pytest.mark.parametrize("worker", QUEUES)
def test_links_chains_and_chords_of_another_application_pass(deployment: Deployment, shop: Celery, worker: str) -> None:
    queue = {"queue": QUEUES[worker]}
    echo = shop.signature("forecache.echo", args=("linked",), options=queue)
    save = shop.signature("shop.save")

    echo.apply_async(link=[save], link_error=save)
    chain(echo, shop.signature("shop.save", queue="shop"), app=shop).apply_async()
    chord([echo, echo.clone()], save, app=shop).apply_async()

    arrived: list[Any] = []
    wait_for(lambda: arrived.extend(saved(deployment)) or len(arrived) >= 3, f"three messages, not {arrived}", 60)
    assert sorted(map(str, arrived)) == sorted(map(str, [["linked"], ["linked"], [["linked", "linked"]]]))
    deployment.assert_takes_the_next(worker)


def test_a_failed_task_tells_its_error_link(deployment: Deployment, shop: Celery) -> None:
    sent = shop.send_task("forecache.echo", args=(), queue="batch", link_error=shop.signature("shop.save"))
    arrived: list[Any] = []
    wait_for(lambda: arrived.extend(saved(deployment)) or arrived, "the error's link", 60)
    assert arrived == [[sent.id]]


def test_a_task_that_is_not_there_is_told_to_its_sender(shop: Celery) -> None:
    with pytest.raises(Exception, match=r"no\.such") as told:
        shop.send_task("no.such", queue="batch").get(timeout=60)
    assert type(told.value).__name__ == "NotRegistered"


@pytest.mark.parametrize("worker", QUEUES)
def test_remote_control_that_is_none_is_thrown_away(deployment: Deployment, shop: Celery, worker: str) -> None:
    before = len(deployment.log(worker))
    for channel in ("forecache:/0.forecache.pidbox", "/0.forecache.pidbox"):
        for rubbish in forged.raw_rubbish():
            deployment.broker.publish(channel, rubbish)
        for body in (7, [], "x", {}, {"method": "no-such"}, {"method": ["ping"]}, {"method": "ping", "arguments": 7},
                     {"method": "ping", "destination": 5}, {"method": "ping", "pattern": 5, "matcher": {}},
                     {"method": "ping", "arguments": {f"a\n{forged.LINE}": 1}}, {"method": "ping", "reply_to": "x"},
                     {"method": "x" * (1 << 20)}):  # fmt: skip
            deployment.broker.publish(channel, json.dumps(forged.envelope(body=body)))
        deployment.broker.publish(channel, json.dumps(forged.envelope(body={"method": "ping"}, clock="x")))
        deployment.broker.publish(channel, json.dumps(forged.envelope(body={"method": "ping"}, clock=10**40)))

    answers = shop.control.ping(timeout=10, limit=2)

    assert sorted(name.split("@")[0] for answer in answers for name in answer) == sorted(QUEUES)
    deployment.assert_takes_the_next(worker)
    said = deployment.log(worker)[before:]
    assert "control.refused" in said
    assert [line for line in said.splitlines() if line.startswith(forged.LINE)] == []
    assert len(said) < 1 << 20


def test_unacknowledged_messages_that_are_none_are_taken_away(deployment: Deployment, shop: Celery) -> None:
    good = json.dumps([forged.envelope("forecache.echo", kwargs={"text": "x"}), "forecache.batch", "forecache.batch"])
    entries = [*forged.raw_rubbish(), '"abc"', "[1, 2, 3]", "[{}, 1, 2]", json.dumps([forged.envelope(), 5, {}]), good]
    for entry in entries:
        tag = str(uuid.uuid4())
        deployment.broker.hset("forecache:unacked", tag, entry)
        deployment.broker.zadd("forecache:unacked_index", {tag: 1})
    # a worker looks at ten of them every ten seconds: here at all, by the same code
    stock = redis_transport.stock.loads
    try:
        redis_transport.stock.loads = redis_transport.load_envelope
        with shop.connection(transport="workers.redis_transport:Transport") as connection:
            qos = connection.channel().qos

            def is_over() -> bool:  # a worker may be looking just then
                qos.restore_visible(num=len(entries) + 10, interval=1)
                return not deployment.broker.hlen("forecache:unacked")

            wait_for(is_over, "nothing to be unacknowledged", 60)
    finally:
        redis_transport.stock.loads = stock
    deployment.assert_takes_the_next("gpu")


def test_a_worker_outlives_them_on_rabbitmq_too(tmp_path: Path) -> None:
    server = RabbitMQServer(tmp_path / "rabbitmq").start()
    try:
        (tmp_path / "stack").mkdir()
        with Stack(tmp_path / "stack", write_flights(tmp_path / "stack"), broker_url=server.url) as stack:
            stack.start("gpu")
            with make_celery(stack.settings) as app, app.connection() as connection, connection.channel() as channel:
                ask_queue(app, "batch", timeout_s=180, priority=0)
                sent = sum(publish(channel, message) for make in forged.KINDS.values() for message in make())
                ask_queue(app, "batch", timeout_s=180, priority=0)
                close(app)
            assert stack.processes["gpu"].poll() is None
            said = stack.log("gpu")
            assert said.count("message.refused") > sent / 2
            assert [line for line in said.splitlines() if line.startswith(forged.LINE)] == []
    finally:
        server.stop()


def publish(channel: Any, message: dict[str, Any]) -> bool:
    """Put a message on the batch queue; False for one that AMQP cannot carry, which is none then."""
    try:
        body = base64.b64decode(message["body"])
        made = channel.prepare_message(
            body, 0, message["content-type"], message["content-encoding"], message["headers"], {"correlation_id": "x"}
        )
        if len(str(message["headers"])) > 100_000:  # a frame holds 128 KiB
            return False
        channel.basic_publish(made, exchange="", routing_key="forecache.batch")
    except (binascii.Error, FrameSyntaxError, struct.error, OverflowError, UnicodeError, TypeError):
        return False
    return True


@pytest.mark.parametrize("make", [zlib.compress, bz2.compress, lzma.compress])
def test_a_body_is_unpacked_to_no_more_than_a_message_may_hold(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_transport, "MAX_MESSAGE_BYTES", 1000)
    for name in ("_encoders", "_decoders", "_aliases"):
        monkeypatch.setattr(compression, name, dict(getattr(compression, name)))
    redis_transport.bound_compression()
    alias = {zlib.compress: "gzip", bz2.compress: "bzip2", lzma.compress: "xz"}[make]

    assert compression.decompress(make(b"x" * 1000), alias) == b"x" * 1000
    with pytest.raises(ValueError, match="unpacks to over 1000 bytes"):
        compression.decompress(make(b"x" * 1001), alias)
    assert compression.decompress(*compression.compress(b"as before", alias)) == b"as before"


def test_what_stands_at_the_end_of_a_queue_is_read_without_trust() -> None:
    for text in (*forged.raw_rubbish(), json.dumps({"headers": {"forecache_sent_at": 10**400, "id": "x" * 9999}})):
        head = QueueHead.of_envelope(text.encode() if isinstance(text, str) else text)
        assert head.sent_at is None
        assert len(head.task_id) <= 200
