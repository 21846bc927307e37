"""`forecache.LocalReader` over a real Redis: flips, rollbacks, other processes, forks, full disks, counters."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from forecache import BadRequest, Client, LocalReader, Prediction, Unavailable, UnknownEntity, UnknownModel
from inference.local_reader.follower import GenerationFollower
from inference.local_reader.packed import PackedWriter
from inference.monitoring.access_sample import AccessSample
from inference.redis.bulk import Pace
from inference.redis.clients import Client as RedisClient
from inference.redis.clock import RedisClock
from tests.support.local_reader import MODEL, Published, heard, tell, wait_end
from tests.support.redis_server import RedisServer
from tests.support.stack import ROOT, child_environment
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration


@pytest.fixture
def published(redis_client: RedisClient, redis_server: RedisServer, tmp_path: Path) -> Iterator[Published]:
    made = Published(tmp_path, redis_server.url())
    with made.client:
        yield made


def answers_of(request: httpx.Request) -> httpx.Response:
    """Answer as the API does: 9 for all but `nobody`."""
    item = {
        "model": MODEL, "model_version": 1, "prediction": 9.0, "source": "realtime", "outcome": "computed",
        "cache_hit": False, "stale": False, "degraded": False, "as_of": None, "computed_at": "2026-11-23T22:03:15.015Z",
    }  # fmt: skip
    if request.method == "POST":
        ids = json.loads(request.content)["entity_ids"]
        return httpx.Response(200, json={"predictions": [{**item, "entity_id": one} for one in ids]})
    entity_id = request.url.path.rpartition("/")[2]
    if entity_id == "nobody":
        problem = {"status": 404, "code": "unknown-entity", "detail": "nobody"}
        return httpx.Response(404, json=problem, headers={"content-type": "application/problem+json"})
    return httpx.Response(200, json={**item, "entity_id": entity_id})


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(transport=httpx.MockTransport(answers_of)) as client:
        yield client


def test_answers_are_those_of_the_table(published: Published) -> None:
    manifest = published.publish(1.5, version=3)
    with published.reader() as reader:
        state = reader.wait_ready()
        assert (state.generation, state.model_version, state.outcome) == (manifest.number, 3, "hit_batch")
        assert (state.entities, state.error) == (500, None)
        answer = reader.get("e7")
        [entry] = published.table.read(["e7"])
        assert answer is not None
        assert entry is not None
        assert (answer.entity_id, answer.value, answer.model_version, answer.model) == ("e7", 1.5, 3, MODEL)
        assert (answer.source, answer.outcome, answer.cache_hit, answer.degraded) == ("batch", "hit_batch", True, False)
        assert answer.as_of is not None
        assert answer.as_of.timestamp() == entry.as_of
        assert answer.computed_at.timestamp() == pytest.approx(entry.computed_at)
        assert reader.get("nobody") is None
        many = reader.get_many(["e1", "nobody", "e2"])
        assert many.values == [1.5, None, 1.5]
        assert (many[0], many[1]) == (reader.get("e1"), None)
        assert many.found.tolist() == [True, False, True]
        assert many.block["score"].tolist() == [1.5, 0.0, 1.5]


def test_ids_of_any_kind_are_taken(published: Published) -> None:
    published.publish(1.0)
    with published.reader() as reader:
        reader.wait_ready()
        assert reader.get_many(pd.Series(["e1", "e2"])).values == [1.0, 1.0]
        assert reader.get_many(np.array([1, 2])).values == [None, None]
        assert reader.get_many(("e1", 5, np.int64(7))).values == [1.0, None, None]
        assert reader.get(np.int64(7)) is None
        for wrong in (1.5, None, True):
            with pytest.raises(BadRequest, match="entity_id"):
                reader.get(wrong)  # type: ignore[arg-type]
        with pytest.raises(BadRequest, match="entity_ids"):
            reader.get_many("e1")
        with pytest.raises(BadRequest, match="UTF-8"):
            reader.get("\ud800")


def test_what_the_file_lacks_is_asked_of_the_client(published: Published, client: Client) -> None:
    with published.reader(client=client) as reader:
        assert reader.get("e1") == client.predict("e1")  # nothing is published yet
        published.publish(1.0)
        reader.wait_ready()
        answer = reader.get("e1")
        assert answer is not None
        assert answer.value == 1.0
        many = reader.get_many(["e1", "other", "e2"])
        assert many.values == [1.0, 9.0, 1.0]
        assert [one.outcome for one in many if isinstance(one, Prediction)] == ["hit_batch", "computed", "hit_batch"]
        with pytest.raises(UnknownEntity):
            reader.get("nobody")


class Reading:
    """Threads that read all the time, and keep what they have read."""

    def __init__(self, reader: LocalReader) -> None:
        self._reader = reader
        self._ended = threading.Event()
        self.seen: list[list[float | None]] = [[], [], []]
        self.faults: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(3)]

    def __enter__(self) -> Reading:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        ids = [f"e{n}" for n in range(0, 500, 7)]
        try:
            while not self._ended.wait(0.001):
                if number == 0:
                    self._note(number, {self._value(one) for one in ids[:1]})
                else:
                    self._note(number, set(self._reader.get_many(ids).values))
        except BaseException as error:
            self.faults.append(error)
            raise

    def _value(self, entity_id: str) -> float | None:
        answer = self._reader.get(entity_id)
        return None if answer is None else answer.value

    def _note(self, number: int, values: set[float | None]) -> None:
        assert len(values) == 1, f"one call answered from several generations: {values}"
        value = values.pop()
        if not self.seen[number] or self.seen[number][-1] != value:
            self.seen[number].append(value)

    def all_see(self, value: float) -> bool:
        return all(seen and seen[-1] == value for seen in self.seen)


def test_flips_and_rollbacks_under_load(published: Published) -> None:
    published.publish(1.0, version=1)
    with published.reader() as reader:
        reader.wait_ready()
        with Reading(reader) as reading:
            wait_for(lambda: reading.all_see(1.0), "the first generation")
            for value in (2.0, 3.0, 4.0):
                published.publish(value, version=int(value))
                wait_for(lambda value=value: reading.all_see(value), f"generation {value}")
            current = published.table.pointer().current
            assert current is not None
            published.table.generations.rollback(current)
            wait_for(lambda: reading.all_see(3.0), "the rollback")
            published.publish(5.0, version=5)
            wait_for(lambda: reading.all_see(5.0), "the generation after the rollback")
        assert reading.faults == []
        for seen in reading.seen:
            # between two generations there may be a moment without an answer, and never an old one again
            assert [value for value in seen if value is not None] == [1.0, 2.0, 3.0, 4.0, 3.0, 5.0]


@pytest.mark.slow
def test_degraded_answers_are_those_of_the_generation_before(published: Published) -> None:
    (published.settings).write_text(published.settings.read_text() + "write_share = 0.001\n")  # loads for ever
    published.publish(1.0, rows=500)
    with published.reader(allow_degraded=True) as reader, published.reader() as strict:
        reader.wait_ready()
        strict.wait_ready()
        second = published.publish(2.0, rows=60_000, version=2)
        wait_for(lambda: strict.get("e1") is None, "the flip")
        answer = wait_for(lambda: one if (one := reader.get("e1")) and one.degraded else None, "an old answer")
        assert (answer.value, answer.outcome, answer.cache_hit, answer.stale) == (1.0, "previous", False, True)
        assert reader.get_many(["e1"])[0] == answer
        # a rollback to what is still loaded answers at once; one that was rolled back answers never
        published.table.generations.rollback(second.number)
        wait_for(lambda: (one := strict.get("e1")) and one.value == 1.0 and one.cache_hit, "the rollback")


def test_a_generation_that_was_rolled_back_answers_nobody(published: Published) -> None:
    published.publish(1.0, version=1)
    second = published.publish(2.0, version=2)
    with published.reader(allow_degraded=True) as reader:
        reader.wait_ready()
        published.table.generations.rollback(second.number)
        values: set[float | None] = set()

        def looks() -> bool:
            answer = reader.get("e1")
            values.add(None if answer is None else answer.value)
            return answer is not None and answer.value == 1.0

        wait_for(looks, "the generation before")
        assert values <= {1.0, 2.0, None}
        answer = reader.get("e1")
        assert answer is not None
        assert (answer.value, answer.outcome) == (1.0, "hit_batch")


def test_what_was_rolled_back_never_stands_in_for_a_later_generation(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.publish(1.0)
    second = published.publish(2.0)
    follower = GenerationFollower(published.table, published.files / "f", Pace(), RedisClock(), keep_previous=True)
    follower.look()
    assert follower.serving is not None
    assert follower.serving.packed.find("e1") is not None

    def full(_: PackedWriter) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PackedWriter, "finish", full)
    published.table.generations.rollback(second.number)
    follower.look()
    assert follower.serving is None
    assert "No space left on device" in (follower.error or "")
    published.publish(3.0)
    follower.look()
    assert follower.serving is None


def test_an_answer_over_its_age_limit_is_none(published: Published, client: Client) -> None:
    published.publish(1.0, age_s=25 * 3600)
    with (
        published.reader() as strict,
        published.reader(max_staleness_hours=26) as patient,
        published.reader(allow_degraded=True) as lenient,
        published.reader(client=client) as asking,
    ):
        for reader in (strict, patient, lenient, asking):
            reader.wait_ready()
        assert strict.get("e1") is None
        assert strict.get_many(["e1"]).values == [None]
        for reader, outcome in ((patient, "hit_batch"), (lenient, "stale"), (asking, "computed")):
            answer = reader.get("e1")
            assert answer is not None
            assert answer.outcome == outcome
            [same] = reader.get_many(["e1"])
            assert isinstance(same, Prediction)
            assert same.outcome == outcome


def totals(published: Published) -> dict[str, int]:
    found = published.client.hgetall(published.keys.hit_totals(MODEL))
    return {name.decode(): int(count) for name, count in found.items()}


def test_each_answer_counts_in_hit_rate_and_access_log(published: Published) -> None:
    published.publish(1.0, age_s=100)
    with published.reader() as reader:
        reader.wait_ready()
        for number in range(30):
            reader.get(f"e{number % 10}")
            reader.get("nobody")
        reader.get_many([f"e{number}" for number in range(400)] + ["nobody"])
    counts = totals(published)
    assert counts["hit_batch"] == 430
    assert sum(count for name, count in counts.items() if name.startswith("age_s:") and name != "age_s:sum") == 430
    assert counts["age_s:sum"] >= 430 * 100
    assert not {"computed", "unknown", "shed"} & set(counts)  # whoever answers a miss counts it
    sample = AccessSample.load(published.client, published.keys, MODEL, days=1)
    assert (sample.total, sample.entities) == (430, 400)


@pytest.mark.slow
def test_processes_of_a_host_share_one_file(published: Published) -> None:
    published.publish(1.0, rows=60_000)
    published.client.config_resetstat()
    code = """
        tell(reader.wait_ready().generation, reader.get("e5").value)
        input()
        reader.close()
    """
    with ExitStack() as opened:
        processes = [opened.enter_context(published.process(code)) for _ in range(2)]
        assert [heard(one)[1] for one in processes] == [1.0] * 2
        for one in processes:
            tell(one)
            wait_end(one)
    calls = published.client.info("commandstats")["cmdstat_hgetall"]["calls"]
    manifest = published.table.generations.published()[0]
    assert manifest is not None
    # and the list of forgotten entities
    assert calls == manifest.buckets + 1, "the rows were read more than once"
    assert len(published.rows_files()) == 1


def test_a_forgotten_entity_leaves_the_answers_and_the_files(published: Published) -> None:
    published.publish(1.0)
    published.publish(2.0)
    with published.reader() as reader:
        reader.wait_ready()
        published.table.generations.rollback(2)
        wait_for(lambda: (one := reader.get("e77")) and one.value == 1.0, "the rollback")
        published.table.forgotten.add("e77")

        wait_for(lambda: reader.get("e77") is None and reader.get("e78"), "the rows without the entity")
        assert reader.get_many(["e76", "e77", "e78"]).values == [1.0, None, 1.0]
        assert [path.name.split("-")[0] for path in published.rows_files()] == ["1"]
        assert b"e77" not in published.rows_files()[0].read_bytes()


def test_old_files_go_and_the_one_for_a_rollback_stays(published: Published) -> None:
    with published.reader() as reader:
        for value in (1.0, 2.0, 3.0, 4.0):
            published.publish(value)
            wait_for(lambda value=value: (one := reader.get("e1")) and one.value == value, f"generation {value}")
        assert [path.name.split("-")[0] for path in published.rows_files()] == ["3", "4"]
        published.client.config_resetstat()
        published.table.generations.rollback(4)
        wait_for(lambda: (one := reader.get("e1")) and one.value == 3.0, "the rollback")
        assert "cmdstat_hgetall" not in published.client.info("commandstats")


@pytest.mark.slow
def test_a_process_that_dies_while_it_loads_leaves_no_harm(published: Published) -> None:
    published.settings.write_text(published.settings.read_text() + "write_share = 0.001\n")
    published.publish(1.0, rows=60_000)
    with published.process("input()"):
        wait_for(lambda: list(published.files.glob("*/*.part")), "a file that is being written")
    assert published.rows_files() == []
    published.settings.write_text(published.settings.read_text().replace("0.001", "1.0"))
    with published.reader() as reader:
        reader.wait_ready()
        answer = reader.get("e59999")
    assert answer is not None
    assert list(published.files.glob("*/*.part")) == []


def test_a_damaged_file_is_written_anew(published: Published) -> None:
    published.publish(1.0)
    with published.reader() as reader:
        reader.wait_ready()
    [path] = published.rows_files()
    for content in (b"", path.read_bytes()[:-100]):
        path.unlink()
        path.write_bytes(content)
        with published.reader() as reader:
            reader.wait_ready()
            answer = reader.get("e1")
        assert answer is not None
        assert answer.value == 1.0


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_file_serving(published: Published) -> None:
    """The kernel refuses to write beyond a limit, as a full disk does."""
    published.publish(1.0, rows=500)
    code = """
        import resource
        tell(reader.wait_ready().generation)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        input()
        while not (state := reader.state()).error: time.sleep(0.01)
        answer = reader.get("e1")
        tell(state.error, state.generation, answer.value, answer.outcome, reader.get_many(["e1"]).values)
        input()
        while reader.get("e1").value != 3.0: time.sleep(0.01)
        tell(reader.state().error, reader.get("e1").outcome)
        reader.close()
    """
    with published.process(code) as process:
        [first] = heard(process)
        published.publish(2.0, rows=60_000)
        tell(process)
        error, generation, value, outcome, many = heard(process)
        assert (generation, value, outcome, many) == (first, 1.0, "previous", [1.0])
        assert str(published.files) in error
        assert "make room" in error
        assert list(published.files.glob("*/*.part")) == []
        published.publish(3.0, rows=500)
        tell(process)
        assert heard(process) == [None, "hit_batch"]
        wait_end(process)


@pytest.mark.slow
def test_a_forked_process_reads_and_counts_by_itself(published: Published) -> None:
    published.publish(1.0)
    code = """
        reader.wait_ready()
        for _ in range(50): reader.get("e1")
        child = os.fork()
        reader.wait_ready() if child else None
        if child == 0:
            try:
                while reader.get("e2") is None: time.sleep(0.01)
                for _ in range(6): reader.get("e2")
                reader.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        reader.get("e3")
        reader.close()
    """
    with published.process(code) as process:
        wait_end(process)
        assert totals(published)["hit_batch"] == 50 + 7 + 1


def test_while_redis_is_away_the_file_answers(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis").start()
    try:
        published = Published(tmp_path, server.url())
        published.publish(1.0)
        with published.reader() as reader:
            reader.wait_ready()
            server.kill()
            state = wait_for(lambda: one if (one := reader.state()).error else None, "the outage")
            assert "Redis did not answer" in (state.error or "")
            answer = reader.get("e1")
            assert answer is not None
            assert answer.outcome == "hit_batch"
            server.start()  # empty
            wait_for(lambda: reader.get("e1") is None, "the empty Redis")
            published.publish(2.0)
            wait_for(lambda: (one := reader.get("e1")) and one.value == 2.0, "the table that was built anew")
            assert len(list(published.files.iterdir())) == 1
        published.client.close()
    finally:
        server.stop()


def test_without_a_generation_waiting_says_why(published: Published) -> None:
    with published.reader() as reader:
        with pytest.raises(Unavailable, match="no generation is published"):
            reader.wait_ready(0.1)
        assert reader.get("e1") is None
        assert reader.get_many(["e1"]).values == [None]


def test_wrong_settings_are_named(published: Published) -> None:
    with pytest.raises(UnknownModel, match="known: delay"):
        LocalReader("dely", settings=published.settings)
    with pytest.raises(BadRequest, match="no-such-file"):
        LocalReader(settings=published.folder / "no-such-file.toml")


def test_a_folder_that_cannot_be_written_is_named(published: Published) -> None:
    published.publish(1.0)
    (published.folder / "a-file").write_text("")
    with LocalReader(settings=published.settings, folder=published.folder / "a-file") as reader:
        state = wait_for(lambda: one if (one := reader.state()).error else None, "the error")
    assert "a-file" in (state.error or "")
    assert "choose another folder" in (state.error or "")


def test_without_the_servers_package_one_line_says_what_to_install() -> None:
    code = "import sys; sys.modules['inference'] = None; import forecache; forecache.LocalReader()"
    environment = child_environment() | {"PYTHONPATH": str(ROOT / "client")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr.splitlines()[-1].startswith("ImportError: LocalReader reads Redis itself")
    assert "pip install forecache" in done.stderr.splitlines()[-1]


def test_importing_the_client_loads_neither_numpy_nor_the_server() -> None:
    code = "import forecache, sys; sys.exit(any(name in sys.modules for name in ('numpy', 'inference', 'redis')))"
    environment = child_environment() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60).returncode == 0


@pytest.mark.slow
def test_over_a_cluster(tmp_path: Path) -> None:
    from tests.support.redis_cluster import RedisCluster

    cluster = RedisCluster(tmp_path / "cluster")
    try:
        published = Published(tmp_path, cluster.start().url())
        published.publish(1.0)
        with published.client, published.reader() as reader:
            reader.wait_ready()
            assert reader.get_many([f"e{n}" for n in range(500)]).values == [1.0] * 500
            published.publish(2.0)
            wait_for(lambda: (one := reader.get("e1")) and one.value == 2.0, "the flip")
        counted: Any = published.keys.hit_totals(MODEL)
        with Published(tmp_path, cluster.url()).client as client:
            assert int(client.exchange([("HGET", counted, "hit_batch")])[0]) >= 501
    finally:
        cluster.stop()


@pytest.mark.slow
def test_after_a_failover_of_sentinels_the_new_primary_is_followed(tmp_path: Path) -> None:
    from tests.support.sentinel_group import SentinelGroup

    with SentinelGroup(tmp_path / "group") as group:
        published = Published(tmp_path, group.url())
        published.publish(1.0)
        with published.client, published.reader() as reader:
            reader.wait_ready()
            killed = group.kill_primary()
            group.wait_failover(killed)
            answer = reader.get("e1")
            assert (answer and answer.value) == 1.0
            wait_for(lambda: reader.state().error is None, "the new primary", 30)
            published.publish(2.0)
            wait_for(lambda: (one := reader.get("e1")) and one.value == 2.0, "the flip", 30)
