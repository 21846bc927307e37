from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from inference.errors import (
    BadInput,
    BrokerUnavailable,
    ContractError,
    DeadlineExceeded,
    ForecacheError,
    Overloaded,
    PredictionFailed,
    StoreUnavailable,
    UnknownEntity,
    UnknownModel,
    WorkersUnavailable,
)
from inference.outcomes import Outcome
from inference.serving import Answer, PredictionService
from inference.serving.coalescer import MAX_WAITING_BATCHES
from inference.serving.model_service import PREDICT_EXPLAINED, PREVIOUS_GRACE_S
from inference.serving.worker_client import FIRST_PAUSE_S, OPENS_AFTER
from inference.settings import Settings
from inference.store import Entry, Origin, Pointer
from tests.support.serving_fakes import FakeReader, FakeRecorder, FakeWorkers, entry
from tests.support.virtual_time import virtual_time

NOW = 1010.0


@dataclass
class Deployment:
    """One model over fakes."""

    default: Any = None
    realtime: dict[str, Any] = field(default_factory=dict)
    reader: FakeReader = field(default_factory=FakeReader)
    workers: FakeWorkers = field(default_factory=FakeWorkers)
    hits: FakeRecorder = field(default_factory=FakeRecorder)

    @property
    def service(self) -> PredictionService:
        settings = Settings.model_validate(
            {
                "models": {
                    "delay": {
                        "path": Path("models/delay"),
                        "batch": {"ttl": "100s"},
                        "realtime": {
                            "ttl": "50s",
                            "timeout_ms": 1000,
                            "default": self.default,
                            "max_micro_batch": 4,
                            **self.realtime,
                        },
                    }
                }
            }
        )
        return PredictionService(settings, lambda _: self.reader, self.workers, self.hits, lambda: NOW)

    async def ask(self, *ids: str, **how: Any) -> list[Answer | ForecacheError]:
        return await self.service.predict("delay", ids, **how)

    async def answer(self, entity_id: str = "a", **how: Any) -> Answer:
        [answer] = await self.ask(entity_id, **how)
        assert isinstance(answer, Answer)
        return answer


@virtual_time
async def test_a_fresh_stored_prediction_is_answered_without_a_worker() -> None:
    it = Deployment(reader=FakeReader({"a": entry(4.0, as_of=1000), "b": entry(5.0, origin=Origin.REALTIME)}))
    answers = await it.ask("a", "b", "a")
    assert [a.outcome for a in answers if isinstance(a, Answer)] == [
        "hit_batch", "hit_realtime", "hit_batch",
    ]  # fmt: skip
    assert it.workers.calls == []
    assert it.hits.counts == {Outcome.HIT_BATCH: 2, Outcome.HIT_REALTIME: 1}


@virtual_time
async def test_the_body_of_an_answer_is_that_of_the_contract() -> None:
    it = Deployment(reader=FakeReader({"a": entry(4.0, as_of=1000, computed_at=1001.5)}))
    assert orjson.loads((await it.answer()).to_json_text()) == {
        "entity_id": "a",
        "model": "delay",
        "model_version": 1,
        "prediction": 4.0,
        "source": "batch",
        "outcome": "hit_batch",
        "cache_hit": True,
        "stale": False,
        "degraded": False,
        "as_of": "1970-01-01T00:16:40.000Z",
        "computed_at": "1970-01-01T00:16:41.500Z",
        "timestamp": 1001.5,
    }


@virtual_time
async def test_several_outputs_are_an_object_by_name() -> None:
    it = Deployment(reader=FakeReader({"a": entry({"mean": 1.0, "label": "x"})}))
    assert (await it.answer()).prediction == {"mean": 1.0, "label": "x"}


@virtual_time
async def test_a_miss_is_computed_by_a_deadline_in_redis_time() -> None:
    it = Deployment()
    answer = await it.answer()
    assert (answer.prediction, answer.outcome, answer.model_version) == (2.5, Outcome.COMPUTED, 3)
    assert it.workers.calls == [("forecache.predict_entities", {"model": "delay", "entity_ids": ["a"]})]
    assert it.workers.deadlines == [pytest.approx(NOW + 1.0)]


