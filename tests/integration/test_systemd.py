"""The systemd units: sound to systemd itself, and each command at work until SIGTERM."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from inference.processors import BACKGROUND_NICENESS
from inference.settings import ApiSettings, load_settings
from tests.support.flights import write_flights
from tests.support.redis_server import missing
from tests.support.stack import Stack, child_environment, end_tree
from tests.support.systemd_units import Service, copy_units, environment_file, services
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

#: what a process says once it is up
READY = {
    "forecache-api": "api.listening",
    "forecache-batch@0": " ready.",
    "forecache-beat": "beat: Starting",
    "forecache-dashboard": "dashboard.ready",
    "forecache-listen@0": "listen.ready",
    "forecache-maintenance": " ready.",
    "forecache-realtime@0": " ready.",
}


def systemd_analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        missing("systemd-analyze (Debian's package systemd)")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_systemd_has_nothing_to_say_against_the_units(tmp_path: Path) -> None:
    done = systemd_analyze("verify", "--man=no", *copy_units(tmp_path))
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "forecache" in line] == []


def test_every_service_is_hardened(tmp_path: Path) -> None:
    units = [unit for unit in copy_units(tmp_path) if unit.suffix == ".service"]
    # of 100; 96 is an unhardened service
    done = systemd_analyze("security", "--offline=true", "--threshold=30", "--no-pager", *units)
    assert done.returncode == 0, done.stdout[-500:]


def test_every_variable_of_the_environment_file_is_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text("")
    for name, value in environment_file().items():
        monkeypatch.setenv(name, value)
    settings = load_settings(tmp_path / "forecache.toml")
    assert settings.broker_url.startswith("amqp://")
    assert settings.redis_url.startswith("rediss://")


def test_the_example_settings_are_valid() -> None:
    settings = load_settings(Path(__file__).parents[2] / "examples" / "redis_and_rabbitmq" / "forecache.toml")
    assert settings.broker_url.startswith("amqp://")


def test_the_api_has_time_to_drain_and_is_told_how_much() -> None:
    [api] = [service for service in services() if service.name == "forecache-api"]
    settings = ApiSettings.model_validate({"stop_timeout": api.environment["FORECACHE_API__STOP_TIMEOUT"]})
    assert settings.stop_timeout == api.stop_timeout_s >= settings.longest_stop_s


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_command_comes_up_serves_and_ends_on_sigterm_in_time(tmp_path: Path) -> None:
    with Stack(tmp_path, write_flights(tmp_path) + '[streams.flights]\nstream = "flights"\n') as stack:
        running = {service.name: start(service, tmp_path) for service in services()}
        try:
            for name, sign in READY.items():
                wait_for(lambda: sign in log(tmp_path, name), f"{sign!r} in {name}.log", 120)  # noqa: B023
            assert set(running) == set(READY)
            for name, process in running.items():
                assert os.getpriority(os.PRIO_PROCESS, process.pid) == niceness_of(name)
            started = httpx.post(f"{stack.url}/runs").raise_for_status().json()
            assert stack.wait_run(started["run_id"])["state"] == "published"
            for service in services():
                stop(running[service.name], service)
        finally:
            for process in running.values():
                end_tree(process)


def start(service: Service, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / f"{service.name}.log").open("wb") as output:
        return subprocess.Popen(
            service.argv, cwd=folder, env=child_environment() | service.environment, stdout=output, stderr=output
        )


def niceness_of(service: str) -> int:
    """Return the niceness that a service gives itself: no request waits for runs."""
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    return max(ours, BACKGROUND_NICENESS) if service in ("forecache-batch@0", "forecache-maintenance") else ours


def stop(process: subprocess.Popen[bytes], service: Service) -> None:
    """SIGTERM to the main process alone, as KillMode=mixed has it."""
    os.kill(process.pid, signal.SIGTERM)
    # both count as a clean end for systemd
    assert process.wait(service.stop_timeout_s) in (0, -signal.SIGTERM), service.name


def log(folder: Path, name: str) -> str:
    return (folder / f"{name}.log").read_text(errors="replace")
