"""Models whose versions come from a registry: its alias decides, and what it cannot give changes nothing."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from inference.errors import ModelError, ModelUnavailable
from inference.features.contract import LOGGED_FILE
from inference.models import ModelHost, ModelRegistry, Rollout, VersionRecord, inspect_versions
from inference.models.loading import record_to_serve
from inference.models.mirror import Downloads
from inference.models.mlflow_client import RegisteredVersion
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.settings import Settings
from inference.store import CANARY, STABLE
from tests.support.plain_onnx import write_fixed, write_times, write_weighted_sum
from tests.support.registered_models import RegistryInMemory

pytestmark = pytest.mark.integration

KEYS = Keys("t")
ALIAS = "models:/delay@champion"
OUTAGE = ModelUnavailable("the registry does not answer")


class Room:
    """One worker's view of model `m`, which is the registered model `delay`."""

    def __init__(self, folder: Path, client: Client, path: str = ALIAS, **model: Any) -> None:
        self.home = folder
        self.now = 1000.0
        self.others: list[Mapping[str, tuple[int, ...]]] = []
        self.tried: list[int] = []
        self.source = RegistryInMemory(folder / "registry")
        self.client = client
        for version in (1, 2, 3):
            write_times(self.source.folder / str(version), version)
        self.source.aliases["champion"] = 2
        self.settings = Settings.of_folder(folder, models={"m": {"path": path, **model}})
        self.registry = ModelRegistry(client, KEYS)
        self.host = self.new_host()
        self.rollout = self.watch()

    @property
    def folder(self) -> Path:
        return self.settings.model_folder("m")

    def new_host(self) -> ModelHost:
        return ModelHost(self.settings, self.registry, monotonic=lambda: self.now, mlflow=self.source)

    def watch(self) -> Rollout:
        return Rollout(
            self.settings, self.host, self.registry, "m", answers=True, others=lambda: self.others,
            try_apart=self.try_apart,
        )  # fmt: skip

    def try_apart(self, settings: Settings, model: str, version: int) -> VersionRecord:
        self.tried.append(version)
        record = inspect_versions(settings.model_folder(model), [version])[version]
        if record.error:
            raise ModelError(record.error)
        return record

    def move(self, alias_to: int, *, looks: int = 2) -> list[str]:
        """Move the alias and look; returns the warnings."""
        self.source.aliases["champion"] = alias_to
        return self.look(looks)

    def look(self, times: int = 2) -> list[str]:
        with structlog.testing.capture_logs() as lines:
            for _ in range(times):
                self.rollout.look()
        return [str(line["error"]) for line in lines if "error" in line]

    @property
    def active(self) -> int | None:
        return self.registry.active_version("m")


@pytest.fixture
def make_room(tmp_path: Path, redis_client: Client) -> Callable[..., Room]:
    return lambda *path, **model: Room(tmp_path, redis_client, *path, **model)


@pytest.fixture
def room(make_room: Callable[..., Room]) -> Room:
    room = make_room()
    room.host.start()
    return room


def test_the_alias_decides_not_the_greatest_version(room: Room) -> None:
    assert (room.active, room.host.versions(), room.source.downloads) == (2, {"m": (2,)}, [2])
    assert room.look() == []
    assert room.active == 2


def test_an_alias_that_moves_is_a_new_version_and_moved_back_the_old_one_without_a_download(room: Room) -> None:
    room.move(3)
    assert (room.active, room.tried, room.source.downloads) == (3, [3], [2, 3])
    room.move(2)
    assert (room.active, room.source.downloads) == (2, [2, 3])
    room.move(1)
    assert (room.active, room.tried) == (1, [3, 1])  # a version that has answered rows is not tried again


def test_a_version_answers_once_every_other_worker_holds_it_forwards_and_backwards(room: Room) -> None:
    room.others = [{"m": (2,)}]
    room.move(3)
    assert (room.active, room.host.versions()["m"]) == (2, (2, 3))
    room.others = [{"m": (2, 3)}]
    room.look()
    assert room.active == 3
    room.others = [{"m": (3,)}]
    room.move(2)
    assert room.active == 3
    room.others = [{"m": (2, 3)}]
    room.look()
    assert room.active == 2