@virtual_time
async def test_hits_and_misses_of_one_request_stay_in_order() -> None:
    it = Deployment(reader=FakeReader({"a": entry(1.0), "c": entry(3.0)}))
    it.workers.failing["x"] = UnknownEntity("no entity 'x'", field="entity_id")
    answers = await it.ask("a", "b", "x", "c")
    assert [a.prediction if isinstance(a, Answer) else a.code for a in answers] == [
        1.0, 2.5, "unknown-entity", 3.0,
    ]  # fmt: skip
    assert it.hits.counts == {Outcome.HIT_BATCH: 2, Outcome.COMPUTED: 1, Outcome.UNKNOWN: 1}


@virtual_time
async def test_a_hundred_waiters_on_one_computation_are_a_hundred_computed() -> None:
    it = Deployment()
    it.workers.delay_s = 0.1
    service = it.service
    await asyncio.gather(*(service.predict("delay", ["a"]) for _ in range(100)))
    assert len(it.workers.calls) == 1
    assert it.hits.counts == {Outcome.COMPUTED: 100}


@virtual_time
async def test_the_stale_value_answers_when_nothing_newer_comes_in_time() -> None:
    it = Deployment(reader=FakeReader({"a": entry(4.0, as_of=10)}), default=0.0)
    it.workers.delay_s = 60
    answer = await it.answer()
    assert (answer.prediction, answer.outcome, answer.source.value) == (4.0, Outcome.STALE, "batch")
    assert answer.degraded
    assert asyncio.get_running_loop().time() <= 1.05


@virtual_time
async def test_max_staleness_zero_computes_what_is_fresh_and_falls_back_on_it() -> None:
    it = Deployment(reader=FakeReader({"a": entry(4.0, as_of=1009)}))
    assert (await it.answer(max_staleness_s=0)).outcome is Outcome.COMPUTED
    it.workers.error = BrokerUnavailable("gone")
    assert (await it.answer(max_staleness_s=0)).outcome is Outcome.STALE


@virtual_time
async def test_an_answer_just_computed_from_old_features_is_marked_stale_and_not_computed_again() -> None:
    stored = entry(4.0, as_of=10, computed_at=NOW - 1, origin=Origin.REALTIME)
    it = Deployment(reader=FakeReader({"a": stored}))
    answer = await it.answer()
    assert (answer.outcome, answer.source.value) == (Outcome.STALE, "realtime")
    assert it.workers.calls == []


@virtual_time
async def test_the_previous_generation_comes_before_the_default() -> None:
    it = Deployment(default=0.0)
    it.reader.previous = {"a": entry(7.0)}
    it.workers.error = BrokerUnavailable("gone")
    answers = await it.ask("a", "b")
    assert [(a.prediction, a.outcome.value) for a in answers if isinstance(a, Answer)] == [
        (7.0, "previous"), (0.0, "default"),
    ]  # fmt: skip


@virtual_time
async def test_after_a_rollback_the_version_left_behind_is_no_fallback() -> None:
    it = Deployment()
    it.reader.previous = {"a": entry(7.0, model_version=9)}
    it.reader.held_versions = frozenset({9})
    it.workers.error = BrokerUnavailable("gone")
    assert [type(answer) for answer in await it.ask("a")] == [BrokerUnavailable]


@virtual_time
async def test_a_default_stands_in_for_an_outage_but_not_for_an_unknown_or_failing_entity() -> None:
    it = Deployment(default=0.5)
    it.workers.failing = {"x": UnknownEntity("no"), "y": PredictionFailed("nan"), "z": ContractError("no f")}
    answers = await it.ask("x", "y", "z")
    assert [type(answer) for answer in answers] == [UnknownEntity, PredictionFailed, ContractError]
    it.workers.error = BrokerUnavailable("gone")
    answer = await it.answer()
    assert (answer.prediction, answer.source.value, answer.as_of) == (0.5, "default", None)
    assert it.hits.counts == {Outcome.UNKNOWN: 1, Outcome.FAILED: 2, Outcome.DEFAULT: 1}


@virtual_time
async def test_an_outage_of_the_store_is_an_error_at_once_and_never_a_miss() -> None:
    it = Deployment()
    it.reader.down = True
    assert [type(answer) for answer in await it.ask("a", "b")] == [StoreUnavailable, StoreUnavailable]
    assert it.workers.calls == []
    assert it.hits.counts == {Outcome.SHED: 2}


