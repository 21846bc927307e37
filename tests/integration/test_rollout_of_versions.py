"""Versions come into service one by one, among several workers and several models."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from inference.errors import BadInput, ModelError, ModelUnavailable
from inference.models import ModelHost, ModelRegistry, Rollout, VersionRecord, inspect_versions
from inference.models import host as host_module
from inference.models.host import ACTIVE_MAX_AGE_S, RETRY_AFTER_S, RETRY_AFTER_TIMES
from inference.models.registry import RELOAD_REMEMBERED_S
from inference.models.rollout import UNLOAD_AFTER_S
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.settings import Settings
from inference.store import CANARY, STABLE, Labels, Pointer, Table
from tests.support.models import write_features
from tests.support.plain_onnx import write_times

pytestmark = pytest.mark.integration

KEYS = Keys("t")
M1, M12 = {"m": (1,)}, {"m": (1, 2)}


def write_version(folder: Path, version: int, factor: float) -> None:
    """Write a version that multiplies, whole from the first moment on."""
    write_features(folder, [{"name": "x", "dtype": "float32"}])
    write_times(folder / f".{version}", factor)
    (folder / f".{version}").rename(folder / str(version))


class Room:
    """One worker's view of model `m`, whose folder a test fills; `other` is a model that nothing happens to."""

    def __init__(self, folder: Path, client: Client, **model: Any) -> None:
        self.folder = folder / "m"
        self.now = 1000.0
        self.others: list[Mapping[str, tuple[int, ...]]] = []
        self.tried: list[int] = []
        write_version(self.folder, 1, 1)
        write_version(folder / "other", 4, 4)
        models = {
            "other": {"path": str(folder / "other")},
            "m": {"path": str(self.folder), **model},
        }
        self.settings = Settings.model_validate({"models": models})
        self.client = client
        self.registry = ModelRegistry(client, KEYS)
        self.host = self.new_host()
        self.rollout = self.watch()
        self.host.start()

    def new_host(self, **how: Any) -> ModelHost:
        return ModelHost(self.settings, self.registry, monotonic=lambda: self.now, try_apart=self.try_apart, **how)

    def watch(self, *, answers: bool = True) -> Rollout:
        return Rollout(
            self.settings, self.host, self.registry, "m", answers=answers, others=lambda: self.others,
            try_apart=self.try_apart,
        )  # fmt: skip

    def try_apart(self, settings: Settings, model: str, version: int) -> VersionRecord:
        """Stands for the process that tries a version."""
        self.tried.append(version)
        if (self.folder / str(version) / "crashes").exists():
            raise ModelError("the process that tried it was ended by SIGSEGV")
        record = inspect_versions(self.folder, [version])[version]
        if record.error:
            raise ModelError(record.error)
        return record

    def put(self, version: int, factor: float | None = None, *, bad: str | None = None) -> None:
        write_version(self.folder, version, factor or version)
        if bad == "crashes":
            (self.folder / str(version) / "crashes").touch()
        elif bad:
            (self.folder / str(version) / "model.onnx").write_bytes(b"no model")

    def look(self, times: int = 2) -> bool:
        return [self.rollout.look() for _ in range(times)][-1]

    @property
    def active(self) -> int | None:
        return self.registry.active_version("m")

    def generation_of(self, version: int) -> None:
        """Publish a generation that a version computed."""
        table = Table(self.client, KEYS.table(TableKind.PREDICTIONS, "m"), kind=TableKind.PREDICTIONS, model="m")
        fields = self.registry.get("m", version).signature.outputs
        manifest = table.generations.begin(fields, rows_expected=0, model_version=version, contract_hash="h", keep_s=60)
        table.generations.publish(manifest.number)


@pytest.fixture
def make_room(tmp_path: Path, redis_client: Client) -> Callable[..., Room]:
    return lambda **model: Room(tmp_path, redis_client, **model)


# --- who must hold a version before it answers ---


