"""Whatever a load raises refuses that version alone: recorded once, told once, tried again when its folder changes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import joblib
import pytest

from inference.models import ModelHost, ModelRegistry, Rollout, inspect_versions
from inference.models import host as host_module
from inference.models.runtimes import LoadOptions
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.settings import Settings
from tests.support.plain_models import NoEstimator, RaisesOnLoad, Times, write_version
from workers import inspect, try_row
from workers.watching import PAUSE_S, Watch, Watcher


def write_no_estimator(folder: Path, version: int) -> None:
    write_version(folder, version, Times())
    (folder / str(version) / "model.pkl").unlink()
    joblib.dump(NoEstimator(), folder / str(version) / "model.joblib")


class Room:
    """A worker's view of several models, `good` the last of them."""

    def __init__(self, folder: Path, client: Client, *models: str) -> None:
        self.folder, self.now = folder, 1000.0
        write_version(folder / "good", 1, Times())
        names = [*models, "good"]
        settings = {name: {"path": str(folder / name), "allow_code": True} for name in names}
        self.settings = Settings.model_validate({"models": settings})
        self.registry = ModelRegistry(client, Keys("t"))
        self.host = ModelHost(self.settings, self.registry, monotonic=lambda: self.now)

    def watch(self, model: str) -> Rollout:
        def others() -> list[Any]:
            return []

        def no_trial(*_: Any) -> Any:
            raise AssertionError("a first version is tried where it serves")

        return Rollout(self.settings, self.host, self.registry, model, answers=True, others=others, try_apart=no_trial)


