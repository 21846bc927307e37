"""What Prometheus is told, and that the alerting rules ask for what there is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from app.api.metrics import COLLECTORS
from inference.batch import RunState, RunView
from inference.economics.promises import Day, DayFigures
from inference.errors import BrokerUnavailable
from inference.gpus import GpuUse
from inference.monitoring.counters import AGE, HIT_LATENCY, MISS_LATENCY, version_latency
from inference.monitoring.presence import API_PROCESSES, Roster, WorkerBeat
from inference.monitoring.queues import QueueState
from inference.monitoring.statistics import HitCounts
from inference.outcomes import Outcome
from inference.settings import Settings
from inference.store import Manifest, Pointer
from tests.support.records import manifest_of, run_view

RULES = Path(__file__).parents[3] / "docker" / "prometheus" / "alerts.yml"
GPU = GpuUse(0, "H100", 3 << 30, 80 << 30, 0.25)


#: version 3 is on trial, version 1 is gone
BY_VERSION = {
    "version:1:hit_batch": 100,
    "version:2:hit_batch": 3,
    "version:3:computed": 1,
    "calls:3:failed": 2,
    version_latency(3).field_of(0.012): 5,
    version_latency(3).sum_field: 60_000,
}


class FakeHits:
    """A model with 3 hits and a miss ever, of which nothing was within the last five minutes for `idle`."""

    def totals(self, model: str) -> Mapping[str, int]:
        latencies = {HIT_LATENCY.field_of(0.0009): 3, MISS_LATENCY.field_of(0.012): 1, AGE.field_of(3600): 4}
        return {Outcome.HIT_BATCH.value: 3, Outcome.COMPUTED.value: 1, **latencies, **BY_VERSION}

    def read(self, model: str, window_s: float) -> HitCounts:
        return HitCounts({} if model == "idle" else {Outcome.HIT_BATCH: 3, Outcome.COMPUTED: 1})


def beat(name: str, *, ready: bool = True) -> WorkerBeat:
    return WorkerBeat(
        name=name, process="gpu", queues=("batch",), host="h1", pid=1, release=None, started_at=0.0, ready=ready,
        versions={"delay": (2, 3)}, gpus=(GPU,),
    )  # fmt: skip


def api_process(**breakers: str) -> WorkerBeat:
    return replace(beat("api"), process="api", queues=(API_PROCESSES,), gpus=(), breakers=breakers)


API = Roster((api_process(delay="open", idle="closed"), api_process(delay="half_open", idle="closed")), {})


def queues() -> list[QueueState]:
    waiting = [QueueState("batch", 20, 31.5), QueueState("realtime", 0, None), QueueState("slow", 2, 7.0)]
    return [*waiting, QueueState("maintenance", 3, None)]


FAILED = run_view(state=RunState.FAILED, rows_total=100, rows_done=40)
ROSTERS = {"batch": Roster((beat("a"), beat("b", ready=False)), {"c": 60.0}), API_PROCESSES: API}


class FakeTable:
    """A prediction table whose seventh generation serves; that of `idle` has none."""

    def __init__(self, model: str) -> None:
        self.current = None if model == "idle" else 7

    def pointer(self) -> Pointer:
        return Pointer(self.current, active_version=self.current and 4)

    @property
    def generations(self) -> Any:
        return self

    def manifest(self, number: int) -> Manifest:
        return replace(manifest_of(number, created_at=1000.0, deadline=2000.0), model_version=2)


PROMISED = DayFigures("hybrid", 0.95, 120.5, "USD", 10.0, 0.5)
#: no request came
YESTERDAY = Day(20_000, PROMISED, replace(PROMISED, hit_rate=None, cost=None, requests=0))
NOTHING = Day(20_000, None, None)


def deployment(newest_run: RunView = FAILED, queue_states: Callable[[], list[QueueState]] = queues) -> Any:
    """A deployment of two models, `idle` without a run."""
    return SimpleNamespace(
        settings=Settings.model_validate({"models": {"delay": {"path": "m"}, "idle": {"path": "m"}}}),
        hits=FakeHits(),
        promises=SimpleNamespace(days=lambda model, _: [NOTHING if model == "idle" else YESTERDAY]),
        runs=SimpleNamespace(list=lambda model, limit: [] if model == "idle" else [newest_run][:limit]),
        predictions=FakeTable,
        broker=SimpleNamespace(queue_states=queue_states),
        presence=SimpleNamespace(roster=lambda queue: ROSTERS.get(queue, Roster((), {}))),
    )


def scraped(of: Any = None) -> list[Sample]:
    """The samples of one scrape, read back by Prometheus' own parser."""
    registry, of = CollectorRegistry(auto_describe=False), of or deployment()
    for kind in COLLECTORS:
        registry.register(kind(of))
    text = generate_latest(registry).decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def scrape(of: Any = None) -> dict[str, float]:
    """Sample, as `name{label=value,…}` → value, of one scrape."""
    samples = scraped(of)
    found = {f"{one.name}{{{','.join(f'{k}={v}' for k, v in one.labels.items())}}}": one.value for one in samples}
    assert len(found) == len(samples)
    return found


