"""What the hit-rate page is told, from figures that stand still."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from app.dashboard.figures import RUNS_SHOWN, LiveData, read_overview
from inference.hits import HitCounts
from inference.outcomes import Outcome


@dataclass
class Run:
    run_id: str

    def to_json(self) -> dict[str, Any]:
        return {"run_id": self.run_id}


@dataclass
class Figures:
    """Counts by window, the same for every model."""

    counts: dict[int, dict[Outcome, int]] = field(default_factory=dict)
    pointer: Any = field(default_factory=lambda: SimpleNamespace(current=None, previous=None, active_version=None))
    history: list[Run] = field(default_factory=list)

    def data(self, *models: str) -> LiveData:
        return LiveData(
            models=models,
            hits=self._hits,
            in_service=lambda _model: self.pointer,
            runs=lambda _model, limit: self.history[:limit],
        )

    def _hits(self, _model: str, window_s: int) -> HitCounts:
        return HitCounts(self.counts.get(window_s, {}))


def overview(figures: Figures, *models: str) -> Any:
    return read_overview(figures.data(*models), clock=lambda: 1_700_000_000.0)


def test_each_window_names_all_seven_outcomes_and_the_rate_of_both_kinds_of_hit():
    figures = Figures({300: {Outcome.HIT_BATCH: 6, Outcome.HIT_REALTIME: 1, Outcome.COMPUTED: 2, Outcome.SHED: 1}})
    first = overview(figures, "delay")["models"][0]["windows"][0]
    assert (first["window_s"], first["total"], first["hit_rate"]) == (300, 10, 0.7)
    assert set(first["outcomes"]) == {outcome.value for outcome in Outcome}


def test_a_model_without_requests_has_no_hit_rate_instead_of_zero_percent():
    assert all(window["hit_rate"] is None for window in overview(Figures(), "delay")["models"][0]["windows"])


def test_the_three_windows_are_five_minutes_an_hour_and_a_day():
    windows = overview(Figures(), "delay")["models"][0]["windows"]
    assert [window["window_s"] for window in windows] == [300, 3600, 86400]


def test_the_generation_and_version_in_service_are_shown():
    pointer = SimpleNamespace(current=7, previous=6, active_version=3)
    model = overview(Figures(pointer=pointer), "delay")["models"][0]
    assert (model["generation"], model["previous_generation"], model["active_version"]) == (7, 6, 3)


def test_only_the_newest_runs_are_shown():
    figures = Figures(history=[Run(f"r{number}") for number in range(20)])
    runs = overview(figures, "delay")["models"][0]["runs"]
    assert [run["run_id"] for run in runs] == [f"r{number}" for number in range(RUNS_SHOWN)]


def test_the_time_of_reading_is_said_in_utc():
    assert overview(Figures())["read_at"] == "2023-11-14T22:13:20.000Z"
