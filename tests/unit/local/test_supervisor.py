"""How patient the supervisor is, and how it says that a process ended."""

from __future__ import annotations

import asyncio
import io
import signal
import sys

import pytest

from app.local.forks import Backoff, manner
from app.local.output import Lines, Output
from app.local.programs import Program
from app.local.supervisor import Supervisor, _Process
from inference.errors import Unavailable


def test_the_wait_before_a_restart_doubles_up_to_a_limit_and_a_long_life_ends_it() -> None:
    backoff = Backoff()
    assert [backoff.after_death(1) for _ in range(8)] == [0, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.after_death(60) == 0
    assert backoff.after_death(1) == 0
    assert backoff.after_death(1) == 1


def test_the_end_of_a_process_is_said_by_code_or_signal() -> None:
    assert manner(0) == "exit code 0"
    assert manner(-signal.SIGKILL) == "killed by SIGKILL"
    assert manner(-(signal.SIGRTMIN + 1)) == f"killed by signal {signal.SIGRTMIN + 1}"


async def test_a_program_that_the_system_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    programs = [
        Program("first", [], is_ready=lambda: False, explain=lambda lines: lines[-1]),
        Program("second", []),
    ]
    with pytest.raises(Unavailable, match="cannot be started: No such file"):
        await Supervisor(programs, Output(["first", "second"], stream)).run()
    assert "first  | " in stream.getvalue()
    assert "second" not in stream.getvalue()


async def test_a_stop_at_the_very_moment_of_a_death_is_obeyed() -> None:
    process = _Process(Lines("p", Output(["p"], io.StringIO())))
    process.process_exited()
    closing = asyncio.create_task(process.close())
    for _ in range(3):
        await asyncio.sleep(0)
    process.connection_lost(None)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
