"""Locks between processes of one host: who has one, who waits, and what a death leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference import host_locks
from inference.host_locks import holding, is_held, lock_file
from tests.support.stack import child_environment

HOLDER = """
import sys
from pathlib import Path
from inference import host_locks
host_locks.FOLDER = Path(sys.argv[2])
with host_locks.holding(host_locks.lock_file("gpu"), shared=sys.argv[1] == "shared") as held:
    print(held, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host_locks, "FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def holder(request: pytest.FixtureRequest, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", HOLDER, request.param, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"
        yield process
        process.kill()


@pytest.mark.parametrize("holder", ["shared"], indirect=True)
def test_several_processes_may_share_a_lock_and_nobody_has_it_alone_meanwhile(
    holder: subprocess.Popen[bytes],
) -> None:
    with holding(lock_file("gpu"), shared=True) as shared, holding(lock_file("gpu")) as alone:
        assert (shared, alone) == (True, False)
    assert is_held(lock_file("gpu"))
    assert not is_held(lock_file("another"))


@pytest.mark.parametrize("holder", ["alone", "shared"], indirect=True)
def test_the_lock_of_a_killed_process_is_free(holder: subprocess.Popen[bytes]) -> None:
    assert is_held(lock_file("gpu"))
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not is_held(lock_file("gpu"))
    with holding(lock_file("gpu")) as held:
        assert held


def test_threads_of_a_process_exclude_each_other_too_and_whoever_waits_gets_the_lock() -> None:
    waits, got = threading.Event(), []

    def wait() -> None:
        waits.set()
        with holding(lock_file("load"), wait_s=60) as held:
            got.append(held)

    with holding(lock_file("load")) as held:
        thread = threading.Thread(target=wait)
        thread.start()
        assert waits.wait(60)
        assert held
        assert got == []
    thread.join(60)
    assert got == [True]


def test_whoever_waits_for_too_long_goes_on_without_the_lock() -> None:
    with holding(lock_file("load")), holding(lock_file("load"), wait_s=0.01) as held:
        assert not held


def test_nobody_is_kept_by_a_folder_that_cannot_be_used(folder: Path) -> None:
    (folder / f"forecache-{os.getuid()}").symlink_to(folder / "anothers")
    (folder / "anothers").mkdir()
    with holding(lock_file("gpu")) as held:
        assert not held
    assert not is_held(lock_file("gpu"))
    assert list((folder / "anothers").iterdir()) == []


def test_a_folder_is_a_lock_that_leaves_no_file(tmp_path: Path) -> None:
    with holding(tmp_path) as held:
        assert held
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    assert list(tmp_path.iterdir()) == []
