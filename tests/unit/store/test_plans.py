"""How often a look-up goes to Redis, and what it does when the table changes meanwhile, over replies from a dict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from inference.redis.keys import Keys, TableKind
from inference.schema import DType, TensorSpec
from inference.store import reading
from inference.store.codec import (
    bucket_of,
    codec_for,
    pack_outdated,
    pack_overlay,
    schema_digest,
    schema_text,
    stored_id,
)
from inference.store.reading import (
    Plan,
    ReaderMemory,
    plan_pointer,
    plan_read,
    plan_read_block,
    plan_read_for_change,
    plan_read_generation,
    together,
)
from inference.store.records import GENERATION_FORMAT, Manifest, Origin

FIELDS = (TensorSpec("y", DType.FLOAT32),)
OTHERS = (TensorSpec("label", DType.STRING),)
KEYS = Keys("t").table(TableKind.PREDICTIONS, "m")
POINTER = ("current", "previous", "version", "held", "incarnation", "labels", "canary_share")


class Server:
    """Replies to the commands of plans, and counts the batches. `meanwhile`: done before the batch of that number."""

    def __init__(self) -> None:
        self.pointer: dict[str, bytes] = {"incarnation": b"one", "version": b"1"}
        self.hashes: dict[str, dict[bytes, bytes]] = {KEYS.schemas: {}}
        self.overlay: dict[bytes, bytes] = {}
        self.batches: list[list[str]] = []
        self.meanwhile: dict[int, Callable[[], None]] = {}

    def generation(self, number: int, *, publish: bool = True, buckets: int = 3, **rows: float) -> None:
        begun_at, format_ = 1000.0 + number, GENERATION_FORMAT
        manifest = Manifest(number, FIELDS, buckets, 1, "h", None, begun_at, 9000.0, len(rows), format_)
        self.hashes[KEYS.generation(number)] = {b"manifest": manifest.to_json().encode()}
        for entity_id, value in rows.items():
            bucket = self.hashes.setdefault(KEYS.bucket(number, bucket_of(entity_id, buckets)), {})
            bucket[stored_id(entity_id)] = row_of(value)
        if publish:
            self.pointer |= {"current": b"%d" % number}

    def lose(self, incarnation: str) -> None:
        """Become another, empty table."""
        self.hashes, self.overlay = {KEYS.schemas: {}}, {}
        self.pointer = {"incarnation": incarnation.encode(), "version": b"1"}

    def upsert(
        self, entity_id: str, value: float, *, fields: Any = FIELDS, as_of: float = 500.0, version: int = 1
    ) -> None:
        row = row_of(value, as_of) if fields is FIELDS else codec_for(fields).pack(
            {"label": np.array(["x"], object)}, np.array([as_of])
        ).to_pylist()[0]  # fmt: skip
        self.hashes[KEYS.schemas][schema_digest(fields)] = schema_text(fields).encode()
        [self.overlay[KEYS.overlay(stored_id(entity_id))]] = pack_overlay(
            fields, [row], 2000.0, version, Origin.REALTIME
        )

    def follow(self, plan: Plan[Any]) -> Any:
        try:
            commands = next(plan)
            while True:
                self.batches.append([command[0] for command in commands])
                self.meanwhile.pop(len(self.batches), lambda: None)()
                commands = plan.send([self._reply(*command) for command in commands])
        except StopIteration as done:
            return done.value

    def rounds(self, plan: Plan[Any]) -> tuple[int, Any]:
        before = len(self.batches)
        outcome = self.follow(plan)
        return len(self.batches) - before, outcome

    def _reply(self, name: str, *arguments: Any) -> Any:
        if name == "MGET":
            return [self.overlay.get(key) for key in arguments]
        key, *fields = arguments
        if key == KEYS.pointer:
            assert tuple(fields) == POINTER
            return [self.pointer.get(field) for field in fields]
        found = [self.hashes.get(key, {}).get(field.encode() if isinstance(field, str) else field) for field in fields]
        return found[0] if name == "HGET" else found


def row_of(value: float, as_of: float = 100.0) -> bytes:
    [row] = codec_for(FIELDS).pack({"y": np.array([value], np.float32)}, np.array([as_of])).to_pylist()
    return bytes(row)


def values(entries: Sequence[Any]) -> list[Any]:
    return [None if entry is None else next(iter(entry.values.values())) for entry in entries]


@pytest.fixture
def server() -> Server:
    server = Server()
    server.generation(1, a=1, b=2, c=3)
    return server


def test_the_first_look_up_learns_the_pointer_and_the_manifest_and_each_later_one_is_one_batch(server: Server) -> None:
    memory = ReaderMemory()
    rounds, found = server.rounds(plan_read(KEYS, memory, ["a", "nobody", "c"]))
    assert (rounds, values(found)) == (3, [1, None, 3])
    for ids, expected in ((["b"], [2]), (["c", "b", "a", "c"], [3, 2, 1, 3])):
        rounds, found = server.rounds(plan_read(KEYS, memory, ids))
        assert (rounds, values(found)) == (1, expected)


def test_nothing_is_asked_for_nobody(server: Server) -> None:
    assert server.rounds(plan_read(KEYS, ReaderMemory(), [])) == (0, [])


def test_ids_of_one_bucket_share_a_command(server: Server) -> None:
    server.generation(2, buckets=1, a=4, b=5, c=6)
    memory = ReaderMemory()
    assert values(server.follow(plan_read(KEYS, memory, ["c", "a", "b"]))) == [6, 4, 5]
    assert server.batches[-1] == ["HMGET", "MGET", "HMGET"]


def test_a_schema_of_the_overlay_is_read_once(server: Server) -> None:
    memory = ReaderMemory()
    server.upsert("a", 7)
    server.upsert("b", 0, fields=OTHERS)
    assert server.rounds(plan_read(KEYS, memory, ["a", "c"])) == (4, server.follow(plan_read(KEYS, memory, ["a", "c"])))
    rounds, found = server.rounds(plan_read(KEYS, memory, ["a", "b", "c"]))
    assert (rounds, values(found)) == (2, [7, "x", 3])
    assert server.rounds(plan_read(KEYS, memory, ["b", "a"]))[0] == 1


def test_a_note_of_a_change_has_no_schema_to_be_read(server: Server) -> None:
    memory = ReaderMemory()
    server.follow(plan_read(KEYS, memory, ["a"]))
    server.overlay[KEYS.overlay(stored_id("a"))] = pack_outdated(2000.0, 101)
    rounds, [entry] = server.rounds(plan_read(KEYS, memory, ["a"]))
    assert (rounds, entry.outdated) == (1, True)


@pytest.mark.parametrize("plan", [plan_read, plan_read_block, plan_read_for_change])
def test_a_publication_in_the_middle_is_noticed_and_the_rows_are_of_one_generation(server: Server, plan: Any) -> None:
    memory = ReaderMemory()
    server.follow(plan_read(KEYS, memory, ["a"]))
    server.meanwhile[len(server.batches) + 1] = lambda: server.generation(2, a=10, b=20)
    rounds, found = server.rounds(plan(KEYS, memory, ["a", "b", "c"]))
    assert rounds == 3  # the old rows in vain, the new manifest, the new rows
    if plan is plan_read:
        assert values(found) == [10, 20, None]
        assert [entry and entry.generation for entry in found] == [2, 2, None]
    else:
        rows = found if plan is plan_read_block else found.rows
        assert (rows.block["y"].tolist(), rows.found.tolist()) == ([10, 20, 0], [True, True, False])


def test_rows_under_changes_that_are_newer_than_the_generation_are_not_asked_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_MANY", 3)
    memory, ids = ReaderMemory(), ["a", "b", "c"]
    server.follow(plan_read_for_change(KEYS, memory, ids))
    for one in ids:
        server.upsert(one, 7, as_of=1500.0, version=0)
    found = server.follow(plan_read_for_change(KEYS, memory, ids))
    assert server.batches[-3:-1] == [["MGET"], ["HMGET"]], "the overlay, then the pointer alone; then the schema"
    assert found.rows.block["y"].tolist() == [7, 7, 7]
    assert found.rows.as_of.tolist() == [1500, 1500, 1500]
    server.meanwhile[len(server.batches) + 2] = lambda: server.generation(600, a=10, b=20, c=30)
    found = server.follow(plan_read_for_change(KEYS, memory, ids))
    assert len(server.batches[-1]) > 1, "the generation that came meanwhile began after the changes"
    assert found.rows.block["y"].tolist() == [7, 7, 7], "its rows are older nevertheless"


def test_rows_for_a_change_are_the_same_in_one_round_trip_and_in_two(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.generation(2, **{f"e{n}": float(n) for n in range(9)})
    for n, options in enumerate([
        {"as_of": 1500.0}, {"as_of": 1500.0, "version": 2}, {"as_of": 1500.0, "fields": OTHERS}, {"as_of": 50.0},
        {"as_of": 1000.0}, {"as_of": 1001.0}, {"as_of": 1002.0},
    ]):  # fmt: skip
        server.upsert(f"e{n}", 70 + n, **{"version": 0, **options})
    server.overlay[KEYS.overlay(stored_id("e7"))] = pack_outdated(2000.0, 1500)
    server.upsert("new", 80, as_of=1500.0, version=0)
    ids = [*(f"e{n}" for n in range(9)), "new", "nobody"]
    seen = []
    for many in (100, 1):
        monkeypatch.setattr(reading, "_MANY", many)
        found = server.follow(plan_read_for_change(KEYS, ReaderMemory(), ids))
        rows = found.rows
        seen.append((rows.block["y"].tolist(), rows.found.tolist(), rows.as_of.tolist(), found.known_at.tolist()))
        assert found.overlay == tuple(server.overlay.get(KEYS.overlay(stored_id(one))) for one in ids)
    assert seen[0] == seen[1]
    assert seen[0][0] == [70, 1, 2, 3, 74, 75, 76, 7, 8, 80, 0]


def test_a_table_that_was_lost_and_built_anew_is_not_read_by_the_old_manifest(server: Server) -> None:
    memory = ReaderMemory()
    server.follow(plan_read(KEYS, memory, ["a"]))
    server.lose("two")
    server.generation(1, buckets=1, a=50)
    assert values(server.follow(plan_read(KEYS, memory, ["a"]))) == [50]
    server.lose("three")
    server.generation(1, buckets=2, a=60)
    assert values(server.follow(plan_read_generation(KEYS, memory, ["a", "b"], 1))) == [60, None]


def test_a_generation_is_read_by_its_number_without_the_overlay(server: Server) -> None:
    memory = ReaderMemory()
    server.generation(2, a=10)
    server.upsert("a", 7)
    rounds, found = server.rounds(plan_read_generation(KEYS, memory, ["a", "b"], 1))
    assert (rounds, values(found), found[0].generation) == (3, [1, 2], 1)  # the first one learns the pointer too
    assert server.rounds(plan_read_generation(KEYS, memory, ["a"], 1))[0] == 1
    assert server.follow(plan_read_generation(KEYS, memory, ["a"], 9)) == [None]


def test_the_newest_manifests_are_remembered_and_the_oldest_forgotten(server: Server) -> None:
    memory = ReaderMemory()
    for number in range(1, 10):
        server.generation(number, a=number)
        assert values(server.follow(plan_read(KEYS, memory, ["a"]))) == [number]
    assert sorted(memory.manifests) == list(range(2, 10))
    assert server.rounds(plan_read_generation(KEYS, memory, ["a"], 2))[0] == 1
    assert server.rounds(plan_read_generation(KEYS, memory, ["a"], 1))[0] == 2


def test_an_empty_table_is_one_batch_once_its_pointer_is_known() -> None:
    server, memory = Server(), ReaderMemory()
    assert server.rounds(plan_read(KEYS, memory, ["a"])) == (2, [None])
    assert server.rounds(plan_read_block(KEYS, memory, ["a"])) == (1, None)


def test_several_look_ups_go_in_step_and_each_gets_its_own_replies(server: Server) -> None:
    memories = [ReaderMemory(), ReaderMemory()]
    server.follow(plan_read(KEYS, memories[1], ["a"]))
    plans = [plan_read(KEYS, memories[0], ["b"]), plan_read(KEYS, memories[1], ["c", "a"]), plan_read(KEYS, memories[0], [])]  # fmt: skip  # noqa: E501
    rounds, found = server.rounds(together(plans))
    assert rounds == 3
    assert [values(entries) for entries in found] == [[2], [3, 1], []]
    assert server.rounds(together([])) == (0, [])


def test_a_pointer_says_all_that_stands_in_it(server: Server) -> None:
    server.pointer |= {"previous": b"4", "held": b"7,9", "labels": b"canary=4,stable=3", "canary_share": b"0.25"}
    pointer = server.follow(plan_pointer(KEYS))
    assert (pointer.current, pointer.previous, pointer.active_version) == (1, 4, 1)
    assert pointer.held_versions == {7, 9}
    assert (pointer.labels.versions, pointer.labels.canary_share) == ({"canary": 4, "stable": 3}, 0.25)
    assert pointer.incarnation == "one"
