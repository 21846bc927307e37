"""Tensors through the service: in micro-batches, of one version, counted, and never replaced by a default."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.errors import (
    BadInput,
    BrokerUnavailable,
    DeadlineExceeded,
    ForecacheError,
    NotFound,
    PredictionFailed,
)
from inference.outcomes import Outcome
from inference.protocols.tensors import pack, unpack
from inference.serving import ModelCall, PredictionService
from inference.settings import Settings
from tests.support.serving_fakes import FakeReader, FakeRecorder
from tests.support.virtual_time import virtual_time

X = {"x": np.arange(10, dtype=np.float32)}


class DoublingWorkers:
    """Doubles x, but fails if one is negative.

    `versions`: those of the first answers, then the last of them; `errors`: what answers say instead. `messages`: the
    calls of each message; `most`: calls of which a result tells; `took_us`: what a call takes.
    """

    def __init__(self) -> None:
        self.versions = [1]
        self.errors: list[ForecacheError] = []
        self.outage: ForecacheError | None = None
        self.outage_of_one: ForecacheError | None = None
        self.delay_s = 0.0
        self.asked: list[tuple[int, Any]] = []
        self.messages: list[int] = []
        self.most = 99
        self.took_us = 100

    async def __call__(
        self, task: str, kwargs: Mapping[str, Any], *, deadline: float, timeout_s: float
    ) -> dict[str, Any]:
        assert task == "forecache.predict_tensors"
        calls = [kwargs, *kwargs.get("more", ())]
        self.messages.append(len(calls))
        if self.outage_of_one and len(calls) == 1:
            raise self.outage_of_one
        first, *more = [await self.call(kwargs["model"], call) for call in calls][: self.most]
        return {**first, "more": more}

    async def call(self, model: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        inputs = unpack(kwargs["inputs"])
        self.asked.append((len(inputs["x"]), kwargs["version"]))
        version = kwargs["version"] or (self.versions.pop(0) if len(self.versions) > 1 else self.versions[0])
        await asyncio.sleep(self.delay_s)
        if self.outage:
            raise self.outage
        if self.errors:
            return {"error": self.errors.pop().to_json()}
        if (inputs["x"] < 0).any():
            return {"error": PredictionFailed("negative").to_json(), "model_version": version}
        spent = [0, self.took_us, 0]
        outputs = pack({"y": 2 * inputs["x"]})
        return {"model": model, "model_version": version, "outputs": outputs, "spent_us": spent}


def service(workers: DoublingWorkers, recorder: FakeRecorder) -> PredictionService:
    realtime = {"timeout_ms": 1000, "max_micro_batch": 4, "default": 0.0}
    settings = Settings.model_validate({"models": {"m": {"path": Path("m"), "realtime": realtime}}})
    return PredictionService(settings, lambda _: FakeReader(), workers, recorder, lambda: 1000.0)


@virtual_time
async def test_rows_go_out_in_micro_batches_and_come_back_in_order() -> None:
    workers, recorder = DoublingWorkers(), FakeRecorder()
    outputs = await service(workers, recorder).predict_tensors("m", X)
    assert outputs.tensors["y"].tolist() == (2 * X["x"]).tolist()
    assert workers.asked == [(4, None), (4, None), (2, None)]
    assert recorder.counts == {Outcome.COMPUTED: 10}
    assert [hit for hit, _ in recorder.latencies] == [False]


@virtual_time
async def test_rows_of_two_versions_are_computed_again_by_the_newer() -> None:
    workers = DoublingWorkers()
    workers.versions = [1, 2, 1]
    outputs = await service(workers, FakeRecorder()).predict_tensors("m", X)
    assert outputs.version == 2
    assert [version for _, version in workers.asked] == [None] * 3 + [2] * 3


@virtual_time
async def test_a_version_that_is_asked_for_is_told_to_the_worker() -> None:
    workers = DoublingWorkers()
    outputs = await service(workers, FakeRecorder()).predict_tensors("m", X, ModelCall(version=7))
    assert outputs.version == 7
    assert {version for _, version in workers.asked} == {7}


@virtual_time
@pytest.mark.parametrize(("error", "failed"), [(BadInput("x"), 0), (NotFound("x"), 0), (ForecacheError("x"), 10)])
async def test_an_error_of_one_micro_batch_is_that_of_the_request(error: ForecacheError, failed: int) -> None:
    workers, recorder = DoublingWorkers(), FakeRecorder()
    workers.errors = [error]
    with pytest.raises(type(error)):
        await service(workers, recorder).predict_tensors("m", X)
    assert recorder.counts == ({Outcome.FAILED: failed} if failed else {})


@virtual_time
async def test_what_is_late_or_cannot_be_sent_is_shed_and_no_default_takes_its_place() -> None:
    workers, recorder = DoublingWorkers(), FakeRecorder()
    workers.delay_s = 2.0
    with pytest.raises(DeadlineExceeded):
        await service(workers, recorder).predict_tensors("m", X)
    workers.delay_s, workers.outage = 0.0, BrokerUnavailable("x")
    with pytest.raises(BrokerUnavailable):
        await service(workers, recorder).predict_tensors("m", X)
    assert recorder.counts == {Outcome.SHED: 20}


class EchoWorkers(DoublingWorkers):
    """Gives back what it gets."""

    async def call(self, model: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": model, "model_version": 1, "outputs": kwargs["inputs"], "spent_us": [0, self.took_us, 0]}


async def ask_at_once(tensors: PredictionService, values: Sequence[float]) -> list[float | type[BaseException]]:
    """Return the answer to each request of one value, or the type of its error."""
    asked = (tensors.predict_tensors("m", {"x": np.array([value], np.float32)}) for value in values)
    replies = await asyncio.gather(*asked, return_exceptions=True)
    return [
        type(reply) if isinstance(reply, BaseException) else float(reply.tensors["y"][0]) for reply in replies
    ]  # fmt: skip


@virtual_time
async def test_small_requests_of_one_moment_share_a_message_and_none_shares_a_call_or_an_error() -> None:
    workers = DoublingWorkers()
    workers.delay_s = 0.001
    tensors = service(workers, FakeRecorder())
    await ask_at_once(tensors, [1])
    for _ in range(20):  # until the service knows what a call takes
        await ask_at_once(tensors, [1])
    workers.messages.clear()
    answers = await ask_at_once(tensors, [1, 2, -3, 4, 5])
    assert answers == [2, 4, PredictionFailed, 8, 10]
    assert workers.messages == [5]
    assert {rows for rows, _ in workers.asked} == {1}


@virtual_time
async def test_calls_that_take_long_have_messages_of_their_own() -> None:
    workers = DoublingWorkers()
    workers.took_us = 100_000
    tensors = service(workers, FakeRecorder())
    for _ in range(2):
        assert await ask_at_once(tensors, [1, 2, 3]) == [2, 4, 6]
    assert workers.messages == [1] * 6


async def test_large_tensors_have_messages_of_their_own() -> None:
    workers = DoublingWorkers()
    tensors = service(workers, FakeRecorder())
    for _ in range(20):
        await ask_at_once(tensors, [1])
    workers.messages.clear()
    large = {"x": np.arange(30_000, dtype=np.float32)}
    asked = (tensors.predict_tensors("m", large, ModelCall(splits=False), timeout_s=60) for _ in range(2))
    for outputs in await asyncio.gather(*asked):
        np.testing.assert_array_equal(outputs.tensors["y"], 2 * large["x"])
    assert workers.messages == [1, 1]


async def test_long_texts_have_messages_of_their_own() -> None:
    workers = EchoWorkers()
    tensors = service(workers, FakeRecorder())
    for _ in range(20):
        await tensors.predict_tensors("m", {"x": np.array(["short"], dtype=object)})
    workers.messages.clear()
    for length, messages in [(10, [2]), (100_000, [2, 1, 1])]:
        texts = {"x": np.array(["a" * length], dtype=object)}
        await asyncio.gather(*(tensors.predict_tensors("m", texts, timeout_s=60) for _ in range(2)))
        assert workers.messages == messages


@virtual_time
async def test_workers_that_do_not_tell_what_a_call_took_get_one_in_each_message() -> None:
    workers = DoublingWorkers()
    workers.took_us = 0
    tensors = service(workers, FakeRecorder())
    for _ in range(20):
        assert await ask_at_once(tensors, [1, 2]) == [2, 4]
    assert set(workers.messages) == {1}


@virtual_time
async def test_calls_that_a_worker_leaves_out_are_asked_again() -> None:
    workers = DoublingWorkers()
    tensors = service(workers, FakeRecorder())
    for _ in range(20):
        await ask_at_once(tensors, [1])
    workers.most = 2
    workers.messages.clear()
    assert await ask_at_once(tensors, [1, 2, 3, 4]) == [2, 4, 6, 8]
    assert workers.messages == [4, 1, 1]
    workers.outage_of_one = BrokerUnavailable("x")
    assert await ask_at_once(tensors, [1, 2, 3]) == [2, 4, BrokerUnavailable], "the answers that came are given"


class PaddingWorkers(DoublingWorkers):
    """Gives a row for each row, as wide as the largest value of the call."""

    async def call(self, model: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        values = unpack(kwargs["inputs"])["x"]
        self.asked.append((values.size, kwargs.get("signature")))
        outputs = {"y": np.zeros((len(values), int(values.max()))) if values.ndim else values}
        return {"model": model, "model_version": 1, "outputs": pack(outputs)}


@virtual_time
async def test_rows_that_do_not_fit_together_are_computed_again_in_one_call() -> None:
    workers = PaddingWorkers()
    outputs = await service(workers, FakeRecorder()).predict_tensors("m", X, ModelCall(signature="s"))
    assert outputs.tensors["y"].shape == (10, 9)
    assert workers.asked == [(4, "s"), (4, "s"), (2, "s"), (10, "s")]


@virtual_time
async def test_what_has_no_rows_is_one_call() -> None:
    workers, recorder = PaddingWorkers(), FakeRecorder()
    outputs = await service(workers, recorder).predict_tensors("m", X, ModelCall(splits=False))
    assert outputs.tensors["y"].shape == (10, 9)
    scalar = {"x": np.float32(3).reshape(())}
    outputs = await service(workers, recorder).predict_tensors("m", scalar, ModelCall(signature="s", splits=False))
    assert outputs.tensors["y"].shape == ()
    assert workers.asked == [(10, None), (1, "s")]
    assert recorder.counts == {Outcome.COMPUTED: 11}
