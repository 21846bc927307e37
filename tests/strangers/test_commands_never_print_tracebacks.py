"""Every command ends in one line and exit code 1, whatever is raised in it."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest
import redis
import typer

from app import cli
from app.cli import batch
from inference.errors import BrokerUnavailable


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, *arguments: str
) -> tuple[Any, list[str]]:
    """Run the command line with a command that raises; return its exit code and the lines on stderr."""

    def fail() -> None:
        raise error

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("fail")(fail)
    app.command("api")(fail)
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr("sys.argv", ["forecache", *(arguments or ("fail",))])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    assert captured.out == ""
    return stopped.value.code, captured.err.splitlines()


@pytest.mark.parametrize(
    "error",
    [
        KeyError("Column id does not exist in schema"),
        TypeError("Integer exceeds 64-bit range"),
        ValueError("'master_name' transport option must be specified.\nsecond line"),
        ModuleNotFoundError("No module named 'boto3'"),
        pa.ArrowNotImplementedError("Unsupported cast from string_view"),
        redis.ResponseError("NOPERM"),
        RecursionError(),
        MemoryError(),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_nobody_foresaw_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    code, lines = run(monkeypatch, capsys, error)
    assert code == 1
    [line] = lines
    assert line.startswith(f"forecache: {type(error).__name__}")
    assert "FORECACHE_DEBUG=1 shows where" in line


def test_a_file_that_the_system_refuses_is_named_and_nobody_is_blamed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = run(monkeypatch, capsys, PermissionError(errno.EACCES, "Permission denied", "models/m"))
    assert (code, lines) == (1, ["forecache: Permission denied: models/m"])


def test_a_password_in_an_error_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, [line] = run(monkeypatch, capsys, ValueError("cannot use redis://me:hush@host"))
    assert "hush" not in line


def test_the_traceback_is_there_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli.DEBUG, "1")
    monkeypatch.setattr(cli, "app", lambda **_: {}["gone"])
    with pytest.raises(KeyError):
        cli.main()


def test_a_service_leaves_its_traceback_to_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", lambda **_: {}["gone"])
    monkeypatch.setattr("sys.argv", ["forecache", "api"])
    with pytest.raises(KeyError):
        cli.main()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BrokerUnavailable("the broker did not take a message: refused"), "the broker did not take a message: refused"),
        (ValueError("'master_name' transport option must be specified."), "ValueError: 'master_name' transport option"),
        (KeyError("No such transport: bogus"), "KeyError: 'No such transport: bogus'"),
    ],
)
def test_a_wake_up_that_the_broker_refuses_is_a_note_beside_the_run(
    capsys: pytest.CaptureFixture[str], error: Exception, told: str
) -> None:
    def refuse() -> None:
        raise error

    batch._wake_maintenance(cast("Any", SimpleNamespace(broker=SimpleNamespace(poke=refuse))))
    [line] = capsys.readouterr().err.splitlines()
    assert told in line
    assert line.endswith("; the run goes on once the broker is back")
