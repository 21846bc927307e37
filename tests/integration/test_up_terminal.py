"""`up` as somebody at a terminal sees it: the table, Ctrl-C, what is refused."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.stack import run_cli
from tests.support.terminal import Terminal

pytestmark = [pytest.mark.integration, pytest.mark.slow]
_LOCAL_UP = Path(__file__).parents[1] / "support" / "local_up.py"
Open = Callable[..., Terminal]


@pytest.fixture
def open_terminal(tmp_path: Path) -> Iterator[Open]:
    opened: list[Terminal] = []

    def start(*argv: str | Path, colors: bool = False) -> Terminal:
        opened.append(Terminal(tmp_path, *argv, colors=colors))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def stand_ins(tmp_path: Path, *kinds: str) -> list[str | Path]:
    return [sys.executable, _LOCAL_UP, tmp_path / ".forecache", *kinds]


def forecache(*arguments: str) -> list[str | Path]:
    return [sys.executable, "-P", "-m", "app.cli", *arguments]


def write_settings(tmp_path: Path, more: str = "") -> None:
    text = f"[api]\nport = {free_port()}\n[dashboard]\nport = {free_port()}\n{more}[models.m]\npath = 'm'\n"
    (tmp_path / "forecache.toml").write_text(text)


def test_the_table_is_shown_and_ctrl_c_leaves_no_process(tmp_path: Path, open_terminal: Open) -> None:
    terminal = open_terminal(*stand_ins(tmp_path, "redis", "steady"))
    said = terminal.wait_said("all ready after")
    children = terminal.process.children(recursive=True)
    assert len(children) == 2
    by_name = {"redis": "-server", "steady": "python"}
    for name, program in by_name.items():
        (pid,) = re.findall(rf"{name} +(\d+) +ready", said)
        assert program in psutil.Process(int(pid)).name()
    # Linux may compare niceness within a session only
    assert {os.getsid(child.pid) for child in children} == {os.getsid(terminal.process.pid)}
    terminal.press("C-c")
    assert terminal.wait_ended() == 0
    assert "all stopped" in terminal.screen()
    assert not [child for child in children if child.is_running()]


def test_a_killed_process_is_in_the_table_again_with_its_new_pid(tmp_path: Path, open_terminal: Open) -> None:
    terminal = open_terminal(*stand_ins(tmp_path, "redis", "steady"))
    said = terminal.wait_said("all ready after")
    (pid,) = re.findall(r"steady +(\d+) +ready", said)
    psutil.Process(int(pid)).kill()
    said = terminal.wait_said("all ready again")
    assert "steady ended (killed by SIGKILL), restarting now" in said
    assert re.findall(r"steady +(\d+) +ready", said)[-1] != pid


def test_names_are_coloured_on_a_terminal_unless_no_color_is_set(tmp_path: Path, open_terminal: Open) -> None:
    colored = open_terminal(*stand_ins(tmp_path, "steady"), colors=True)
    colored.wait_said("hello from steady")
    assert "\x1b[36msteady |" in colored.screen(colors=True)
    colored.press("C-c")
    colored.wait_ended()
    plain = open_terminal(*stand_ins(tmp_path, "steady"))
    plain.wait_said("hello from steady")
    assert "\x1b[" not in plain.screen(colors=True)


def test_only_starts_what_is_named_and_a_second_up_is_refused_with_the_pid(tmp_path: Path, open_terminal: Open) -> None:
    write_settings(tmp_path)
    terminal = open_terminal(*forecache("up", "--only", "redis"))
    terminal.wait_said("all ready after")
    (child,) = terminal.process.children(recursive=True)
    assert child.name() in ("redis-server", "valkey-server")
    second = run_cli(tmp_path, "up", "--only", "beat")
    assert second.returncode == 1
    assert re.search(rf"already runs in .* as pid {terminal.process.pid}, since \d{{4}}-", second.stderr)
    terminal.press("C-c")
    assert terminal.wait_ended() == 0


def test_without_leaves_out_and_says_where_redis_is_expected(
    tmp_path: Path, open_terminal: Open, redis_server: RedisServer
) -> None:
    url = f'"{redis_server.url()}"'
    write_settings(tmp_path, f"[redis]\nurl = {url}\ncache_url = {url}\n")
    without = ("--without", "batch,realtime,maintenance", "--without", "api,dashboard")
    terminal = open_terminal(*forecache("up", *without))
    said = terminal.wait_said("all ready after")
    assert f"Redis: the one at 127.0.0.1:{redis_server.port}/0, not started here" in said
    assert len(terminal.process.children(recursive=True)) == 1
    assert re.search(r"beat +\d+ +ready", said)
    terminal.press("C-c")
    assert terminal.wait_ended() == 0


@pytest.mark.parametrize(
    ("settings", "arguments", "status", "sentence"),
    [
        ("", ["--only", "bach"], 2, "--only: unknown process 'bach'; did you mean 'batch'? known: redis, maintenance"),
        ("[api]\nhost = '0.0.0.0'\n", [], 2, "[api] host '0.0.0.0' can be reached from other machines: use 127.0.0.1"),
        ("[redis]\nurl = 'redis://127.0.0.1:1/0'\n", ["--only", "redis"], 2, "[redis] url is set, so there is no emb"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    tmp_path: Path, settings: str, arguments: list[str], status: int, sentence: str
) -> None:
    (tmp_path / "forecache.toml").write_text(f"{settings}[models.m]\npath = 'm'\n")
    done = run_cli(tmp_path, "up", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"forecache: {sentence}")
    assert len(done.stderr.splitlines()) == 1