@pytest.mark.parametrize(
    ("others", "activated"),
    [
        ([], True),
        ([M12], True),
        ([M1], False),
        ([M12, M1], False),
        ([M1, M12], False),
        ([M12, {"other": (2,)}], False),  # holds that number of another model
        ([M12, {}], False),
        ([M12, {"m": (2,), "other": (4,)}, {"m": (1, 2, 3)}], True),
    ],
)
def test_a_version_answers_once_every_other_worker_holds_it(
    make_room: Callable[..., Room], others: list[Any], activated: bool
) -> None:
    room = make_room()
    room.put(2)
    room.others = others
    assert room.look() is activated
    assert room.host.versions() == {"other": (4,), "m": (1, 2)}
    assert room.active == (2 if activated else 1)
    assert room.host.get("other").record.version == 4


@pytest.mark.parametrize("others", [[M1], [M1, M1]])
def test_a_worker_that_answers_nobody_waits_while_others_do(make_room: Callable[..., Room], others: list[Any]) -> None:
    room = make_room()
    room.rollout = room.watch(answers=False)
    room.put(2)
    room.others = others
    assert room.look()
    assert room.host.versions()["m"] == (1,)
    room.others = []
    assert room.look()
    assert (room.active, room.host.versions()["m"]) == (2, (1, 2))


def test_a_new_version_is_known_to_its_worker_at_once(make_room: Callable[..., Room]) -> None:
    room = make_room()
    assert room.host.get("m").record.version == 1
    room.put(2)
    assert room.look()
    assert room.host.get("m").record.version == 2, "no second has passed"


def test_an_older_version_never_takes_the_place_of_a_newer_one_by_itself(make_room: Callable[..., Room]) -> None:
    room = make_room(versions="all")
    room.put(3)
    assert room.look()
    room.put(2)
    assert room.look()
    assert (room.active, room.host.versions()["m"]) == (3, (1, 2, 3))
    room.registry.label("m", STABLE, 2)
    assert room.look()
    assert room.active == 2


# --- what is loaded, and what is refused ---


def test_a_refused_version_is_tried_again_only_when_its_folder_changes(make_room: Callable[..., Room]) -> None:
    room = make_room()
    room.put(2, bad="no model")
    room.put(3, bad="crashes")
    assert room.look()
    assert room.tried == [3, 2]
    records = room.registry.versions("m")
    assert [records[version].state for version in (1, 2, 3)] == ["ready", "refused", "refused"]
    assert "SIGSEGV" in (records[3].error or "")
    assert room.look(3)
    assert room.tried == [3, 2]
    assert room.rollout.look(again=True)
    assert room.tried == [3, 2, 3, 2]
    (room.folder / "3" / "crashes").unlink()
    assert not room.rollout.look()  # it changes at this moment
    assert room.rollout.look()
    assert room.active == 3


def test_a_version_that_another_worker_found_good_needs_no_trial(make_room: Callable[..., Room]) -> None:
    room = make_room()
    room.put(2)
    other = room.new_host()
    other.load("m", 2)
    assert room.look()
    assert (room.active, room.tried) == (2, [])
    room.put(3)
    other.load("m", 3)
    write_version_again(room, 3, 33)
    assert room.look()
    assert (room.active, room.tried) == (3, [3]), "the folder is not what the other one saw"


def write_version_again(room: Room, version: int, factor: float) -> None:
    shutil.rmtree(room.folder / str(version))
    room.put(version, factor)


def test_a_good_record_survives_one_workers_trouble(make_room: Callable[..., Room]) -> None:
    room = make_room()
    room.put(2)
    assert room.look()
    other = room.new_host()
    (room.folder / "2").rename(room.folder / ".away")
    with pytest.raises(ModelUnavailable, match="version 2 of model 'm' cannot be served: it is not in"):
        other.get("m", 2)
    assert room.registry.versions("m")[2].state == "ready"


