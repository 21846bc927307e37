"""Streams: updates of features a second that one listener stores, and how soon an answer is computed from one.

Beside a bare loop that reads the same messages with XREADGROUP, decodes and acknowledges them, and stores nothing, and
beside the same updates by HTTP, 1 000 in a request.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import hiredis
import httpx
import numpy as np
import orjson
import psutil
import redis
from rig.cpu import cpu_s
from rig.dataset import entity_id, make_dataset
from rig.report import print_report
from rig.stack import Stack, temporary_folder, wait_until

STREAM, GROUP = "updates", "forecache"
NAMES = ("f00", "f01", "f02", "f03")
#: commands of one pipeline of the writer
PIECE = 5000
TICK_S = 0.01


def main() -> None:
    """Measure and print."""
    options = _options()
    with temporary_folder() as folder:
        dataset = make_dataset(folder, options.entities)
        with Stack(folder / "stack", dataset) as stack:
            with stack.settings_file.open("a") as settings:
                settings.write(f'[streams.bench]\nstream = "{STREAM}"\n')
            stack.start_workers("realtime")
            stack.start_api()
            stack.forecache("features", "load", str(dataset.table))
            figures = measure(stack, options)
    rows = [
        ("a listener, stored", figures["updates_per_s"], figures["cpu_us"], figures["redis_cpu_us"]),
        ("bare XREADGROUP loop, nothing stored", figures["bare_per_s"], None, None),
        ("PUT /features, 1 000 a request, stored", figures["http_per_s"], None, None),
        (f"at {figures['fresh_rate']:,}/s: written to fresh answer, p50 / p99 ms",
         f"{figures['fresh_p50_ms']} / {figures['fresh_p99_ms']}", None, None),
    ]  # fmt: skip
    heads = ["", "updates/s", "CPU µs, listener", "CPU µs, Redis"]
    title = f"Streams: {options.messages:,} updates of {len(NAMES)} of 32 features, {options.entities:,} entities"
    print_report(title, heads, rows, figures, as_json=options.json)


def measure(stack: Stack, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures."""
    with stack.client() as client:
        _write(client, options)
        figures = _stored(stack, client, options)
        figures["bare_per_s"] = round(_bare(client, options.messages))
        figures["http_per_s"] = round(_by_http(stack, options))
        return figures | _fresh(stack, client, max(1, figures["updates_per_s"] // 10), options)


def _stored(stack: Stack, client: redis.Redis, options: argparse.Namespace) -> dict[str, Any]:
    progress = stack.deployment.stream_progress("bench")
    applied = lambda: progress.counts()["applied"]  # noqa: E731
    listener = stack.start_listener()
    wait_until(lambda: applied() > 0, "the listener")
    before, started = applied(), time.perf_counter()
    cpu, redis_cpu = cpu_s(listener), _redis_cpu(client)
    wait_until(lambda: not _sleep(0.02) and sum(progress.counts().values()) >= options.messages, "all updates")
    took_s = time.perf_counter() - started
    stored = applied() - before
    if progress.counts()["dead"]:
        raise SystemExit(f"dead letters: {progress.dead_letters(3)}")
    return {
        "updates_per_s": round(stored / took_s),
        "cpu_us": round((cpu_s(listener) - cpu) / stored * 1e6, 1),
        "redis_cpu_us": round((_redis_cpu(client) - redis_cpu) / stored * 1e6, 1),
        "listener_rss_mb": round(psutil.Process(listener).memory_info().rss / 1e6),
    }


def _bare(client: redis.Redis, messages: int) -> float:
    client.xgroup_create(STREAM, "bare", "0")
    started, seen = time.perf_counter(), 0
    while seen < messages:
        [[_, entries]] = _pairs(client.xreadgroup("bare", "me", {STREAM: ">"}, count=2000))
        for _, fields in entries:
            orjson.loads(fields[b"update"])
        client.xack(STREAM, "bare", *(one for one, _ in entries))
        seen += len(entries)
    return seen / (time.perf_counter() - started)


def _pairs(reply: Any) -> list[Any]:
    return [[name, entries[0]] for name, entries in reply.items()] if isinstance(reply, dict) else reply


def _by_http(stack: Stack, options: argparse.Namespace) -> float:
    numbers = np.random.default_rng(2)
    bodies = [
        orjson.dumps({"items": [orjson.loads(_message(row)) for row in rows]})
        for rows in (numbers.choice(options.entities, 1000, replace=False) for _ in range(options.messages // 10_000))
    ]
    with httpx.Client(base_url=stack.url, headers={"content-type": "application/json"}, timeout=30) as http:
        started = time.perf_counter()
        for body in bodies:
            http.put("/features", content=body).raise_for_status()
        return 1000 * len(bodies) / (time.perf_counter() - started)


def _fresh(stack: Stack, client: redis.Redis, rate: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return how long it takes from a message to an answer of other value, while others come at a held rate."""
    # of other entities, so that only the probe's own message changes its answer
    probed = range(options.entities // 2)
    took_ms = []
    with _paced_writer(stack, rate, range(options.entities // 2, options.entities)), httpx.Client() as http:
        for probe in range(options.probes):
            name = entity_id(probed[probe])
            url = f"{stack.url}/predict/{name}"
            before = http.get(url).raise_for_status().json()["prediction"]
            started = time.perf_counter()
            client.xadd(STREAM, {"update": _message(probed[probe], value=9.0 + probe)})
            while http.get(url).raise_for_status().json()["prediction"] == before:
                if time.perf_counter() - started > 10:
                    raise SystemExit(f"the answer of {name} does not change: {stack.last_logs()}")
            took_ms.append((time.perf_counter() - started) * 1000)
    p50, p99 = np.percentile(took_ms, [50, 99]).tolist()
    return {"fresh_rate": rate, "fresh_p50_ms": round(p50, 1), "fresh_p99_ms": round(p99, 1)}


@contextmanager
def _paced_writer(stack: Stack, rate: int, rows: range) -> Iterator[None]:
    """Write messages at a held rate during the block."""
    ended = threading.Event()

    def write() -> None:
        numbers = np.random.default_rng(3)
        count = max(1, round(rate * TICK_S))
        with stack.client() as client:
            due = time.perf_counter()
            while not ended.is_set():
                with client.pipeline(transaction=False) as pipe:
                    for row in numbers.choice(rows, count).tolist():
                        pipe.xadd(STREAM, {"update": _message(row)}, maxlen=200_000)
                    pipe.execute()
                due += TICK_S
                time.sleep(max(0.0, due - time.perf_counter()))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _write(client: redis.Redis, options: argparse.Namespace) -> None:
    """Write the messages of all entities in turn, in random order."""
    client.delete(STREAM)
    connection = redis.Connection(**client.connection_pool.connection_kwargs)
    connection.connect()
    numbers = np.random.default_rng(1)
    for start in range(0, options.messages, PIECE):
        rows = numbers.integers(0, options.entities, min(PIECE, options.messages - start)).tolist()
        packed = [hiredis.pack_command(("XADD", STREAM, "*", "update", _message(row))) for row in rows]
        connection.send_packed_command([b"".join(packed)])
        for _ in packed:
            connection.read_response()
    connection.disconnect()


def _message(row: int, value: float = 0.5) -> bytes:
    now = datetime.now(UTC).isoformat()
    return orjson.dumps({"entity_id": entity_id(row), "features": dict.fromkeys(NAMES, value), "event_time": now})


def _redis_cpu(client: redis.Redis) -> float:
    info: Any = client.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=400_000)
    parser.add_argument("--entities", type=int, default=100_000)
    parser.add_argument("--probes", type=int, default=500, help="messages whose way to an answer is timed")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