def test_hits_are_counted_by_outcome_and_their_rate_is_absent_without_requests() -> None:
    told = scrape()
    assert told["forecache_predictions_total{model=delay,outcome=hit_batch}"] == 3
    assert told["forecache_predictions_total{model=delay,outcome=shed}"] == 0
    assert told["forecache_hit_ratio{model=delay}"] == 0.75
    assert "forecache_hit_ratio{model=idle}" not in told


def test_breakers_are_counted_by_state_over_all_api_processes() -> None:
    told = scrape()
    assert told["forecache_api_processes{}"] == 2
    states = ("closed", "half_open", "open")
    assert [told[f"forecache_api_breakers{{model=delay,state={state}}}"] for state in states] == [0, 1, 1]
    assert [told[f"forecache_api_breakers{{model=idle,state={state}}}"] for state in states] == [2, 0, 0]


def test_latencies_and_ages_are_histograms_in_seconds() -> None:
    told = scrape()
    buckets = {
        float(found[1]): value
        for name, value in told.items()
        if (found := re.fullmatch(r"forecache_hit_latency_seconds_bucket{le=(.*),model=delay}", name))
    }
    assert {value for bound, value in buckets.items() if bound < 0.0008} == {0.0}
    assert {value for bound, value in buckets.items() if bound > 0.001} == {3.0}
    assert told["forecache_miss_latency_seconds_bucket{le=+Inf,model=delay}"] == 1
    assert told["forecache_prediction_age_seconds_bucket{le=+Inf,model=delay}"] == 4


def test_each_version_in_service_has_its_answers_failures_and_latencies_and_a_past_one_has_none() -> None:
    told = scrape()
    assert told["forecache_version_predictions_total{model=delay,outcome=hit_batch,version=2}"] == 3
    assert told["forecache_version_predictions_total{model=delay,outcome=computed,version=3}"] == 1
    assert told["forecache_version_predictions_total{model=delay,outcome=stale,version=3}"] == 0
    assert told["forecache_version_failures_total{model=delay,version=2}"] == 0
    assert told["forecache_version_failures_total{model=delay,version=3}"] == 2
    latency = "forecache_version_latency_seconds"
    assert told[f"{latency}_bucket{{le=0.008,model=delay,version=3}}"] == 0
    assert told[f"{latency}_bucket{{le=0.016,model=delay,version=3}}"] == 5
    assert told[f"{latency}_count{{model=delay,version=3}}"] == 5
    assert told[f"{latency}_sum{{model=delay,version=3}}"] == pytest.approx(0.06)
    assert {
        name for name in told if "version=" in name and not re.search(r"model=delay.*,version=[234]}", name)
    } == set()
    assert len([name for name in told if "version=3" in name]) == 24


def test_a_version_that_no_worker_holds_stays_while_its_generation_serves_or_it_is_active() -> None:
    nobody = deployment()
    nobody.presence = SimpleNamespace(roster=lambda _: Roster((), {}))
    told = scrape(nobody)
    assert {re.search(r"version=(\d)", name)[1] for name in told if "version=" in name} == {"2", "4"}  # type: ignore[index]
    assert told["forecache_generation_model_version{model=delay}"] == 2
    assert told["forecache_active_model_version{model=delay}"] == 4
    assert "forecache_active_model_version{model=idle}" not in told


def test_yesterdays_promise_is_told_with_what_came_if_that_is_known() -> None:
    told = {name: value for name, value in scrape().items() if "yesterday" in name}
    assert told == {
        "forecache_yesterday_hit_ratio{kind=promised,model=delay}": 0.95,
        "forecache_yesterday_cost{kind=promised,model=delay}": 120.5,
    }


def test_the_newest_run_and_what_serves() -> None:
    told = scrape()
    assert told["forecache_last_run_state{model=delay,state=failed}"] == 1
    assert sum(value for name, value in told.items() if name.startswith("forecache_last_run_state{model=delay")) == 1
    assert (told["forecache_last_run_rows{model=delay}"], told["forecache_last_run_rows_done{model=delay}"]) == (
        100,
        40,
    )
    assert told["forecache_generation{model=delay}"] == 7
    assert told["forecache_generation_expires_timestamp_seconds{model=delay}"] == 2000
    assert [name for name in told if "run" in name and "idle" in name] == []