def test_a_failed_load_rests_and_the_rest_ends(make_room: Callable[..., Room]) -> None:
    room = make_room()
    with pytest.raises(ModelUnavailable):
        room.host.get("m", 2)
    room.put(2)
    room.now += RETRY_AFTER_S - 0.001
    with pytest.raises(ModelUnavailable, match="it is not in"):
        room.host.get("m", 2)
    assert room.host.get("m", 1).record.version == 1
    room.now += 0.001
    assert room.host.get("m", 2).record.version == 2
    with pytest.raises(ModelUnavailable):
        room.host.get("m", 3)
    room.put(3)
    assert room.host.load("m", 3).record.version == 3, "who asks for a load does not wait"


def test_a_load_that_took_long_to_fail_rests_for_so_many_times_as_long(
    make_room: Callable[..., Room], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = make_room()
    room.put(2)
    tries = []

    def slow(model: str, path: Path, version: int, *_: Any, **__: Any) -> VersionRecord:
        tries.append(version)
        room.now += 10
        return VersionRecord.refused(version, "too slow", inspected_at=1.0)

    monkeypatch.setattr(host_module, "try_version", slow)
    for wait_s, tried in ((0, 1), (RETRY_AFTER_TIMES * 10 - 0.001, 1), (0.001, 2)):
        room.now += wait_s
        with pytest.raises(ModelUnavailable, match="too slow"):
            room.host.get("m", 2)
        assert len(tries) == tried


def test_requests_at_the_same_time_load_a_version_once(
    make_room: Callable[..., Room], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = make_room()
    room.put(2)
    begun, go_on, loads, load = threading.Event(), threading.Event(), [], host_module.try_version

    def slow(model: str, path: Path, version: int, *rest: Any, **more: Any) -> Any:
        loads.append(version)
        begun.set()
        assert go_on.wait(60)
        return load(model, path, version, *rest, **more)

    monkeypatch.setattr(host_module, "try_version", slow)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(room.host.get("m", 2))) for _ in range(3)]
    threads[0].start()
    assert begun.wait(60)
    for thread in threads[1:]:
        thread.start()
    assert room.host.get("m", 1).record.version == 1, "a version in memory is not held up"
    while not all(_is_loading(thread) for thread in threads[1:]):
        time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert loads == [2]
    assert len({id(loaded) for loaded in found}) == 1
    assert len(found) == 3


