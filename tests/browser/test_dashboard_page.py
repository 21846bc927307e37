"""The hit-rate page as a browser draws it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import pytest

from tests.support.dashboard import DashboardProcess, chromium
from tests.support.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.browser]

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"

# the same server over figures that no healthy deployment would have
_HOSTILE_FIGURES = textwrap.dedent(
    f"""
    from types import SimpleNamespace
    from app.dashboard import server
    from app.dashboard.figures import LiveData
    from inference.hits import HitCounts
    from inference.outcomes import Outcome
    from inference.settings import load_settings

    hostile = {HOSTILE!r}
    run = dict(run_id=hostile, state=hostile, trigger=hostile, source=hostile, created_at=hostile, started_at=None,
               finished_at=None, rows_total=10, rows_done=5, rows_quarantined=0, error=hostile, gates=[])
    counts = {{Outcome.HIT_BATCH: 9997, Outcome.SHED: 3}}
    server.live_data = lambda settings: LiveData(
        models=[hostile],
        hits=lambda model, window_s: HitCounts(counts),
        in_service=lambda model: SimpleNamespace(current=12, previous=11, active_version=3),
        runs=lambda model, limit: [SimpleNamespace(to_json=lambda: run)],
    )
    server.run(load_settings())
    """
)


@pytest.fixture(scope="module")
def drawn(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's document after its scripts have run."""
    folder = tmp_path_factory.mktemp("dashboard")
    process = DashboardProcess(folder, redis_server.url(1), code=_HOSTILE_FIGURES).start().wait_ready()
    try:
        name, password = process.auth
        address = f"http://{name}:{password}@127.0.0.1:{process.port}/hit-rates"
        yield chromium(folder, "--virtual-time-budget=6000", "--dump-dom", address)
    finally:
        process.stop()


def test_the_figures_are_drawn(drawn):
    assert "9,997" in drawn
    assert "generation 12" in drawn
    assert "version 3" in drawn
    assert ">Live" in drawn


def test_a_rate_just_short_of_all_is_not_rounded_up_to_all(drawn):
    assert "99.9 %" in drawn
    assert "100.0 %" not in drawn


def test_hostile_text_from_runs_and_models_is_shown_as_text(drawn):
    assert "<title>Hit rates · Flower</title>" in drawn
    assert "<img src=x" not in drawn.lower()
    assert drawn.count("&lt;script&gt;document.title='taken'") >= 5
