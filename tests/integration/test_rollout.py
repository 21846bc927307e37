"""New versions of a model that serves: watched for, tried, loaded beside the old one, activated, and unloaded."""

from __future__ import annotations

import json
import shutil
import signal
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference import host_locks
from inference.errors import ModelError, ModelUnavailable
from inference.models import ModelHost, ModelRegistry, Rollout, VersionRecord, inspect_versions
from inference.models.loading import inspect_version_in_subprocess, record_to_serve
from inference.models.rollout import UNLOAD_AFTER_S
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.settings import Settings, load_settings
from tests.support.models import dense_predictions, float_features, write_features
from tests.support.plain_models import DeadlyToLoad, Times, write_version
from tests.support.plain_onnx import write_dense, write_fixed
from tests.support.stack import ROOT, Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of models: good ones whose answers differ, and one that cannot be served."""
    folder = tmp_path_factory.mktemp("models")
    write_dense(folder / "one", 4, 0)
    write_dense(folder / "two", 4, 1)
    write_fixed(folder / "bad")
    return folder


def try_here(settings: Settings, model: str, version: int) -> VersionRecord:
    """What a process of its own would find, without the seconds that its start takes."""
    record = inspect_versions(settings.path(settings.models[model].path), [version])[version]
    if record.error:
        raise ModelError(record.error)
    return record


class Room:
    """One worker's view of model `m`, whose folder a test fills."""

    def __init__(self, folder: Path, exported: Path, client: Client, **model: Any) -> None:
        self.folder = folder
        self.exported = exported
        self.now = 1000.0
        self.others: list[dict[str, tuple[int, ...]]] = []
        write_features(folder, float_features(4))
        self.put("one", 1)
        self.settings = Settings.model_validate({"models": {"m": {"path": str(folder), **model}}})
        self.registry = ModelRegistry(client, Keys("t"))
        self.host = ModelHost(self.settings, self.registry, monotonic=lambda: self.now)
        self.rollout = self.watch()
        self.host.start()

    def watch(self, *, answers: bool = True, try_apart: Any = try_here) -> Rollout:
        def others() -> list[dict[str, tuple[int, ...]]]:
            return self.others

        return Rollout(
            self.settings, self.host, self.registry, "m", answers=answers, others=others, try_apart=try_apart
        )

    def put(self, name: str, version: int) -> None:
        shutil.copytree(self.exported / name, self.folder / str(version))

    @property
    def active(self) -> int | None:
        self.now += 5  # what a worker knows of the active version is a second old at most
        return self.host.get("m").record.version


@pytest.fixture
def make_room(tmp_path: Path, exported: Path, redis_client: Client) -> Any:
    return lambda **model: Room(tmp_path / "m", exported, redis_client, **model)


def test_a_new_version_waits_beside_the_old_one_until_every_worker_that_answers_holds_it(make_room: Any) -> None:
    room = make_room()
    room.others = [{"m": (1,)}]
    room.put("two", 2)
    assert not room.rollout.look()  # its folder might still be growing
    assert not room.rollout.look()
    assert room.host.versions() == {"m": (1, 2)}
    assert room.active == 1
    room.others = [{"m": (1, 2)}]
    assert room.rollout.look()
    assert room.active == 2


def test_a_folder_that_is_being_copied_is_left_alone_until_it_stands_still(make_room: Any, exported: Path) -> None:
    room = make_room()
    (room.folder / "2").mkdir()
    shutil.copy(exported / "two" / "model.onnx", room.folder / "2")
    room.rollout.look()
    shutil.copy(exported / "two" / "weights.bin", room.folder / "2")
    room.rollout.look()
    assert 2 not in room.registry.versions("m")
    assert room.rollout.look()
    assert room.active == 2


def test_the_workers_of_a_host_load_one_after_the_other_and_only_the_first_one_tries(
    make_room: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    room = make_room()
    room.put("two", 2)
    hosts = room.host, ModelHost(room.settings, room.registry)
    hosts[1].start()
    tried: list[int] = []
    waits = threading.Event()

    def sleep(seconds: float) -> None:
        waits.set()
        threading.Event().wait(seconds)

    monkeypatch.setattr(host_locks, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))

    def try_apart(settings: Settings, model: str, version: int) -> VersionRecord:
        tried.append(version)
        second.start()
        assert waits.wait(60)
        return try_here(settings, model, version)

    rollouts = [
        Rollout(room.settings, host, room.registry, "m", answers=True, others=list, try_apart=try_apart)
        for host in hosts
    ]
    second = threading.Thread(target=rollouts[1].look, kwargs={"again": True})
    rollouts[0].look(again=True)
    second.join(60)
    assert [host.versions() for host in hosts] == [{"m": (1, 2)}] * 2
    assert tried == [2]


