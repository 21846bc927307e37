"""The ledger's Lua scripts over both supported Redis versions, with short leases."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from inference.batch.ledger import KEEP_RECORD_S, MAX_ATTEMPTS, Claim, Ledger
from inference.batch.records import Chunk, RunRecord, RunState
from inference.errors import Conflict, NotFound, StoreUnavailable
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.sources import Slice, SourceFile

pytestmark = pytest.mark.integration

LEASE_S = 0.25


@pytest.fixture
def ledger(each_redis_client: Client) -> Ledger:
    return Ledger(each_redis_client, Keys("t"))


def opened(ledger: Ledger, chunks: int = 4, run_id: str = "r1") -> RunRecord:
    ledger.request(run_id, "m", {"trigger": "cli", "source": "s"})
    ledger.plans.write(run_id, [Chunk(n, (Slice(0, n, 0, 10),)) for n in range(chunks)])
    ledger.move(
        ledger.load(run_id),
        RunState.RUNNING,
        expected=[RunState.QUEUED],
        chunks_total=chunks,
        rows_total=chunks * 10,
        generation=7,
    )
    return ledger.load(run_id)


def claimed(ledger: Ledger, chunk: int, token: str = "a", lease_s: float = 10.0) -> Claim:
    claim = ledger.claim("r1", chunk, token, lease_s=lease_s)
    assert isinstance(claim, Claim), claim
    return claim


def lapse() -> None:
    time.sleep(LEASE_S * 1.5)  # leases are measured by Redis' clock, which no test can set


def test_a_model_has_one_run_in_progress(ledger: Ledger) -> None:
    opened(ledger)

    with pytest.raises(Conflict, match="'m' has run r1 in progress"):
        ledger.request("r2", "m", {"trigger": "cli", "source": "s"})
    ledger.request("other", "n", {"trigger": "cli", "source": "s"})

    assert ledger.active_run("m") == "r1"
    with pytest.raises(NotFound):
        ledger.load("r2")


def test_an_end_frees_the_model_and_is_remembered(ledger: Ledger, each_redis_client: Client) -> None:
    run = opened(ledger)

    ledger.move(run, RunState.CANCELLED, expected=[RunState.RUNNING])
    ledger.request("r2", "m", {"trigger": "cli", "source": "s"})

    assert ledger.active_run("m") == "r2"
    assert ledger.load("r1").finished_at is not None
    assert each_redis_client.ttl("t:r:r1") > 0
    assert each_redis_client.ttl("t:r:r1:plan") > 0
    assert [record.run_id for record in ledger.newest("m", 10)] == ["r2", "r1"]


def test_a_slot_gets_one_run_ever(ledger: Ledger) -> None:
    ledger.request("r1", "m", {"trigger": "beat", "source": "s"}, slot="2026-01-01T03:00:00.000Z")
    ledger.move(ledger.load("r1"), RunState.FAILED, expected=[RunState.QUEUED])

    with pytest.raises(Conflict, match="was served by run r1"):
        ledger.request("r2", "m", {"trigger": "beat", "source": "s"}, slot="2026-01-01T03:00:00.000Z")
    ledger.request("r3", "m", {"trigger": "beat", "source": "s"}, slot="2026-01-02T03:00:00.000Z")


def test_a_slot_that_met_a_run_in_progress_is_not_used_up(ledger: Ledger) -> None:
    run = opened(ledger)
    with pytest.raises(Conflict, match="in progress"):
        ledger.request("r2", "m", {"trigger": "beat", "source": "s"}, slot="2026-01-01T03:00:00.000Z")
    ledger.move(run, RunState.FAILED, expected=[RunState.RUNNING])

    ledger.request("r2", "m", {"trigger": "beat", "source": "s"}, slot="2026-01-01T03:00:00.000Z")


def test_a_move_from_another_state_is_refused(ledger: Ledger) -> None:
    run = opened(ledger)
    ledger.move(run, RunState.CANCELLED, expected=[RunState.RUNNING])

    with pytest.raises(Conflict, match="run r1 is cancelled, not running"):
        ledger.move(run, RunState.PUBLISHING, expected=[RunState.RUNNING])


def test_a_chunk_that_is_held_is_refused_to_others(ledger: Ledger) -> None:
    opened(ledger)
    claimed(ledger, 0)

    assert ledger.claim("r1", 0, "b") == "another worker holds the chunk"
    claimed(ledger, 1, "b")


def test_a_lost_lease_goes_to_the_next_and_the_straggler_can_neither_renew_nor_finish(ledger: Ledger) -> None:
    opened(ledger)
    straggler = claimed(ledger, 0, "a", LEASE_S)
    lapse()
    successor = claimed(ledger, 0, "b")

    assert successor.attempt == 2
    assert not ledger.renew(straggler)
    assert ledger.finish(straggler, {}, rows=10, quarantined=0) is None
    assert ledger.finish(successor, {}, rows=10, quarantined=0) is not None
    assert ledger.load("r1").rows_done == 10


def test_a_late_worker_keeps_a_chunk_that_nobody_else_took(ledger: Ledger) -> None:
    opened(ledger)
    claim = claimed(ledger, 0, "a", LEASE_S)
    lapse()

    assert ledger.renew(claim)
    assert ledger.claim("r1", 0, "b") == "another worker holds the chunk"


def test_a_chunk_counts_once_however_often_it_is_finished(ledger: Ledger) -> None:
    opened(ledger)
    claim = claimed(ledger, 2)

    assert ledger.finish(claim, {"rows": 10}, rows=10, quarantined=3) is not None
    assert ledger.finish(claim, {"rows": 10}, rows=10, quarantined=3) is None
    assert ledger.claim("r1", 2, "b") == "the chunk is finished"

    run = ledger.load("r1")
    assert (run.chunks_done, run.rows_done, run.rows_quarantined) == (1, 10, 3)
    assert ledger.results("r1") == {2: {"rows": 10}}


@pytest.mark.parametrize("state", [RunState.CANCELLED, RunState.FAILED, RunState.PUBLISHING])
def test_a_run_that_stopped_takes_no_claims_renewals_or_results(ledger: Ledger, state: RunState) -> None:
    run = opened(ledger)
    claim = claimed(ledger, 0)

    ledger.move(run, state, expected=[RunState.RUNNING])

    assert not ledger.renew(claim)
    assert ledger.finish(claim, {}, rows=10, quarantined=0) is None
    assert ledger.claim("r1", 1, "b") == "the run is not running"
    assert ledger.dispatch("r1", max_in_flight=9).chunks == ()


def test_a_run_that_is_gone_takes_nothing_and_gets_no_keys(ledger: Ledger, each_redis_client: Client) -> None:
    opened(ledger)
    claim = claimed(ledger, 0)
    each_redis_client.flushall()

    assert not ledger.renew(claim)
    assert ledger.finish(claim, {}, rows=10, quarantined=0) is None
    ledger.give_back(claim, error="e", pause_s=1)
    assert ledger.claim("r1", 1, "b") == "the run is not running"
    assert each_redis_client.keys() == []


def test_no_more_than_max_in_flight_are_sent_and_each_finish_makes_room(ledger: Ledger) -> None:
    opened(ledger, chunks=5)

    assert ledger.dispatch("r1", max_in_flight=2).chunks == (0, 1)
    assert ledger.dispatch("r1", max_in_flight=2).chunks == ()
    ledger.finish(claimed(ledger, 0), {}, rows=10, quarantined=0)
    assert ledger.dispatch("r1", max_in_flight=2).chunks == (2,)


def test_a_chunk_whose_worker_died_is_sent_again_once_with_what_it_may_have_held_unclaimed(
    ledger: Ledger,
) -> None:
    opened(ledger)
    assert ledger.dispatch("r1", max_in_flight=3).chunks == (0, 1, 2)
    claimed(ledger, 0, "a", LEASE_S)
    claimed(ledger, 1, "b")
    assert ledger.dispatch("r1", max_in_flight=3).chunks == ()

    lapse()

    assert sorted(ledger.dispatch("r1", max_in_flight=3).chunks) == [0, 2]
    assert ledger.dispatch("r1", max_in_flight=3).chunks == ()
    assert claimed(ledger, 0, "c").attempt == 2


def test_chunks_that_no_queue_delivers_are_sent_again_after_a_silence_that_doubles(
    ledger: Ledger, each_redis_client: Client
) -> None:
    def silence(seconds: int) -> tuple[int, ...]:
        """What is sent when all that happened lies so much longer ago."""
        each_redis_client.hincrby("t:r:r1", "moved_at", -seconds * 1000)
        each_redis_client.zincrby("t:r:r1:sent", -seconds * 1000, "0")
        return ledger.dispatch("r1", max_in_flight=9, quiet_s=60).chunks

    opened(ledger, chunks=1)
    assert ledger.dispatch("r1", max_in_flight=9, quiet_s=60).chunks == (0,)

    assert silence(30) == ()
    assert silence(40) == (0,)
    assert silence(70) == ()
    assert silence(60) == (0,)


def test_a_failed_attempt_goes_out_again_after_its_pause_and_its_error_is_kept(ledger: Ledger) -> None:
    opened(ledger, chunks=1)
    ledger.dispatch("r1", max_in_flight=9)
    claim = claimed(ledger, 0)

    ledger.give_back(claim, error="ValueError: no", pause_s=LEASE_S)

    assert not ledger.renew(claim)
    assert ledger.dispatch("r1", max_in_flight=9).chunks == ()
    lapse()
    assert ledger.dispatch("r1", max_in_flight=9).chunks == (0,)
    assert ledger.load("r1").last_error == "ValueError: no"


def test_a_chunk_that_fails_at_every_attempt_is_reported_and_refused(ledger: Ledger) -> None:
    opened(ledger, chunks=1)
    ledger.dispatch("r1", max_in_flight=9)
    for attempt in range(MAX_ATTEMPTS):
        claim = claimed(ledger, 0, f"t{attempt}")
        assert claim.attempt == attempt + 1
        ledger.give_back(claim, error="e", pause_s=0)
        time.sleep(0.003)

    assert ledger.claim("r1", 0, "late") == "no attempt is left"
    assert ledger.dispatch("r1", max_in_flight=9).exhausted == 0


def test_a_run_that_is_taken_up_again_does_only_what_is_left(ledger: Ledger, each_redis_client: Client) -> None:
    run = opened(ledger)
    ledger.dispatch("r1", max_in_flight=3)
    ledger.finish(claimed(ledger, 1), {"rows": 10}, rows=10, quarantined=0)
    stale = claimed(ledger, 0)
    ledger.move(run, RunState.CANCELLED, expected=[RunState.RUNNING], error="stopped")

    ledger.reopen(run, RunState.RUNNING, expected=[RunState.FAILED, RunState.CANCELLED])

    assert ledger.dispatch("r1", max_in_flight=9).chunks == (0, 2, 3)
    assert not ledger.renew(stale)
    again = ledger.load("r1")
    assert (again.state, again.chunks_done, again.error, again.finished_at) == (
        RunState.RUNNING,
        1,
        None,
        None,
    )
    assert [each_redis_client.ttl(f"t:r:r1{part}") for part in ("", ":done")] == [-1, -1]
    assert each_redis_client.ttl("t:r:r1:plan") > KEEP_RECORD_S - 60


def test_a_run_is_not_taken_up_again_beside_another(ledger: Ledger) -> None:
    run = opened(ledger)
    ledger.move(run, RunState.FAILED, expected=[RunState.RUNNING])
    ledger.request("r2", "m", {"trigger": "cli", "source": "s"})

    with pytest.raises(Conflict, match="has run r2 in progress"):
        ledger.reopen(run, RunState.RUNNING, expected=[RunState.FAILED])


def test_an_outage_is_an_error_and_never_an_answer() -> None:
    with Client(port=1, retry=None) as nobody:
        with pytest.raises(StoreUnavailable):
            Ledger(nobody, Keys("t")).active_run("m")
        with pytest.raises(StoreUnavailable):
            Ledger(nobody, Keys("t")).claim("r", 0, "t")


# --- what outlives a run ---

PARTS = ("plan", "claims", "done", "sent", "bins", "histogram")


def worked_on(ledger: Ledger) -> RunRecord:
    """A run of which every part stands in Redis."""
    run = opened(ledger)
    ledger.dispatch("r1", max_in_flight=3)
    ledger.finish(claimed(ledger, 1), {"rows": 10}, rows=10, quarantined=0, histogram={"y": {3: 10}})
    ledger.add_up_histogram("r1")
    ledger.finish(claimed(ledger, 0), {"rows": 10}, rows=10, quarantined=0, histogram={"y": {3: 1}})
    claimed(ledger, 2)
    return run


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.CANCELLED])
def test_every_part_of_a_run_that_ended_expires_and_none_of_one_that_is_taken_up_again(
    ledger: Ledger, each_redis_client: Client, state: RunState
) -> None:
    keys = ["t:r:r1", *(f"t:r:r1:{part}" for part in PARTS)]
    run = worked_on(ledger)
    assert all(each_redis_client.exists(key) for key in keys)
    assert {each_redis_client.ttl(key) for key in keys if key != "t:r:r1:plan"} == {-1}

    ledger.move(run, state, expected=[RunState.RUNNING])
    assert all(0 < each_redis_client.ttl(key) <= KEEP_RECORD_S for key in keys)

    ledger.reopen(run, RunState.RUNNING, expected=[state])
    kept = [key for key in keys if each_redis_client.exists(key) and key != "t:r:r1:plan"]
    assert [each_redis_client.ttl(key) for key in kept] == [-1] * 4
    assert not each_redis_client.exists("t:r:r1:claims", "t:r:r1:sent")
    assert ledger.histogram("r1") == {"y": {3: 11}}


def test_a_plan_that_is_written_for_a_run_that_was_cancelled_meanwhile_expires(
    ledger: Ledger, each_redis_client: Client
) -> None:
    ledger.request("r1", "m", {"trigger": "cli", "source": "s"})

    def chunks() -> Iterator[Chunk]:
        yield Chunk(0, (Slice(0, 0, 0, 10),))
        ledger.move(ledger.load("r1"), RunState.CANCELLED, expected=[RunState.QUEUED])
        yield Chunk(1, (Slice(0, 1, 0, 10),))

    assert ledger.plans.write("r1", chunks()) == 2

    assert 0 < each_redis_client.ttl("t:r:r1:plan") <= KEEP_RECORD_S


def test_a_plan_of_many_pieces_is_whole_expires_and_replaces_what_stood_there(
    ledger: Ledger, each_redis_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.batch.ledger._PIECE", 3)
    plans = ledger.plans
    files = [SourceFile(f"f{n}", 1, str(n), "footer", (10,), (100,)) for n in range(4)]
    each_redis_client.hset("t:r:r1:plan", "99", "of an earlier try")

    assert plans.write("r1", [Chunk(n, (Slice(n % 4, n, 0, 10),)) for n in range(7)], files=files) == 7

    assert each_redis_client.hlen("t:r:r1:plan") == 11
    assert 0 < each_redis_client.ttl("t:r:r1:plan") <= KEEP_RECORD_S
    assert [file.path for file in plans.files("r1")] == ["f0", "f1", "f2", "f3"]
    found = plans.chunk("r1", 6)
    assert found is not None
    assert (found.slices, {n: file.path for n, file in found.files.items()}) == ((Slice(2, 6, 0, 10),), {2: "f2"})
    assert plans.chunk("r1", 7) is None
    assert plans.write("r1", []) == 0
    assert not each_redis_client.exists("t:r:r1:plan")


def test_the_ids_of_a_partial_run_wait_for_a_day(ledger: Ledger, each_redis_client: Client) -> None:
    ledger.plans.keep_entities("r1", b"ids")
    assert ledger.plans.entities("r1") == b"ids"
    assert 86_000 < each_redis_client.ttl("t:r:r1:entities") <= 86_400
    ledger.plans.forget_entities("r1")
    assert ledger.plans.entities("r1") is None


def test_each_chunk_is_done_held_waiting_or_not_sent(ledger: Ledger) -> None:
    opened(ledger, chunks=8)
    ledger.dispatch("r1", max_in_flight=6)
    for chunk in (1, 4):
        ledger.finish(claimed(ledger, chunk), {"rows": 10}, rows=10, quarantined=0)
    claimed(ledger, 0)
    claimed(ledger, 5)
    ledger.give_back(claimed(ledger, 2), error="e", pause_s=60)  # rests, and waits again
    states = ledger.chunk_states("r1")
    assert (states.done, states.scoring, states.waiting) == ({1, 4}, {0, 5}, {2, 3})
    assert [ledger.is_open("r1", chunk) for chunk in (0, 1, 7)] == [True, False, True]
    assert ledger.chunk_states("nobody").done == frozenset()


def test_what_each_finished_chunk_counted_is_added_up(ledger: Ledger) -> None:
    opened(ledger, chunks=3)
    ledger.finish(claimed(ledger, 0), {}, rows=10, quarantined=1, histogram={"y": {3: 4, -2: 5}, "a:b": {0: 1}})
    ledger.finish(claimed(ledger, 2), {}, rows=7, quarantined=2, histogram={"y": {3: 1}})
    for _ in range(3):  # a process that adds up may die, and another one begins again
        assert ledger.histogram("r1") == {"y": {3: 5, -2: 5}, "a:b": {0: 1}}
        ledger.add_up_histogram("r1")
    ledger.finish(claimed(ledger, 1), {}, rows=1, quarantined=0, histogram={"y": {4: 1}})
    assert ledger.histogram("r1") == {"y": {3: 5, -2: 5, 4: 1}, "a:b": {0: 1}}
    run = ledger.load("r1")
    assert (run.rows_done, run.rows_quarantined, run.chunks_done, run.attempts) == (18, 3, 3, 3)
    assert ledger.histogram("nobody") == {}


def test_a_run_in_progress_tells_how_far_it_is_with_each_chunk(ledger: Ledger) -> None:
    opened(ledger, chunks=5)
    ledger.dispatch("r1", max_in_flight=3)
    told = [ledger.finish(claimed(ledger, chunk), {}, rows=1, quarantined=0) for chunk in (1, 0)]
    assert [one and (one.done, one.total, one.in_flight, one.next_chunk) for one in told] == [
        (1, 5, 2, 3),
        (2, 5, 1, 3),
    ]


def test_several_models_have_runs_of_their_own_newest_first(ledger: Ledger) -> None:
    for run_id, model in (("a1", "a"), ("b1", "b")):
        ledger.request(run_id, model, {"trigger": "cli", "source": "s"})
    ledger.move(ledger.load("a1"), RunState.FAILED, expected=[RunState.QUEUED])
    ledger.request("a2", "a", {"trigger": "cli", "source": "s"})
    assert [ledger.active_run(model) for model in "abc"] == ["a2", "b1", None]
    assert [[record.run_id for record in ledger.newest(model, 9)] for model in "abc"] == [["a2", "a1"], ["b1"], []]
    assert [record.run_id for record in ledger.newest("a", 1)] == ["a2"]


def test_a_models_lock_is_held_by_one_and_its_loss_is_no_outage(ledger: Ledger, each_redis_client: Client) -> None:
    lock = ledger.lock("m")
    with lock.holding("first") as held, ledger.lock("m").holding("second") as held_too:
        assert (held, held_too) == (True, False)
        assert lock._renew()
        each_redis_client.set(Keys("t").reconciler("m"), "somebody else's")
        assert not lock._renew()
    assert each_redis_client.get(Keys("t").reconciler("m")) == b"somebody else's"