def test_a_bad_version_is_refused_and_the_old_one_goes_on(room: Room) -> None:
    write_fixed(room.source.folder / "4")
    warnings = room.move(4)
    assert len(warnings) == 1
    assert (room.active, room.registry.versions("m")[4].state) == (2, "refused")
    room.move(1)
    assert room.active == 1


@pytest.mark.parametrize("error", [OUTAGE, ModelError("refuses the credentials"), ModelError("alias is of nothing")])
def test_a_registry_that_gives_nothing_changes_nothing_and_is_told_once(room: Room, error: Any) -> None:
    room.source.failure = error
    assert room.look(4) == [error.message]
    assert (room.active, room.host.get("m").record.version) == (2, 2)
    room.source.failure = None
    assert room.move(3) == []
    assert room.active == 3


def test_a_worker_that_starts_while_the_registry_is_away_serves_what_was_downloaded(room: Room) -> None:
    room.source.failure = OUTAGE
    host = room.new_host()
    host.start()
    assert host.versions() == {"m": (2,)}


def test_a_machine_that_cannot_reach_the_registry_aims_at_what_another_one_saw(room: Room) -> None:
    room.move(3)
    room.move(2)
    cut_off = RegistryInMemory(room.source.folder)
    cut_off.failure = OUTAGE
    host = ModelHost(room.settings, room.registry, mlflow=cut_off)
    host.start()
    rollout = Rollout(room.settings, host, room.registry, "m", answers=True, others=list, try_apart=room.try_apart)
    rollout.look()
    assert room.active == 2
    room.move(3)
    for _ in range(2):
        rollout.look()
    assert (room.active, host.versions()) == (3, {"m": (2, 3)})


def test_a_version_without_artifacts_is_named_and_is_not_fetched_at_every_look(room: Room) -> None:
    room.source.bad[3] = ModelError("models:/delay/3 has no MLmodel among its artifacts")
    assert room.move(3, looks=5) == [room.source.bad[3].message]
    assert (room.active, room.source.downloads) == (2, [2, 3])
    assert room.registry.versions("m")[3].error == room.source.bad[3].message
    del room.source.bad[3]
    room.now += 31
    room.look()
    assert room.active == 3


def test_a_reload_repeats_a_failed_download_at_once(room: Room) -> None:
    room.source.bad[3] = ModelUnavailable("the store of its artifacts does not answer")
    room.move(3)
    del room.source.bad[3]
    room.rollout.look(again=True)
    assert room.active == 3


def test_a_fixed_version_needs_the_registry_once(make_room: Callable[..., Room]) -> None:
    room = make_room("models:/delay/1")
    room.host.start()
    room.source.failure = OUTAGE
    assert room.look() == []
    assert (room.active, room.source.asked) == (1, 1)


def test_without_alias_and_version_the_newest_one_answers(make_room: Callable[..., Room]) -> None:
    room = make_room("models:/delay")
    room.host.start()
    assert room.active == 3


def test_labels_keep_their_meaning(room: Room) -> None:
    room.registry.label("m", STABLE, 2)
    room.move(3)
    assert (room.active, room.host.versions()["m"]) == (2, (2, 3))  # loaded beside it, and waits
    room.registry.label("m", CANARY, 3, share=0.5)
    room.registry.remove_label("m", STABLE)
    room.look()
    assert room.active == 2  # the canary never becomes active by itself
    room.registry.remove_label("m", CANARY)
    room.look()
    assert room.active == 3


def test_a_labelled_version_is_downloaded_by_a_worker_that_lacks_it(room: Room) -> None:
    room.move(3)
    room.registry.label("m", STABLE, 2)
    shutil.rmtree(room.folder / "2")
    room.host = room.new_host()
    room.rollout = room.watch()
    room.look(3)
    assert (room.active, room.host.versions()["m"]) == (2, (2, 3))


def test_a_version_that_a_rollback_holds_does_not_come_again_and_the_log_says_why(room: Room) -> None:
    room.move(3)
    pointer = KEYS.table(TableKind.PREDICTIONS, "m").pointer
    room.client.hset(pointer, mapping={"version": 2, "held": "3"})
    warnings = room.look(3)
    assert len(warnings) == 1
    assert "batch release" in warnings[0]
    assert room.active == 2
    room.registry.activate("m", 3, force=True)
    assert room.look() == []
    assert room.active == 3


def test_a_chunk_may_need_a_version_that_this_machine_lacks(room: Room) -> None:
    assert room.host.get("m", 1).record.version == 1
    assert room.source.downloads == [2, 1]


