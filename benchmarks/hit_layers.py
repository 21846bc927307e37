"""What a hit costs by layer, in microseconds of the API's CPU time, so that other work on the machine matters little.

The layers in Python are run by themselves, over what Redis really answers; the system's share is what the served API
takes beyond them.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, ClassVar

import hiredis
import numpy as np
import pyarrow as pa
import uvloop
from rig.cpu import cpu_s
from rig.dataset import Dataset, entity_id
from rig.report import print_report
from rig.stack import MODEL, Stack, temporary_folder
from rig.wrk import Target, load
from uvicorn.server import ServerState

from app.api import connections
from app.api.access import AccessControl
from app.api.connections import Connection
from app.api.drain import Drain
from app.api.hot_path import HotRequest
from app.api.limits import ConnectionLimit
from app.api.server import configure
from inference.clock import system_clock
from inference.deployment import Deployment
from inference.monitoring.counters import HitRecorder
from inference.outcomes import Outcome
from inference.redis.clients import AsyncClient
from inference.redis.keys import TableKind
from inference.schema import DType, TensorSpec
from inference.serving import PredictionService
from inference.serving.answers import Answer, FreshnessRules, answer_stored
from inference.settings import Settings
from inference.store import Entry
from inference.store.reading import ReaderMemory, plan_read

ROWS = 200_000
#: look-ups that share a read under 32 connections
TURN = 20
TURNS = 1_500
REPEATS = 5

HTTP = "HTTP: parsing, keep-alive, the reply"
TOGETHER = "look-up and answer, together"


def main() -> None:
    """Measure each layer, then the served API, and print what is left for the system."""
    options = _options()
    with temporary_folder() as folder, Stack(folder, Dataset(folder, ROWS)) as stack:
        publish(stack)
        layers = uvloop.run(measure_layers(stack))
        stack.start_api()
        served_us, _ = measure_served(stack, options.seconds)
    in_python = layers[HTTP] + layers.pop(TOGETHER)
    layers["between the parts: callbacks, checks, task and timer of a read"] = in_python - sum(layers.values())
    layers["system: event loop, sockets, scheduling"] = served_us - in_python
    figures = {"turn": TURN, "served_us": round(served_us, 1), "layers": {k: round(v, 2) for k, v in layers.items()}}
    rows = [*layers.items(), ("all", served_us)]
    print_report(f"CPU time of a hit, {TURN} look-ups a read", ["", "µs"], rows, figures, as_json=options.json)


def publish(stack: Stack) -> None:
    """Publish a generation of random predictions; no worker is needed for a hit."""
    table = stack.deployment.predictions(MODEL)
    fields = [TensorSpec("prediction", DType.FLOAT32)]
    new = table.generations.begin(fields, rows_expected=ROWS, model_version=1, contract_hash="", keep_s=86_400)
    ids = pa.array([entity_id(number) for number in range(ROWS)])
    values = np.random.default_rng(1).random(ROWS).astype(np.float32)
    table.generations.write(new, ids, {"prediction": values}, np.full(ROWS, table.now()))
    table.generations.publish(new.number)
    table.versions.activate(1)


async def measure_layers(stack: Stack) -> dict[str, float]:
    """Return the microseconds per request of each layer in Python."""
    deployment = stack.deployment
    client = deployment.async_cache()
    recorder = HitRecorder(client, deployment.keys)
    layers = {HTTP: await _per_request(_http_turn(deployment.settings))}
    layers |= await _look_up_layers(deployment, client)
    layers |= await _answer_layers(deployment, client, recorder)
    layers[TOGETHER] = await _requests(deployment, client, recorder)
    await client.aclose()
    return layers


async def _look_up_layers(deployment: Deployment, client: AsyncClient) -> dict[str, float]:
    ids = _some_ids()
    memory, keys = ReaderMemory(), deployment.keys.table(TableKind.PREDICTIONS, MODEL)
    replies: list[Any] = []
    for _ in range(2):  # the second time pointer and manifest are known
        plan = plan_read(keys, memory, ids)
        with suppress(StopIteration):
            commands = next(plan)
            while True:
                replies = await client.exchange(commands)
                commands = plan.send(replies)
    wire = b"".join(map(_resp, replies))

    def pack() -> None:
        b"".join(map(hiredis.pack_command, next(plan_read(keys, memory, ids))))

    def decode() -> None:
        plan = plan_read(keys, memory, ids)
        next(plan)
        with suppress(StopIteration):
            plan.send(replies)

    def parse() -> None:
        reader = hiredis.Reader()
        reader.feed(wire)
        while reader.gets() is not False:
            pass

    planning_us = await _per_request(lambda: next(plan_read(keys, memory, ids)))
    return {
        "look-up: commands and packing": await _per_request(pack),
        "look-up: parsing replies": await _per_request(parse),
        "look-up: decoding, the newest of row and overlay": await _per_request(decode) - planning_us,
    }


async def _answer_layers(deployment: Deployment, client: AsyncClient, recorder: HitRecorder) -> dict[str, float]:
    found = await deployment.reader(client, TableKind.PREDICTIONS, MODEL).read(_some_ids())
    entries = [entry for entry in found if entry is not None]
    rules, now = FreshnessRules.of(deployment.settings.models[MODEL]), system_clock()

    def answer(entry: Entry) -> Answer:
        rules.judge(entry, now)
        return answer_stored(MODEL, "user_1", entry)

    def count() -> None:
        for _ in entries:
            recorder.record(MODEL, Outcome.HIT_BATCH, age_s=5.0)
            recorder.record_latency(MODEL, 0.001, hit=True)
            recorder.record_asked(MODEL, ("user_1",))

    answers = [answer(entry) for entry in entries]
    return {
        "judging the age, making the answer": await _per_request(lambda: [answer(entry) for entry in entries]),
        "counting outcome, age, duration and entity": await _per_request(count),
        "spelling the body": await _per_request(lambda: [one.to_json_text() for one in answers]),
    }


def _some_ids() -> list[str]:
    return [entity_id(number) for number in random.Random(1).sample(range(ROWS), TURN)]


async def _per_request(turn: Callable[[], object]) -> float:
    """Return the microseconds per request of what is done for one turn's requests, in this process."""
    best = float("inf")
    for _ in range(REPEATS):
        began = time.process_time()
        for _ in range(TURNS):
            done = turn()
            if done is not None and inspect.isawaitable(done):
                await done
        best = min(best, time.process_time() - began)
    return best / TURNS / TURN * 1e6