def test_a_bad_version_is_refused_in_words_and_tried_again_only_when_it_changes_or_someone_asks(
    make_room: Any, exported: Path
) -> None:
    room = make_room()
    room.put("bad", 2)
    room.rollout.look()
    assert room.rollout.look()
    refused = room.registry.versions("m")[2]
    assert refused.state == "refused"
    assert "row dimension" in (refused.error or "")
    assert room.active == 1
    room.rollout.look()
    assert room.registry.versions("m")[2] == refused
    room.rollout.look(again=True)
    assert room.registry.versions("m")[2].inspected_at > refused.inspected_at
    shutil.rmtree(room.folder / "2")
    room.put("two", 2)
    room.rollout.look()
    assert room.rollout.look()
    assert room.active == 2


def test_a_version_that_crashes_is_refused_and_takes_no_worker_with_it(
    make_room: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = make_room()
    room.put("two", 2)
    # stands for a model whose code crashes: the process that tries a version dies by SIGSEGV
    (tmp_path / "crash").mkdir()
    (tmp_path / "crash" / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path / "crash"))
        assert room.watch(try_apart=inspect_version_in_subprocess).look(again=True)
    assert "SIGSEGV" in (room.registry.versions("m")[2].error or "")
    assert room.active == 1


def test_a_trial_imports_the_functions_of_the_features_where_that_can_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_version(tmp_path / "model", 1, Times(2.0))
    contract = {
        "features": [{"name": "x", "dtype": "float32", "group": "code"}],
        "groups": {"code": {"source": "function", "function": "own_features:x"}},
    }
    (tmp_path / "model" / "features.json").write_text(json.dumps(contract))
    (tmp_path / "forecache.toml").write_text('[models.m]\npath = "model"\nallow_code = true\n')
    settings = load_settings(tmp_path / "forecache.toml")
    for code, refusal in (
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n", "SIGSEGV"),
        ("import nowhere\n", "own_features:x cannot be imported: ModuleNotFoundError"),
        ("y = 1\n", "module 'own_features' has no function 'x'"),
    ):
        (tmp_path / "own_features.py").write_text(code)
        with pytest.raises(ModelError, match=refusal):
            inspect_version_in_subprocess(settings, "m", 1)
    (tmp_path / "own_features.py").write_text("def x(frame, at): ...\n")
    assert inspect_version_in_subprocess(settings, "m", 1).state == "ready"


PLAIN = """
[models.m]
path = "model"
allow_code = true
versions = "all"
poll_every = "1s"
[models.m.realtime]
timeout_ms = 10000
"""


def test_a_version_that_crashed_a_worker_at_its_start_is_refused_at_the_next(tmp_path: Path) -> None:
    write_version(tmp_path / "model", 1, DeadlyToLoad(1.0))

    def dead() -> bool:
        return stack.processes["realtime"].poll() == -signal.SIGSEGV

    def refused() -> set[int]:
        versions = stack.deployment.registry.versions("m")
        return {number for number, one in versions.items() if "SIGSEGV" in (one.error or "")}

    def ask() -> httpx.Response:
        return httpx.post(f"{stack.url}/predict", json={"instances": [{"x": 4.0}]}, timeout=30)

    with Stack(tmp_path, PLAIN) as stack:
        stack.start("realtime", "api")
        wait_for(dead, "the crash at a first start, with nothing else to serve", 60)
        stack.start("realtime")
        wait_for(lambda: refused() == {1}, "the refusal", 60)
        write_version(tmp_path / "model", 2, Times(2.0))
        stack.wait_ready()
        wait_for(lambda: ask().status_code == 200, "answers of a version that came later", 60)
        assert not dead()

        stack.stop("realtime", signal.SIGTERM)
        write_version(tmp_path / "model", 3, DeadlyToLoad(1.0))
        stack.start("realtime")
        wait_for(dead, "the crash beside a version that serves", 60)
        stack.start("realtime")
        wait_for(lambda: refused() == {1, 3}, "the refusal of the newest too", 60)
        wait_for(lambda: ask().status_code == 200, "answers of the version before", 60)
        told = ask().json()["predictions"][0]
        assert (told["model_version"], told["prediction"]) == (2, 8.0)
        assert not dead()


