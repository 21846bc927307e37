"""`forecache demo` from start to end: folder, ports, the steps, and a clean stop whatever happens."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from app.demo.data import SCHEDULE_S, DemoFolder, known_entity
from app.demo.processes import DemoProcesses
from app.demo.screen import Screen, Stopwatch
from app.demo.steps import Steps
from app.local.ports import LOOPBACK, free_port_from, port_holder
from inference.errors import ForecacheError, SettingsError
from inference.settings import ApiSettings, DashboardSettings

#: module → the extra that brings it
_NEEDS = {"tensorflow": "tensorflow", "flower": "dashboard"}


def run_demo(*, entities: int, once: bool, keep: bool) -> bool:
    """Show and check every step; True when all did what they promise.

    `once`, or no terminal: stop everything at the end. Else all stays up until Ctrl-C.
    `keep`: leave the folder; after a failure it stays in any case.

    Raises:
        SettingsError: an extra that the demo needs is not installed.
    """
    _require_installed()
    screen = Screen()
    folder = DemoFolder(Path(tempfile.mkdtemp(prefix="forecache-demo-")))
    api_port = _port(screen, "API", ApiSettings().port)
    dashboard_port = _port(screen, "Flower", DashboardSettings().port)
    processes = DemoProcesses(folder, ApiSettings(port=api_port))
    dashboard_url = f"http://{LOOPBACK}:{dashboard_port}"
    passed = False
    watch = Stopwatch()
    try:
        Steps(screen, folder, processes, dashboard_url).run(entities, api_port, dashboard_port)
        passed = True
        screen.say(f"\nAll checks passed in {watch.s:.0f} s", style="bold green")
        _ending(screen, folder, processes, dashboard_url)
        if screen.is_live and not once:
            _stay(screen, folder, keep=keep)
    except ForecacheError as error:
        _tell_failure(screen, error, processes)
    except KeyboardInterrupt:
        screen.say()
    finally:
        passed = _stop(screen, processes) and passed
        keep = keep or not passed
        if not keep:
            shutil.rmtree(folder.root)
    gone = "its folder is gone (--keep leaves it)"
    screen.say(f"everything stopped; {f'the files are in {folder.root}' if keep else gone}")
    return passed


def _require_installed() -> None:
    for module, extra in _NEEDS.items():
        if find_spec(module) is None:
            raise SettingsError(f"the demo needs {module}: pip install 'forecache[{extra}]'")


def _port(screen: Screen, what: str, preferred: int) -> int:
    port = free_port_from(preferred)
    if port != preferred:
        holder = port_holder(preferred)
        screen.say(f"port {preferred} is taken{f' by {holder}' if holder else ''}: {what} takes {port}")
    return port


def _ending(screen: Screen, folder: DemoFolder, processes: DemoProcesses, dashboard_url: str) -> None:
    screen.say(f"""\
  hit rates   {dashboard_url}/hit-rates
  login       user and password stand in {folder.root}/.forecache/dashboard.json
  API         {processes.api.base_url}/docs
  to copy     {folder.settings}
Put your own model and table into a copy of that file, then `forecache up`.""")


def _stay(screen: Screen, folder: DemoFolder, *, keep: bool) -> None:
    command = _command()
    screen.say(f"""
All stays up, with a run every {SCHEDULE_S} s. In another terminal:
  cd {folder.root}
  {command} predict {known_entity(1)}
  {command} batch list
  {command} hits
Ctrl-C stops everything{"" if keep else " and removes the folder (`--keep` leaves it)"}.""")
    while True:
        time.sleep(3600)


def _command() -> str:
    """Return what to type for `forecache`: its path where it is not on PATH, as under `make demo`."""
    beside = Path(sys.executable).with_name("forecache")
    return str(beside) if beside.exists() and not shutil.which("forecache") else "forecache"


def _stop(screen: Screen, processes: DemoProcesses) -> bool:
    with screen.waiting("stopping everything"):
        stopped = processes.stop()
    if not stopped:
        screen.say("FAILED: `forecache up` did not stop and was killed", style="bold red")
    return stopped


def _tell_failure(screen: Screen, error: ForecacheError, processes: DemoProcesses) -> None:
    screen.say(f"\nFAILED: {error.message}", style="bold red")
    last = processes.last_output()
    if last:
        screen.say(f"the last lines of `forecache up`:\n{last}")