def _is_loading(thread: threading.Thread) -> bool:
    """Whether a thread has come as far as the load, or as the lock before it."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_name == "_load_once":
            return True
        frame = frame.f_back
    return False


# --- what leaves memory, and what a process knows ---


def test_what_is_idle_leaves_memory_and_what_is_wanted_or_asked_for_stays(make_room: Callable[..., Room]) -> None:
    room = make_room()
    for version in (2, 3):
        room.put(version)
        assert room.look()
    room.registry.label("m", "last-year", 1)
    room.now += UNLOAD_AFTER_S
    assert room.look(1)
    assert room.host.versions()["m"] == (1, 2, 3), "not longer than that"
    room.now += 0.001
    assert room.look(1)
    assert room.host.versions() == {"other": (4,), "m": (1, 3)}
    room.host.get("m", 2)
    room.now += UNLOAD_AFTER_S - 1
    room.host.get("m", 2)
    room.now += 2
    assert room.look(1)
    assert room.host.versions()["m"] == (1, 2, 3)
    room.registry.remove_label("m", "last-year")
    room.now += UNLOAD_AFTER_S
    assert room.look(1)
    assert room.host.versions()["m"] == (3,)


def test_a_worker_that_answers_nobody_lets_go_of_all_but_the_version_that_answers(
    make_room: Callable[..., Room],
) -> None:
    room = make_room()
    room.put(2)
    assert room.look()
    room.rollout, room.others = room.watch(answers=False), [M12]
    room.now += UNLOAD_AFTER_S + 1
    assert room.rollout.look()
    assert room.host.versions()["m"] == (2,)


def test_what_a_process_knows_of_the_active_version_is_a_second_old_at_most(make_room: Callable[..., Room]) -> None:
    room = make_room(versions="all")
    room.put(2)
    other = room.new_host()
    assert other.get("m").record.version == 1
    room.registry.activate("m", 2)
    room.now += ACTIVE_MAX_AGE_S - 0.001
    assert other.get("m").record.version == 1
    room.now += 0.001
    assert other.get("m").record.version == 2
    assert other.get("other").record.version == 4


def test_an_awaited_version_is_looked_for_by_every_request(tmp_path: Path, redis_client: Client) -> None:
    room = Room(tmp_path, redis_client)
    redis_client.flushall()
    waiting = room.new_host()
    with pytest.raises(ModelUnavailable, match="model 'm' has no active version yet"):
        waiting.get("m")
    room.new_host().start(["m"])
    assert waiting.get("m").record.version == 1
    with pytest.raises(ModelUnavailable, match="'other' has no active"):
        waiting.get("other")


# --- labels ---


@pytest.mark.parametrize("stable_answers", [True, False])
def test_a_stable_version_is_no_canary_though_it_does_not_answer_yet(
    make_room: Callable[..., Room], stable_answers: bool
) -> None:
    room = make_room()
    for version in (2, 3):
        room.put(version)
        room.new_host().load("m", version)
    room.registry.label("m", STABLE, 2)
    if stable_answers:
        room.registry.activate("m", 2)
    for version in {1, 2} if not stable_answers else {2}:
        with pytest.raises(BadInput, match=f"version {version} of model 'm' answers already") as refused:
            room.registry.label("m", CANARY, version, share=0.1)
        assert refused.value.field == "version"
    room.registry.label("m", CANARY, 3, share=0.1)
    assert room.registry.labels("m") == Labels({STABLE: 2, CANARY: 3}, 0.1)


@pytest.mark.parametrize(("share", "legal"), [(0, True), (1, True), (0.5, True), (-0.001, False), (1.001, False)])
def test_a_share_is_from_nothing_to_all(make_room: Callable[..., Room], share: float, legal: bool) -> None:
    room = make_room()
    room.put(2)
    room.new_host().load("m", 2)
    if legal:
        room.registry.label("m", CANARY, 2, share=share)
        assert room.registry.labels("m").canary_share == share
        return
    with pytest.raises(BadInput, match="between 0 and 1"):
        room.registry.label("m", CANARY, 2, share=share)


def test_versions_with_labels_are_held_by_a_worker_that_starts_and_the_canary_never_answers(
    make_room: Callable[..., Room],
) -> None:
    room = make_room()
    for version in (2, 3, 4):
        room.put(version)
        room.new_host().load("m", version)
    room.registry.label("m", CANARY, 4, share=1.0)
    room.registry.label("m", "old", 2)
    room.host = room.new_host()
    room.host.start(["m"])
    assert room.host.versions() == {"m": (1, 2, 4)}
    assert room.active == 1
    [(loaded, positions)] = room.host.share_out("m", ["a", "b"], [1, 0])
    assert (loaded.record.version, positions) == (4, [1, 0])
    assert room.host.share_out("m", ["a"], [])[0][0].record.version == 1


def test_entities_are_shared_out_by_side_in_their_order(make_room: Callable[..., Room]) -> None:
    room = make_room()
    room.put(2)
    room.host.load("m", 2)
    room.registry.label("m", CANARY, 2, share=0.5)
    room.now += ACTIVE_MAX_AGE_S
    ids = [f"e{n}" for n in range(40)]
    labels = room.registry.labels("m")
    mine = [n for n in range(40) if labels.canary_for("m", ids[n]) is None]
    canarys = [n for n in range(40) if n not in mine]
    assert mine
    assert canarys
    sides = room.host.share_out("m", ids, range(40))
    assert [(one.record.version, positions) for one, positions in sides] == [(1, mine), (2, canarys)]
    for positions, version in ((mine, 1), (canarys, 2)):
        assert [(one.record.version, rows) for one, rows in room.host.share_out("m", ids, positions)] == [
            (version, positions)
        ]


def test_a_canary_that_answers_all_has_no_side_of_its_own(make_room: Callable[..., Room]) -> None:
    room = make_room()
    room.put(2)
    room.host.load("m", 2)
    room.host.learn("m", Pointer(active_version=2, labels=Labels({CANARY: 2}, 0.5)))
    ids = [f"e{n}" for n in range(40)]
    sides = room.host.share_out("m", ids, range(40))
    assert [(one.record.version, positions) for one, positions in sides] == [(2, list(range(40)))]


# --- what workers tell each other ---


def test_a_wish_for_new_versions_is_forgotten_an_hour_after_the_last_word(redis_client: Client) -> None:
    registry = ModelRegistry(redis_client, KEYS)
    key = KEYS.reload("m")
    assert (registry.reloads("m").requested, registry.reloads("m").done) == (0, {})
    assert [registry.ask_reload("m"), registry.ask_reload("m"), registry.ask_reload("other")] == [1, 2, 1]
    assert 0 < redis_client.ttl(key) <= RELOAD_REMEMBERED_S
    redis_client.persist(key)
    registry.put_reloaded("m", "a", 2)
    registry.put_reloaded("m", "b", 1)
    assert 0 < redis_client.ttl(key) <= RELOAD_REMEMBERED_S
    told = registry.reloads("m")
    assert (told.requested, told.done) == (2, {"a": 2, "b": 1})


def test_marks_of_loads_are_kept_by_version_and_expire(redis_client: Client) -> None:
    marks = ModelRegistry(redis_client, KEYS).unfinished_loads("m")
    with marks.mark(3):
        assert (marks.interrupted(3), marks.interrupted(4)) == (1, 0)
        assert 29 * 86_400 < redis_client.ttl(KEYS.loads("m")) <= 30 * 86_400
    assert not marks.interrupted(3)
    assert not redis_client.exists(KEYS.loads("m"))


def test_only_a_load_of_this_host_whose_process_is_gone_was_interrupted(redis_client: Client) -> None:
    marks, key = ModelRegistry(redis_client, KEYS).unfinished_loads("m"), KEYS.loads("m")
    with marks.mark(1):
        [mine] = redis_client.hkeys(key)
    host = mine.decode().split(" ")[1]
    gone, alive = 2**22 + 1, 1  # no process has the first number
    fields = {f"1 {host} {alive}": "1", f"2 {host} {gone}": "1", f"3 elsewhere {gone}": "1", f"4 {host} {alive}": "1",
              f"4 {host} {gone}": "2", f"4 {host} {gone + 1}": "1"}  # fmt: skip
    redis_client.hset(key, mapping=fields)
    assert [marks.interrupted(version) for version in (1, 2, 3, 4, 5)] == [0, 1, 0, 3, 0]
    with marks.mark(4):
        pass
    assert sorted(redis_client.hkeys(key)) == sorted(name.encode() for name in list(fields)[:4])
    with pytest.raises(RuntimeError), marks.mark(2):
        raise RuntimeError
    assert not marks.interrupted(2)
    marks.forget()
    assert not redis_client.exists(key)


def test_records_are_kept_in_order_and_each_says_why_it_cannot_be_had(make_room: Callable[..., Room]) -> None:
    room = make_room()
    for version in (10, 9):
        room.registry.put("m", VersionRecord.refused(version, f"bad {version}", inspected_at=1.0))
    assert list(room.registry.versions("m")) == [1, 9, 10]
    assert room.registry.get("m", 1).version == 1
    with pytest.raises(ModelUnavailable, match="version 9 of model 'm' was refused: bad 9"):
        room.registry.get("m", 9)
    with pytest.raises(ModelUnavailable, match="version 2 of model 'm' has not been loaded by any worker yet"):
        room.registry.get("m", 2)
