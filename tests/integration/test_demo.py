"""`forecache demo --once`, as a program runs it: on a machine whose usual ports are taken, and where a step fails."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from tests.support.stack import run_cli

#: TensorFlow is started for the training, the workers and the model's inspection
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.fixture
def usual_ports_taken() -> Iterator[None]:
    with ExitStack() as held:
        for port in (8000, 5555):
            holder = held.enter_context(socket.socket())
            with suppress(OSError):  # somebody else has it: as good
                holder.bind(("127.0.0.1", port))
                holder.listen()
        yield


def test_the_demo_takes_the_next_free_ports_and_shows_every_step(usual_ports_taken: None, tmp_path: Path) -> None:
    done = run_cli(tmp_path, "demo", "--once", "--entities", "5000", timeout_s=300)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    for port in (8000, 5555):
        assert re.search(rf"^port {port} is taken by .*\(pid \d+.*\): (API|Flower) takes \d+$", said, re.MULTILINE)
    steps = ("the table", "the model", "forecache up", "a run", "a hit", "the features", "a miss", "and again",
             "traffic", "the hit rate", "a rollback")  # fmt: skip
    assert [line[3:17].strip() for line in said.splitlines() if re.match(r" ?\d+ ", line)] == list(steps)
    assert re.search(r"GET /predict/new-000 -> 0\.\d+  computed in", said)
    assert "All checks passed" in said
    assert re.search(r"to copy +/.*/forecache\.toml", said)
    assert "its folder is gone" in said
    assert "\x1b" not in said, "a bar or a colour in a pipe"
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_fails_ends_it_with_1_and_the_end_of_the_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho this Redis is broken\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    done = run_cli(tmp_path, "demo", "--once", "--entities", "100", timeout_s=120)
    assert done.returncode == 1
    assert "FAILED: `forecache up` ended while waiting for the API" in done.stdout
    assert re.search(r"redis +\| \S+ info +this Redis is broken", done.stdout)
    (folder,) = re.findall(r"the files are in (\S+)", done.stdout)
    assert (Path(folder) / "forecache.toml").exists()
    running = [each for each in psutil.process_iter(["cwd"]) if each.info["cwd"] == folder]
    assert running == []
