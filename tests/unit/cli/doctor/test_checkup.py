"""doctor: all checks together, whatever fails, and how findings are printed."""

from __future__ import annotations

import json
import threading
import time

import pyarrow as pa
import pytest

from app.cli.doctor import print_findings
from app.cli.doctor.checkup import check_up, run_checks
from app.cli.doctor.findings import Check, Finding, Status, error, ok, warning
from inference.errors import StoreUnavailable
from inference.settings import Settings
from tests.support.waiting import LONG_S


def test_a_check_that_fails_or_hangs_leaves_the_others_alone() -> None:
    never = threading.Event()

    def hang() -> list[Finding]:
        never.wait()
        return []

    def fail() -> list[Finding]:
        raise pa.lib.ArrowKeyError("Column id does not exist in redis://me:hush@host")

    def lose_redis() -> list[Finding]:
        raise StoreUnavailable("gone in between")

    checks = {
        (Check.VERSIONS, "versions"): lambda: [ok(Check.VERSIONS, "python", "3.11")],
        (Check.BROKER, "broker"): hang,
        (Check.MODEL, "delay"): fail,
        (Check.MODEL, "price"): lambda: [ok(Check.MODEL, "price", "version 1 answers")],
        (Check.TABLE, "delay"): lose_redis,
    }
    found = run_checks(checks, 0.2)
    never.set()
    assert [(one.check, one.status) for one in found] == [
        (Check.VERSIONS, Status.OK),
        (Check.BROKER, Status.WARNING),
        (Check.MODEL, Status.ERROR),
        (Check.MODEL, Status.OK),
        (Check.TABLE, Status.WARNING),
    ]
    assert [one.detail for one in found[1:]] == [
        "not checked: it took over 0.2 s",
        "the check itself failed: ArrowKeyError: Column id does not exist in redis://***@host",
        "version 1 answers",
        "not checked: no Redis",
    ]


def test_without_any_redis_every_concern_still_says_something() -> None:
    nowhere = "redis://:hush@127.0.0.1:1/0"
    settings = Settings.model_validate(
        {
            "redis": {"url": nowhere, "cache_url": nowhere},
            "models": {"delay": {"path": "gone", "features": "gone.parquet"}},
        }
    )
    started = time.monotonic()
    found = check_up(settings)
    assert time.monotonic() - started < LONG_S
    assert list(dict.fromkeys(one.check for one in found)) == list(Check)
    by_subject = {(one.check, one.subject): one for one in found}
    assert by_subject[Check.REDIS, "cache_url (127.0.0.1:1/0)"].status is Status.ERROR
    assert by_subject[Check.TABLE, "delay"].status is Status.ERROR
    assert by_subject[Check.WORKERS, "all queues"].detail == "not checked: no Redis"
    assert by_subject[Check.MACHINE, "clock"].detail == "not checked: no Redis"
    assert "hush" not in json.dumps([one.to_json() for one in found])


FOUND = [
    ok(Check.VERSIONS, "python", "3.11"),
    warning(Check.REDIS, "url", "[slow]", "wait"),
    error(Check.REDIS, "cache_url", "gone", "start it"),
]


def test_in_a_pipe_findings_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings(FOUND)
    assert capsys.readouterr().out.splitlines() == [
        "versions",
        "  ok       python: 3.11",
        "redis",
        "  warning  url: [slow]",
        "           fix: wait",
        "  error    cache_url: gone",
        "           fix: start it",
        "1 ok, 1 to look at, 1 wrong",
    ]


def test_on_a_terminal_the_marks_have_colours_unless_no_color_is_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_findings(FOUND)
    assert "\x1b[32mok" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    print_findings(FOUND)
    assert "\x1b" not in capsys.readouterr().out
