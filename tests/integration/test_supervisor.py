"""The supervisor over stand-in programs: real processes, really killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from app.local.embedded_redis import private_folder
from app.local.lock import hold_lock
from app.local.ports import require_free
from inference.errors import Conflict
from tests.support.stack import run_cli
from tests.support.supervised import Supervised
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration
Supervise = Callable[..., Supervised]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    started: list[Supervised] = []

    def start(*kinds: str) -> Supervised:
        started.append(Supervised(tmp_path, *kinds))
        return started[-1]

    yield start
    for each in started:
        each.clean_up()


def test_a_killed_process_is_started_again_at_once_and_then_after_a_second(supervise: Supervise) -> None:
    up = supervise("steady")
    first = up.wait_pid("steady")
    for _ in range(2):
        os.kill(first, signal.SIGKILL)
        first = up.wait_pid("steady", other_than=first)
    told = [line.partition("steady ended ")[2] for line in up.output().splitlines() if "steady ended " in line]
    assert told == ["(killed by SIGKILL), restarting now", "(killed by SIGKILL), restarting in 1 s"]


def test_a_process_that_keeps_dying_is_started_ever_more_slowly(supervise: Supervise) -> None:
    up = supervise("flapping")
    up.wait_said("flapping ended (exit code 3), restarting now")
    up.wait_said("restarting in 1 s")
    announced_at = time.monotonic()
    up.wait_said("restarting in 2 s")
    assert time.monotonic() - announced_at > 0.8, "the wait that was announced was not kept"
    assert up.output().count("last words") == 3


def test_last_words_without_a_line_end_are_not_lost_and_carry_the_name(supervise: Supervise) -> None:
    up = supervise("flapping")
    up.wait_said("last words\n")
    said = "\n".join(up.output().splitlines())
    assert re.search(r"^flapping \| \d\d:\d\d:\d\d info    last words$", said, re.MULTILINE)
    assert re.search(r"^flapping \| \d\d:\d\d:\d\d info    hello from flapping é$", said, re.MULTILINE)


def test_a_child_that_outlives_its_program_does_not_keep_it_from_its_restart(supervise: Supervise) -> None:
    up = supervise("leaving")
    up.wait_said("leaving ended (exit code 3), restarting in 1 s")
    for orphan in re.findall(r"orphan (\d+)", up.output()):
        os.kill(int(orphan), signal.SIGKILL)
    assert up.stop() == 0


def test_a_program_that_floods_its_output_neither_blocks_nor_hides_the_others(supervise: Supervise) -> None:
    up = supervise("flooding", "steady")
    first = up.wait_pid("steady")
    wait_for(lambda: up.log.stat().st_size > 10_000_000, "10 MB of output")
    os.kill(first, signal.SIGKILL)
    up.wait_pid("steady", other_than=first)
    children = up.descendants()
    assert up.stop() == 0
    assert not [child for child in children if child.is_running()]
    assert "steady ended (killed by SIGKILL), restarting now" in up.output()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_ends_everything_and_leaves_no_process(supervise: Supervise, number: signal.Signals) -> None:
    up = supervise("steady", "flapping")
    up.wait_pid("steady")
    up.wait_pid("flapping")
    children = up.descendants()
    assert up.stop(number) == 0
    assert not [child for child in children if child.is_running()]
    assert "all stopped" in up.output()


def test_a_stop_in_the_middle_of_restarts_is_obeyed(supervise: Supervise) -> None:
    up = supervise("steady", "flapping")
    pid = up.wait_pid("steady")
    os.kill(pid, signal.SIGKILL)
    assert up.stop() == 0
    assert "Traceback" not in up.output()


def test_a_process_that_ignores_the_signal_is_killed_when_its_grace_is_over(supervise: Supervise) -> None:
    up = supervise("stubborn")
    up.wait_said("deaf")
    deaf = psutil.Process(up.wait_pid("stubborn"))
    assert up.stop() == 0
    assert not deaf.is_running()


def test_a_second_signal_kills_what_takes_long_but_lets_redis_end_in_order(supervise: Supervise) -> None:
    up = supervise("redis", "busy")
    up.wait_said("deaf")
    up.process.send_signal(signal.SIGINT)
    up.wait_said("workers finish what they have in hand")
    assert up.stop(signal.SIGINT) == 0
    assert "is now ready to exit" in up.output()  # Redis or Valkey


def test_children_do_not_outlive_a_killed_supervisor(supervise: Supervise) -> None:
    up = supervise("redis", "steady")
    up.wait_pid("steady")
    children = up.descendants()
    assert len(children) == 2
    up.stop(signal.SIGKILL)
    wait_for(lambda: not any(child.is_running() for child in children), "the end of every child", 15)


def test_a_second_up_in_the_folder_is_refused_with_the_pid(supervise: Supervise) -> None:
    first = supervise("steady")
    first.wait_pid("steady")
    lock = first.state_dir / "up.lock"
    with pytest.raises(Conflict, match=f"already runs .* as pid {first.process.pid}, since 2"), hold_lock(lock):
        pass
    first.stop(signal.SIGKILL)
    with hold_lock(lock):  # the kernel let go of it
        assert lock.read_text() == str(os.getpid())


def test_a_taken_port_is_refused_naming_port_setting_and_holder() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(Conflict, match=rf"port {port} is taken by .+\(pid {os.getpid()}.*\[api\] port"):
            require_free("127.0.0.1", port, "[api] port")
    require_free("127.0.0.1", port, "[api] port")


def test_up_refuses_a_taken_port_in_one_line_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        (tmp_path / "forecache.toml").write_text(f'[api]\nport = {port}\n[models.m]\npath = "m"\n')
        done = _forecache(tmp_path, "up")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"forecache: port {port} is taken")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / ".forecache" / "redis.json").exists()


def test_up_without_a_model_says_what_to_add(tmp_path: Path) -> None:
    done = _forecache(tmp_path, "up")
    assert done.returncode == 2
    said = done.stderr
    assert said.startswith("forecache: no model is configured: `forecache init` writes a forecache.toml")
    assert len(said.splitlines()) == 1
    (tmp_path / "forecache.toml").write_text("[api]\n")
    assert _forecache(tmp_path, "up").stderr == said


def test_the_state_folder_is_private(tmp_path: Path) -> None:
    assert private_folder(tmp_path / "a" / ".forecache").stat().st_mode & 0o777 == 0o700


def _forecache(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_cli(folder, *arguments)