@virtual_time
async def test_a_store_that_hangs_costs_no_more_than_the_budget() -> None:
    it = Deployment(default=0.5)
    it.reader.delay_s = 60
    assert (await it.answer(timeout_s=0.2)).outcome is Outcome.DEFAULT
    assert asyncio.get_running_loop().time() == pytest.approx(0.2)


@virtual_time
async def test_without_any_fallback_a_missed_deadline_is_shed() -> None:
    it = Deployment()
    it.workers.delay_s = 60
    assert [type(answer) for answer in await it.ask("a", timeout_s=0.1)] == [DeadlineExceeded]
    assert it.hits.counts == {Outcome.SHED: 1}


@virtual_time
async def test_overrides_bypass_the_store_and_single_flight() -> None:
    it = Deployment(reader=FakeReader({"a": entry(4.0)}))
    service = it.service
    answers = await asyncio.gather(*(service.predict("delay", ["a"], overrides={"distance": n}) for n in (1, 2)))
    assert [answer[0].prediction for answer in answers if isinstance(answer[0], Answer)] == [2.5, 2.5]
    assert it.reader.reads == []
    assert [call[1]["overrides"] for call in it.workers.calls] == [{"distance": 1}, {"distance": 2}]


@virtual_time
async def test_instances_are_computed_in_micro_batches_and_in_order() -> None:
    it = Deployment()
    answers = await it.service.predict_instances(None, [{"x": n} for n in range(6)])
    assert [(a.entity_id, a.prediction) for a in answers if isinstance(a, Answer)] == [(None, 2.5)] * 6
    assert [len(call[1]["instances"]) for call in it.workers.calls] == [4, 2]


@virtual_time
async def test_instances_of_one_moment_share_a_message_and_each_request_gets_its_own() -> None:
    it = Deployment()
    service = it.service
    asked = [service.predict_instances(None, [{"gives": n}] * rows) for n, rows in [(0, 1), (1, 2), (2, 1)]]
    answers = await asyncio.gather(*asked)
    assert [[one.prediction for one in part if isinstance(one, Answer)] for part in answers] == [[0], [1, 1], [2]]
    assert [len(call[1]["instances"]) for call in it.workers.calls] == [4]
    wide = [service.predict_instances(None, [{"wide": list(range(5000))}]) for _ in range(2)]
    await asyncio.gather(*wide)
    assert [len(call[1]["instances"]) for call in it.workers.calls[1:]] == [1, 1], "large ones have their own"


@virtual_time
async def test_instances_that_wait_are_bounded_however_patient_their_senders_are() -> None:
    it = Deployment(realtime={"max_micro_batch": 1, "max_in_flight": 1})
    it.workers.delay_s = 1.0
    answers = await it.service.predict_instances("delay", [{}] * (MAX_WAITING_BATCHES + 5), timeout_s=600)
    assert sum(isinstance(answer, Answer) for answer in answers) == MAX_WAITING_BATCHES
    assert [type(answer) for answer in answers[MAX_WAITING_BATCHES:]] == [Overloaded] * 5
    [answer] = await it.service.predict_instances("delay", [{}], timeout_s=600)
    assert isinstance(answer, Answer), "there is room again"


@virtual_time
async def test_an_unknown_model_is_named() -> None:
    with pytest.raises(UnknownModel, match=r"'dleay'.*delay"):
        await Deployment().service.predict("dleay", ["a"])


@virtual_time
async def test_workers_that_answer_nothing_are_not_waited_for_again_until_one_does() -> None:
    it = Deployment(default=0.0)
    it.workers.delay_s = 60
    service, loop = it.service, asyncio.get_running_loop()

    async def ask(entity_id: str) -> tuple[str, float]:
        before = loop.time()
        [answer] = await service.predict("delay", [entity_id])
        assert isinstance(answer, Answer)
        return answer.outcome, round(loop.time() - before, 3)

    assert [await ask(f"a{n}") for n in range(OPENS_AFTER)] == [("default", 1.0)] * OPENS_AFTER
    assert await ask("b") == ("default", 0.0)
    it.workers.delay_s = 0
    await asyncio.sleep(FIRST_PAUSE_S)
    assert await ask("c") == ("computed", 0.0)
    assert await ask("d") == ("computed", 0.0)


