"""Callers in one process, without HTTP: many that each wait for one prediction after the other."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Awaitable, Callable

import numpy as np
import numpy.typing as npt
import uvloop
from baselines.plain_queue import QUEUE, with_its_queue

from inference.deployment import Deployment
from inference.errors import ForecacheError
from inference.monitoring.counters import HitRecorder
from inference.redis.clock import RedisClock
from inference.redis.keys import TableKind
from inference.serving import PredictionService
from inference.serving.answers import Answer
from rig.dataset import entity_id
from tasks.celery_app import make_celery
from tasks.dispatch import open_dispatcher

TIMEOUT_S = 30.0
_SEED = 11

#: asks for the prediction of a row
Ask = Callable[[int], Awaitable[float]]


def ours_per_s(
    deployment: Deployment, model: str, answers: npt.NDArray[np.float32], *, callers: int, seconds: float
) -> float:
    """Return predictions per second of callers on one event loop: look-up, coalescer, worker, result."""

    async def run() -> float:
        client = deployment.async_cache()
        async with client, open_dispatcher(deployment.settings) as dispatcher:
            clock = RedisClock()
            await clock.measure(client)
            service = PredictionService(
                deployment.settings,
                lambda name: deployment.reader(client, TableKind.PREDICTIONS, name),
                dispatcher,
                HitRecorder(client, deployment.keys),
                clock.now,
            )

            async def ask(row: int) -> float:
                (answer,) = await service.predict(model, [entity_id(row)], max_staleness_s=0, timeout_s=TIMEOUT_S)
                if isinstance(answer, ForecacheError):
                    raise answer
                return _number(answer)

            try:
                return await _ask_all(ask, answers, callers, seconds)
            finally:
                await service.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def plain_per_s(
    deployment: Deployment, model: str, answers: npt.NDArray[np.float32], *, callers: int, seconds: float
) -> float:
    """Return predictions per second of as many threads, each with `apply_async(...).get()`."""
    application = with_its_queue(make_celery(deployment.settings))
    done = itertools.count()
    until = time.perf_counter() + seconds
    failed: list[BaseException] = []

    def call(caller: int) -> None:
        rows = random.Random(_SEED + caller)
        try:
            while time.perf_counter() < until:
                row = rows.randrange(len(answers))
                arguments = {"model": model, "entity_ids": [entity_id(row)]}
                sent = application.send_task("forecache.predict_entities", kwargs=arguments, queue=QUEUE)
                _check(row, sent.get(timeout=TIMEOUT_S)["predictions"][0]["prediction"], answers)
                next(done)
        except BaseException as error:  # noqa: BLE001 - raised below, where it ends the benchmark
            failed.append(error)

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - began
    application.close()
    if failed:
        raise failed[0]
    return next(done) / took_s


async def _ask_all(ask: Ask, answers: npt.NDArray[np.float32], callers: int, seconds: float) -> float:
    until = time.perf_counter() + seconds

    async def call(caller: int) -> int:
        rows = random.Random(_SEED + caller)
        count = 0
        while time.perf_counter() < until:
            row = rows.randrange(len(answers))
            _check(row, await ask(row), answers)
            count += 1
        return count

    began = time.perf_counter()
    counts = await asyncio.gather(*(call(caller) for caller in range(callers)))
    return sum(counts) / (time.perf_counter() - began)


def _number(answer: Answer) -> float:
    if answer.outcome.value != "computed":
        raise SystemExit(f"not computed: {answer}")
    return float(answer.prediction)


def _check(row: int, given: float, answers: npt.NDArray[np.float32]) -> None:
    wanted = float(answers[row])
    if abs(given - wanted) > 1e-6 + 1e-5 * abs(wanted):
        raise SystemExit(f"row {row}: {given} instead of {wanted}")
