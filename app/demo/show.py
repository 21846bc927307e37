"""Runs `forecache demo`: checks each step, prints it, and stops everything at the end."""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from app.demo.data import MODEL, NEWCOMERS, SCHEDULE_S, DemoFolder, known_entity, new_entity, write_folder
from app.demo.processes import DemoError, DemoProcesses, run_module
from app.demo.screen import Advance, Screen, Stopwatch
from app.local.ports import LOOPBACK, free_port_from, port_holder
from inference.errors import ForecacheError, SettingsError
from inference.settings import ApiSettings, DashboardSettings

#: module → the extra that installs it
_NEEDS = {"tensorflow": "tensorflow", "flower": "dashboard"}
#: four processes import TensorFlow, on a laptop that has other work
_START_S = 120.0
_RUN_S = 120.0
REQUESTS = 500
#: share of the requests for users that no run has scored
_NEW_SHARE = 0.1


def run_demo(*, entities: int, once: bool, keep: bool) -> bool:
    """Run, check and print every step. Return True if all checks passed.

    `once`, or no terminal: stop everything after the last step; else keep it running until Ctrl-C.
    `keep`: keep the demo's folder. After a failure it stays in any case.

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
        _print_addresses(screen, folder, processes, dashboard_url)
        if screen.is_live and not once:
            _stay_up(screen, folder, keep=keep)
    except ForecacheError as error:
        _print_failure(screen, error, processes)
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


def _port(screen: Screen, server: str, preferred: int) -> int:
    port = free_port_from(preferred)
    if port != preferred:
        holder = port_holder(preferred)
        screen.say(f"port {preferred} is taken{f' by {holder}' if holder else ''}: {server} takes {port}")
    return port


def _print_addresses(screen: Screen, folder: DemoFolder, processes: DemoProcesses, dashboard_url: str) -> None:
    screen.say(f"""\
  hit rates   {dashboard_url}/hit-rates
  login       user and password are in {folder.root}/.forecache/dashboard.json
  API         {processes.api.base_url}/docs
  to copy     {folder.settings}
Put your own model and table into a copy of that file, then `forecache up`.""")


def _stay_up(screen: Screen, folder: DemoFolder, *, keep: bool) -> None:
    command = _command_name()
    screen.say(f"""
All stays up, with a run every {SCHEDULE_S} s. In another terminal:
  cd {folder.root}
  {command} predict {known_entity(1)}
  {command} batch list
  {command} hits