async def known_at_once(service: PredictionService, entity_id: str, **how: Any) -> Answer | ForecacheError | None:
    """Return the answer that there is once the store has answered; None if a worker has to be waited for."""
    over = asyncio.Event()
    request = service.look_up("delay", [entity_id], over.set, **how)
    await over.wait()
    answers = service.hits(request) or service.answers_at_once(request)
    return answers[0] if answers else None


@virtual_time
async def test_a_request_that_no_worker_would_answer_in_time_has_its_answer_after_the_look_up() -> None:
    it = Deployment(realtime={"max_in_flight": 1, "max_micro_batch": 1})
    it.reader.entries = {"hit": entry(4.0, as_of=NOW - 10), "old": entry(5.0, as_of=NOW - 200)}
    it.workers.delay_s = 0.5
    service = it.service
    await service.predict("delay", ["warm"])  # now the pace is known
    busy = asyncio.create_task(service.predict("delay", ["busy"]))
    await asyncio.sleep(0.1)

    hit = await known_at_once(service, "hit", timeout_s=0.2)
    stale = await known_at_once(service, "old", timeout_s=0.2)
    refused = await known_at_once(service, "new", timeout_s=0.2)
    assert isinstance(hit, Answer) and isinstance(stale, Answer) and isinstance(refused, Overloaded)  # noqa: PT018
    assert (hit.outcome, stale.outcome, stale.prediction, refused.retry_after_s) == ("hit_batch", "stale", 5.0, 0.5)
    assert await known_at_once(service, "busy", timeout_s=0.2) is None, "it is on its way: the answer may come in time"
    assert await known_at_once(service, "new", timeout_s=2.0) is None, "there is time enough"
    it.reader.previous = {"new": entry(3.0)}
    assert await known_at_once(service, "new", timeout_s=0.2) is None, "the previous generation is looked at first"
    assert (it.hits.counts[Outcome.SHED], it.hits.counts[Outcome.STALE], it.hits.asked[-2:]) == (1, 1, ["hit", "old"])
    await busy
    [computed] = await service.predict("delay", ["new"], timeout_s=0.6)
    assert isinstance(computed, Answer), "there is room again"
    assert computed.outcome == "computed"


@virtual_time
async def test_while_workers_are_gone_nothing_waits_for_them() -> None:
    it = Deployment()
    service = it.service
    service.workers_heard(["delay"], False)
    refused = await known_at_once(service, "a")
    assert isinstance(refused, WorkersUnavailable)
    service.workers_heard(["delay"], True)
    assert await known_at_once(service, "a") is None


@virtual_time
async def test_a_patient_request_is_computed_though_hasty_ones_went_unanswered() -> None:
    it = Deployment()
    it.workers.delay_s = 5
    service = it.service
    for n in range(OPENS_AFTER):
        await service.predict("delay", [f"a{n}"])
    [refused] = await service.predict("delay", ["b"])
    assert isinstance(refused, WorkersUnavailable)
    assert refused.retry_after_s
    [answer] = await service.predict("delay", ["b"], timeout_s=20)
    assert isinstance(answer, Answer)


@virtual_time
async def test_a_stale_answer_is_given_at_once_and_computed_anew_behind_it_once() -> None:
    it = Deployment(reader=FakeReader({"a": entry(4.0, as_of=NOW - 101)}), realtime={"stale_while_revalidate": "10s"})
    it.workers.delay_s = 0.5
    service = it.service
    for _ in range(3):
        [answer] = await service.predict("delay", ["a"])
        assert isinstance(answer, Answer)
        assert (answer.prediction, answer.outcome, answer.stale) == (4.0, Outcome.STALE, True)
    assert asyncio.get_running_loop().time() == 0.0
    await asyncio.sleep(1)
    assert [kwargs["entity_ids"] for _, kwargs in it.workers.calls] == [["a"]]


@virtual_time
async def test_an_entity_that_nobody_knows_is_not_asked_for_again_for_a_moment() -> None:
    it = Deployment(realtime={"unknown_ttl": "3s"})
    it.workers.failing["x"] = UnknownEntity("nobody knows x", field="entity_id")
    service = it.service

    async def ask(**how: Any) -> int:
        [answer] = await service.predict("delay", ["x"], **how)
        assert isinstance(answer, UnknownEntity)
        return len(it.workers.calls)

    assert [await ask(), await ask()] == [1, 1]
    assert await ask(max_staleness_s=0) == 2  # forced
    it.reader.entries["x"] = entry(4.0)
    [found] = await service.predict("delay", ["x"])
    assert isinstance(found, Answer)  # what a run has scored since is served all the same
    del it.reader.entries["x"]
    await asyncio.sleep(3)
    assert await ask() == 3