async def _requests(deployment: Deployment, client: AsyncClient, recorder: HitRecorder) -> float:
    """Return the same of whole requests without HTTP, and without the system's part of talking to Redis."""

    async def nobody_computes(*_: Any, **__: Any) -> dict[str, Any]:
        raise SystemExit("a look-up missed")

    canned = _Canned(client)
    reader = deployment.reader(canned, TableKind.PREDICTIONS, MODEL)
    service = PredictionService(deployment.settings, lambda _: reader, nobody_computes, recorder, system_clock)
    access = AccessControl(deployment.settings.api)
    scopes = [_scope(entity) for entity in _some_ids()]

    async def turn() -> None:
        over = asyncio.Event()
        requests = [HotRequest(service, access, scope) for scope in scopes]
        for request in requests:
            request.begin(over.set)
        await over.wait()
        await asyncio.sleep(0)
        for request in requests:
            request.answer()
        if any(request.body is None for request in requests):
            raise SystemExit("not every request was a hit")

    for _ in range(3):
        await turn()
    canned.remembers = True
    return await _per_request(turn)


class _Canned(AsyncClient):
    """Packs as ever, and answers what Redis answered before: these requests are always the same ones."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._replies: list[Any] = []
        self._wire = b""
        self.remembers = False

    async def exchange(self, commands: Any) -> list[Any]:
        if not self.remembers:
            self._replies = await self._client.exchange(commands)
            self._wire = b"".join(map(_resp, self._replies))
            return self._replies
        b"".join(map(hiredis.pack_command, commands))
        reader = hiredis.Reader()
        reader.feed(self._wire)
        return [reader.gets() for _ in commands]


class _Request:
    """A request whose answer is there once all of its turn have begun."""

    begun: ClassVar[list[Callable[[], None]]] = []
    body, error = b"x" * 280, None

    def __init__(self, *_: Any) -> None:
        pass

    def begin(self, tell: Callable[[], None]) -> bool:
        self.begun.append(tell)
        return True

    def answer(self) -> None:
        pass


class _Application:
    """What a connection asks of its application before it begins a request."""

    access = None
    process = SimpleNamespace(service=None)
    shown_under = ""
    connection_limit = ConnectionLimit(TURN, 0)
    drain = Drain(0)
    headers_of_longer_answers: frozenset[bytes] = frozenset()

    async def __call__(self, *_: Any) -> None:
        raise SystemExit("a request went the long way")


class _Transport(asyncio.Transport):
    """A connection to nowhere."""

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


def _http_turn(settings: Settings) -> Callable[[], object]:
    """Return a turn of requests through the server's connections, whose answers are there at once."""

    application: Any = _Application()
    connections.hot_path.HotRequest = _Request  # type: ignore[misc,assignment]
    config = configure(settings.api, lambda: application)
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"Wed, 25 Nov 2026 12:00:00 GMT"), (b"server", b"uvicorn")]
    clients = [Connection(config, state, {}, asyncio.get_running_loop()) for _ in range(TURN)]
    for client in clients:
        client.connection_made(_Transport())
    request = b"GET /predict/user_12345 HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n"

    async def turn() -> None:
        for client in clients:
            client.data_received(request)
        for tell in _Request.begun:
            tell()
        _Request.begun.clear()
        await asyncio.sleep(0)  # the loop drops cancelled timers

    return turn


def measure_served(stack: Stack, seconds: float, servers: Sequence[int] = ()) -> tuple[float, float]:
    """Return the microseconds of CPU time per request under 32 connections of the served API, and of `servers`."""
    target = Target("ours", stack.url, ROWS, '"cache_hit":true')
    load(target, connections=32, seconds=2)
    groups = [stack.process_id("api")], servers
    before = [sum(map(cpu_s, pids)) for pids in groups]
    seen = load(target, connections=32, seconds=seconds)
    api, others = (
        (sum(map(cpu_s, pids)) - s) / (seen.rps * seconds) * 1e6 for pids, s in zip(groups, before, strict=True)
    )
    return api, others


def _scope(entity: str) -> dict[str, Any]:
    path = f"/predict/{entity}"
    return {"path": path, "raw_path": path.encode(), "method": "GET", "query_string": b"", "headers": []}


def _resp(value: Any) -> bytes:
    """Return a reply as Redis sends it."""
    if value is None:
        return b"_\r\n"
    if isinstance(value, list):
        return b"*%d\r\n" % len(value) + b"".join(map(_resp, value))
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="of load on the served API")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
