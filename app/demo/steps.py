"""The demo's steps, told and checked one after the other."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from statistics import median
from typing import Any

import httpx

from app.demo.data import MODEL, NEWCOMERS, SCHEDULE_S, DemoFolder, known_entity, new_entity, write_folder
from app.demo.processes import DemoError, DemoProcesses, run_module
from app.demo.screen import Advance, Screen, Stopwatch

#: generous: a loaded laptop imports TensorFlow four times here
_START_S = 120.0
_RUN_S = 120.0
REQUESTS = 500
#: of the requests: those for users whom no run has seen
_NEW_SHARE = 0.1


class Steps:
    """The story: a table and a model become a service whose answers are precomputed, or computed when missing."""

    def __init__(self, screen: Screen, folder: DemoFolder, processes: DemoProcesses, dashboard_url: str) -> None:
        self._screen = screen
        self._folder = folder
        self._processes = processes
        self._dashboard_url = dashboard_url

    def run(self, entities: int, api_port: int, dashboard_port: int) -> None:
        """Tell all steps.

        Raises:
            DemoError: one of them did not do what it promises.
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
                on_line=lambda line: _advance(advance, json.loads(line)),
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
        """Return the newest run of beat's once it is published, its progress on the screen until then."""

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

    def _check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise DemoError(otherwise)


def _advance(advance: Advance, fact: dict[str, Any]) -> None:
    if "rows_done" in fact:
        advance(fact["rows_done"], fact["rows_total"])
