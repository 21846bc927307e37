"""The demo's steps, told and checked one after the other."""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import typer

from app.demo.data import MODEL, DemoFolder, known_entity, new_entity, write_folder
from app.demo.deployment import DemoError, Deployment, run_module
from app.local.ports import LOOPBACK, free_port
from inference.settings import ApiSettings

#: generous: a loaded laptop imports TensorFlow four times here
_START_S = 90.0
_RUN_S = 90.0


def run_demo(*, entities: int, once: bool, keep: bool) -> bool:
    """Show and check every step; True when all did what they promise.

    `once`, or no terminal: stop everything at the end. Else all stays up until Ctrl-C.
    `keep`: leave the folder; after a failure it stays in any case.
    """
    folder = DemoFolder(Path(tempfile.mkdtemp(prefix="forecache-demo-")))
    api_port, dashboard_port = free_port(), free_port()
    deployment = Deployment(folder, ApiSettings(port=api_port))
    show = _Show(folder, deployment, f"http://{LOOPBACK}:{dashboard_port}")
    passed = False
    try:
        show.prepare(entities, api_port, dashboard_port)
        show.steps(entities)
        passed = True
        if not once and sys.stdout.isatty():
            show.stay()
    except DemoError as error:
        typer.echo(f"\nFAILED: {error.message}", err=True)
    except KeyboardInterrupt:
        typer.echo()
    finally:
        if not deployment.stop():
            typer.echo("FAILED: `forecache up` did not stop and was killed", err=True)
            passed = False
        keep = keep or not passed
        if not keep:
            shutil.rmtree(folder.root)
    typer.echo(f"everything stopped{f'; its files are in {folder.root}' if keep else ''}")
    return passed


class _Show:
    def __init__(self, folder: DemoFolder, deployment: Deployment, dashboard_url: str) -> None:
        self._folder = folder
        self._deployment = deployment
        self._dashboard_url = dashboard_url
        self._step = 0
        self._started = time.monotonic()

    def prepare(self, entities: int, api_port: int, dashboard_port: int) -> None:
        write_folder(self._folder, entities=entities, api_port=api_port, dashboard_port=dashboard_port)
        table, version = str(self._folder.training), str(self._folder.model / "1")
        run_module(self._folder, "app.demo.training", table, version)
        self._tell(f"{entities} flights and a trained TensorFlow model in {self._folder.root}")

    def steps(self, entities: int) -> None:
        self._start()
        self._load_features(entities)
        self._run_by_beat(entities)
        known, new = known_entity(entities // 2), new_entity(1)
        self._ask(known, "hit_batch", "computed ahead by the run")
        self._ask(new, "computed", "no run has seen it: computed on demand")
        self._ask(new, "hit_realtime", "the answer was kept")
        self._hit_rate()

    def stay(self) -> None:
        typer.echo(f"\nEverything stays up until Ctrl-C. In another terminal:\n  cd {self._folder.root}")
        typer.echo(f"  forecache predict {known_entity(1)}\n  forecache batch list\n  forecache hits")
        typer.echo(f"Flower's user and password: {self._folder.root}/.forecache/dashboard.json")
        while True:
            time.sleep(3600)

    def _start(self) -> None:
        deployment = self._deployment
        deployment.start()
        deployment.wait_for("the API", lambda: self._get("/health/live"), within_s=_START_S)
        deployment.wait_for("the model's warm-up", lambda: self._get("/health/ready"), within_s=_START_S)
        self._tell(f"`forecache up` runs everything: API at {deployment.api.base_url}")

    def _load_features(self, entities: int) -> None:
        report = self._deployment.command("features", "load", str(self._folder.features))
        self._check(report["rows"] > entities, f"features load reported {report}")
        self._tell(f"`forecache features load` loaded the features of {report['rows']} flights")

    def _run_by_beat(self, entities: int) -> None:
        run = self._deployment.wait_for("a run that beat started", self._published_run, within_s=_RUN_S)
        self._check(run["rows_done"] == entities, f"the run scored {run['rows_done']} of {entities} rows")
        self._tell(f"beat started run {run['run_id']}: {run['rows_done']} predictions published")

    def _published_run(self) -> dict[str, Any] | None:
        for run in self._get("/runs")["runs"]:
            if run["trigger"] == "beat" and run["state"] in ("published", "failed"):
                self._check(run["state"] == "published", f"run {run['run_id']} failed: {run.get('error')}")
                return dict(run)
        return None

    def _ask(self, entity: str, outcome: str, why: str) -> None:
        start = time.perf_counter()
        answer = self._get(f"/predict/{entity}")
        took_ms = (time.perf_counter() - start) * 1000
        self._check(answer["outcome"] == outcome, f"{entity}: expected {outcome}, got {answer}")
        self._check(math.isfinite(answer["prediction"]), f"{entity}: {answer['prediction']} is no delay")
        value = f"{answer['prediction']:.1f} min"
        self._tell(f"GET /predict/{entity} -> {value}  {outcome} in {took_ms:.1f} ms ({why})")

    def _hit_rate(self) -> None:
        rate = self._deployment.wait_for("the hit rate", self._counted, within_s=15)
        counts = {name: count for name, count in rate["outcomes"].items() if count}
        status = httpx.get(f"{self._dashboard_url}/healthcheck", trust_env=False).status_code
        self._check(status == 200, f"Flower answers {status} at {self._dashboard_url}")
        self._tell(f"hit rate {rate['hit_rate']:.0%} of {rate['total']} requests {counts}")
        took_s = time.monotonic() - self._started
        typer.echo(f"Flower with the hit rates: {self._dashboard_url}/hit-rates\nAll checks passed in {took_s:.0f} s")

    def _counted(self) -> dict[str, Any] | None:
        rate: dict[str, Any] = self._get(f"/hit-rate?model={MODEL}")
        return rate if rate["total"] >= 3 else None

    def _get(self, path: str) -> Any:
        return self._deployment.api.call("GET", path)

    def _check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise DemoError(otherwise)

    def _tell(self, text: str) -> None:
        self._step += 1
        typer.echo(f"{self._step}  {text}")
