"""Streams with real listeners, killed and restarted: Redis streams, and Kafka by librdkafka's mock cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from inference.monitoring.presence import LISTENERS
from inference.settings import load_settings
from inference.streams.progress import StreamProgress
from tests.support.flights import write_flights
from tests.support.kafka_cluster import KafkaCluster
from tests.support.stack import ROOT, Stack, child_environment, run_cli_json
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(240)]

STREAM = "flights"
SETTINGS = """
[streams.flights]
stream = "flights"
recompute = "asked"
[streams.topic]
stream = "topic"
url = "kafka://{brokers}"
[streams.topic.options]
"session.timeout.ms" = "6000"
"heartbeat.interval.ms" = "500"
"topic.metadata.refresh.interval.ms" = "500"
"""
#: a listener to which one message is what a fault in a library's native code would be
KILLED_BY_A_MESSAGE = """
import os, signal
import orjson

loads = orjson.loads

def killed(text):
    if b'"b": 666' in text:
        os.kill(os.getpid(), signal.SIGKILL)
    return loads(text)

orjson.loads = killed

from app.cli import main

main()
"""
#: more than a batch holds
MANY = 6000


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaCluster]:
    with KafkaCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, kafka: KafkaCluster) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("streams")
    with Stack(folder, write_flights(folder) + SETTINGS.format(brokers=kafka.brokers)) as stack:
        stack.start("realtime", "api", "listen")
        stack.wait_ready()
        assert stack.cli("features", "load", "delay", "flights.parquet").returncode == 0
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[redis.Redis]:
    with redis.Redis(port=stack.redis.port, db=1) as client:
        yield client


def send(client: redis.Redis, *messages: Any) -> None:
    with client.pipeline(transaction=False) as pipe:
        for message in messages:
            pipe.xadd(STREAM, {"update": text(message)})
        pipe.execute()


def text(message: Any) -> bytes:
    return message if isinstance(message, bytes) else json.dumps(message).encode()


def update(entity_id: str, at: float | None = None, **features: Any) -> dict[str, Any]:
    time_of = {} if at is None else {"event_time": datetime.fromtimestamp(at, UTC).isoformat()}
    return {"entity_id": entity_id, "features": features, **time_of}


def progress(stack: Stack, name: str = "flights") -> StreamProgress:
    return stack.deployment.stream_progress(name)


def wait_handled(stack: Stack, count: int, name: str = "flights") -> dict[str, int]:
    """Wait until so many messages were handled; return their counts."""

    def handled() -> dict[str, int] | None:
        counts = dict(progress(stack, name).counts())
        return counts if sum(counts.values()) >= count else None

    return wait_for(handled, f"{count} messages of {name}", evidence=stack.evidence)


def features(stack: Stack, entity_id: str) -> dict[str, Any]:
    found: dict[str, Any] = run_cli_json(stack.folder, "features", "get", "delay", entity_id)["features"]
    return found


def predicted(stack: Stack, entity_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{stack.url}/predict/{entity_id}", timeout=10).json()
    return answer


def differences(stack: Stack, name: str = "flights") -> Callable[[], dict[str, int]]:
    """Return a function that tells how many messages were handled from now on."""
    before = progress(stack, name).counts()
    return lambda: {one: count - before[one] for one, count in progress(stack, name).counts().items()}


def test_messages_are_applied_or_named_with_their_reason(stack: Stack, client: redis.Redis) -> None:
    wait_for(lambda: "there is no stream 'flights'" in stack.log("listen"), "a word of it", evidence=stack.evidence)
    assert stack.deployment.forgetting.forget("delay", "F60").done
    secret = "of a forgotten one"
    send(
        client, update("F7", a=40), update("F8", time.time() - 1e6, a=99), b"{", update("F9", aa=3),
        update("F9", a="x"), update("new", b=1), update("F60", a=1) | {"features": {"a": 1, "b": secret}},
        update("F60", a=1), update("F9", a=1) | {"event_time": "2999-01-01T00:00:00Z"},
        b'{"entity_id": "F9", "features": {"a": 1}, "more": "' + b"x" * 10_000_000 + b'"}',
    )  # fmt: skip
    client.xadd(STREAM, {"entity_id": "F9", "a": "1"})
    counts = wait_handled(stack, 11)
    assert counts == {"applied": 1, "older": 1, "dead": 9}
    assert features(stack, "F7") == {"a": 40.0, "b": 1.0}
    assert features(stack, "F8") == {"a": 8.0, "b": 1.0}
    assert predicted(stack, "F7")["prediction"] == 41.0
    assert predicted(stack, "F60")["code"] == "forgotten"
    shown = run_cli_json(stack.folder, "streams", "flights", "--dead", "20")
    reasons = " | ".join(letter["reason"] for letter in reversed(shown["dead"]))
    for says in ("no JSON", "did you mean 'a'", "give a number", "are stored yet", "forgotten on request",
                 "in the future", "bytes: at most", "one field with a JSON object"):  # fmt: skip
        assert says in reasons
    assert "F60" not in json.dumps(shown["dead"])
    assert all(len(letter["message"] or "") < 5000 for letter in shown["dead"])


def test_kafka_s_messages_are_applied_and_its_bad_ones_named(stack: Stack, kafka: KafkaCluster) -> None:
    wait_for(lambda: "there is no topic 'topic'" in stack.log("listen"), "a word of it", evidence=stack.evidence)
    kafka.send("topic", text({"features": {"a": 50}}), key="F50")
    kafka.send("topic", text(update("F51", a=51)), b"{", None)
    assert wait_handled(stack, 4, "topic") == {"applied": 2, "older": 0, "dead": 2}
    assert (features(stack, "F50"), features(stack, "F51")) == ({"a": 50.0, "b": 1.0}, {"a": 51.0, "b": 1.0})
    assert {letter.reason.partition(":")[0] for letter in progress(stack, "topic").dead_letters()} == {
        "the message is empty", "the message is no JSON",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["flights", "topic"])
def test_a_listener_that_is_killed_in_mid_batch_loses_and_doubles_nothing(
    stack: Stack, client: redis.Redis, kafka: KafkaCluster, name: str
) -> None:
    handled = differences(stack, name)
    dead = len(progress(stack, name).dead_letters())
    messages = [text(update(f"F{n % 50}", time.time(), a=n)) for n in range(MANY)]
    messages[100] = b"bad"
    for start in range(0, MANY, 1000):
        if name == "topic":  # one partition keeps the order
            kafka.send("topic", *messages[start : start + 1000], key="one")
        else:
            send(client, *messages[start : start + 1000])
        if start in ((3000,) if name == "topic" else (1000, 3000)):  # Kafka waits for a dead member
            wait_for(lambda: sum(handled().values()) > 0, "the first ones", evidence=stack.evidence)
            stack.kill("listen")
            stack.start("listen")
    wait_for(lambda: sum(handled().values()) >= MANY, "all messages", evidence=stack.evidence)
    wait_for(lambda: features(stack, "F49")["a"] == MANY - 1, "the last one", evidence=stack.evidence)
    newest = [MANY - 50 + n for n in range(50)]
    assert [stack.deployment.features("delay").read([f"F{n}"])[0].values["a"] for n in range(50)] == newest  # type: ignore[union-attr]
    assert len(progress(stack, name).dead_letters()) == dead + 1
    wait_for(lambda: (lag := progress(stack, name).lag()) and lag.oldest_s == 0, "no lag", evidence=stack.evidence)


@pytest.mark.parametrize("name", ["flights", "topic"])
def test_a_message_that_kills_the_process_again_and_again_is_named_and_keeps_no_other_back(
    stack: Stack, client: redis.Redis, kafka: KafkaCluster, name: str
) -> None:
    stack.kill("listen")
    script = stack.folder / "listen_killed.py"
    script.write_text(KILLED_BY_A_MESSAGE)
    of_each = {one: differences(stack, one) for one in ("flights", "topic")}
    messages = [text(update(f"F{n % 50}", time.time(), a=n)) for n in range(200)]
    messages[120] = text(update("F1", b=666))
    deaths = -1

    def all_handled() -> bool:
        nonlocal deaths
        if "listen" not in stack.processes or stack.processes["listen"].poll() is not None:
            deaths += 1
            # messages of another stream, which are in hand beside the one that kills
            both = {"flights": [text(update("F2", b=deaths))] * 20, "topic": [text(update("F3", b=deaths))] * 20}
            both[name] = messages if deaths == 0 else []
            send(client, *both["flights"])
            kafka.send("topic", *both["topic"], key="one")
            stack.start("listen", script=script)
        return all(sum(of_each[one]().values()) >= (200 if one == name else 20 * deaths) for one in of_each)

    wait_for(lambda: all_handled() and deaths >= 4, "all messages", 150, evidence=stack.evidence)
    assert deaths == 4
    assert {one: count()["dead"] for one, count in of_each.items()} == {one: int(one == name) for one in of_each}
    letter = progress(stack, name).dead_letters()[0]
    assert "process ended 4 times while it had this message in hand" in letter.reason
    assert json.loads(letter.message or "")["features"] == {"b": 666}
    assert [features(stack, f"F{n}")["a"] for n in (0, 19, 20, 49)] == [150, 169, 170, 199]
    stack.kill("listen")
    stack.start("listen")


def test_two_listeners_share_the_work_and_one_that_is_gone_is_missed_by_nobody(
    stack: Stack, client: redis.Redis
) -> None:
    listeners = ("listen", "listen-2")
    stack.start("listen-2")
    wait_for(lambda: "listen.ready" in stack.log("listen-2"), "the second one")
    handled = differences(stack)
    sent = 0

    def both_worked() -> bool:
        nonlocal sent
        send(client, *(update(f"F{n % 50}", a=n) for n in range(500)))
        sent += 500
        consumers = client.xinfo_consumers(STREAM, "forecache")
        return {one["name"].decode().split(":")[1] for one in consumers if one["idle"] < 10_000} == set(listeners)

    wait_for(both_worked, "both to work")
    wait_for(lambda: sum(handled().values()) >= sent, "all messages", evidence=stack.evidence)
    assert sum(handled().values()) == sent, "each by one of them"
    stack.kill("listen-2")
    send(client, update("F1", a=-1))
    wait_for(lambda: features(stack, "F1")["a"] == -1, "the other one", evidence=stack.evidence)


def test_redis_that_dies_in_mid_batch_and_comes_back_has_all_of_it(stack: Stack, client: redis.Redis) -> None:
    handled = differences(stack)
    send(client, *(update(f"F{n % 50}", a=n) for n in range(MANY)))
    wait_for(lambda: sum(handled().values()) > 0, "the first ones", evidence=stack.evidence)
    stack.redis.kill()
    stack.redis.start()
    wait_for(lambda: features(stack, "F49")["a"] == MANY - 1, "the last one", evidence=stack.evidence)
    assert "Traceback" not in stack.log("listen")


def test_a_group_that_is_deleted_is_made_anew_and_changes_nothing(stack: Stack, client: redis.Redis) -> None:
    before, dead = features(stack, "F7"), len(progress(stack).dead_letters())
    client.xgroup_destroy(STREAM, "forecache")
    send(client, update("F3", a=-3))
    wait_for(lambda: features(stack, "F3")["a"] == -3, "the message", evidence=stack.evidence)
    assert features(stack, "F7") == before
    assert len(progress(stack).dead_letters()) == dead, "none is there twice"


def test_hot_entities_are_computed_anew_before_anybody_asks(stack: Stack, client: redis.Redis) -> None:
    assert predicted(stack, "F7")["outcome"]

    def computed() -> bool:
        send(client, update("F7", a=170))
        [entry] = stack.deployment.predictions("delay").read(["F7"])
        return entry is not None and not entry.outdated and 171.0 in entry.values.values()

    # the filters are read every half minute
    wait_for(computed, "the new prediction", evidence=stack.evidence)


def test_metrics_and_doctor_tell_of_streams(stack: Stack) -> None:
    lines = (
        'forecache_stream_messages_total{outcome="applied",stream="topic"}', "forecache_stream_listeners 1.0",
        'forecache_stream_lag_messages{stream="flights"} 0.0', 'forecache_stream_lag_seconds{stream="flights"} 0.0',
    )  # fmt: skip
    # the lag is told every two seconds
    wait_for(lambda: all(line in httpx.get(f"{stack.url}/metrics").text for line in lines), "the metrics")
    findings = {one["subject"]: one for one in json.loads(stack.cli("doctor", "--json").stdout)}
    assert findings["flights"]["status"] == findings["topic"]["status"] == "ok"


def test_the_page_s_messages_and_commands_do_what_it_says(stack: Stack, kafka: KafkaCluster) -> None:
    page = (ROOT / "docs" / "streams.md").read_text()
    here = {
        "redis://127.0.0.1:6379/1": stack.redis.url(1), "kafka-1:9092,kafka-2:9092": kafka.brokers,
        "weather-by-flight": "topic", "localhost:8000": stack.url.removeprefix("http://"), "FL-": "F",
        '"distance"': '"a"', '"load"': '"b"',
    }  # fmt: skip
    for word, own in here.items():
        assert word in page
        page = page.replace(word, own)
    for code in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    wait_for(lambda: features(stack, "F7")["a"] == 800, "the entry", evidence=stack.evidence)
    wait_for(lambda: features(stack, "F9")["b"] == pytest.approx(0.7), "the message", evidence=stack.evidence)
    commands = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0].splitlines()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    told = [
        subprocess.run(
            line, shell=True, cwd=stack.folder, env=child_environment() | {"PATH": path}, check=True, text=True,
            stdout=subprocess.PIPE, timeout=60,
        ).stdout
        for line in commands
    ]  # fmt: skip
    assert "give a number" in told[0]
    assert json.loads(told[1])["prediction"] == 801


def test_the_page_s_settings_are_good(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "streams.md").read_text()
    blocks = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "forecache.toml").write_text('[models.delay]\npath = "model"\n' + "\n".join(blocks))
    assert list(load_settings(tmp_path / "forecache.toml").streams) == ["flights", "weather", "orders", "clicks"]


def test_it_ends_when_it_is_asked_to(stack: Stack) -> None:
    process = stack.processes["listen"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    names = {beat.name.partition("@")[0] for beat in stack.deployment.presence.roster(LISTENERS).alive}
    assert "listen" not in names, "it has said farewell"
