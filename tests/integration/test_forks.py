"""Forks of a process: real ones, really killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.stack import child_environment, end_tree
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

START = """
import os, signal, sys, time
from app.local import forks
from inference.logs import configure_logging

configure_logging("test", form="console", level="info")

def work():
    os.write(1, b"at work %d\\n" % os.getpid())  # one write, so that lines of two forks do not mix
    {work}

{before}
sys.exit(forks.Forks(work, {count}, hopeless=3).run())
"""

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process that keeps forks at work; all it prints goes to `log` in the test's folder."""
    started: list[subprocess.Popen[bytes]] = []

    def start(work: str, count: int = 1, before: str = "") -> subprocess.Popen[bytes]:
        script = START.format(work=work, count=count, before=before)
        with (tmp_path / "log").open("wb") as log:
            command = [sys.executable, "-P", "-c", script]
            started.append(subprocess.Popen(command, env=child_environment(), stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        end_tree(process)


def begun(folder: Path) -> list[int]:
    """The pids of all forks that began their work."""
    lines = (folder / "log").read_text().splitlines()
    return [int(line.split()[2]) for line in lines if line.startswith("at work")]


def test_a_killed_fork_is_replaced_and_the_others_go_on(start: Start, tmp_path: Path) -> None:
    start("time.sleep(60)", count=2)
    first = wait_for(lambda: len(pids := begun(tmp_path)) == 2 and pids, "two forks")
    os.kill(first[0], signal.SIGKILL)
    wait_for(lambda: len(begun(tmp_path)) == 3, "another one")
    assert psutil.pid_exists(first[1])
    [line] = [line for line in (tmp_path / "log").read_text().splitlines() if "process.died" in line]
    assert "killed by SIGKILL" in line
    assert f"pid={first[0]}" in line


def test_forks_that_die_at_once_are_started_ever_more_slowly(start: Start, tmp_path: Path) -> None:
    start("os._exit(1)")
    wait_for(lambda: "next_in_s=2.0" in (tmp_path / "log").read_text(), "the third death")
    assert len(begun(tmp_path)) == 3


def test_a_fork_that_hangs_is_replaced(start: Start, tmp_path: Path) -> None:
    start("time.sleep(60)", before="forks.HANGS_AFTER_S = 2")
    [hanging] = wait_for(lambda: begun(tmp_path), "a fork")
    os.kill(hanging, signal.SIGSTOP)
    wait_for(lambda: len(begun(tmp_path)) == 2, "another one")
    assert not psutil.pid_exists(hanging)


def test_a_hopeless_fork_ends_all_with_its_exit_code(start: Start, tmp_path: Path) -> None:
    first = f"try: os.mkdir({str(tmp_path / 'first')!r})"
    process = start(f"{first}\n    except FileExistsError: sys.exit(3)\n    time.sleep(60)", count=2)
    assert process.wait(30) == 3
    assert not any(is_running(pid) for pid in begun(tmp_path))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_no_fork_outlives_the_first_process(start: Start, tmp_path: Path, how: signal.Signals) -> None:
    process = start("time.sleep(60)", count=3)
    forks = wait_for(lambda: len(pids := begun(tmp_path)) == 3 and pids, "three forks")
    process.send_signal(how)
    assert process.wait(30) == (-how if how == signal.SIGKILL else 0)
    wait_for(lambda: not any(is_running(pid) for pid in forks), "their end", 20)


def is_running(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