def test_what_nobody_asks_for_any_more_leaves_memory(make_room: Any) -> None:
    room = make_room()
    room.put("two", 2)
    room.rollout.look(again=True)
    assert room.active == 2
    held = weakref.ref(room.host.get("m", 1))  # a run that is pinned to it
    room.now += UNLOAD_AFTER_S - 1
    room.rollout.look()
    assert room.host.versions() == {"m": (1, 2)}
    room.now += 2
    room.rollout.look()
    assert room.host.versions() == {"m": (2,)}
    assert held() is None
    assert room.host.get("m", 1).record.version == 1


def test_with_all_versions_each_is_there_and_the_newest_answers(make_room: Any) -> None:
    room = make_room(versions="all")
    room.put("two", 2)
    room.rollout.look(again=True)
    room.now += 10 * UNLOAD_AFTER_S
    room.rollout.look()
    assert room.host.versions() == {"m": (1, 2)}
    assert room.active == 2


def test_a_list_that_leaves_the_active_version_out_puts_its_newest_in_the_place(
    make_room: Any, redis_client: Client
) -> None:
    room = make_room()
    room.put("two", 2)
    room.rollout.look(again=True)
    assert room.active == 2
    shutil.rmtree(room.folder)
    back = Room(room.folder, room.exported, redis_client, versions=[1])
    assert back.active == 1


def test_a_version_that_was_rolled_back_does_not_come_again(make_room: Any, redis_client: Client) -> None:
    room = make_room()
    room.put("two", 2)
    room.rollout.look(again=True)
    redis_client.hset(Keys("t").table(TableKind.PREDICTIONS, "m").pointer, mapping={"version": 1, "held": "2"})
    room.rollout.look(again=True)
    assert room.active == 1


def test_a_batch_worker_brings_versions_into_service_only_where_nobody_answers_requests(make_room: Any) -> None:
    room = make_room()
    room.put("two", 2)
    batch = room.watch(answers=False)
    room.others = [{"m": (1,)}]
    assert batch.look(again=True)
    assert room.host.versions() == {"m": (1,)}
    room.others = []
    assert batch.look(again=True)
    assert room.active == 2


def test_a_folder_that_vanishes_is_said_once_and_nothing_changes(make_room: Any) -> None:
    room = make_room()
    shutil.rmtree(room.folder)
    assert room.rollout.look()
    assert room.active == 1
    with pytest.raises(ModelUnavailable):
        room.host.get("m", 2)


# --- with real workers ---

ENTITIES = 2000


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("rollout")
    write_features(folder / "m", float_features(4))
    shutil.copytree(exported / "one", folder / "m" / "1")
    rows = np.random.default_rng(0).normal(size=(ENTITIES, 4)).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    columns = {"entity_id": [f"e{i}" for i in range(ENTITIES)], **{f"f{k}": rows[:, k] for k in range(4)}}
    pq.write_table(pa.table(columns), folder / "table.parquet")
    models = textwrap.dedent(
        f"""
        [models.m]
        path = "{folder / "m"}"
        features = "{folder / "table.parquet"}"
        poll_every = "1h"
        [models.m.realtime]
        timeout_ms = 5000
        """
    )
    with Stack(folder, models) as deployment:
        deployment.start("realtime", "realtime-2", "api")
        deployment.wait_ready()
        deployment.cli("features", "load", "m", str(folder / "table.parquet"))
        yield deployment


def test_a_version_is_changed_under_load_without_a_failed_request(stack: Stack, exported: Path) -> None:
    rows = np.load(stack.folder / "rows.npy")
    expected = {1: dense_predictions(rows), 2: dense_predictions(rows, 1)}
    wrong: list[Any] = []
    seen: set[int] = set()
    stop = threading.Event()

    def ask(start: int) -> None:
        with httpx.Client(base_url=stack.url, timeout=10) as client:
            i = start
            while not stop.is_set():
                i = (i + 7) % ENTITIES
                got = client.get(f"/predict/e{i}", params={"max_staleness_hours": 0})
                body = got.json()
                if got.status_code != 200 or not np.isclose(
                    body["prediction"], expected[body["model_version"]][i], rtol=1e-5, atol=1e-6
                ):
                    wrong.append((got.status_code, body))
                else:
                    seen.add(body["model_version"])

    wait_for(lambda: len(_holding(stack, 1)) == 2, "two workers with version 1")
    # the one request that an API which has just found a worker lets through
    assert httpx.get(f"{stack.url}/predict/e0").status_code == 200
    asking = [threading.Thread(target=ask, args=(start,)) for start in (0, 3)]
    for thread in asking:
        thread.start()
    try:
        wait_for(lambda: 1 in seen, "answers of version 1")
        shutil.copytree(exported / "two", stack.folder / "m" / "2")
        done = stack.cli("models", "reload", "m", "--json")
        wait_for(lambda: 2 in seen, "answers of version 2", 20)
        wait_for(lambda: len(_holding(stack, 2)) == 2, "both workers to tell that they hold it", 20)
    finally:
        stop.set()
        for thread in asking:
            thread.join()
    assert done.returncode == 0, done.stderr
    assert '"active_version": 2' in done.stdout
    assert not wrong, wrong[:3]