@pytest.mark.parametrize("kind", [AttributeError, ValueError, AssertionError, MemoryError, OSError, RecursionError])
def test_any_error_of_a_load_is_a_refusal_and_the_next_model_is_loaded(
    tmp_path: Path, redis_client: Client, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_version(tmp_path / "bad", 1, Times())
    room = Room(tmp_path, redis_client, "bad")
    _break_the_runtime(monkeypatch, room.folder / "bad", kind("not what anybody foresaw"))
    room.host.start()
    refused = room.registry.versions("bad")[1]
    assert refused.state == "refused"
    assert f"{kind.__name__}: not what anybody foresaw" in (refused.error or "")
    assert "\n" not in (refused.error or "")
    assert room.registry.active_version("good") == 1


def _break_the_runtime(monkeypatch: pytest.MonkeyPatch, folder: Path, error: BaseException) -> None:
    """Have the library of one model's folder raise where nobody expects it: after the file was read."""
    from inference.models import loading

    whole = loading.load_runtime

    def load_runtime(of_version: Path, **options: Any) -> Any:
        if of_version.is_relative_to(folder):
            raise error
        return whole(of_version, **options)

    monkeypatch.setattr(loading, "load_runtime", load_runtime)


def test_a_script_that_ends_the_process_when_it_is_imported_ends_no_worker(
    tmp_path: Path, redis_client: Client
) -> None:
    write_version(tmp_path / "bad", 1, RaisesOnLoad(SystemExit))
    room = Room(tmp_path, redis_client, "bad")
    room.host.start()
    assert "sys.exit" in (room.registry.versions("bad")[1].error or "")
    assert room.registry.active_version("good") == 1


def test_a_worker_that_is_told_to_end_during_a_load_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class WorkerShutdown(SystemExit):
        pass

    write_version(tmp_path / "m", 1, Times())
    _break_the_runtime(monkeypatch, tmp_path / "m", WorkerShutdown())
    with pytest.raises(WorkerShutdown):
        inspect_versions(tmp_path / "m", "latest", options=LoadOptions(allow_code=True))


def test_an_object_that_fails_in_its_own_way_is_refused_once_and_tried_again_when_it_changes(
    tmp_path: Path, redis_client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    write_no_estimator(tmp_path / "booster", 1)
    room = Room(tmp_path, redis_client, "booster")
    room.host.start()
    rollout = room.watch("booster")
    rollout.look()
    rollout.look()
    refused = room.registry.versions("booster")[1]
    assert refused.state == "refused"
    capsys.readouterr()
    for _ in range(20):
        room.now += 60
        rollout.look()
    assert room.registry.versions("booster")[1] == refused
    assert capsys.readouterr().out == ""
    shutil.rmtree(tmp_path / "booster" / "1")
    write_version(tmp_path / "booster", 1, Times())
    rollout.look()
    rollout.look()
    assert room.registry.active_version("booster") == 1


def test_the_traceback_of_the_same_error_is_logged_once(
    tmp_path: Path, redis_client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_version(tmp_path / "bad", 1, Times())
    room = Room(tmp_path, redis_client, "bad")
    room.host.start()
    # asked for by requests and runs, a version that answers elsewhere is tried again now and then
    another = ModelHost(room.settings, room.registry, monotonic=lambda: room.now)
    _break_the_runtime(monkeypatch, room.folder / "bad", AttributeError("not what anybody foresaw"))
    capsys.readouterr()
    for _ in range(5):
        with pytest.raises(host_module.ModelUnavailable):
            another.get("bad")
        room.now += 60
    assert capsys.readouterr().out.count("Traceback") == 1


def test_a_folder_that_cannot_be_listed_stops_no_other_model(
    tmp_path: Path, redis_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(tmp_path, redis_client, "bad")
    whole = host_module.find_versions

    def find_versions(path: Path) -> dict[int, Path]:
        if path.name == "bad":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(host_module, "find_versions", find_versions)
    room.host.start()
    assert room.registry.active_version("good") == 1


def test_inspecting_tells_one_line_whatever_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_version(tmp_path / "m", 1, Times())
    _break_the_runtime(monkeypatch, tmp_path / "m", ValueError("zip() argument 2 is longer than argument 1\nand more"))
    assert inspect.main([str(tmp_path / "m"), "--allow-code"]) == 1
    assert "ValueError: zip() argument 2 is longer than argument 1" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(inspect, "inspect_versions", _raise)
    assert inspect.main([str(tmp_path / "m")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "KeyError: 'unforeseen'"


def test_trying_a_row_tells_one_line_whatever_is_raised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(try_row, "try_row", _raise)
    monkeypatch.setattr(try_row.TrialRequest, "from_json", classmethod(lambda *_: None))
    monkeypatch.setattr(try_row.json, "load", lambda _: {})
    assert try_row.main() == 1
    assert capsys.readouterr().err.splitlines()[-1] == "KeyError: 'unforeseen'"


def _raise(*_: Any, **__: Any) -> Any:
    raise KeyError("unforeseen")


class BrokenWatch:
    """Something that raises at every look."""

    def __init__(self, error: Exception) -> None:
        self.error, self.looks, self.now, self.asked = error, 0, 100.0, 0

    def look(self, *, again: bool) -> bool:
        self.looks += 1
        raise self.error

    def reloads(self, _: str) -> Any:
        return type("Reloads", (), {"requested": self.asked})

    def watch(self) -> Watch:
        own: Any = self
        return Watch("m", own, own, worker="w", poll_every=3, monotonic=lambda: self.now)


@pytest.mark.parametrize("wished", [0, 1])
def test_a_watch_that_fails_is_told_once_and_looks_again_after_a_pause(
    capsys: pytest.CaptureFixture[str], wished: int
) -> None:
    broken = BrokenWatch(FileNotFoundError("vanished"))
    broken.asked = wished
    watcher = Watcher([("m", broken.watch())])
    for _ in range(60):
        watcher.tick()
        broken.now += 1
    assert broken.looks == 60 / PAUSE_S
    assert capsys.readouterr().out.count("model.watch.failed") == 1


def test_one_watch_that_fails_keeps_no_other_from_looking() -> None:
    broken, other = BrokenWatch(RuntimeError("x")), BrokenWatch(RuntimeError("y"))
    watcher = Watcher([("m", broken.watch()), ("n", other.watch())])
    watcher.tick()
    assert (broken.looks, other.looks) == (1, 1)


def test_a_file_that_vanishes_while_a_folder_is_looked_at_is_no_error(tmp_path: Path, redis_client: Client) -> None:
    room = Room(tmp_path, redis_client)
    (tmp_path / "good" / "1" / "dangling").symlink_to(tmp_path / "good" / "gone")
    assert room.watch("good").look() in (True, False)