Ctrl-C stops everything{"" if keep else " and removes the folder (`--keep` leaves it)"}.""")
    while True:
        time.sleep(3600)


def _command_name() -> str:
    """Return the command to type: `forecache`, or its path if PATH does not contain it, as under `make demo`."""
    beside = Path(sys.executable).with_name("forecache")
    return str(beside) if beside.exists() and not shutil.which("forecache") else "forecache"


def _stop(screen: Screen, processes: DemoProcesses) -> bool:
    with screen.waiting("stopping everything"):
        stopped = processes.stop()
    if not stopped:
        screen.say("FAILED: `forecache up` did not stop and was killed", style="bold red")
    return stopped


def _print_failure(screen: Screen, error: ForecacheError, processes: DemoProcesses) -> None:
    screen.say(f"\nFAILED: {error.message}", style="bold red")
    last = processes.last_output()
    if last:
        screen.say(f"the last lines of `forecache up`:\n{last}")


class Steps:
    """The steps of the demo, from a table and a model to a service with precomputed and computed predictions."""

    def __init__(self, screen: Screen, folder: DemoFolder, processes: DemoProcesses, dashboard_url: str) -> None:
        self._screen = screen
        self._folder = folder
        self._processes = processes
        self._dashboard_url = dashboard_url

    def run(self, entities: int, api_port: int, dashboard_port: int) -> None:
        """Run, check and print all steps.

        Raises:
            DemoError: a check failed.
        """
        self._screen.say("Will this user click? A score for each, before anyone asks.\n", style="bold")
        write_folder(self._folder, entities=entities, api_port=api_port, dashboard_port=dashboard_port)
        self._screen.step("the table", f"{entities:,} users in data/users.parquet: visits, clicks, age, device, hour")
        self._train()
        self._start()
        run = self._first_run(entities)
        self._ask("a hit", known_entity(entities // 2), "hit_batch", "read from Redis; no model was asked")
        self._load_features(entities)
        new = new_entity(0)
        self._ask("a miss", new, "computed", "signed up after the run, so a worker computed it on the spot")
        self._ask("and again", new, "hit_realtime", "that answer was kept")
        self._traffic(entities)
        self._hit_rate()
        self._roll_back(run)

    def _train(self) -> None:
        watch = Stopwatch()
        with self._screen.waiting("a small Keras model learns") as advance:
            said = run_module(
                self._folder, "app.demo.training", str(self._folder.training), str(self._folder.model / "1"),
                on_line=lambda line: _show_progress(advance, json.loads(line)),
            )  # fmt: skip
        auc = json.loads(said.splitlines()[-1])["auc"]
        self._check(auc > 0.5, f"the model learnt nothing: AUC {auc}")
        self._screen.step(
            "the model", f"a Keras model learnt in {watch.s:.0f} s who clicks (AUC {auc:.2f}): models/{MODEL}/1"
        )

    def _start(self) -> None:
        processes = self._processes
        watch = Stopwatch()
        with self._screen.waiting("`forecache up` starts seven processes"):
            processes.start()
            processes.wait_for("the API", lambda: self._get("/health/live"), within_s=_START_S)
            processes.wait_for("the model's warm-up", lambda: self._get("/health/ready"), within_s=_START_S)
        self._screen.step("forecache up", f"Redis, Celery workers, beat, the API and Flower run after {watch.s:.0f} s")

    def _load_features(self, entities: int) -> None:
        with self._screen.waiting("`forecache features load`"):
            report = self._processes.command("features", "load", str(self._folder.features))
        self._check(report["rows"] == entities + NEWCOMERS, f"features load reported {report}")
        self._screen.step(
            "the features", f"`forecache features load`: the same users, and {NEWCOMERS} who signed up since"
        )

    def _first_run(self, entities: int) -> dict[str, Any]:
        run = self._published("the run that beat has started: planned, then scored")
        self._check(run["rows_done"] == entities, f"the run scored {run['rows_done']} of {entities} rows")
        self._screen.step("a run", f"beat started {run['run_id']}")
        self._screen.more(
            f"{run['rows_done']:,} predictions in {run['chunks_total']} Celery tasks, "
            f"published at one stroke as generation {run['generation']}"
        )
        return run

    def _published(self, text: str, *, other_than: str = "") -> dict[str, Any]:
        """Show the progress of the newest run that beat started, and return the run once it is published."""

        def look() -> dict[str, Any] | None:
            runs = [run for run in self._get(f"/runs?model={MODEL}")["runs"] if run["trigger"] == "beat"]
            for run in runs:
                self._check(run["state"] not in ("failed", "cancelled"), f"run {run['run_id']} {run['state']}: {run}")
                if run["state"] == "running":
                    advance(run["rows_done"], run["rows_total"])
            published = (run for run in runs if run["state"] == "published" and run["run_id"] != other_than)
            return next(published, None)

        with self._screen.waiting(text) as advance:
            found: dict[str, Any] = self._processes.wait_for("a run that beat started", look, within_s=_RUN_S)
        return found

    def _ask(self, title: str, entity: str, outcome: str, why: str) -> None:
        watch = Stopwatch()
        answer = self._get(f"/predict/{entity}")
        took_ms = watch.ms
        self._check(answer["outcome"] == outcome, f"{entity}: expected {outcome}, got {answer}")
        chance = answer["prediction"]
        self._check(math.isfinite(chance) and 0 <= chance <= 1, f"{entity}: {chance} is no probability")
        self._screen.step(title, f"GET /predict/{entity} -> {chance:.3f}  {outcome} in {took_ms:.1f} ms")
        self._screen.more(why)

    def _traffic(self, entities: int) -> None:
        chance = random.Random(7)  # noqa: S311 - no secret
        took_ms: dict[bool, list[float]] = {True: [], False: []}
        with self._screen.waiting(f"{REQUESTS} requests"):
            for _ in range(REQUESTS):
                is_new = chance.random() < _NEW_SHARE
                entity = new_entity(chance.randrange(NEWCOMERS)) if is_new else known_entity(chance.randrange(entities))
                watch = Stopwatch()
                answer = self._get(f"/predict/{entity}")
                took_ms[answer["cache_hit"]].append(watch.ms)
        self._check(all(took_ms.values()), f"{REQUESTS} requests gave no hit, or no miss")
        hits, misses = took_ms[True], took_ms[False]
        self._screen.step(
            "traffic",
            f"{REQUESTS} requests, one in ten from the newcomers: "
            f"{len(hits)} hits in {median(hits):.1f} ms, {len(misses)} misses in {median(misses):.1f} ms (medians)",
        )

    def _hit_rate(self) -> None:
        rate = self._processes.wait_for("the hit rate", self._counted, within_s=15)
        status = httpx.get(f"{self._dashboard_url}/healthcheck", trust_env=False).status_code
        self._check(status == 200, f"Flower answers {status} at {self._dashboard_url}")
        counts = Counter({name: count for name, count in rate["outcomes"].items() if count})
        told = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        self._screen.step("the hit rate", f"{rate['hit_rate']:.1%} of {rate['total']} requests: {told}")

    def _counted(self) -> dict[str, Any] | None:
        rate: dict[str, Any] = self._get(f"/hit-rate?model={MODEL}")
        return rate if rate["total"] >= REQUESTS + 3 else None

    def _roll_back(self, first: dict[str, Any]) -> None:
        later = self._published(f"the next run: beat starts one every {SCHEDULE_S} s", other_than=first["run_id"])
        after = self._processes.api.call("POST", f"/models/{MODEL}/rollback")
        self._check(after["generation"] < later["generation"], f"rollback of {later['generation']} gave {after}")
        self._screen.step("a rollback", f"the next run published generation {later['generation']}; we did not like it:")
        self._screen.more(
            f"POST /models/{MODEL}/rollback -> generation {after['generation']} serves again; nothing was recomputed"
        )

    def _get(self, path: str) -> Any:
        return self._processes.api.call("GET", path)

    def _check(self, holds: bool, failure: str) -> None:
        if not holds:
            raise DemoError(failure)


def _show_progress(advance: Advance, fact: dict[str, Any]) -> None:
    if "rows_done" in fact:
        advance(fact["rows_done"], fact["rows_total"])
