"""What a deployment knows of its own costs, read from a real Redis."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.economics.inputs import Basis
from inference.economics.measured import _requests, measure
from inference.errors import StoreUnavailable
from inference.features import FeatureContract
from inference.models import ModelRegistry, VersionRecord
from inference.monitoring.presence import Presence, WorkerBeat
from inference.monitoring.statistics import HitWindows
from inference.redis.clients import Client
from inference.schema import DType, Signature, TensorSpec
from inference.settings import BatchSettings, ModelSettings
from tests.support.history import KEYS, ROWS, count_requests, keep_runs, publish_generation
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.stack import run_cli

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
CLOCK = {"source": "function", "function": "hour_of_day"}


async def test_every_figure_says_how_it_was_measured(redis_client: Client, redis_server: RedisServer) -> None:
    publish_generation(redis_client)
    keep_runs(redis_client, "published", "published", "failed")
    await count_requests(redis_server, hits=900, misses=300, entities=500)
    own = ModelSettings(path=Path("m"), batch=BatchSettings(schedule="6h"))
    told = measure(redis_client, KEYS, "delay", own)
    values = {name: figure.value for name, figure in told.figures.items()}
    assert (values["entities"], values["runs_per_day"], values["hit_rate"]) == (ROWS, 4, 0.75)
    # 2 000 rows in the 4 s of scoring, by one worker; a third of the chunks' attempts were second ones
    assert (values["throughput"], values["startup_s"], values["retry_factor"]) == (500, 2, 0.5)
    assert 15 < values["bytes"] < 60
    assert values["peak_rps"] >= values["rps"] > 0
    assert told.figures["runs_per_day"].origin is Basis.SETTINGS
    assert told.figures["throughput"].how == "median of 2 published runs, over 1 batch worker alive now"
    assert (told.runs_published, told.runs_failed, told.run_s) == (2, 1, 7)
    assert told.asked_week == pytest.approx(500, rel=0.03)
    assert told.never_read == pytest.approx(1_500, rel=0.03)


def test_what_spark_scored_says_nothing_about_a_batch_worker(redis_client: Client) -> None:
    own = ModelSettings(path=Path("m"))
    keep_runs(redis_client, "published", rows=1_000_000, engine="spark")
    assert "throughput" not in measure(redis_client, KEYS, "delay", own).figures
    keep_runs(redis_client, "published")
    told = measure(redis_client, KEYS, "delay", own).figures["throughput"]
    assert (told.value, told.how) == (500, "median of 1 published run, over 1 batch worker alive now")


@pytest.mark.parametrize("more", [{"since": 1_700_000_000.0}, {"entities_asked": 3}])
def test_a_run_of_some_rows_says_nothing_about_whole_ones(redis_client: Client, more: dict[str, Any]) -> None:
    keep_runs(redis_client, "published", "failed", rows=20_000, **more)
    own = ModelSettings(path=Path("m"))
    alone = measure(redis_client, KEYS, "delay", own)
    assert (alone.figures, alone.runs_published, alone.runs_failed, alone.run_s) == ({}, 0, 0, None)
    keep_runs(redis_client, "published")
    beside = measure(redis_client, KEYS, "delay", own)
    assert (beside.figures["throughput"].value, beside.runs_published, beside.runs_failed) == (500, 1, 0)


def test_what_a_run_did_is_shared_by_the_batch_workers_that_are_alive(redis_client: Client) -> None:
    keep_runs(redis_client, "published")
    presence = Presence(redis_client, KEYS)
    worker = WorkerBeat(
        name="gpu@host", process="gpu", queues=("batch",), host="host", pid=7, release=None, started_at=0.0,
        ready=True, versions={},
    )  # fmt: skip
    for one in (worker, replace(worker, pid=8), replace(worker, pid=9, queues=("realtime",))):
        presence.beat(one)
    throughput = measure(redis_client, KEYS, "delay", ModelSettings(path=Path("m"))).figures["throughput"]
    assert (throughput.value, throughput.how) == (250, "median of 1 published run, over 2 batch workers alive now")


@pytest.mark.parametrize(("seconds", "span_s"), [(1.0, 60.0), (59.0, 60.0), (61.0, 61.0)])
async def test_requests_of_less_than_a_minute_count_as_those_of_one(
    redis_client: Client, redis_server: RedisServer, seconds: float, span_s: float
) -> None:
    began = 600.0 * 2_500_000
    await count_requests(redis_server, hits=120, misses=0, entities=0, clock=lambda: began)
    now = began + seconds
    figures, span = _requests(HitWindows(redis_client, KEYS, lambda: now), "delay", now)
    assert (span, figures["rps"].value) == (span_s, pytest.approx(120 / span_s))


def test_the_contract_of_the_version_that_answers_tells_that_it_is_told_the_time(redis_client: Client) -> None:
    registry = ModelRegistry(redis_client, KEYS)
    features = [{"name": "x", "dtype": "float32"}, {"name": "hour", "dtype": "float32", "group": "clock"}]
    for version, groups in ((1, {"clock": {"source": "request"}}), (2, {"clock": CLOCK})):
        contract = FeatureContract.from_json({"features": features, "groups": groups})
        signature = Signature(contract.fields, (TensorSpec("y", DType.FLOAT32),))
        record = VersionRecord(
            version=version, state="ready", signature=signature, contract=contract, fingerprint="f", inspected_at=0.0
        )
        registry.put("delay", record)

    def told() -> tuple[str, ...]:
        return measure(redis_client, KEYS, "delay", ModelSettings(path=Path("m"))).clock_groups

    assert told() == ()  # none is active yet
    registry.activate("delay", 1)
    assert told() == ()
    registry.activate("delay", 2)
    assert told() == ("clock",)


@pytest.mark.parametrize(
    ("rows", "mean", "peak"),
    [
        # minutes before now → predictions; points last ten minutes, and the present one began five minutes ago
        ({5: 600, 15: 1200, 25: 300}, 2100 / 1500, 1200 / 600),
        ({0: 6000, 15: 1200}, 7200 / 900, 7200 / 900),  # the present point is not over: its 10/s count for nothing
        ({15: 600}, 600 / 900, 1.0),
        ({0: 30}, 30 / 300, 30 / 300),
    ],
)
async def test_the_peak_is_the_busiest_point_that_is_over(
    redis_client: Client, redis_server: RedisServer, rows: dict[int, int], mean: float, peak: float
) -> None:
    now = 600.0 * 2_500_000 + 300
    for minutes, count in rows.items():
        at = now - 60 * minutes
        await count_requests(redis_server, hits=count, misses=0, entities=0, clock=lambda at=at: at)
    figures, span_s = _requests(HitWindows(redis_client, KEYS, lambda: now), "delay", now)
    assert figures["rps"].value == pytest.approx(mean)
    assert figures["peak_rps"].value == pytest.approx(peak)
    assert figures["peak_rps"].how == "the busiest 10 minutes of 24 h"
    assert (figures["hit_rate"].value, span_s) == (1, pytest.approx(sum(rows.values()) / mean))


async def test_an_empty_history_tells_nothing(redis_client: Client) -> None:
    told = measure(redis_client, KEYS, "delay", ModelSettings(path=Path("m")))
    assert told.figures == {}
    assert (told.requests, told.never_read, told.run_s) == (0, None, None)


def test_an_outage_is_no_empty_history() -> None:
    with Client(port=free_port(), retry=None) as nowhere, pytest.raises(StoreUnavailable):
        measure(nowhere, KEYS, "delay", ModelSettings(path=Path("m")))


async def test_an_entity_asked_for_again_and_by_another_process_counts_once(
    redis_client: Client, redis_server: RedisServer
) -> None:
    await count_requests(redis_server, hits=5, misses=0, entities=40)
    await count_requests(redis_server, hits=5, misses=0, entities=50)
    windows = HitWindows(redis_client, KEYS)
    assert windows.asked("delay", 1) == windows.asked("delay", 7) == pytest.approx(50, abs=1)
    assert windows.asked("other", 7) == 0
    (key,) = redis_client.scan_iter("*:asked:*")
    assert 8 * 86_400 <= redis_client.ttl(key) <= 16 * 86_400


async def test_the_commands_use_what_was_measured_and_options_go_before_it(
    redis_client: Client, redis_server: RedisServer, tmp_path: Path
) -> None:
    publish_generation(redis_client)
    keep_runs(redis_client, "published")
    await count_requests(redis_server, hits=900, misses=300, entities=500)
    (tmp_path / "forecache.toml").write_text(
        f'[redis]\nurl = "{redis_server.url()}"\ncache_url = "{redis_server.url()}"\n'
        '[models.delay]\npath = "m"\nfeatures = "t.parquet"  # ours\n'
    )
    told = json.loads(run_cli(tmp_path, "cost", "--throughput", "50", "--json").stdout)
    origins = {name: figure["from"] for name, figure in told["inputs"].items()}
    assert (origins["entities"], origins["hit_rate"]) == ("measured", "measured")
    assert (origins["throughput"], origins["instance_price"]) == ("option", "prices")
    # (2 s until planned + 2 000 rows at 50/s) at 3 an hour, half of the chunks twice
    assert told["batch"]["compute"] == pytest.approx(42 / 3600 * 3 * 1.5)

    done = run_cli(tmp_path, "advise", "--max-staleness-hours", "6", "--write", "--json")
    assert done.returncode == 0, done.stderr
    (advice,) = json.loads(done.stdout)
    assert advice["approach"] == "hybrid"
    assert advice["never_read"] == pytest.approx(1_500, rel=0.03)
    assert advice["facts"]["coverage"]["from"] == "measured"
    assert '+schedule = "3h"' in done.stderr
    text = (tmp_path / "forecache.toml").read_text()
    assert text.endswith('features = "t.parquet"  # ours\n\n[models.delay.batch]\nschedule = "3h"\nttl = "6h"\n')