@virtual_time
async def test_entities_are_remembered_that_were_answered_and_no_others() -> None:
    it = Deployment()
    it.reader.entries = {"a": entry(as_of=NOW - 10)}
    it.workers.failing = {"ghost": UnknownEntity("nobody knows it")}
    await it.ask("a")
    await it.ask("a", "b", "ghost")
    assert it.hits.asked == ["a", "a", "b"]


class HangingReader(FakeReader):
    """A table that answers look-ups, and hangs for the rest: `hangs` names the calls."""

    def __init__(self, *hangs: str) -> None:
        super().__init__()
        self.hangs = hangs
        self.previous = {"a": entry(7.0)}

    async def pointer(self) -> Pointer:
        if "pointer" in self.hangs:
            await asyncio.Event().wait()
        return await super().pointer()

    async def read_generation(self, ids: Sequence[str], number: int) -> list[Entry | None]:
        if "read_generation" in self.hangs:
            await asyncio.Event().wait()
        return await super().read_generation(ids, number)


@pytest.mark.parametrize("hangs", ["pointer", "read_generation"])
@pytest.mark.parametrize("default", [None, 0.5])
@virtual_time
async def test_a_store_that_hangs_at_the_last_moment_costs_a_rung_of_the_ladder_and_no_more(
    hangs: str, default: float | None
) -> None:
    it = Deployment(reader=HangingReader(hangs), default=default)
    it.workers.error = BrokerUnavailable("gone")
    [told] = await it.ask("a")
    if default is None:
        assert isinstance(told, BrokerUnavailable)
    else:
        assert isinstance(told, Answer)
        assert (told.prediction, told.source) == (0.5, "default")
    assert asyncio.get_running_loop().time() == pytest.approx(PREVIOUS_GRACE_S)


@virtual_time
async def test_a_store_that_is_slow_but_in_time_gives_the_previous_generation() -> None:
    it = Deployment(reader=HangingReader(), default=0.5)
    it.reader.delay_s = PREVIOUS_GRACE_S / 3
    it.workers.error = BrokerUnavailable("gone")
    assert (await it.answer()).prediction == 7.0
    it.reader.delay_s = PREVIOUS_GRACE_S
    assert (await it.answer()).prediction == 0.5


@virtual_time
async def test_a_default_is_of_now_and_an_answer_counts_with_the_age_of_its_features() -> None:
    it = Deployment(default=0.5, reader=FakeReader({"a": entry(4.0, as_of=1000)}))
    it.workers.error = BrokerUnavailable("gone")
    stored, made_up = await it.ask("a", "b")
    assert isinstance(stored, Answer)
    assert isinstance(made_up, Answer)
    assert (made_up.computed_at, made_up.as_of, made_up.model_version) == (NOW, None, None)
    assert it.hits.ages_s == [10.0, None]
    assert it.hits.asked == ["a", "b"]


@virtual_time
async def test_a_request_is_a_hit_only_if_all_of_it_is_one_and_mistakes_do_not_count() -> None:
    it = Deployment(reader=FakeReader({"a": entry(4.0), "b": entry(5.0)}))
    service = it.service
    await service.predict("delay", ["a", "b"])
    assert it.hits.latencies == [(True, 0.0)]
    it.workers.delay_s = 0.25
    await service.predict("delay", ["a", "c", "b"])
    assert it.hits.latencies[1:] == [(False, 0.25)]
    it.workers.failing = {"x": UnknownEntity("no"), "y": BadInput("no")}
    await service.predict("delay", ["x", "y"])
    assert len(it.hits.latencies) == 2
    assert it.hits.asked == ["a", "b", "a", "c", "b"]
    await service.predict("delay", ["x", "a"])
    assert it.hits.latencies[2:] == [(True, 0.0)], "what nobody knows is neither hit nor miss"


