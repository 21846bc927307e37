"""`forecache bench` against a real deployment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.flights import write_flights
from tests.support.stack import Stack, run_cli

pytestmark = pytest.mark.integration


@pytest.mark.slow
def test_it_tells_what_requests_took_by_outcome(tmp_path: Path) -> None:
    with Stack(tmp_path, write_flights(tmp_path)) as stack:
        stack.start("realtime", "api")
        stack.wait_ready()
        assert stack.cli("features", "load", "delay", "flights.parquet").returncode == 0

        done = stack.cli("bench", "--rate", "40", "--seconds", "3", "--miss-share", "0.5", "--json")

    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["model"], figures["requests"], figures["all"]["requests"]) == ("delay", 120, 120)
    outcomes = {name: part["requests"] for name, part in figures["outcomes"].items()}
    assert sum(outcomes.values()) == 120
    # half of the requests force computing, and so do entities that nobody asked for before
    assert outcomes["computed"] > 40
    assert 0 < figures["all"]["p50_ms"] <= figures["all"]["p95_ms"] <= figures["all"]["p99_ms"]


def test_without_an_api_it_measures_nothing_and_says_what_to_start(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text("[api]\nport = 1\n" + write_flights(tmp_path))
    done = run_cli(tmp_path, "bench")
    assert done.returncode == 1
    assert "start `forecache up`" in done.stderr


def test_a_model_without_a_table_has_no_entities_to_ask_for(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text('[models.m]\npath = "m"\n')
    done = run_cli(tmp_path, "bench")
    assert done.returncode == 2
    assert "set models.m.features" in done.stderr
