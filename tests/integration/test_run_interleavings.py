"""Random interleavings of everything that touches runs and generations, against the real scripts in a real Redis.

Leases and deadlines do not wait: a rule writes into Redis that their time has passed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from inference.batch import Runs, RunState, Trigger
from inference.batch.ledger import Claim, Ledger
from inference.errors import Conflict
from inference.features import Feature, FeatureContract
from inference.models import ModelRegistry, VersionRecord
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.schema import DType, Signature, TensorSpec
from inference.settings import BatchSettings, ModelSettings, Settings
from inference.store import GenerationState, Manifest, Table
from tests.support.leaks import leaked_keys
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.integration

KEYS = Keys("t")
ROWS, CHUNK_ROWS = 6, 2
SIGNATURE = Signature((TensorSpec("x", DType.FLOAT32),), (TensorSpec("y", DType.FLOAT32),))
#: no two of a machine's steps find the same thing to do
_CHOICE = st.integers(0, 1_000_000)
_IN_USE = (GenerationState.LOADING, GenerationState.CURRENT, GenerationState.PREVIOUS)


def record(version: int) -> VersionRecord:
    contract = FeatureContract((Feature("x", DType.FLOAT32),))
    return VersionRecord(
        version=version, state="ready", signature=SIGNATURE, contract=contract, fingerprint="f", inspected_at=0.0
    )


@dataclass
class Worker:
    """One worker in a chunk. `fenced`: it was told that the chunk is its own, and may write any time after."""

    claim: Claim
    manifest: Manifest
    value: float
    left_out: int
    fenced: bool = False
    wrote: bool = False


class Interleavings(RuleBasedStateMachine):
    """One model, whose every run predicts its own number for six entities; run by run some leave one out."""

    client: Client
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        batch = BatchSettings(rows_per_chunk=CHUNK_ROWS, max_in_flight=2)
        model = ModelSettings(path=self.folder / "model", features=str(self.folder / "t.parquet"), batch=batch)
        own = Settings(models={"m": model})
        own._root = self.folder
        self.table = self.table_of(TableKind.PREDICTIONS, "m")
        self.registry = ModelRegistry(self.client, KEYS)
        self.registry.put("m", record(1))
        self.registry.activate("m", 1)
        self.ledger = Ledger(self.client, KEYS)
        unused: Any = None
        self.runs = Runs(
            own, self.client, KEYS, self.registry, unused, self.table_of, self.send, lambda: None,
            inspect=lambda *_: {},
        )  # fmt: skip
        self.run_ids: list[str] = []
        self.left_out: dict[str, int] = {}
        self.messages: list[tuple[str, int]] = []
        self.workers: list[Worker] = []
        self.ended: dict[str, RunState] = {}
        self.gone: set[int] = set()
        self.pointer = self.table.pointer()

    def table_of(self, kind: TableKind, model: str) -> Table:
        return Table(self.client, KEYS.table(kind, model), kind=kind, model=model)

    def send(self, run_id: str, chunks: Sequence[int]) -> None:
        self.messages += [(run_id, chunk) for chunk in chunks]

    # --- what people and beat do -------------------------------------------------------------------

    @rule(leaves_one_out=st.booleans(), hold=st.booleans())
    def request(self, leaves_one_out: bool, hold: bool) -> None:
        self.open(leaves_one_out, hold=hold)

    @rule()
    def request_a_shadow_run(self) -> None:
        self.open(leaves_one_out=False, shadow=True, model_version=max(self.registry.versions("m")))

    def open(self, leaves_one_out: bool, **options: Any) -> None:
        try:
            view = self.runs.request("m", trigger=Trigger.CLI, **options)
        except Conflict:
            return
        self.run_ids.append(view.run_id)
        self.left_out[view.run_id] = int(leaves_one_out)

    @precondition(lambda self: self.run_ids)
    @rule(which=_CHOICE, verb=st.sampled_from(["cancel", "resume", "publish", "force"]))
    def tell_a_run(self, which: int, verb: str) -> None:
        run_id = self.run_ids[-1 - which % min(len(self.run_ids), 3)]
        if verb in ("publish", "force") and self.held():
            run_id = self.held()[0]
        try:
            if verb in ("publish", "force"):
                self.runs.publish(run_id, force=verb == "force", by="test")
            else:
                getattr(self.runs, verb)(run_id)
        except Conflict:
            return
        self.ended.pop(run_id, None)

    @rule()
    def resume_too_late(self) -> None:
        run_id = self.ledger.active_run("m")
        if run_id is None or self.ledger.load(run_id).state is not RunState.RUNNING:
            return
        self.runs.cancel(run_id)
        self.client.hset(KEYS.run(run_id), "finished_at", 1)
        self.runs.reconcile()  # gives up what it scored
        with pytest.raises(Conflict):
            self.runs.resume(run_id)

    @rule()
    def roll_back(self) -> None:
        before = self.table.pointer()
        try:
            self.runs.rollback("m")
        except Conflict:
            return
        after = self.table.pointer()
        assert (after.current, after.previous) == (before.previous, None)
        self.pointer = after

    @rule()
    def a_newer_version_arrives(self) -> None:
        newest = max(self.registry.versions("m"))
        self.registry.put("m", record(newest + 1))
        assert self.registry.activate("m", newest + 1)

    @rule()
    def release(self) -> None:
        try:
            self.runs.release("m")
        except Conflict:
            assert not self.table.pointer().held_versions

    # --- what maintenance does ---------------------------------------------------------------------

    @rule()
    def reconcile(self) -> None:
        self.runs.reconcile()

    @rule()
    def collect_at_once(self) -> None:
        for number in self.table.generations.collectable():
            self.table.generations.collect(number, sweep_after_s=0)

    @rule(which=_CHOICE)
    def publish_what_must_not_be(self, which: int) -> None:
        """A maintenance process that stood still, and publishes what by now was given up, superseded or reopened."""
        manifests = self.table.generations.all()
        if not manifests:
            return
        manifest = manifests[which % len(manifests)]
        number, run_id = manifest.number, manifest.run_id or ""
        is_loading = self.table.generations.state(number) is GenerationState.LOADING
        going_on = self.ledger.load(run_id).state is RunState.PUBLISHING
        if number != self.table.pointer().current and not (is_loading and going_on):
            condition = {"run_key": KEYS.run(run_id), "run_state": "publishing"} if is_loading else {}
            with pytest.raises(Conflict):
                self.table.generations.publish(number, **condition)

    @rule(which=_CHOICE)
    def collect_by_a_list_that_is_out_of_date(self, which: int) -> None:
        known = [manifest.number for manifest in self.table.generations.all()]
        if known:
            number = known[which % len(known)]
            in_use = self.table.generations.state(number) in _IN_USE
            try:
                self.table.generations.collect(number, sweep_after_s=0)
            except Conflict:
                assert in_use
            else:
                assert not in_use

    @rule()
    def time_passes_for_collection_and_resuming(self) -> None:
        for manifest in self.table.generations.all():
            key = KEYS.table(TableKind.PREDICTIONS, "m").generation(manifest.number)
            if self.client.hexists(key, "sweep_due_at"):
                self.client.hset(key, "sweep_due_at", 1)
        for run_id in [*self.ended, *self.held()]:
            if self.client.hexists(KEYS.run(run_id), "finished_at"):
                self.client.hset(KEYS.run(run_id), "finished_at", 1)

    # --- what workers do ---------------------------------------------------------------------------

    @rule(which=_CHOICE, twice=st.booleans())
    def deliver(self, which: int, twice: bool) -> None:
        self.have_messages()
        if not self.messages:
            return
        run_id, chunk = self.messages[which % len(self.messages)]
        if not twice:
            self.messages.remove((run_id, chunk))
        holder = self.holder(run_id, chunk)
        claim = self.ledger.claim(run_id, chunk, f"token{which}-{len(self.workers)}")
        assert not (holder and isinstance(claim, Claim)), "a chunk was given to two workers at once"
        run = self.ledger.load(run_id)
        manifest = self.table.generations.manifest(run.generation or 0)
        if isinstance(claim, Claim) and manifest is not None:
            left_out = self.left_out[run_id] if chunk == 0 else 0
            self.workers.append(Worker(claim, manifest, float(self.run_ids.index(run_id)), left_out))

    def pick(self, which: int) -> Worker:
        """One of the latest workers: what older ones held is mostly over."""
        return self.workers[-1 - which % min(len(self.workers), 4)]

    def have_messages(self) -> None:
        """See that there is something to do, or most steps would find nothing."""
        if self.ledger.active_run("m") is None:
            self.open(leaves_one_out=False)
        self.runs.reconcile()
        if not self.messages:  # all that is left is held by workers that linger
            for at in range(min(len(self.workers), 4)):
                self.lose_the_lease(at)
            self.runs.reconcile()

    @precondition(lambda self: self.workers)
    @rule(which=_CHOICE)
    def fence(self, which: int) -> None:
        worker = self.pick(which)
        worker.fenced = self.ledger.renew(worker.claim)

    @precondition(lambda self: self.workers)
    @rule(which=_CHOICE)
    def write(self, which: int) -> None:
        worker = self.pick(which)
        if worker.fenced:
            ids = [f"e{i}" for i in range(worker.claim.chunk * CHUNK_ROWS, (worker.claim.chunk + 1) * CHUNK_ROWS)]
            ids = ids[worker.left_out :]
            block = {"y": np.full(len(ids), worker.value, np.float32)}
            self.table.generations.write(worker.manifest, pa.array(ids), block, np.zeros(len(ids)))
            worker.wrote = True

    @precondition(lambda self: self.workers)
    @rule(which=_CHOICE, stays=st.booleans())
    def finish(self, which: int, stays: bool) -> None:
        worker = self.pick(which)
        if not worker.wrote:
            return
        bad = [{"feature": None, "reason": "r", "rows": 1, "examples": ["e0"], "non_finite": False}]
        result = {
            "rows": CHUNK_ROWS,
            "quarantined": worker.left_out,
            "non_finite": 0,
            "bad_rows": bad * worker.left_out,
        }
        counts = {"y": {1: CHUNK_ROWS}}
        is_its = self.claimed_by(worker.claim.run_id, worker.claim.chunk) == worker.claim.token
        goes_on = self.ledger.load(worker.claim.run_id).state is RunState.RUNNING
        progress = self.ledger.finish(
            worker.claim, result, rows=CHUNK_ROWS, quarantined=worker.left_out, histogram=counts
        )
        assert (progress is not None) == (is_its and goes_on), "a result counts only from who holds the chunk"
        if not stays:  # else it finishes, or writes, once more
            self.workers.remove(worker)

    @precondition(lambda self: self.workers)
    @rule(which=_CHOICE)
    def fail(self, which: int) -> None:
        worker = self.pick(which)
        self.workers.remove(worker)
        self.ledger.give_back(worker.claim, error="no", pause_s=0.001)

    @precondition(lambda self: self.workers)
    @rule(which=_CHOICE)
    def lose_the_lease(self, which: int) -> None:
        claim = self.pick(which).claim
        held = self.client.hget(KEYS.run_part(claim.run_id, "claims"), str(claim.chunk))
        if held is not None and claim.token.encode() in held:
            attempt, token, _ = held.decode().split()
            self.client.hset(KEYS.run_part(claim.run_id, "claims"), str(claim.chunk), f"{attempt} {token} 1")
            self.client.zadd(KEYS.run_part(claim.run_id, "sent"), {str(claim.chunk): 0})

    def claimed_by(self, run_id: str, chunk: int) -> str | None:
        """The token of who took a chunk last and neither finished it nor gave it back."""
        held = self.client.hget(KEYS.run_part(run_id, "claims"), str(chunk))
        token = None if held is None else held.decode().split()[1]
        return None if token == "-" else token

    def holder(self, run_id: str, chunk: int) -> str | None:
        """The token of who holds a chunk by a lease that has not run out."""
        held = self.client.hget(KEYS.run_part(run_id, "claims"), str(chunk))
        lives = held is not None and int(held.split()[2]) > (self.ledger.now() + 1) * 1000
        return self.claimed_by(run_id, chunk) if lives else None

    @rule(which=_CHOICE)
    def stall_at_the_last_moment(self, which: int) -> None:
        """All is written, the lease runs out, another worker takes the chunk; the first may yet report."""
        if not self.workers or not self.holds(self.pick(which)):
            which = 0
            self.deliver(0, False)
        if not self.workers or not self.holds(worker := self.pick(which)):
            return
        self.workers.remove(worker)
        self.workers.append(worker)
        self.fence(0)
        self.write(0)
        self.lose_the_lease(0)
        self.messages.insert(0, (worker.claim.run_id, worker.claim.chunk))
        self.deliver(0, False)

    def holds(self, worker: Worker) -> bool:
        return self.holder(worker.claim.run_id, worker.claim.chunk) == worker.claim.token

    @rule(chunks=st.integers(1, 3))
    def work(self, chunks: int) -> None:
        """Some chunks from end to end in one step, or finished ones would be rare; the workers linger."""
        self.have_messages()
        for _ in range(min(chunks, len(self.messages))):
            before = len(self.workers)
            self.deliver(0, False)
            if len(self.workers) > before:
                self.fence(0)
                self.write(0)
                self.finish(0, True)

    @rule()
    def work_through(self) -> None:
        """A whole run in one step, or published generations would be rare."""
        self.have_messages()
        run_id = self.ledger.active_run("m")
        while run_id is not None and self.ledger.active_run("m") == run_id:
            self.work(2)
            self.runs.reconcile()

    # --- what always holds -------------------------------------------------------------------------

    @invariant()
    def what_serves_is_whole(self) -> None:
        pointer = self.table.pointer()
        for number, state in ((pointer.current, "current"), (pointer.previous, "previous")):
            if number is None:
                continue
            manifest = self.table.generations.manifest(number)
            assert manifest is not None
            assert manifest.run_id is not None
            assert self.table.generations.state(number) is GenerationState(state)
            left_out = self.left_out[manifest.run_id]
            entries = self.table.read_generation([f"e{i}" for i in range(ROWS)], number)
            expected = [None] * left_out + [float(self.run_ids.index(manifest.run_id))] * (ROWS - left_out)
            assert [entry and entry.values["y"] for entry in entries] == expected
            run = self.ledger.load(manifest.run_id)
            assert run.state in (RunState.PUBLISHED, RunState.PUBLISHING)
            assert run.forced or not left_out
            assert not run.waits, "a run served that nobody approved"
            assert not run.shadow, "a shadow run served"

    @invariant()
    def nothing_is_kept_that_nobody_needs(self) -> None:
        """Only what the pointer names is published, and only what may yet be published is loading."""
        pointer = self.table.pointer()
        for manifest in self.table.generations.all():
            state = self.table.generations.state(manifest.number)
            assert (state is GenerationState.CURRENT) == (manifest.number == pointer.current)
            assert (state is GenerationState.PREVIOUS) == (manifest.number == pointer.previous)

    @invariant()
    def a_run_that_goes_on_keeps_what_it_scored(self) -> None:
        active = self.ledger.active_run("m")
        run = None if active is None else self.ledger.load(active)
        if run is not None and run.generation is not None:
            assert self.table.generations.state(run.generation) in _IN_USE
            done = self.ledger.results(run.run_id)
            ids = [f"e{i}" for chunk in done for i in range(chunk * CHUNK_ROWS, (chunk + 1) * CHUNK_ROWS)]
            entries = self.table.read_generation(ids, run.generation)
            assert sum(entry is None for entry in entries) == run.rows_quarantined

    def held(self) -> list[str]:
        return [run_id for run_id in self.run_ids if self.ledger.load(run_id).state is RunState.HELD]

    @invariant()
    def at_most_one_run_is_held_and_it_keeps_all_that_it_scored(self) -> None:
        held = self.held()
        assert held == [run_id for run_id in [self.ledger.held_run("m")] if run_id is not None]
        for run in map(self.ledger.load, held):
            assert run.waits
            assert self.table.generations.state(run.generation or 0) is GenerationState.LOADING
            serving = self.table.pointer().current
            assert serving is None or serving < (run.generation or 0), "it could replace a newer one"

    @invariant()
    def a_publication_keeps_the_generation_before(self) -> None:
        pointer = self.table.pointer()
        if pointer.current != self.pointer.current and self.pointer.current is not None:
            # no rule publishes twice
            assert pointer.previous == self.pointer.current
        self.pointer = pointer

    @invariant()
    def rows_are_counted_once(self) -> None:
        for run_id in self.run_ids:
            run, results = self.ledger.load(run_id), self.ledger.results(run_id)
            assert run.chunks_done == len(results) <= ROWS // CHUNK_ROWS
            assert run.rows_done == sum(result["rows"] for result in results.values())
            assert run.rows_quarantined == sum(result["quarantined"] for result in results.values())
            assert sum(self.ledger.histogram(run_id).get("y", {}).values()) == run.rows_done

    @invariant()
    def ends_are_ends_and_one_run_at_most_goes_on(self) -> None:
        going = []
        for run_id in self.run_ids:
            state = self.ledger.load(run_id).state
            assert self.ended.get(run_id, state) is state
            if state is RunState.HELD:
                continue
            if state.is_over:
                self.ended[run_id] = state
            else:
                going.append(run_id)
        active = self.ledger.active_run("m")
        assert going == ([] if active is None else [active])

    @invariant()
    def a_collected_generation_never_comes_back(self) -> None:
        states = {
            manifest.number: self.table.generations.state(manifest.number) for manifest in self.table.generations.all()
        }
        assert {number for number in self.gone if number in states} <= {
            number for number, state in states.items() if state is GenerationState.COLLECTING
        }
        self.gone |= {number for number, state in states.items() if state is GenerationState.COLLECTING}

    @invariant()
    def nothing_leaks(self) -> None:
        assert leaked_keys(self.client, "t") == []


def interleave(server: RedisServer, *, examples: int, steps: int) -> None:
    with Client.from_url(server.url()) as client, tempfile.TemporaryDirectory() as folder:
        values = pa.array([0.0] * ROWS, pa.float32())
        pq.write_table(pa.table({"entity_id": [f"e{i}" for i in range(ROWS)], "x": values}), f"{folder}/t.parquet")

        class Machine(Interleavings):
            pass

        Machine.client, Machine.folder = client, Path(folder)
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )


def test_some_interleavings_break_no_promise(redis_server: RedisServer) -> None:
    interleave(redis_server, examples=6, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_interleavings_break_no_promise(redis_server: RedisServer) -> None:
    interleave(redis_server, examples=60, steps=60)
