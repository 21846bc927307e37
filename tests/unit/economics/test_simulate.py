"""`forecache simulate` as it is typed, and the traces that it reads."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from inference.economics.simulate import Peak
from inference.economics.traces import Columns, draw_trace, read_trace
from inference.errors import BadInput, SourceError
from tests.support.command import forecache_here
from tests.support.stack import run_cli

SETTINGS = """
[models.delay]
path = "m"
features = "t.parquet"
[models.delay.batch]
schedule = "24h"
ttl = "26h"
"""
#: 3 requests each of a, b and a third, ten minutes apart
TIMES = [1_700_000_000 + 600 * n for n in range(9)]
IDS = ["a", "b", "007"] * 3


def simulate(folder: Path, *options: str) -> Any:
    # a command with settings configures logging, which would be that of all tests
    run = run_cli if (folder / "forecache.toml").exists() else forecache_here
    done = run(folder, "simulate", *options, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write(folder: Path, name: str, **columns: Any) -> Path:
    file, table = folder / name, pa.table(columns)
    if name.endswith(".parquet"):
        pq.write_table(table, file)
    elif name.endswith(".gz"):
        with gzip.open(file, "wb") as stream:
            pa_csv.write_csv(table, stream)
    else:
        pa_csv.write_csv(table, file)
    return file


def test_policies_are_compared_with_todays_settings_and_with_each_other(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text(SETTINGS)
    told = simulate(
        tmp_path, "--zipf", "1.0", "--entities", "2000", "--requests", "50000", "--days", "4", "--instance-rps", "0.05",
        "--policy", "name=none every=never", "--policy", "name=some share=0.2", "--policy", "name=late failed_runs=2",
        "--at-entities", "2e6",
    )  # fmt: skip
    today, none, some, late = told["policies"]
    assert today["name"] == "today (delay)"
    assert (today["policy"]["ttl"], today["policy"]["every"]) == (26 * 3600, "24h")
    assert today["hit_rate"] == 1
    assert today["runs"] == {"per_day": pytest.approx(1, abs=0.3), "rows": 2000, "seconds": 0.2, "failed": 0}
    assert 0 < none["hit_rate"] < some["hit_rate"] < 1
    assert none["outcomes"]["computed"] == none["computations"]
    # a run fails: for the hours until the next one, the real-time workers answer
    assert (late["runs"]["failed"], late["hit_rate"] < 1) == (1, True)
    assert late["workers"]["needed"] > today["workers"]["needed"]
    assert all(sum(each["outcomes"].values()) == each["requests"] == 50_000 for each in told["policies"])
    costs = today["cost_per_day"]
    assert costs["total"] == pytest.approx(costs["runs"] + costs["redis"] + costs["files"] + costs["realtime"])
    assert some["at_entities"]["redis_bytes"] < 0.5 * today["at_entities"]["redis_bytes"] == 0.5 * 2e6 * 27 * 3
    assert today["at_entities"]["run_s"] == 200


def test_one_worker_computes_what_it_can(tmp_path: Path) -> None:
    told = simulate(
        tmp_path, "--zipf", "1.0", "--entities", "2000", "--requests", "10000", "--days", "1",
        "--instance-rps", "0.05", "--policy", "every=never workers=1",
    )  # fmt: skip
    [few] = told["policies"]
    assert (few["workers"]["paid"], few["outcomes"]["shed"] > 0) == (1, True)
    assert 0.5 < few["outcomes"]["computed"] / (86_400 / 20) <= 1.001


def test_what_is_printed_for_people(tmp_path: Path) -> None:
    done = forecache_here(
        tmp_path, "simulate", "--zipf", "0.8", "--entities", "500", "--requests", "5000",
        "--policy", "every=24h ttl=26h share=0.5", "--policy", "every=never",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    head, first, second, _, sizes = done.stdout.splitlines()[:5]
    assert head.startswith("policy\thit_rate\t")
    assert first.startswith("every=24h ttl=26h share=0.5\t")
    assert second.startswith("every=never\t")
    assert "Redis_GB_at_1e+09" in sizes
    assert "--skip leaves such days out" in done.stderr
    assert "5,000 requests for 500 entities from 2026-01-05" in done.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--policy", "ttl=1h"), "either --trace FILE or --zipf"),
        (("--zipf", "1"), "no model is configured"),
        (("--zipf", "1", "--policy", "ttl=1h"), "--zipf needs --entities"),
        (("--zipf", "1", "--entities", "1e9", "--policy", "ttl=1h"), "at most 20000000"),
        (("--zipf", "1", "--entities", "5", "--policy", "tll=1h"), "'tll=1h' is not known: write ttl=VALUE"),
        (("--zipf", "1", "--entities", "5", "--policy", "ttl"), "'ttl' is not known: write ttl=VALUE"),
        (("--zipf", "1", "--entities", "5", "--policy", "ttl=1"), "--policy: ttl: '1' is not a duration"),
        (("--zipf", "1", "--entities", "5", "--policy", "every=61 * * * *"), "--policy: every: '61' is no schedule"),
        (("--zipf", "1", "--entities", "5", "--policy", "share=1.5"), "share: '1.5' is no number from 0 to 1"),
        (("--zipf", "1", "--entities", "5", "--policy", "entities=30d"), "entities: '30d' is neither all nor"),
        (("--zipf", "1", "--entities", "5", "--policy", "failed_runs=0"), "failed_runs: '0' is no whole number from 1"),
        (("--zipf", "1", "--entities", "5", "--policy", "name='a"), "No closing quotation"),
        (("--zipf", "1", "--entities", "5", "--policy", "ttl=1h", "--skip", "9d"), "--skip: the trace is only"),
        (("--trace", "none.csv", "--policy", "ttl=1h"), "there is no file 'none.csv'"),
        (("--trace", "t.txt", "--policy", "ttl=1h"), "'t.txt' is of no known format"),
    ],
)
def test_a_wrong_input_is_named_in_one_line(tmp_path: Path, options: tuple[str, ...], named: str) -> None:
    done = forecache_here(tmp_path, "simulate", *options)
    assert done.returncode != 0
    assert done.stdout == ""
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_trace_with_foreign_columns_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("t.csv", "t.parquet"):
        write(tmp_path, name, user=IDS, time=TIMES, status=[200] * 9)
        done = forecache_here(tmp_path, "simulate", "--trace", name, "--policy", "every=never")
        assert done.returncode == 1
        assert f"'{name}' has no column 'entity': it has 'user', 'time', 'status'; name yours by --entity-column" in (
            done.stderr
        )
        told = simulate(
            tmp_path, "--trace", name, "--entity-column", "user", "--policy", "every=never realtime_ttl=20m"
        )
        # asked for again after 30 minutes
        assert told["policies"][0]["outcomes"]["computed"] == 9


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
@pytest.mark.parametrize(
    ("times", "unit"),
    [
        (TIMES, "s"),
        ([each * 1000.0 for each in TIMES], "ms"),
        (pa.array([each * 1_000_000 for each in TIMES], pa.timestamp("us", "UTC")), "s"),
        (pa.array(TIMES, pa.timestamp("s")), "s"),
        (pa.array(TIMES, pa.timestamp("s")).cast(pa.string()), "s"),
    ],
    ids=["seconds", "milliseconds", "zoned", "without a zone", "text"],
)
def test_every_form_of_time_is_the_same_trace(tmp_path: Path, name: str, times: Any, unit: str) -> None:
    trace = read_trace(write(tmp_path, name, time=times, entity=IDS, more=[None] * 9), Columns(unit=unit))
    assert trace.requests.times.tolist() == [each * 1000 for each in TIMES]
    assert trace.requests.entities.tolist() == [0, 1, 2] * 3
    assert (trace.entities, trace.span_s) == (3, 8 * 600)


def test_libcachesims_binary_traces_are_read(tmp_path: Path) -> None:
    rows = [(time, 2**60 + number % 3, 1, -1) for number, time in enumerate(TIMES)]
    packed = np.array(rows, np.dtype([("t", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")]))
    file = tmp_path / "w.oracleGeneral.bin"
    file.write_bytes(packed.tobytes())
    trace = read_trace(file, Columns())
    assert trace.requests.times.tolist() == [each * 1000 for each in TIMES]
    assert trace.requests.entities.tolist() == [0, 1, 2] * 3
    file.write_bytes(packed.tobytes()[:-1])
    with pytest.raises(SourceError, match="ends within a request"):
        read_trace(file, Columns())


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"entity": IDS, "time": TIMES[::-1]}, "row 2 is earlier than the row before it: sort the trace by 'time'"),
        ({"entity": IDS, "time": [*TIMES[:8], None]}, "a row without a time"),
        ({"entity": IDS, "time": [each * 1000 for each in TIMES]}, "which is no time in s: give --time-unit"),
        ({"entity": IDS, "time": [True] * 9}, "holds no times but bool"),
        ({"entity": ["a"], "time": ["x"]}, "column 'time' holds 'x', which is neither a number nor a time in ISO 8601"),
        ({"entity": [], "time": []}, "it holds no request"),
    ],
)
def test_a_trace_that_tells_no_times_is_refused(tmp_path: Path, columns: dict[str, Any], error: str) -> None:
    with pytest.raises(BadInput, match=error.replace("(", r"\(")):
        read_trace(write(tmp_path, "t.parquet", **columns), Columns())


def test_a_drawn_trace_follows_zipfs_law(tmp_path: Path) -> None:
    trace = draw_trace(exponent=1.0, entities=1000, requests=200_000, span_s=86_400)
    counts = np.bincount(trace.requests.entities, minlength=1000) / len(trace)
    harmonic = sum(1 / k for k in range(1, 1001))
    assert counts[0] == pytest.approx(1 / harmonic, rel=0.03)
    assert counts[9] == pytest.approx(0.1 / harmonic, rel=0.1)
    assert (np.diff(trace.requests.times) >= 0).all()
    assert trace.span_s == pytest.approx(86_400, rel=0.001)
    even = draw_trace(exponent=0.0, entities=10, requests=100_000, span_s=60)
    assert np.bincount(even.requests.entities).min() > 9_500


def test_a_peak_goes_on_in_the_next_part() -> None:
    peak = Peak(1000)
    for times in ([0, 999, 1000], [], [1001, 1999], [1999, 5000]):
        peak.add(np.array(times, np.int64))
    assert peak.most == 4
