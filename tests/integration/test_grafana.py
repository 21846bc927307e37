"""Each panel of docker/grafana, evaluated over the metrics of a real deployment."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.flights import write_flights
from tests.support.promql import Scrapes
from tests.support.stack import ROOT, Stack

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

GRAFANA = ROOT / "docker" / "grafana"
DASHBOARDS: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text()) for file in sorted((GRAFANA / "dashboards").glob("*.json"))
}
PANELS = [
    pytest.param(target["expr"], id=f"{name}: {panel['title']} {target['refId']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    for target in panel["targets"]
]
#: a fresh deployment on a machine without GPUs has no yesterday, no fallbacks and no parity yet
ABSENT = re.compile(r"forecache_(yesterday|gpu|fallback|generation_expires)")


def as_grafana_asks(expression: str) -> str:
    """Fill in Grafana's variables."""
    return expression.replace("$model", "delay|.*").replace("$__rate_interval", "1m")


@pytest.fixture(scope="module")
def scrapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scrapes]:
    folder = tmp_path_factory.mktemp("grafana")
    with Stack(folder, write_flights(folder) + '[streams.flights]\nstream = "flights"\n') as stack:
        stack.start("gpu", "realtime", "maintenance", "api", "listen")
        stack.wait_ready()
        assert stack.cli("batch", "run", "delay", "--wait").returncode == 0
        scrapes, now = Scrapes(), time.time()
        # counters begin with the first request
        for at in (now - 30, now):
            stack.deployment.cache.xadd("flights", {"update": '{"entity_id": "F1", "features": {}}'})
            for entity in ("F1", "F2", "nobody"):
                httpx.get(f"{stack.url}/predict/{entity}", timeout=30)
            httpx.get(f"{stack.url}/predict/F1?max_staleness_hours=0&timeout_ms=10000", timeout=30)
            time.sleep(2.5)  # API processes add their counts once a second
            scrapes.add(at, httpx.get(f"{stack.url}/metrics", timeout=10).raise_for_status().text)
        yield scrapes


@pytest.mark.slow
@pytest.mark.parametrize("expression", PANELS)
def test_a_panel_shows_what_the_deployment_tells(scrapes: Scrapes, expression: str) -> None:
    asked = as_grafana_asks(expression)
    found = scrapes.value(asked, scrapes.taken[-1][0])
    names = set(re.findall(r"forecache_\w+", asked))
    for name in names:
        assert ABSENT.match(name) or any(name in samples for _, samples in scrapes.taken), f"no metric {name}"
    assert found or ABSENT.search(asked), asked


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_whole(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert dashboard["uid"] == f"forecache-{name}"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) >= 3
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == source["uid"]
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = set(itertools.product(columns, range(place["y"], place["y"] + place["h"])))
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
        if "$model" in panel["targets"][0]["expr"]:
            assert dashboard["templating"]["list"][0]["name"] == "model"


def test_every_metric_of_ours_has_a_panel_or_is_part_of_one() -> None:
    page = (ROOT / "docs" / "dashboard.md").read_text()
    table = page[page.index("| metric | labels |") : page.index("A model has 89 series")]
    told = set(re.findall(r"`(forecache_\w+)`", table))
    shown = " ".join(str(panel.values[0]) for panel in PANELS)
    assert [name for name in sorted(told) if not re.search(rf"{name}\b|{name}_bucket", shown)] == []


def test_provisioned_folders_are_those_that_compose_mounts() -> None:
    service = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]["grafana"]
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/forecache.yaml").read_text())["providers"]
    mounted = {one.split(":")[1]: one.split(":")[0] for one in service["volumes"]}
    assert (Path(ROOT, "docker") / mounted[provider["options"]["path"]]).resolve() == GRAFANA / "dashboards"
    assert service["profiles"] == ["grafana"]
