"""What the pages are told, from figures that stand still."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from app.dashboard.figures import RUNS_SHOWN, Choice, read_costs, read_hit_rates, read_queues, read_runs
from inference.economics.advice import CostReport, cost_report
from inference.economics.inputs import Basis, Figure
from inference.economics.measured import Measured
from inference.economics.prices import read_prices
from inference.economics.promises import Day
from inference.errors import BadInput, BrokerUnavailable, NotFound
from inference.monitoring.presence import API_PROCESSES, Roster, WorkerBeat
from inference.monitoring.queues import QueueState
from inference.monitoring.statistics import Point, Statistics
from inference.settings import Settings
from inference.store import Pointer
from inference.store.versions import Labels


@dataclass
class Run:
    run_id: str
    rows_total: int | None = 100
    rows_done: int = 100
    rows_quarantined: int = 4
    rows_outside: int = 0
    finished_at: float | None = 1_700_000_000.0
    gates: Any = (SimpleNamespace(name="coverage", detail="96 of 96"),)

    def to_json(self) -> dict[str, Any]:
        return {"run_id": self.run_id}


@dataclass
class Figures:
    """Counts by window, the same for every model."""

    counts: dict[int, dict[str, int]] = field(default_factory=dict)
    pointer: Pointer = field(default_factory=Pointer)
    history: list[Run] = field(default_factory=list)
    states: list[QueueState] = field(default_factory=list)
    broker_down: bool = False
    measured: dict[str, Figure] = field(default_factory=dict)
    api: Roster = field(default_factory=lambda: Roster((), {}))

    def data(self, *models: str, queues: Mapping[str, str] = MappingProxyType({})) -> Any:
        """A deployment of these models, some with real-time queues of their own."""
        sections = {name: {"path": "m", "realtime": {"queue": queues.get(name, "realtime")}} for name in models}
        settings = Settings.model_validate({"models": sections})

        def report(model: str) -> CostReport:
            return cost_report(model, settings.models[model], Measured(model, self.measured), read_prices())

        return SimpleNamespace(
            settings=settings,
            hits=SimpleNamespace(statistics=self.statistics, series=self._series),
            predictions=lambda _model: SimpleNamespace(
                pointer=lambda: self.pointer, generations=SimpleNamespace(manifest=self._manifest)
            ),
            runs=SimpleNamespace(
                show=self._show,
                list=lambda _model, limit: self.history[:limit],
                details=lambda run_id: Run(f"details of {run_id}"),
            ),
            broker=SimpleNamespace(queue_states=self._queues),
            cost_report=report,
            promises=SimpleNamespace(
                days=lambda _model, days: [Day(20_000 - back, None, None) for back in range(days)]
            ),
            presence=SimpleNamespace(roster=self.roster),
        )

    def statistics(self, _model: str, window_s: int) -> Statistics:
        return Statistics.of(self.counts.get(window_s, {}))

    def roster(self, queue: str) -> Roster:
        return self.api if queue == API_PROCESSES else Roster((), {"gpu@old pid 1": 20.0})

    def _series(self, model: str, window_s: int) -> list[Point]:
        return [Point(1_700_000_000, self.statistics(model, window_s))]

    def _manifest(self, number: int) -> Any:
        return SimpleNamespace(run_id=self.history[0].run_id if self.history else None)

    def _show(self, run_id: str) -> Run:
        found = next((run for run in self.history if run.run_id == run_id), None)
        if found is None:
            raise NotFound(f"no run {run_id}")
        return found

    def _queues(self) -> list[QueueState]:
        if self.broker_down:
            raise BrokerUnavailable("the broker does not answer")
        return self.states


def hit_rates(figures: Figures, choice: Choice = Choice()) -> Any:  # noqa: B008 - a frozen value
    return read_hit_rates(figures.data("delay", "price"), choice, clock=lambda: 1_700_000_000.0)


def test_each_window_names_all_outcomes_and_the_rate_of_both_kinds_of_hit():
    figures = Figures({300: {"hit_batch": 6, "hit_realtime": 1, "computed": 2, "shed": 1}})
    first = hit_rates(figures)["model"]["windows"][0]
    assert (first["window_s"], first["total"], first["hit_rate"], len(first["outcomes"])) == (300, 10, 0.7, 9)


def test_a_model_without_requests_has_no_hit_rate_instead_of_zero_percent():
    told = hit_rates(Figures())["model"]
    assert {window["hit_rate"] for window in told["windows"]} == {None}
    assert told["points"][0]["hit_rate"] is None


@pytest.mark.parametrize(("window", "length_s"), [("", 3600), ("5m", 300), ("1h", 3600), ("24h", 86400)])
def test_the_address_chooses_the_window_of_the_charts(window, length_s):
    figures = Figures({length_s: {"computed": 9}})
    told = hit_rates(figures, Choice(window=window))
    assert (told["window_s"], told["model"]["points"][0]["total"]) == (length_s, 9)


def test_the_address_chooses_the_model_and_the_first_one_is_the_default():
    assert hit_rates(Figures())["model"]["model"] == "delay"
    assert hit_rates(Figures(), Choice(model="price"))["model"]["model"] == "price"


def test_an_address_that_asks_for_what_is_not_there_is_refused():
    with pytest.raises(NotFound, match="model"):
        hit_rates(Figures(), Choice(model="<script>"))
    with pytest.raises(BadInput, match="5m, 1h, 24h"):
        hit_rates(Figures(), Choice(window="2y"))


def test_without_a_model_the_pages_are_empty_and_not_broken():
    data = Figures().data()
    assert read_hit_rates(data, Choice())["model"] is None
    assert read_runs(data, Choice())["runs"] == []


def test_what_serves_is_told_with_the_coverage_of_the_run_that_wrote_it():
    labels = Labels({"stable": 3, "canary": 5}, 0.05)
    pointer = Pointer(7, 6, 3, frozenset({4}), labels=labels)
    serving = hit_rates(Figures(pointer=pointer, history=[Run("r")]))["model"]["serving"]
    assert (serving["generation"], serving["previous_generation"], serving["active_version"]) == (7, 6, 3)
    assert (serving["labels"], serving["canary_share"]) == ({"stable": 3, "canary": 5}, 0.05)
    assert serving["held_versions"] == [4]
    assert (serving["coverage"], serving["coverage_detail"]) == (0.96, "96 of 96")
    assert serving["published_at"] == "2023-11-14T22:13:20.000Z"
    assert hit_rates(Figures(pointer=pointer))["model"]["serving"]["coverage"] is None


def test_the_newest_runs_are_listed_and_the_newest_is_shown_closely_unless_another_is_asked_for():
    data = Figures(history=[Run(f"r{number}") for number in range(40)]).data("delay")
    told = read_runs(data, Choice())
    assert [run["run_id"] for run in told["runs"]] == [f"r{number}" for number in range(RUNS_SHOWN)]
    assert told["details"]["run_id"] == "details of r0"
    assert read_runs(data, Choice(run_id="r9"))["details"]["run_id"] == "details of r9"


def test_queues_are_told_with_who_serves_them_and_without_the_broker_only_so():
    figures = Figures(states=[QueueState("realtime", 3, 12.5)])
    told = {queue["queue"]: queue for queue in read_queues(figures.data("delay"))["queues"]}
    assert (told["realtime"]["depth"], told["realtime"]["oldest_age_s"]) == (3, 12.5)
    assert (told["realtime"]["workers"], told["realtime"]["gone"]) == (0, ["gpu@old pid 1"])
    figures.broker_down = True
    away = read_queues(figures.data("delay"))
    assert away["broker_error"] == "the broker does not answer"
    assert [queue["depth"] for queue in away["queues"]] == [None, None, None]


def test_breakers_are_told_by_model_with_how_many_api_processes_ask_and_how_many_do_not():
    def process(pid, **breakers):
        return WorkerBeat(
            name="api@h", process="api", queues=(API_PROCESSES,), host="h", pid=pid, release=None, started_at=0.0,
            ready=True, versions={}, breakers=breakers,
        )  # fmt: skip

    api = Roster((process(1, delay="closed"), process(2, delay="open", price="half_open")), {"api@h pid 3": 20.0})
    told = read_queues(Figures(api=api).data("delay", "price"))
    assert told["api"] == {"alive": 2, "gone": ["api@h pid 3"]}
    assert told["breakers"] == [
        {"model": "delay", "closed": 1, "half_open": 0, "open": 1},
        {"model": "price", "closed": 0, "half_open": 1, "open": 0},
    ]


def test_costs_are_told_from_what_was_measured_with_where_each_figure_came_from() -> None:
    known = {"entities": 1_000_000, "rps": 100, "hit_rate": 0.9}
    figures = Figures(measured={name: Figure(value, Basis.MEASURED, "counted") for name, value in known.items()})
    told = read_costs(figures.data("delay"), Choice())
    assert (told["model"], told["costs"]["missing"]) == ("delay", None)
    costs = told["costs"]
    assert costs["estimate"]["realtime"] == {"instances": 2, "daily": 240.0, "per_prediction": 240 / 8_640_000}
    assert {each["name"]: each["from"] for each in costs["inputs"]}["entities"] == "measured"
    assert costs["requests_per_entity_and_day"] == pytest.approx(8.64)
    assert len(costs["curve"]["requests"]) == len(costs["curve"]["hybrid"])
    assert costs["sensitivity"][0]["name"] == "instance_price"
    assert len(costs["promises"]) == 30
    assert costs["promises"][0] == {"day": "2024-10-04", "promised": None, "came": None}


def test_an_empty_history_has_no_costs_and_says_what_is_missing() -> None:
    costs = read_costs(Figures().data("delay"), Choice())["costs"]
    assert costs["missing"].startswith("entities is missing")
    assert (costs["estimate"], costs["curve"], costs["sensitivity"]) == (None, None, [])
    assert costs["advice"]["confidence"] == "low"
    assert read_costs(Figures().data(), Choice())["costs"] is None
    with pytest.raises(NotFound):
        read_costs(Figures().data("delay"), Choice("other"))


def worker_of(name, *queues, ready=True):
    return WorkerBeat(
        name=name, process="gpu", queues=queues, host="h", pid=7, release=None, started_at=0.0, ready=ready, versions={}
    )


def test_workers_that_still_load_are_listed_and_do_not_count_and_one_on_two_queues_is_one():
    both = worker_of("both@h", "batch", "realtime")
    loading = worker_of("loading@h", "realtime", ready=False)
    rosters = {
        "batch": Roster((both, worker_of("gpu@h", "batch")), {"gpu@z": 20.0, "gpu@a": 30.0}),
        "realtime": Roster((both, loading), {}),
        "maintenance": Roster((), {}),
        API_PROCESSES: Roster((), {"api@b": 1.0, "api@a": 2.0}),
    }
    deployment = Figures().data("delay")
    deployment.presence.roster = rosters.__getitem__
    told = read_queues(deployment)
    assert [(queue["queue"], queue["workers"]) for queue in told["queues"]] == [
        ("batch", 2), ("realtime", 1), ("maintenance", 0),
    ]  # fmt: skip
    assert [worker["name"] for worker in told["workers"]] == ["both@h", "gpu@h", "loading@h"]
    assert [worker["ready"] for worker in told["workers"]] == [True, True, False]
    assert told["queues"][0]["gone"] == ["gpu@a", "gpu@z"]
    assert told["api"] == {"alive": 0, "gone": ["api@a", "api@b"]}


def test_each_queue_and_each_model_gets_its_own_figures():
    states = [QueueState("realtime", 3, 12.5), QueueState("batch", 0, None), QueueState("slow", 9, 1.0)]
    own = {"delay": {"rows:3": 4}, "price": {"rows:0": 4}}
    deployment = Figures(states=states).data("delay", "price", queues={"delay": "slow"})
    deployment.hits.statistics = lambda model, window_s: Statistics.of(own[model] if window_s == 300 else {})
    told = read_queues(deployment, clock=lambda: 1_700_000_000.0)
    assert told["read_at"] == "2023-11-14T22:13:20.000Z"
    assert [(each["queue"], each["depth"], each["oldest_age_s"]) for each in told["queues"]] == [
        ("batch", 0, None), ("slow", 9, 1.0), ("realtime", 3, 12.5), ("maintenance", None, None),
    ]  # fmt: skip
    assert [(each["model"], each["p50"]) for each in told["micro_batches"]] == [
        ("delay", pytest.approx(4 * 2**0.5)), ("price", 1.0),
    ]  # fmt: skip


def test_each_model_gets_its_own_generation_runs_and_counts():
    own = {
        "delay": Figures({300: {"hit_batch": 1}}, Pointer(7, 6, 3), [Run("d1", rows_done=54), Run("d0")]),
        "price": Figures({300: {"computed": 2}}, Pointer(9, 8, 5), [Run("p1", rows_done=84)]),
    }
    deployment = Figures().data("price", "delay")
    deployment.predictions = lambda model: own[model].data(model).predictions(model)
    deployment.hits = SimpleNamespace(
        statistics=lambda model, window_s: own[model].statistics(model, window_s),
        series=lambda model, window_s: own[model]._series(model, window_s),
    )
    deployment.runs = SimpleNamespace(
        show=lambda run_id: next(run for one in own.values() for run in one.history if run.run_id == run_id),
        list=lambda model, limit: own[model].history[:limit],
        details=lambda run_id: Run(f"details of {run_id}"),
    )
    for model, figures in own.items():
        figures.measured = {"rps": Figure(len(model), Basis.MEASURED, model)}
    deployment.cost_report = lambda model: own[model].data(model).cost_report(model)
    for model, generation, coverage, total, newest, runs in (
        ("delay", 7, 0.5, 1, "d1", 2), ("price", 9, 0.8, 2, "p1", 1), ("", 7, 0.5, 1, "d1", 2),
    ):  # fmt: skip
        rates, listed = read_hit_rates(deployment, Choice(model, "5m")), read_runs(deployment, Choice(model))
        assert rates["models"] == listed["models"] == ["delay", "price"]
        for serving in (rates["model"]["serving"], listed["serving"]):
            assert (serving["generation"], serving["coverage"]) == (generation, coverage)
        assert (rates["model"]["windows"][0]["total"], sum(point["total"] for point in rates["model"]["points"])) == (
            total,
            total,
        )
        assert (len(listed["runs"]), listed["details"]["run_id"]) == (runs, f"details of {newest}")
        rps = {one["name"]: one for one in read_costs(deployment, Choice(model))["costs"]["inputs"]}["rps"]
        assert rps["how"] == (model or "delay")


@pytest.mark.parametrize("read", [read_hit_rates, read_runs, read_costs])
def test_each_page_tells_when_it_was_read(read):
    told = read(Figures().data("delay"), Choice(), clock=lambda: 1_700_000_000.0)
    assert told["read_at"] == "2023-11-14T22:13:20.000Z"


def test_rows_that_were_left_out_are_not_covered_and_a_run_without_rows_covers_nothing():
    pointer = Pointer(7)

    def coverage(**run):
        return hit_rates(Figures(pointer=pointer, history=[Run("r", **run)]))["model"]["serving"]["coverage"]

    assert coverage(rows_total=200, rows_done=150, rows_quarantined=50) == 0.5
    assert coverage(rows_total=200, rows_done=200, rows_quarantined=50, rows_outside=50) == 0.5
    assert coverage(rows_total=200, rows_done=0, rows_quarantined=1) == 0
    assert coverage(rows_total=0) is None
    assert coverage(rows_total=None) is None


def test_a_generation_whose_run_was_forgotten_and_a_run_that_goes_on_have_no_instant():
    assert hit_rates(Figures(pointer=Pointer(7)))["model"]["serving"]["published_at"] is None
    going_on = Figures(pointer=Pointer(7), history=[Run("r", finished_at=None, gates=())])
    serving = hit_rates(going_on)["model"]["serving"]
    assert (serving["published_at"], serving["coverage_detail"]) == (None, None)
    assert hit_rates(Figures(history=[Run("r")]))["model"]["serving"]["published_at"] is None, "nothing serves"
    forgotten = Figures(pointer=Pointer(7))
    forgotten._manifest = lambda number: SimpleNamespace(run_id="gone")
    assert hit_rates(forgotten)["model"]["serving"]["coverage"] is None
    forgotten._manifest = lambda number: None
    assert hit_rates(forgotten)["model"]["serving"]["coverage"] is None
