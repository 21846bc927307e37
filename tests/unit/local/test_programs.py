"""The programs that `up` starts."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from app.local.embedded_redis import EmbeddedRedis
from app.local.programs import KINDS, LAST_STAGE, all_programs, chosen_kinds, visible_gpus
from inference.errors import SettingsError
from inference.settings import Settings, WorkerSettings

REDIS = EmbeddedRedis(Path("/state"), Path("/bin/redis-server"), 1234, "secret")


def _names(settings: Settings, gpus: list[str] | None = None) -> list[str]:
    return [program.name for program in all_programs(settings, None, gpus, listener=7)]


WITH_STREAM = Settings.model_validate(
    {
        "models": {"delay": {"path": "model"}},
        "streams": {"in": {"stream": "in"}},
        "workers": {"realtime_processes": 2, "listen_processes": 2},
    }
)


def test_every_process_of_the_table_is_started() -> None:
    assert _names(Settings()) == ["maintenance", "realtime", "batch", "beat", "api-1", "api-2", "dashboard"]


def test_the_embedded_redis_starts_first_and_stops_last() -> None:
    programs = all_programs(Settings(), REDIS, None)
    assert programs[0].name == "redis"
    assert [program.name for program in programs if program.stop_stage == LAST_STAGE] == ["redis"]
    assert not any("secret" in word for program in programs for word in program.argv)


def test_what_requests_go_through_has_the_processor_first() -> None:
    settings = Settings(workers=WorkerSettings(realtime_processes=2))
    hurried = {program.name for program in all_programs(settings, REDIS, None, listener=7) if not program.niceness}
    assert hurried == {"redis", "realtime-1", "realtime-2", "api-1", "api-2"}


def test_api_processes_share_one_socket_and_one_more_stands_by() -> None:
    settings = Settings.model_validate({"api": {"processes": 2}})
    apis = [one for one in all_programs(settings, None, None, listener=7) if one.kind == "api"]
    assert [one.name for one in apis] == ["api-1", "api-2", "api-3"]
    assert all(one.fds == (7,) and list(one.argv[-3:]) == ["--fd", "7", "--standby"] for one in apis)


def test_no_child_puts_the_users_folder_on_its_module_path() -> None:
    for program in all_programs(Settings(), None, None, listener=7):
        assert program.argv[:3] == [sys.executable, "-P", "-m"]


def test_each_gpu_gets_its_own_workers() -> None:
    settings = Settings(workers=WorkerSettings(realtime_processes=2))
    programs = {program.name: program.env for program in all_programs(settings, None, ["0", "3"])}
    assert {name: env["CUDA_VISIBLE_DEVICES"] for name, env in programs.items() if env} == {
        "realtime-1": "0",
        "realtime-2": "0",
        "realtime-3": "3",
        "realtime-4": "3",
        "batch-1": "0",
        "batch-2": "3",
    }


def test_every_queue_of_requests_has_workers_of_its_own() -> None:
    own = {"path": "m", "realtime": {"queue": "own"}}
    settings = Settings.model_validate({"workers": {"realtime_processes": 2}, "models": {"a": {"path": "m"}, "b": own}})
    programs = {one.name: one for one in all_programs(settings, None, None) if one.kind == "realtime"}
    served = {name: one.argv[one.argv.index("-Q") + 1] for name, one in programs.items()}
    assert served == {
        "realtime-1": "realtime",
        "realtime-2": "realtime",
        "realtime-own-1": "own",
        "realtime-own-2": "own",
    }


def test_workers_of_one_machine_have_different_names() -> None:
    settings = Settings(workers=WorkerSettings(batch_processes=3))
    nodes = [program.argv[-1] for program in all_programs(settings, None, None) if "-n" in program.argv]
    assert len(set(nodes)) == len(nodes) == 5


def test_gpus_none_hides_them_all() -> None:
    hidden = visible_gpus(WorkerSettings(gpus="none"))
    programs = {program.name: program.env for program in all_programs(Settings(), None, hidden)}
    assert programs["batch"] == {"CUDA_VISIBLE_DEVICES": "-1"}


def test_gpus_auto_takes_what_the_environment_leaves_else_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl"):
        (tmp_path / name).touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-abc")
    assert visible_gpus(WorkerSettings(), tmp_path) == ["1", "GPU-abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus(WorkerSettings(), tmp_path) == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus(WorkerSettings(), tmp_path) == ["0", "2", "10"]
    assert visible_gpus(WorkerSettings(), tmp_path / "nothing") is None
    assert visible_gpus(WorkerSettings(gpus=[1])) == ["1"]


def test_kinds_are_chosen_by_name_with_commas_or_one_by_one() -> None:
    assert chosen_kinds() == set(KINDS)
    assert chosen_kinds(only=["api, beat", "redis"]) == {"api", "beat", "redis"}
    assert chosen_kinds(without=["dashboard"]) == set(KINDS) - {"dashboard"}
    assert chosen_kinds(only=["api,beat"], without=["beat"]) == {"api"}


@pytest.mark.parametrize(
    ("only", "without", "sentence"),
    [
        (["bach"], [], "--only: unknown process 'bach'; did you mean 'batch'? known: redis, maintenance,"),
        ([], ["xyz"], "--without: unknown process 'xyz'; known: redis, maintenance,"),
        (["api"], ["api"], "--only and --without leave nothing to run"),
    ],
)
def test_a_wrong_choice_is_refused_with_what_there_is(only: list[str], without: list[str], sentence: str) -> None:
    with pytest.raises(SettingsError) as refused:
        chosen_kinds(only, without)
    assert refused.value.message.startswith(sentence)


def test_every_kind_is_a_program_of_up() -> None:
    programs = all_programs(WITH_STREAM, REDIS, None, listener=7)
    assert {program.kind for program in programs} == set(KINDS)


def test_each_listener_keeps_a_name_of_its_own_and_without_streams_there_is_none() -> None:
    assert "listen" not in _names(Settings())
    listeners = [one for one in all_programs(WITH_STREAM, None, None) if one.kind == "listen"]
    assert [(one.name, one.argv[-2:]) for one in listeners] == [
        (name, ["--name", name]) for name in ("listen-1", "listen-2")
    ]


def test_real_time_workers_answer_until_the_api_has_drained_and_ctrl_c_drains_nothing() -> None:
    programs = all_programs(Settings.model_validate({"api": {"drain": "20s"}}), None, None, listener=7)
    stages = {one.kind: one.stop_stage for one in programs}
    assert stages["api"] < stages["realtime"] < LAST_STAGE
    apis = [one for one in programs if one.kind == "api"]
    assert all(one.grace_s > 20 for one in apis)
    assert {one.kind for one in programs if one.hasty_signal != signal.SIGTERM} == {"api"}