@virtual_time
async def test_with_several_models_one_must_be_named_and_each_is_served_by_its_own() -> None:
    readers = {"delay": FakeReader({"a": entry(1.0)}), "price": FakeReader({"a": entry(2.0)})}
    settings = Settings.model_validate({"models": {name: {"path": name} for name in readers}})
    hits = FakeRecorder()
    service = PredictionService(settings, readers.__getitem__, FakeWorkers(), hits, lambda: NOW)
    for name, value in (("price", 2.0), ("delay", 1.0)):
        [answer] = await service.predict(name, ["a"])
        assert isinstance(answer, Answer)
        assert (answer.prediction, answer.model) == (value, name)
    for name in (None, "nobody"):
        with pytest.raises(UnknownModel):
            await service.predict(name, ["a"])
    service.workers_heard(["price"], False)
    assert service.breaker_states() == {"delay": "closed", "price": "open"}


class ExplainingWorkers(FakeWorkers):
    """Explains every entity, and computes 2.5 when it is to predict. `unexplained`: nothing can be told."""

    unexplained: ForecacheError | None = None

    async def __call__(self, task: str, kwargs: Any, *, deadline: float, timeout_s: float) -> dict[str, Any]:
        if task != PREDICT_EXPLAINED:
            return await super().__call__(task, kwargs, deadline=deadline, timeout_s=timeout_s)
        self.calls.append((task, dict(kwargs)))
        if self.error:
            raise self.error
        explanation = {"known": True, "of": kwargs["entity_ids"]}
        if not kwargs["predict"]:
            wrong = self.unexplained and self.unexplained.to_json()
            return {"model": kwargs["model"], "explanation": None if wrong else explanation, "error": wrong}
        items = [self._item(one) for one in kwargs["entity_ids"]]
        return {
            "model": "delay", "model_version": 3, "computed_at": 1010.0, "predictions": items,
            "explanation": explanation,
        }  # fmt: skip


async def explained(it: Deployment, entity_id: str = "a") -> tuple[Answer, dict[str, Any]]:
    service, over = it.service, asyncio.Event()
    request = service.look_up("delay", [entity_id], over.set)
    await over.wait()
    return await service.explain(request)


@virtual_time
async def test_a_stored_answer_is_explained_by_the_features_of_now() -> None:
    it = Deployment(reader=FakeReader({"a": entry(4.0)}), workers=ExplainingWorkers())
    answer, told = await explained(it)
    assert (answer.prediction, answer.outcome) == (4.0, Outcome.HIT_BATCH)
    assert told == {"made_this_answer": None, "known": True, "of": ["a"]}
    assert it.workers.calls == [(PREDICT_EXPLAINED, {"model": "delay", "entity_ids": ["a"], "predict": False})]
    assert it.hits.counts == {Outcome.HIT_BATCH: 1}


@virtual_time
async def test_a_miss_is_computed_and_explained_by_one_task() -> None:
    it = Deployment(workers=ExplainingWorkers())
    answer, told = await explained(it)
    assert (answer.prediction, answer.outcome) == (2.5, Outcome.COMPUTED)
    assert (answer.model, answer.entity_id) == ("delay", "a")
    assert told == {"made_this_answer": True, "known": True, "of": ["a"]}
    assert it.workers.calls == [(PREDICT_EXPLAINED, {"model": "delay", "entity_ids": ["a"], "predict": True})]
    assert (it.hits.counts, it.hits.latencies) == ({Outcome.COMPUTED: 1}, [(False, 0.0)])


@virtual_time
async def test_what_cannot_be_explained_is_an_error_and_no_default() -> None:
    it = Deployment(default=0.5, workers=ExplainingWorkers())
    it.workers.failing = {"a": UnknownEntity("no")}
    with pytest.raises(UnknownEntity):
        await explained(it)
    assert it.hits.counts == {Outcome.UNKNOWN: 1}
    it.workers.error = BrokerUnavailable("gone")
    with pytest.raises(BrokerUnavailable):
        await explained(it)
    assert it.hits.counts == {Outcome.UNKNOWN: 1, Outcome.SHED: 1}
    it.reader.down = True
    with pytest.raises(StoreUnavailable):
        await explained(it)
    assert it.hits.counts == {Outcome.UNKNOWN: 1, Outcome.SHED: 2}


@virtual_time
async def test_a_hit_whose_features_cannot_be_told_is_an_error_of_the_explanation() -> None:
    workers = ExplainingWorkers()
    workers.unexplained = UnknownEntity("its features were never loaded")
    with pytest.raises(UnknownEntity, match="never loaded"):
        await explained(Deployment(reader=FakeReader({"a": entry(4.0)}), workers=workers))
