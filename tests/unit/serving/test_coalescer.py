from __future__ import annotations

import asyncio
from collections.abc import Sequence

from inference.errors import BrokerUnavailable, DeadlineExceeded, Defect, Overloaded, Unavailable
from inference.logs import RequestId, requests_behind, work_for
from inference.serving.answers import Computed, Reply
from inference.serving.coalescer import MAX_WAITING_BATCHES, Coalescer
from tests.support.virtual_time import virtual_time


class Worker:
    """Computes any micro-batch in one second."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.running = self.most_running = 0
        self.error: Exception | None = None

    async def __call__(self, entity_ids: list[str], until: float) -> list[Reply]:
        self.batches.append(entity_ids)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await asyncio.sleep(1)
        finally:
            self.running -= 1
        if self.error:
            raise self.error
        return [Computed(entity_id, 1, 0.0, 0.0) for entity_id in entity_ids]


def predictions(replies: Sequence[Reply]) -> list[object]:
    return [reply.prediction if isinstance(reply, Computed) else type(reply) for reply in replies]


@virtual_time
async def test_what_is_asked_in_one_turn_makes_one_micro_batch_and_each_id_is_computed_once() -> None:
    worker = Worker()
    coalescer = Coalescer(worker, max_in_flight=2, max_rows=10)
    replies = await asyncio.gather(
        coalescer.ask(["a"], until=5), coalescer.ask(["b", "a", "b"], until=5), coalescer.ask(["c"], until=5)
    )
    assert worker.batches == [["a", "b", "c"]]
    assert [predictions(part) for part in replies] == [["a"], ["b", "a", "b"], ["c"]]


@virtual_time
async def test_what_arrives_while_all_are_in_flight_makes_the_next_micro_batch() -> None:
    worker = Worker()
    coalescer = Coalescer(worker, max_in_flight=2, max_rows=10)
    asks = []
    for number in range(8):
        asks.append(asyncio.create_task(coalescer.ask([str(number)], until=9)))
        await asyncio.sleep(0.1)
    await asyncio.gather(*asks)
    assert worker.batches == [["0"], ["1"], ["2", "3", "4", "5", "6", "7"]]
    assert worker.most_running == 2


@virtual_time
async def test_an_id_in_flight_is_joined_and_not_sent_again() -> None:
    worker = Worker()
    coalescer = Coalescer(worker, max_in_flight=2, max_rows=10)
    first = asyncio.create_task(coalescer.ask(["a"], until=5))
    await asyncio.sleep(0.5)
    assert predictions(await coalescer.ask(["a"], until=5)) == ["a"]
    assert predictions(await first) == ["a"]
    assert worker.batches == [["a"]]


@virtual_time
async def test_no_micro_batch_is_larger_than_allowed_and_order_is_kept() -> None:
    worker = Worker()
    coalescer = Coalescer(worker, max_in_flight=1, max_rows=3)
    ids = [str(number) for number in range(7)]
    assert predictions(await coalescer.ask(ids, until=9)) == ids
    assert [len(batch) for batch in worker.batches] == [3, 3, 1]


@virtual_time
async def test_a_late_reply_is_a_missed_deadline_and_nobody_waits_past_it() -> None:
    coalescer = Coalescer(Worker(), max_in_flight=1, max_rows=1)
    assert predictions(await coalescer.ask(["a", "b"], until=1.5)) == ["a", DeadlineExceeded]
    assert asyncio.get_running_loop().time() == 1.5


@virtual_time
async def test_whoever_joined_a_flight_with_less_time_gets_another_one() -> None:
    worker = Worker()
    coalescer = Coalescer(worker, max_in_flight=1, max_rows=9)
    hasty = asyncio.create_task(coalescer.ask(["a"], until=0.5))
    await asyncio.sleep(0.2)
    assert predictions(await coalescer.ask(["a"], until=5)) == ["a"]
    assert predictions(await hasty) == [DeadlineExceeded]
    assert worker.batches == [["a"], ["a"]]


@virtual_time
async def test_a_cancelled_caller_leaves_the_others_alone_and_its_own_id_is_not_sent() -> None:
    worker = Worker()
    coalescer = Coalescer(worker, max_in_flight=1, max_rows=9)
    first = asyncio.create_task(coalescer.ask(["a"], until=5))
    await asyncio.sleep(0.1)
    leaving = asyncio.create_task(coalescer.ask(["a", "b"], until=5))
    staying = asyncio.create_task(coalescer.ask(["c"], until=5))
    await asyncio.sleep(0.1)
    leaving.cancel()
    assert predictions(await first) == ["a"]
    assert predictions(await staying) == ["c"]
    assert worker.batches == [["a"], ["c"]]


@virtual_time
async def test_a_failed_micro_batch_is_its_own_rows_error_and_the_next_one_flies() -> None:
    worker = Worker()
    coalescer = Coalescer(worker, max_in_flight=1, max_rows=9)
    worker.error = BrokerUnavailable("gone")
    assert predictions(await coalescer.ask(["a"], until=5)) == [BrokerUnavailable]
    worker.error = ZeroDivisionError("a defect")
    assert predictions(await coalescer.ask(["a"], until=5)) == [Defect]
    worker.error = None
    assert predictions(await coalescer.ask(["a"], until=5)) == ["a"]


@virtual_time
async def test_closing_ends_what_is_in_flight() -> None:
    coalescer = Coalescer(Worker(), max_in_flight=1, max_rows=9)
    asking = asyncio.create_task(coalescer.ask(["a"], until=5))
    await asyncio.sleep(0.1)
    await coalescer.close()
    assert predictions(await asking) == [Unavailable]


@virtual_time
async def test_what_cannot_be_answered_in_time_is_turned_away_at_once_and_told_when_to_come_back() -> None:
    worker = Worker()
    coalescer = Coalescer(worker, max_in_flight=1, max_rows=2)
    await coalescer.ask(["warm"], until=5)  # now the pace is known: one second
    loop = asyncio.get_running_loop()
    flying = asyncio.create_task(coalescer.ask(["a", "b"], until=9))
    await asyncio.sleep(0.1)
    waiting = asyncio.create_task(coalescer.ask(["c", "d"], until=9))
    await asyncio.sleep(0)
    before = loop.time()
    [refused] = await coalescer.ask(["e"], until=before + 1.5)
    assert isinstance(refused, Overloaded)
    assert refused.message == "too many requests wait already: the prediction would come too late"
    assert (loop.time(), refused.retry_after_s) == (before, 2.0)
    assert predictions(await coalescer.ask(["e"], until=before + 3)) == ["e"]
    assert predictions([*await flying, *await waiting]) == ["a", "b", "c", "d"]


@virtual_time
async def test_what_would_be_turned_away_is_told_without_asking_and_what_is_on_its_way_may_be_joined() -> None:
    coalescer = Coalescer(Worker(), max_in_flight=1, max_rows=1)
    await coalescer.ask(["warm"], until=5)
    loop = asyncio.get_running_loop()
    flying = asyncio.create_task(coalescer.ask(["a"], until=9))
    await asyncio.sleep(0.1)
    waiting = asyncio.create_task(coalescer.ask(["b"], until=9))
    await asyncio.sleep(0)
    soon = loop.time() + 0.5
    assert [coalescer.refusal(entity_id, soon) for entity_id in "ab"] == [None, None]
    refused = coalescer.refusal("c", soon)
    assert (type(refused), refused and refused.retry_after_s) == (Overloaded, 2.0)
    assert coalescer.refusal("c", loop.time() + 5) is None
    assert predictions([*await flying, *await waiting]) == ["a", "b"]
    assert coalescer.refusal("c", loop.time() + 0.5) is None, "there is room again"


@virtual_time
async def test_joining_what_is_in_flight_is_never_refused() -> None:
    coalescer = Coalescer(Worker(), max_in_flight=1, max_rows=1)
    await coalescer.ask(["warm"], until=5)
    first = asyncio.create_task(coalescer.ask(["a"], until=9))
    await asyncio.sleep(0.5)
    assert predictions(await coalescer.ask(["a"], until=asyncio.get_running_loop().time() + 0.6)) == ["a"]
    await first


@virtual_time
async def test_a_slow_spell_is_forgotten_as_soon_as_there_is_room_again() -> None:
    worker = Worker()
    coalescer = Coalescer(worker, max_in_flight=1, max_rows=1)
    assert predictions(await coalescer.ask(["a"], until=0.5)) == [DeadlineExceeded]
    assert predictions(await coalescer.ask(["a"], until=5)) == ["a"]


@virtual_time
async def test_while_answers_come_late_fewer_and_fewer_are_tried_until_they_come_in_time_again() -> None:
    worker = Worker()
    coalescer = Coalescer(worker, max_in_flight=2, max_rows=8)

    async def flood(within_s: float) -> tuple[int, int]:
        """Return how many of sixteen ids left for a worker, and how many were refused at once."""
        sent, until = len(worker.batches), asyncio.get_running_loop().time() + within_s
        replies = predictions(await coalescer.ask([f"{sent}-{number}" for number in range(16)], until=until))
        await asyncio.sleep(1)
        return sum(map(len, worker.batches[sent:])), replies.count(Overloaded)

    assert await flood(0.5) == (16, 0), "nothing is known of the pace yet"
    assert [await flood(0.4) for _ in range(4)] == [(2, 14), (1, 15), (1, 15), (1, 15)]
    assert await flood(5) == (16, 0), "who has time enough waits"
    assert [await flood(0.4) for _ in range(2)] == [(4, 12), (2, 14)]


@virtual_time
async def test_what_waits_is_bounded_however_patient_the_callers_are() -> None:
    coalescer = Coalescer(Worker(), max_in_flight=1, max_rows=1)
    ids = [str(number) for number in range(MAX_WAITING_BATCHES + 10)]
    answers = predictions(await coalescer.ask(ids, until=1e6))
    assert answers == [*ids[:MAX_WAITING_BATCHES], *[Overloaded] * 10]


@virtual_time
async def test_a_micro_batch_is_computed_for_all_who_asked_before_it_left_and_for_nobody_else() -> None:
    behind: list[list[str]] = []

    async def compute(entity_ids: list[str], until: float) -> list[Reply]:
        behind.append([str(request) for request in requests_behind()])
        await asyncio.sleep(1)
        return [Computed(entity_id, 1, 0.0, 0.0) for entity_id in entity_ids]

    coalescer = Coalescer(compute, max_in_flight=1, max_rows=10)

    async def ask(name: str, entity_id: str) -> None:
        work_for([RequestId(name)])
        await coalescer.ask([entity_id], until=9)

    first = asyncio.gather(ask("one", "a"), ask("two", "b"), ask("three", "a"))
    await asyncio.sleep(0.5)
    await asyncio.gather(first, ask("four", "c"))
    assert behind == [["one", "three", "two"], ["four"]]


@virtual_time
async def test_a_waiting_id_takes_over_the_later_deadline_of_whoever_joins_it() -> None:
    worker = Worker()
    coalescer = Coalescer(worker, max_in_flight=1, max_rows=10)
    first = asyncio.create_task(coalescer.ask(["x"], until=9))
    await asyncio.sleep(0.5)
    early = asyncio.create_task(coalescer.ask(["a"], until=1.5))
    late = asyncio.create_task(coalescer.ask(["a"], until=9))
    earlier = asyncio.create_task(coalescer.ask(["a"], until=1.4))  # does not shorten it either
    assert predictions(await early) == predictions(await earlier) == [DeadlineExceeded]
    assert predictions(await late) == ["a"]
    assert predictions(await first) == ["x"]
    assert worker.batches == [["x"], ["a"]], "it is computed once"
    assert asyncio.get_running_loop().time() == 2.0


@virtual_time
async def test_an_id_that_several_wait_for_is_computed_as_long_as_one_of_them_does() -> None:
    worker = Worker()
    coalescer = Coalescer(worker, max_in_flight=1, max_rows=9)
    first = asyncio.create_task(coalescer.ask(["x"], until=5))
    await asyncio.sleep(0.1)
    waiting = {name: [asyncio.create_task(coalescer.ask([name], until=5)) for _ in range(3)] for name in "abc"}
    await asyncio.sleep(0.1)
    for name, leaving in (("a", 1), ("b", 2), ("c", 3)):
        for task in waiting[name][:leaving]:
            task.cancel()
    assert predictions(await first) == ["x"]
    assert [predictions(await waiting[name][2]) for name in "ab"] == [["a"], ["b"]]
    assert worker.batches == [["x"], ["a", "b"]]


@virtual_time
async def test_a_computation_that_gives_another_number_of_replies_fails_every_row() -> None:
    async def compute(entity_ids: list[str], until: float) -> list[Reply]:
        return [Computed("a", 1, 0.0, 0.0)] * 3

    replies = await Coalescer(compute, max_in_flight=1, max_rows=9).ask(["a", "b"], until=5)
    assert [str(reply) for reply in replies] == ["3 replies came back for 2 rows"] * 2


@virtual_time
async def test_what_takes_exactly_the_time_that_is_left_is_not_turned_away() -> None:
    coalescer = Coalescer(Worker(), max_in_flight=2, max_rows=1)
    await coalescer.ask(["warm"], until=5)  # the pace: one second
    now = asyncio.get_running_loop().time()
    flying = asyncio.create_task(coalescer.ask(["a", "b"], until=now + 9))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    [refused] = await coalescer.ask(["c"], until=now + 0.999)
    assert isinstance(refused, Overloaded)
    assert refused.retry_after_s == 1.0
    joined = asyncio.create_task(coalescer.ask(["d"], until=now + 1.0))
    await asyncio.sleep(0)
    assert list(coalescer._waiting) == ["d"]
    await asyncio.gather(flying, joined)
