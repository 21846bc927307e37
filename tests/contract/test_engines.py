"""Every engine keeps the same promises: exact predictions, once each, through killed processes and cancelled runs."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.batch import Engine
from tests.support.plain_models import write_slow_sum_model
from tests.support.redis_server import missing
from tests.support.runs_rig import CALL_S, MODEL, Rig
from tests.support.stack import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(420)]

_ROWS = 6_000
_BATCH = """
max_quarantined_fraction = 0.5
spark = { master = "local[2,4]", conf = { "spark.ui.enabled" = "false" } }
"""
#: distinct predictions for each run, so that a row of another run is noticed
_OFFSETS = iter(range(100_000, 10_000_000, 100_000))


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("engines"), batch=_BATCH)
    write_slow_sum_model(rig.stack.folder / "model", ["a", "b"], seconds=CALL_S)
    rig.write_table(_ROWS, offset=0)
    rig.write_table(50, offset=0, name="tick.parquet")
    with rig.stack as stack:
        stack.start("gpu", "maintenance", "api")
        stack.wait_ready(150)
        yield rig


@pytest.fixture(params=list(Engine))
def engine(request: pytest.FixtureRequest) -> Engine:
    engine: Engine = request.param
    if engine is Engine.SPARK and (importlib.util.find_spec("pyspark") is None or shutil.which("java") is None):
        missing("PySpark, or java")
    if engine is Engine.RAY and importlib.util.find_spec("ray") is None:
        missing("Ray")
    return engine


def _kill_one_at_work(rig: Rig, engine: Engine) -> None:
    """kill -9 a process that scores chunks."""
    if engine is Engine.CELERY:
        rig.stack.kill("gpu")
        rig.stack.start("gpu")
        return
    family = psutil.Process(rig.stack.processes["maintenance"].pid).children(recursive=True)
    if engine is Engine.SPARK:  # Spark's workers in Python are children of a daemon
        workers = [one for one in family if _is_daemon(one) and _is_daemon(one.parent())]
    else:
        workers = [one for one in family if one.name().startswith("ray::ChunkActor")]
    assert workers, [one.name() for one in family]
    workers[0].kill()


def _is_daemon(process: psutil.Process | None) -> bool:
    try:
        return process is not None and "pyspark.daemon" in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def test_a_process_killed_in_mid_run_costs_no_prediction_and_counts_nothing_twice(rig: Rig, engine: Engine) -> None:
    offset = next(_OFFSETS)
    rig.write_table(_ROWS, offset=offset)
    run_id = rig.request(engine=engine.value)
    rig.wait_chunks(run_id, 2)

    _kill_one_at_work(rig, engine)

    assert rig.run(run_id)["state"] == "running"
    done = rig.assert_published(run_id, _ROWS, offset=offset)
    assert done["engine"] == engine.value


def test_a_cancelled_run_ends_its_processes_and_can_be_taken_up_again_bad_rows_included(
    rig: Rig, engine: Engine
) -> None:
    offset, bad = next(_OFFSETS), {17, 4_321, _ROWS - 1}
    _write_table(rig, [None if i in bad else float(i) for i in range(_ROWS)], offset)
    before = rig.table.pointer()
    run_id = rig.request(engine=engine.value)
    rig.wait_chunks(run_id, 1)

    rig.cancel(run_id)

    assert rig.end(run_id)["state"] == "cancelled"
    assert rig.table.pointer() == before
    wait_for(lambda: not _drivers(rig), "the end of the driver", 100)

    httpx.post(f"{rig.stack.url}/runs/{run_id}/resume").raise_for_status()
    done = rig.end(run_id, 200)
    assert (done["state"], done["error"]) == ("published", None), done
    assert (done["rows_done"], done["rows_quarantined"]) == (_ROWS, len(bad))
    assert _served(rig) == {i: None if i in bad else float(i + offset) for i in range(_ROWS)}
    rig.assert_clean()


def test_a_delta_run_scores_only_what_changed_and_stores_what_a_full_run_would(rig: Rig, engine: Engine) -> None:
    offset = next(_OFFSETS)
    rig.write_table(_ROWS, offset=offset)
    base = rig.request(engine="celery", delta=True)  # keeps what tells which rows change
    assert rig.end(base)["state"] == "published"
    _write_table(rig, [float(i + (50_000 if i < 150 else 0)) for i in range(_ROWS)], offset)

    done = rig.end(rig.request(engine=engine.value, delta=True), 200)

    assert (done["state"], done["error"], done["engine"]) == ("published", None, engine.value), done
    assert (done["full_reason"], done["rows_rescored"], done["rows_carried"]) == (None, 150, _ROWS - 150)
    assert _served(rig) == {i: float(i + offset + (50_000 if i < 150 else 0)) for i in range(_ROWS)}


def _write_table(rig: Rig, a: list[float | None], offset: int) -> None:
    columns = {
        "entity_id": [f"e{i}" for i in range(_ROWS)],
        "a": pa.array(a, pa.float32()),
        "b": pa.array([float(offset)] * _ROWS, pa.float32()),
    }
    pq.write_table(pa.table(columns), rig.stack.folder / "new", row_group_size=5_000)
    (rig.stack.folder / "new").replace(rig.stack.folder / "t.parquet")


def _drivers(rig: Rig) -> list[psutil.Process]:
    """What a cluster of the run's own has left running, its driver included."""
    family = psutil.Process(rig.stack.processes["maintenance"].pid).children(recursive=True)
    return [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def _served(rig: Rig) -> dict[int, Any]:
    entries = rig.stack.deployment.predictions(MODEL).read([f"e{i}" for i in range(_ROWS)])
    return {i: entry and next(iter(entry.values.values())) for i, entry in enumerate(entries)}