def test_a_run_that_is_not_planned_yet_has_no_rows() -> None:
    queued = deployment(run_view(state=RunState.QUEUED, rows_total=None, rows_done=0))
    assert "forecache_last_run_rows{model=delay}" not in scrape(queued)


def test_queues_workers_and_gpus() -> None:
    told = scrape()
    assert told["forecache_broker_up{}"] == 1
    assert told["forecache_queue_messages{queue=batch}"] == 20
    assert told["forecache_queue_oldest_message_age_seconds{queue=batch}"] == 31.5
    assert told["forecache_queue_oldest_message_age_seconds{queue=realtime}"] == 0
    assert "forecache_queue_oldest_message_age_seconds{queue=maintenance}" not in told
    states = [told[f"forecache_workers{{queue=batch,state={state}}}"] for state in ("ready", "starting", "gone")]
    assert states == [1, 1, 1]
    assert told["forecache_workers{queue=realtime,state=ready}"] == 0
    assert told["forecache_gpu_memory_used_bytes{gpu=0,host=h1}"] == 3 << 30


def test_a_broker_that_is_away_is_a_figure_and_hides_nothing_else() -> None:
    def away() -> list[QueueState]:
        raise BrokerUnavailable("the broker does not answer")

    told = scrape(deployment(queue_states=away))
    assert told["forecache_broker_up{}"] == 0
    assert [name for name in told if name.startswith("forecache_queue_")] == []
    assert told["forecache_workers{queue=batch,state=ready}"] == 1


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alerting_rule_parses_and_asks_for_metrics_and_labels_that_there_are(rule: dict[str, Any]) -> None:
    told = scraped()
    for selector in _selectors(promql_parser.parse(rule["expr"])):
        if selector.name == "up":  # Prometheus' own
            continue
        assert _selected(selector, told), selector.name
        for matcher in selector.matchers.matchers:
            # what is left out may be so of any metric: the age of `maintenance` is known only while nothing waits there
            among = [one for one in told if one.name == selector.name or matcher.op in NEGATED]
            occurring = {one.labels.get(matcher.name) for one in among}
            assert set(matcher.value.split("|")) <= occurring, matcher
    assert {"severity"} == set(rule["labels"])
    assert rule["annotations"]["summary"]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_the_summary_of_an_alert_names_labels_that_the_alert_has(rule: dict[str, Any]) -> None:
    kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rule["expr"]))))
    of_target = {"instance"} if rule["expr"].startswith("up{") else set()
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) == kept | of_target


def test_requests_that_wait_on_a_models_own_queue_raise_the_alert_and_chunks_do_not() -> None:
    (rule,) = [rule for rule in rules() if rule["alert"] == "ForecacheRequestsWait"]
    (selector,) = _selectors(promql_parser.parse(rule["expr"]))
    waiting = [replace(one, depth=1, oldest_age_s=9.0) for one in queues()]
    told = scraped(deployment(queue_states=lambda: waiting))
    assert {one.labels["queue"] for one in _selected(selector, told)} == {"realtime", "slow"}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alerting_rule_names_the_section_that_says_what_to_do(rule: dict[str, Any]) -> None:
    page, _, section = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (RULES.parents[2] / page).read_text(), re.MULTILINE)
    assert section in [heading.lower().replace(" ", "-") for heading in headings]


NEGATED = (promql_parser.MatchOp.NotEqual, promql_parser.MatchOp.NotRe)


def _matches(matcher: Any, value: str) -> bool:
    """As Prometheus does: a regular expression is one of the whole value."""
    if matcher.op in (promql_parser.MatchOp.Re, promql_parser.MatchOp.NotRe):
        held = re.fullmatch(matcher.value, value) is not None
    else:
        held = matcher.value == value
    return held is not (matcher.op in NEGATED)


def _selected(selector: Any, samples: list[Sample]) -> list[Sample]:
    return [
        one
        for one in samples
        if one.name == selector.name
        and all(_matches(matcher, one.labels.get(matcher.name, "")) for matcher in selector.matchers.matchers)
    ]


def _selectors(node: Any) -> list[Any]:
    if isinstance(node, promql_parser.VectorSelector):
        return [node]
    if isinstance(node, promql_parser.MatrixSelector):
        return [node.vector_selector]
    children = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "param")]
    arguments = list(getattr(node, "args", None) or [])
    return [found for child in [*children, *arguments] if child is not None for found in _selectors(child)]