def test_a_refused_version_is_named_by_reload_and_verify_and_by_show(stack: Stack, exported: Path) -> None:
    shutil.copytree(exported / "bad", stack.folder / "m" / "7")
    try:
        done = stack.cli("models", "reload")
        assert done.returncode == 0, done.stderr
        assert "row dimension" in done.stdout
        verified = stack.cli("models", "verify", "--version", "7")
        assert (verified.returncode, "row dimension" in verified.stdout) == (1, True)
        assert stack.cli("models", "verify", "--version", "1").returncode == 0
    finally:
        shutil.rmtree(stack.folder / "m" / "7")


def _holding(stack: Stack, version: int) -> list[str]:
    alive = stack.deployment.presence.roster("realtime").alive
    return [one.identity for one in alive if one.ready and version in one.versions.get("m", ())]


# --- labels ---


def test_while_a_version_is_labelled_stable_no_newer_one_is_activated(make_room: Any) -> None:
    room = make_room()
    room.registry.label("m", "stable", 1)
    room.put("two", 2)
    room.rollout.look()
    assert room.rollout.look()
    assert (room.host.versions(), room.active) == ({"m": (1, 2)}, 1)
    room.registry.label("m", "stable", 2)
    assert room.rollout.look()
    assert room.active == 2
    room.registry.label("m", "stable", 1)
    assert room.rollout.look()
    assert room.active == 1


def test_versions_with_labels_stay_in_memory_and_leave_it_without(make_room: Any) -> None:
    room = make_room()
    room.registry.label("m", "stable", 1)
    room.put("two", 2)
    room.rollout.look(again=True)
    room.registry.label("m", "canary", 2, share=0.5)
    room.put("two", 3)
    room.rollout.look(again=True)
    room.now += UNLOAD_AFTER_S + 10
    assert room.rollout.look()
    assert (room.host.versions(), room.active) == ({"m": (1, 2, 3)}, 1)
    room.registry.remove_label("m", "canary")
    room.now += UNLOAD_AFTER_S + 10
    room.rollout.look()
    assert room.host.versions() == {"m": (1, 3)}


def test_a_worker_that_starts_loads_the_canary_and_never_activates_it(make_room: Any) -> None:
    room = make_room()
    room.registry.label("m", "stable", 1)
    room.put("two", 2)
    room.rollout.look(again=True)
    room.registry.label("m", "canary", 2, share=0.5)
    room.registry.remove_label("m", "stable")
    another = ModelHost(room.settings, room.registry, monotonic=lambda: room.now)
    another.start()
    assert another.versions() == {"m": (1, 2)}
    assert room.rollout.look()
    assert room.active == 1
    sides = another.share_out("m", [f"e{number}" for number in range(40)], range(40))
    assert [loaded.record.version for loaded, _ in sides] == [1, 2]
    assert sorted(position for _, positions in sides for position in positions) == list(range(40))


def test_a_worker_without_the_canary_computes_its_entities_by_the_version_that_answers(make_room: Any) -> None:
    room = make_room()
    room.registry.put("m", VersionRecord(**{**vars(room.registry.get("m", 1)), "version": 2}))
    room.registry.label("m", "canary", 2, share=1.0)
    room.rollout.look(again=True)  # it is not in the folder
    ((loaded, positions),) = room.host.share_out("m", ["a", "b"], [0, 1])
    assert (loaded.record.version, positions) == (1, [0, 1])


def test_by_label_no_version_answers_before_it_is_labelled_stable(make_room: Any) -> None:
    room = make_room(activate="by-label")
    assert room.rollout.look()
    assert room.host.versions() == {"m": (1,)}
    assert room.registry.active_version("m") is None
    with pytest.raises(ModelError, match="no version of model 'm' is labelled stable yet"):
        record_to_serve(room.settings, room.registry, "m")
    room.registry.label("m", "stable", 1)
    assert room.rollout.look()
    assert room.active == 1
    room.put("two", 2)
    room.registry.remove_label("m", "stable")
    room.rollout.look()
    assert room.rollout.look()
    assert (room.host.versions(), room.active) == ({"m": (1, 2)}, 1)
    room.registry.label("m", "stable", 2)
    assert room.rollout.look()
    assert room.active == 2
