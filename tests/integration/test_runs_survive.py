"""Runs of real processes through kills, outages and races: exactly the right predictions, or the old ones whole."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.celery_app import make_celery
from tests.support.plain_models import write_slow_sum_model
from tests.support.redis_server import missing
from tests.support.runs_rig import CALL_S, MODEL, Rig
from tests.support.stack import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(420)]

#: distinct predictions for each run, so that a row of another run is noticed
_OFFSETS = iter(range(10_000, 10_000_000, 10_000))


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("survive"))
    write_slow_sum_model(rig.stack.folder / "model", ["a", "b"], seconds=CALL_S)
    rig.write_table(1_000, offset=0)
    rig.write_table(50, offset=0, name="tick.parquet")
    with rig.stack as stack:
        stack.start("gpu", "maintenance", "api")
        stack.wait_ready(150)
        yield rig


# workers live for some chunks at least: one that loses its worker five times is given up, even if by chance
@pytest.mark.parametrize(
    ("kills", "rows", "within_s"),
    [(4, 6_000, 0.5), pytest.param(30, 150_000, 1.0, marks=pytest.mark.timeout(800))],
    ids=["few", "thirty"],
)
def test_workers_killed_at_random_moments_cost_no_prediction(rig: Rig, kills: int, rows: int, within_s: float) -> None:
    rng, workers = random.Random(kills), ["gpu", "gpu-2"]
    rig.stack.start("gpu-2")
    offset = next(_OFFSETS)
    run_id = rig.start_run(rows, offset=offset)
    try:
        for number in range(kills):
            rig.kill_at_work(workers, rng, within_s=within_s)
            assert rig.run(run_id)["state"] == "running", f"over after {number} kills"
        done = rig.assert_published(run_id, rows, offset=offset)
    finally:
        rig.stack.stop("gpu-2", signal.SIGTERM)
    assert done["attempts"] > done["chunks_total"]


def test_redis_that_stands_still_for_ten_seconds_delays_a_run_and_no_more(rig: Rig) -> None:
    offset = next(_OFFSETS)
    run_id = rig.start_run(3_000, offset=offset)
    rig.wait_chunks(run_id, 3)
    assert rig.stack.redis.process
    rig.stack.redis.process.send_signal(signal.SIGSTOP)
    time.sleep(10)
    rig.stack.redis.process.send_signal(signal.SIGCONT)
    rig.assert_published(run_id, 3_000, offset=offset)


def test_redis_killed_and_restarted_from_its_append_only_file_goes_on_with_the_run(rig: Rig) -> None:
    offset = next(_OFFSETS)
    run_id = rig.start_run(3_000, offset=offset)
    rig.wait_chunks(run_id, 3)
    rig.stack.redis.kill()
    time.sleep(1)
    rig.stack.redis.start()
    rig.assert_published(run_id, 3_000, offset=offset)


def test_maintenance_killed_between_the_last_chunk_and_publishing_publishes_when_it_is_back(rig: Rig) -> None:
    offset = next(_OFFSETS)
    rig.signal("gpu", signal.SIGSTOP)  # so that no chunk ends, however fast it is, before maintenance is gone
    try:
        run_id = rig.start_run(600, offset=offset)
        wait_for(lambda: _all_sent(rig.run(run_id), 6), "all six chunks to be sent")
        rig.stack.kill("maintenance")
    finally:
        rig.signal("gpu", signal.SIGCONT)
    try:
        wait_for(lambda: rig.run(run_id)["chunks_done"] == 6, "the last chunk")
        assert rig.run(run_id)["state"] == "running"
    finally:
        rig.stack.start("maintenance")
    rig.assert_published(run_id, 600, offset=offset)


def test_maintenance_killed_again_and_again_only_delays_a_run(rig: Rig) -> None:
    offset, rng = next(_OFFSETS), random.Random(1)
    run_id = rig.start_run(2_000, offset=offset)
    for _ in range(5):
        time.sleep(1 + rng.random() * 3)
        rig.stack.kill("maintenance")
        rig.stack.start("maintenance")
    rig.assert_published(run_id, 2_000, offset=offset)


def test_a_chunk_that_is_delivered_to_two_workers_at_once_counts_once(rig: Rig) -> None:
    began = {name: len(rig.stack.log(name)) for name in ("gpu", "gpu-2")}
    rig.stack.start("gpu-2")
    offset = next(_OFFSETS)
    app = make_celery(rig.stack.settings)
    try:
        wait_for(lambda: "ready." in rig.stack.log("gpu-2")[began["gpu-2"] :], "the second worker")
        run_id = rig.start_run(2_000, offset=offset)
        rig.wait_chunks(run_id, 1)
        for chunk in list(range(20)) * 2:
            app.send_task("forecache.score_chunk", args=(run_id, chunk), ignore_result=True, queue="batch")
        rig.assert_published(run_id, 2_000, offset=offset)
    finally:
        app.close()
        rig.stack.stop("gpu-2", signal.SIGTERM)
    dropped = "".join(rig.stack.log(name)[mark:] for name, mark in began.items())
    assert "another worker holds the chunk" in dropped or "the chunk is finished" in dropped


def test_a_worker_that_wakes_up_after_its_run_was_cancelled_and_collected_leaves_nothing(rig: Rig) -> None:
    serving = _published(rig, 1_000)
    cancelled = rig.start_run(4_000, offset=next(_OFFSETS))
    rig.wait_chunks(cancelled, 3)
    rig.freeze_at_work("gpu", cancelled)
    try:
        rig.cancel(cancelled)
        rig.assert_serves(1_000, offset=serving)
        rig.stack.start("gpu-2")
        offset = next(_OFFSETS)
        later = rig.start_run(1_000, offset=offset)  # gives the cancelled run's rows up
        rig.end(later)
        assert _rows_of(rig, cancelled) == []
        slept = len(rig.stack.log("gpu"))
    finally:
        rig.signal("gpu", signal.SIGCONT)
    wait_for(lambda: "chunk.dropped" in rig.stack.log("gpu")[slept:], "the straggler")
    assert _rows_of(rig, cancelled) == []
    rig.assert_published(later, 1_000, offset=offset)
    rig.stack.stop("gpu-2", signal.SIGTERM)
    assert rig.run(cancelled)["state"] == "cancelled"


def test_a_source_that_is_replaced_in_mid_run_fails_the_run_and_the_old_predictions_serve(rig: Rig) -> None:
    serving = _published(rig, 1_000)
    run_id = rig.start_run(4_000, offset=next(_OFFSETS))
    rig.wait_chunks(run_id, 2)
    rig.write_table(4_000, offset=next(_OFFSETS))
    done = rig.end(run_id)
    assert done["state"] == "failed"
    assert "replaced" in done["error"] or "changed" in done["error"]
    rig.assert_serves(1_000, offset=serving)
    rig.assert_clean()


def test_a_full_disk_fails_the_run_in_words_and_it_goes_on_when_there_is_room_again(rig: Rig) -> None:
    serving = _published(rig, 1_000)
    offset = next(_OFFSETS)
    with small_disk(rig.stack.folder / "out") as disk:
        run_id = rig.start_run(4_000, offset=offset)
        done = rig.end(run_id)
        assert done["state"] == "failed"
        assert "No space left on device" in done["error"]
        rig.assert_serves(1_000, offset=serving)
        rig.assert_clean()
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        httpx.post(f"{rig.stack.url}/runs/{run_id}/resume").raise_for_status()
        rig.assert_published(run_id, 4_000, offset=offset)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 KiB over a folder."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=False).returncode:
        missing("the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_resume_against_the_collector_gets_all_of_its_rows_or_is_refused(rig: Rig) -> None:
    rng, refused, rows = random.Random(3), 0, 6_000  # enough chunks to be cancelled in, however fast they go
    for _ in range(6):
        offset = next(_OFFSETS)
        run_id = rig.start_run(rows, offset=offset)
        rig.wait_chunks(run_id, 1)
        rig.cancel(run_id)
        other = httpx.post(f"{rig.stack.url}/runs", json={"model": MODEL}).json()["run_id"]  # gives its rows up
        time.sleep(rng.random())
        if httpx.post(f"{rig.stack.url}/runs/{other}/cancel").status_code == 409:
            rig.end(other)
        answer = httpx.post(f"{rig.stack.url}/runs/{run_id}/resume", timeout=15)
        if answer.status_code == 202:
            rig.assert_published(run_id, rows, offset=offset)
        else:
            assert (answer.status_code, rig.run(run_id)["state"]) == (409, "cancelled")
            refused += 1
    assert refused
    rig.assert_clean()


def test_a_rollback_against_a_publication_leaves_one_of_them_whole(rig: Rig) -> None:
    rng = random.Random(4)
    for _ in range(5):
        before = _published(rig, 1_000)
        _published(rig, 1_000)
        offset = next(_OFFSETS)
        run_id = rig.start_run(1_000, offset=offset)
        seen = rig.table.pointer()
        rig.wait_chunks(run_id, 10)
        time.sleep(rng.random() * 0.3)
        body = {"generation": seen.current}
        answer = httpx.post(f"{rig.stack.url}/models/{MODEL}/rollback", json=body, timeout=15)
        assert rig.end(run_id)["state"] in ("published", "failed")
        after = rig.table.pointer()
        if answer.status_code == 200:
            rig.assert_serves(1_000, offset=offset if rig.run(run_id)["state"] == "published" else before)
        else:
            assert (answer.status_code, after.previous) == (409, seen.current)
            rig.assert_serves(1_000, offset=offset)
    rig.assert_clean()


def test_redis_out_of_memory_fails_the_run_in_words_and_the_next_one_goes_well(rig: Rig) -> None:
    serving = _published(rig, 1_000)
    run_id = rig.start_run(4_000, offset=next(_OFFSETS))
    rig.wait_chunks(run_id, 2)
    with rig.cache() as cache:
        cache.config_set("maxmemory", cache.info("memory")["used_memory"])
        try:
            # the broker shares this Redis, and Celery's workers end when it refuses them
            done = rig.end_supervised(run_id)
            wait_for(lambda: not _rows_of(rig, run_id), "the failed run's rows to be removed")
            rig.assert_serves(1_000, offset=serving)
        finally:
            cache.config_set("maxmemory", 0)
    assert done["state"] == "failed"
    assert "Redis is out of memory" in done["error"]
    rig.assert_clean()
    run_id = rig.start_run(1_000, offset=(offset := next(_OFFSETS)))
    rig.end_supervised(run_id)
    rig.assert_published(run_id, 1_000, offset=offset)


def test_beats_that_are_doubled_and_killed_run_each_slot_once_and_go_on(rig: Rig) -> None:
    rig.stack.start("beat", "beat-2")
    runs = lambda: httpx.get(f"{rig.stack.url}/runs?model=tick").json()["runs"]  # noqa: E731
    wait_for(lambda: len(runs()) >= 3, "three scheduled runs", 90)
    rig.stack.kill("beat")
    before = len(runs())
    wait_for(lambda: len(runs()) >= before + 2, "the second beat to go on", 60)
    rig.stack.kill("beat-2")
    rig.stack.start("beat-3")
    before = len(runs())
    wait_for(lambda: len(runs()) >= before + 2, "a new beat to go on", 60)
    rig.stack.kill("beat-3")
    wait_for(lambda: all(run["state"] == "published" for run in runs()), "the last run")
    with rig.cache() as cache:
        served = cache.hgetall(f"{rig.stack.settings.redis.prefix}:m:tick:slots")
    assert sorted(served.values()) == sorted(run["run_id"].encode() for run in runs())
    rig.assert_clean()


def test_a_cache_that_restarts_empty_in_mid_run_fails_it_in_words_and_publishes_nothing(rig: Rig) -> None:
    run_id = rig.start_run(6_000, offset=next(_OFFSETS))
    rig.wait_chunks(run_id, 3)
    rig.stack.redis.kill()
    shutil.rmtree(rig.stack.redis.folder)
    rig.stack.redis.start()
    wait_for(lambda: httpx.get(f"{rig.stack.url}/runs/{run_id}").status_code == 200, "the run to be remembered")
    lost = rig.end(run_id)
    assert lost["state"] == "failed"
    assert "the cache Redis lost its data while the run was going on" in lost["error"]
    assert rig.table.pointer().current is None
    rig.assert_clean()
    offset = next(_OFFSETS)
    rig.assert_published(rig.start_run(1_000, offset=offset), 1_000, offset=offset)


def _rows_of(rig: Rig, run_id: str) -> list[bytes]:
    """The keys that hold a run's predictions."""
    prefix = f"{rig.stack.settings.redis.prefix}:p:{MODEL}:g:{rig.run(run_id)['generation']}"
    with rig.cache() as cache:
        found: list[bytes] = cache.keys(f"{prefix}:*")
    return found


def _all_sent(run: dict[str, Any], chunks: int) -> bool:
    return bool(run["chunks_total"] == chunks and run["chunks"]["unsent"] == 0)


def _published(rig: Rig, rows: int) -> int:
    """Have a run published; the offset of what serves now."""
    offset = next(_OFFSETS)
    rig.assert_published(rig.start_run(rows, offset=offset), rows, offset=offset)
    return offset
