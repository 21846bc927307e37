"""The command as a whole: help, mistakes, settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from app.cli.api_client import Api
from app.cli.batch import tell_changes, until_over
from app.cli.context import clear_outage, model_and, models_of, place_of
from app.cli.hits import window_seconds
from app.cli.predict import enqueue, job_once_over
from inference.batch import RunState
from inference.batch.records import RunKind
from inference.errors import PredictionFailed, StoreUnavailable, UnknownModel
from inference.monitoring.queues import JobPriority
from inference.settings import ApiSettings, ModelSettings, RedisSettings, Settings
from tests.support.stack import run_cli

ONE = Settings(models={"delay": ModelSettings(path=Path("m"))})
TWO = Settings(models={"delay": ModelSettings(path=Path("m")), "price": ModelSettings(path=Path("p"))})


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['forecache', '--help']\n"
        "from app.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'pydantic', 'celery', 'redis', 'numpy', 'pyarrow', 'tensorflow', 'fastapi', 'httpx'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: forecache" in done.stdout


def test_a_misspelt_command_is_answered_with_the_nearest(tmp_path: Path) -> None:
    done = run_cli(tmp_path, "batch", "lst")
    assert done.returncode == 2
    assert "Did you mean 'list'?" in done.stderr


def test_a_misspelt_setting_is_one_line_and_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text("[api]\nprot = 1\n")
    done = run_cli(tmp_path, "predict", "a")
    assert done.returncode == 2
    assert done.stderr == "forecache: forecache.toml [api]: unknown setting 'prot'; did you mean 'port'?\n"
    assert done.stdout == ""


def test_the_users_own_modules_are_not_taken_for_ours(tmp_path: Path) -> None:
    for name in ("app", "tasks", "workers", "inference", "beat_schedule", "typer"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    done = run_cli(tmp_path, "predict", "a")
    assert done.stderr.startswith("forecache: no model is configured: `forecache init` writes a forecache.toml")
    assert len(done.stderr.splitlines()) == 1


def test_predict_says_how_to_start_the_api_when_none_answers(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text('[api]\nport = 1\n[models.m]\npath = "m"\n')
    done = run_cli(tmp_path, "predict", "a", "--json")
    assert done.returncode == 1
    assert done.stderr.startswith("forecache: no API answers at http://127.0.0.1:1: start `forecache up`")
    assert len(done.stderr.splitlines()) == 1


def test_what_is_logged_on_the_way_never_lands_in_the_output(tmp_path: Path) -> None:
    code = (
        "from app.cli.context import open_deployment\n"
        "from inference.logs import get_logger\n"
        "with open_deployment():\n"
        "    get_logger('x').info('run.published')\n"
        "    get_logger('x').warning('disk.full')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
    assert "disk.full" in done.stderr
    assert "run.published" not in done.stderr


def test_help_names_both_arguments_where_the_model_may_be_left_out(tmp_path: Path) -> None:
    assert "{MODEL|PATH} [PATH]" in run_cli(tmp_path, "features", "load", "--help").stdout
    assert "{MODEL|ENTITY} [ENTITY]" in run_cli(tmp_path, "features", "get", "--help").stdout


def test_a_window_longer_than_counters_are_kept_is_refused(tmp_path: Path) -> None:
    done = run_cli(tmp_path, "hits", "--window", "8d")
    assert done.returncode == 2
    assert done.stderr == "forecache: --window: '8d' is too long: counters are kept for 7d\n"


def test_a_window_is_whole_seconds_as_in_the_api() -> None:
    assert [repr(window_seconds(text)) for text in ("5m", "100ms")] == ["300", "1"]


def test_waiting_for_a_job_that_nobody_takes_up_is_explained_once(capsys: pytest.CaptureFixture[str]) -> None:
    states = iter(["queued", "queued", "running", "done"])

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"task_id": "j1", "state": next(states)})

    api = Api(ApiSettings(), transport=httpx.MockTransport(answer))
    assert job_once_over(api, "j1")["state"] == "done"
    assert capsys.readouterr().err.count("no worker has taken it up yet") == 1


def test_waiting_for_a_job_with_a_failed_prediction_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "forecache.toml").write_text('[models.m]\npath = "m"\n')
    items: list[Any] = [{"entity_id": "a", "prediction": 1.5}]
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            asked.append(json.loads(request.content)["priority"])
            return httpx.Response(202, json={"task_id": "j1", "status_url": "/predictions/j1"})
        return httpx.Response(200, json={"task_id": "j1", "state": "done", "result": {"predictions": items}})

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr("app.cli.api_client.Api", lambda settings: Api(settings, transport=transport))
    enqueue(["a"], wait=True)
    items.append({"entity_id": "b", "error": {"detail": "no features of 'b'"}})
    with pytest.raises(PredictionFailed, match="1 of 2 predictions failed"):
        enqueue(["a", "b"], priority=JobPriority.HIGH, wait=True)
    assert "no features of 'b'" in capsys.readouterr().out
    assert asked == ["normal", "high"]


def test_the_model_may_be_left_out_when_there_is_one() -> None:
    assert model_and("file.parquet", None, ONE) == ("delay", "file.parquet")
    assert model_and("price", "file.parquet", TWO) == ("price", "file.parquet")
    with pytest.raises(UnknownModel, match="name the model: 2 are configured"):
        model_and("file.parquet", None, TWO)


def test_without_a_name_all_models_are_meant() -> None:
    assert models_of(None, TWO) == ["delay", "price"]
    with pytest.raises(UnknownModel, match="no model 'dely'"):
        models_of("dely", TWO)


def test_an_outage_names_the_server_but_never_its_password() -> None:
    url: Any = "redis://:secret@cache.example:6379/1"
    settings = Settings(redis=RedisSettings(url=url, cache_url=url))
    with (
        pytest.raises(StoreUnavailable, match=r"Redis at cache.example:6379/1 does not answer") as caught,
        clear_outage(settings),
    ):
        raise StoreUnavailable("Redis did not answer") from redis.ConnectionError("refused")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:hush@h:6379/1?password=hush", "h:6379/1"),
        ("unix://:hush@/run/redis.sock?db=1", "/run/redis.sock"),
        ("redis:///1", "localhost/1"),
        ("amqp://user:hush@[::1]:5672/vhost", "::1:5672/vhost"),
        ("redis://:hu/sh@h:6379/1", "an address that cannot be read"),
        ("redis://:1/hush@h:6379/1", "an address that cannot be read"),
        ("redis://:1?hush@h:6379/1", "an address that cannot be read"),
        ("redis://:1#hush@h:6379/1", "an address that cannot be read"),
    ],
)
def test_of_an_address_only_the_place_is_shown(url: str, shown: str) -> None:
    assert place_of(url) == shown


def test_a_refused_password_is_told_from_silence() -> None:
    with pytest.raises(StoreUnavailable, match="refuses the password: correct"), clear_outage(TWO):
        raise StoreUnavailable("Redis did not answer") from redis.AuthenticationError("invalid password")


def test_without_any_redis_the_message_speaks_of_up() -> None:
    with pytest.raises(StoreUnavailable, match="no `forecache up` runs in this folder"), clear_outage(ONE):
        raise StoreUnavailable("Redis did not answer") from redis.ConnectionError("refused")


@dataclass(frozen=True)
class FakeRun:
    run_id: str
    state: Any
    chunks_total: int | None = None
    chunks_done: int = 0
    eta_s: float | None = None
    rows_per_s: float | None = None
    kind: Any = RunKind.FULL


def _run(state: str, **fields: Any) -> Any:
    return FakeRun("r1", RunState(state), **fields)


def test_waiting_for_a_run_tells_each_change_once_and_ends_with_it() -> None:
    views = [
        _run("queued"),
        _run("running", chunks_total=2),
        _run("running", chunks_total=2, chunks_done=1, eta_s=3.2, rows_per_s=1234.5),
        _run("published", chunks_total=2, chunks_done=2),
    ]
    told: list[str] = []
    coming = iter(views)
    last = until_over(
        lambda _: next(coming), _run("queued"), tell_changes(told.append), say=told.append, sleep=lambda _: None
    )
    assert last.state.value == "published"
    assert told == [
        "r1 queued",
        "r1 running: chunk 0 of 2",
        "r1 running: chunk 1 of 2, 1,234 rows/s, 3 s left",
    ]


@pytest.mark.parametrize(
    ("kind", "first"),
    [(RunKind.FULL, ""), (RunKind.DELTA, "Redis copies the rows that are carried over; or ")],
)
def test_a_run_that_nobody_takes_up_is_explained_once(kind: RunKind, first: str) -> None:
    told: list[str] = []
    looks = 0

    def look(_: str) -> Any:
        nonlocal looks
        looks += 1
        return _run("queued", kind=kind) if looks < 60 else _run("cancelled")

    until_over(look, _run("queued"), tell_changes(told.append), say=told.append, sleep=lambda _: None)
    assert told == [
        "r1 queued",
        f"{first}no worker has taken it up yet: is `forecache up`, or a maintenance worker, running?",
    ]