def test_a_model_that_was_registered_anew_is_downloaded_anew(room: Room) -> None:
    shutil.rmtree(room.source.folder / "2")
    write_times(room.source.folder / "2", 20)
    room.source.created_at = 2
    room.look()
    again = room.new_host()
    again.start()
    assert room.source.downloads == [2, 2]
    assert (room.folder / "2" / "model.onnx").read_bytes() == (room.source.folder / "2" / "model.onnx").read_bytes()


def test_a_version_takes_the_columns_that_the_registry_names_and_another_order_is_refused(room: Room) -> None:
    names = [{"name": name, "dtype": "float64"} for name in ("distance", "load")]
    for version, order in ((4, names), (5, names[::-1])):
        write_weighted_sum(room.source.folder / str(version), [1.0, 2.0])
        (room.source.folder / str(version) / LOGGED_FILE).write_text(json.dumps({"features": order}))
    room.move(4)
    assert (room.active, room.host.get("m").record.contract.names) == (4, ["distance", "load"])
    (room.folder / "features.json").write_text(json.dumps({"features": names}))
    (warning,) = room.move(5)
    assert "has 'distance' where the signature in MLflow has 'load'" in warning
    assert room.active == 4


def test_a_worker_takes_a_model_that_was_registered_anew_under_its_number(room: Room) -> None:
    other = room.new_host()
    other.start()
    beside = Rollout(room.settings, other, room.registry, "m", answers=True, others=list, try_apart=room.try_apart)
    shutil.rmtree(room.source.folder / "2")
    write_times(room.source.folder / "2", 20)
    room.source.created_at = 2
    assert room.look() == []
    assert (doubled(room.host), doubled(other), room.tried) == (40.0, 4.0, [2])
    for _ in range(2):
        beside.look()
    assert (doubled(other), room.source.downloads, room.active) == (40.0, [2, 2], 2)
    assert room.registry.get("m", 2).fingerprint == other.get("m").record.fingerprint
    loaded = room.host.get("m")
    assert room.look(3) == []
    assert room.host.get("m") is loaded


def test_a_bad_model_that_was_registered_anew_is_refused_and_the_old_one_goes_on(room: Room) -> None:
    shutil.rmtree(room.source.folder / "2")
    write_fixed(room.source.folder / "2")
    room.source.created_at = 2
    assert len(room.look(4)) == 1
    assert (room.active, doubled(room.host)) == (2, 4.0)


def doubled(host: ModelHost) -> float:
    """What the active version makes of 2."""
    return float(host.get("m").runtime.predict({"x": np.array([2.0], np.float32)})["y"][0])


def test_several_workers_of_a_machine_download_once(room: Room) -> None:
    hosts = [room.new_host() for _ in range(4)]
    wanted = RegisteredVersion("delay", 3)
    threads = [threading.Thread(target=host.mirror("m").here.fetch, args=(wanted,)) for host in hosts]  # type: ignore[union-attr]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert room.source.downloads == [2, 3]


def test_downloads_that_nobody_needs_are_removed(make_room: Callable[..., Room]) -> None:
    room = make_room()
    for version in range(4, 9):
        write_times(room.source.folder / str(version), version)
    room.host.start()
    left = room.folder / ".new-1"
    left.mkdir()
    for version in range(3, 9):
        room.move(version)
        room.now += 100
        room.look(1)
    kept = sorted(int(one.name) for one in room.folder.iterdir())
    assert kept[-1] == room.active == 8
    assert len(kept) == 4  # three of them in case that the alias moves back
    assert not left.exists()


def test_a_folder_that_cannot_be_written_is_named_with_the_setting(room: Room, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = Settings.of_folder(tmp_path, models={"m": {"path": ALIAS}}, mlflow={"folder": "file"})
    downloads = Downloads(settings, "m", room.source)
    with pytest.raises(ModelError, match=r"\[mlflow\] folder"):
        downloads.fetch(RegisteredVersion("delay", 1))


def test_before_the_first_version_is_there_a_run_is_refused_in_a_line(make_room: Callable[..., Room]) -> None:
    room = make_room()
    with pytest.raises(ModelError, match="a worker must fetch models:/delay@champion first"):
        record_to_serve(room.settings, room.registry, "m")
