"""What `make fuzz` found, each as it was mended: rubbish in Redis, in files, and in front of the application."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.batch.ledger import Ledger
from inference.batch.selection import unpack_entities
from inference.errors import ContractError, Defect, NotFound, SettingsError, SourceError, Unreadable
from inference.features import FeatureContract
from inference.models import ModelRegistry
from inference.monitoring.statistics import HitWindows
from inference.redis.clients import AsyncClient, Client
from inference.redis.keys import Keys, TableKind
from inference.serving.answer_sample import sampled_answers
from inference.serving.answers import explanation_from_result, outputs_from_result, replies_from_result
from inference.serving.job_queue import JobQueue
from inference.serving.jobs import run_part
from inference.settings import load_settings
from inference.sources.footers import newest_instants, read_footer
from inference.sources.partitions import PartitionValue
from inference.sources.reading import unpack_mask
from inference.storage import open_location
from inference.store import Table
from tests.support.redis_server import RedisServer

KEYS = Keys("fuzzed")
TABLE = KEYS.table(TableKind.PREDICTIONS, "m")
RUN = {"run_id": "r", "model": "m", "state": "running", "trigger": "api", "source": "s", "created_at": "1.5"}
RECORD: dict[str, Any] = {
    "version": 1, "state": "ready", "signature": {"inputs": [], "outputs": []}, "contract": {"features": []},
    "fingerprint": "f", "inspected_at": 1.5, "error": None,
}  # fmt: skip
MANIFEST: dict[str, Any] = {
    "number": 1, "fields": [{"name": "y", "dtype": "float32", "shape": []}], "buckets": 1, "model_version": 1,
    "contract_hash": "h", "run_id": None, "created_at": 1.5, "deadline": 2e9, "rows_expected": 1,
}  # fmt: skip
JOB = {
    "state": "done", "model": "m", "kind": "entities", "overrides": "", "deadline": "", "parts": "1",
    "changed_at": "1.5", "error": "",
}  # fmt: skip
Held = dict[str, Any]
Read = Callable[[Client], Any]


def ledger(client: Client) -> Ledger:
    return Ledger(client, KEYS)


def registry(client: Client) -> ModelRegistry:
    return ModelRegistry(client, KEYS)


def table(client: Client) -> Table:
    return Table(client, TABLE, kind=TableKind.PREDICTIONS, model="m")


def served(**changed: Any) -> Held:
    """A generation that is served, with a manifest that somebody changed."""
    manifest = json.dumps(MANIFEST | changed)
    return {TABLE.pointer: {"current": "1", "version": "1"}, TABLE.generation(1): {"manifest": manifest}}


RUBBISH: list[tuple[str, Held, Read]] = [
    *(
        (f"a run's {name}", {KEYS.run("r"): RUN | {name: value}}, lambda client: ledger(client).load("r"))
        for name, value in (
            ("created_at", "nan"), ("rows_done", "9" * 400), ("gates", '[{"name": 1}]'), ("bad_rows", "{"),
            ("attempts", "-1"), ("fingerprint", "1.5"), ("engine", "x" * 300), ("run_id", "\0r"), ("source", b"\xff"),
        )
    ),
    *(
        ("results", {KEYS.run_part("r", "done"): {"0": text}}, lambda client: ledger(client).results("r"))
        for text in ("{", b"\xff")
    ),
    ("a histogram", {KEYS.run_part("r", "histogram"): {"y": "x"}}, lambda client: ledger(client).histogram("r")),
    *(
        ("a chunk's bins", {KEYS.run_part("r", "bins"): {"0": packed}}, lambda client: ledger(client).histogram("r"))
        for packed in (b"x", zlib.compress(b"[]"), zlib.compress(b'{"y": {"3": "many"}}'))
    ),
    ("claims", {KEYS.run_part("r", "claims"): {"0": "1"}}, lambda client: ledger(client).chunk_states("r")),
    ("who is active", {KEYS.active_run("m"): b"\xff"}, lambda client: ledger(client).active_run("m")),
    *(
        ("a plan", {KEYS.run_part("r", "plan"): plan}, lambda client: ledger(client).plans.chunk("r", 0))
        for plan in ({"0": "[0]"}, {"0": '[["0", 0, 0, 1]]'}, {"0": "[[0, 0, 0, 1]]", "f0": '["t", 1]'})
    ),
    *(
        ("a version", {KEYS.model_record("m"): {"1": text}}, lambda client: registry(client).versions("m"))
        for text in (
            "[]", "{", json.dumps(RECORD | {"version": "1"}), json.dumps(RECORD | {"inspected_at": 1e999}),
            json.dumps(RECORD | {"contract": {"features": [{"name": "x"}]}}),
        )
    ),
    ("a version's number", {KEYS.model_record("m"): {"x": "{}"}}, lambda client: registry(client).versions("m")),
    (
        "a micro-batch",
        {KEYS.micro_batches("m"): {"1:c": "[0]"}},
        lambda client: registry(client).micro_batch("m", 1, "c"),
    ),
    ("wishes", {KEYS.reload("m"): {"w": "x"}}, lambda client: registry(client).reloads("m")),
    ("marks", {KEYS.loads("m"): {b"\xff": "1"}}, lambda client: registry(client).unfinished_loads("m").interrupted(1)),
    ("large counts", {KEYS.hit_totals("m"): {"x": "9" * 400}}, lambda client: HitWindows(client, KEYS).totals("m")),
    ("counts", {KEYS.hit_totals("m"): {"x": "y"}}, lambda client: HitWindows(client, KEYS).totals("m")),
    ("an answer", {KEYS.answers("m"): ["7"]}, lambda client: sampled_answers(client, KEYS, "m", 5)),
    ("a pointer", {TABLE.pointer: {"current": "x"}}, lambda client: table(client).pointer()),
    ("labels", {TABLE.pointer: {"labels": "canary"}}, lambda client: table(client).read(["a"])),
    *(
        ("a manifest", served(**changed), lambda client: table(client).read(["a"]))
        for changed in ({"buckets": 0}, {"buckets": 10**12}, {"created_at": 1e999}, {"fields": [{"name": "y"}]})
    ),
    ("a row", served() | {TABLE.bucket(1, 0): {"a": "x"}}, lambda client: table(client).read(["a"])),
    ("a row of a block", served() | {TABLE.bucket(1, 0): {"a": "x"}}, lambda client: table(client).read_block(["a"])),
    ("an overlay", served() | {TABLE.overlay(b"a").decode(): "x"}, lambda client: table(client).read(["a"])),
    (
        "an instant",
        served() | {TABLE.overlay(b"a").decode(): b"\0\0\0\0\0\0\xf0\x7f" + bytes(15)},
        lambda client: table(client).read(["a"]),
    ),
    (
        "a schema",
        served() | {TABLE.overlay(b"a").decode(): bytes(13) + b"digest" + bytes(8), TABLE.schemas: {"digest": "{}"}},
        lambda client: table(client).read(["a"]),
    ),
    ("generations", {TABLE.generations: {"x"}}, lambda client: table(client).generations.all()),
    ("a state", {TABLE.generation(1): {"state": "odd"}}, lambda client: table(client).generations.state(1)),
]  # fmt: skip


def hold(client: Client, held: Held) -> None:
    for key, value in held.items():
        if isinstance(value, dict):
            client.hset(key, mapping=value)
        elif isinstance(value, set):
            client.zadd(key, dict.fromkeys(value, 1.0))
        elif isinstance(value, list):
            client.rpush(key, *value)
        else:
            client.set(key, value)


@pytest.mark.integration
@pytest.mark.parametrize(("held", "read"), [one[1:] for one in RUBBISH], ids=[one[0] for one in RUBBISH])
def test_what_is_none_of_our_data_is_told_in_a_short_line(redis_client: Client, held: Held, read: Read) -> None:
    hold(redis_client, held)
    with pytest.raises(Unreadable) as told:
        read(redis_client)
    assert told.value.message.isprintable()
    assert len(told.value.message) < 250


@pytest.mark.integration
@pytest.mark.parametrize("changed", [{"state": "x"}, {"parts": "many"}, {"changed_at": ""}, {"error": "{"}])
async def test_a_job_that_is_none_is_told_so(
    redis_client: Client, redis_server: RedisServer, changed: dict[str, str]
) -> None:
    hold(redis_client, {KEYS.job("j"): JOB | changed})
    async with AsyncClient.from_url(redis_server.url()) as client:
        with pytest.raises(Unreadable):
            await jobs(client).show("j")


@pytest.mark.integration
@pytest.mark.parametrize(("parts", "error"), [("1", Unreadable), ("9" * 300, NotFound), (str(10**10), NotFound)])
async def test_a_result_is_not_looked_for_in_as_many_parts_as_a_record_says(
    redis_client: Client, redis_server: RedisServer, parts: str, error: type[Exception]
) -> None:
    hold(redis_client, {KEYS.job("j"): JOB | {"parts": parts}, KEYS.job_parts("j"): {"0": '{"predictions": 5}'}})
    async with AsyncClient.from_url(redis_server.url()) as client:
        queue = jobs(client)
        with pytest.raises(error):
            await queue.rows(await queue.show("j"))


def jobs(client: AsyncClient) -> JobQueue:
    async def enqueue(*_: object, **__: object) -> None:
        raise AssertionError

    return JobQueue(client, KEYS, enqueue, lambda: 2.0)


@pytest.mark.integration
@pytest.mark.parametrize("changed", [{"kind": None}, {"deadline": "soon"}, {"overrides": "{"}, {"model": b"\xff"}])
def test_a_part_of_a_job_that_is_none_fails_the_job(redis_client: Client, changed: dict[str, Any]) -> None:
    record = {name: value for name, value in (JOB | {"state": "queued"} | changed).items() if value is not None}
    hold(redis_client, {KEYS.job("j"): record, KEYS.job_inputs("j"): {"0": '["a"]'}})
    run_part(redis_client, KEYS, None, "j", 0)  # type: ignore[arg-type]  # it computes nothing
    told: Any = redis_client.hgetall(KEYS.job("j"))
    assert told[b"state"] == b"failed"
    assert json.loads(told[b"error"])["code"] == "unreadable"


@pytest.mark.parametrize(
    "read",
    [
        lambda: unpack_entities(b"x"),
        lambda: unpack_mask("x", 8),
        lambda: PartitionValue("day", "soon", "date32[day]").scalar,
        lambda: PartitionValue("day", "1", "no-such").scalar,
    ],
)
def test_parts_of_a_plan_that_are_none_are_told_so(read: Callable[[], Any]) -> None:
    with pytest.raises(Unreadable):
        read()


@pytest.mark.parametrize(
    "result",
    [
        {"predictions": 5},
        {"predictions": [5]},
        {"predictions": [{}]},
        {"predictions": [{"prediction": 1, "as_of": "x"}], "model_version": 1, "computed_at": 1.0},
        {"predictions": [{"prediction": 1}], "model_version": 1, "computed_at": float("inf")},
        {"predictions": [{"prediction": 1}], "model_version": {}, "computed_at": 1.0, "outputs": {}},
        {"predictions": [{"error": 1}], "error": "x"},
        {"predictions": [{"error": {}}], "error": {"code": []}},
        {"predictions": [None], "outputs": {"y": 1}, "model_version": 1, "error": 7},
        [],
    ],
)
def test_what_is_no_workers_result_is_a_fault_of_ours(result: Any) -> None:
    with pytest.raises(Defect):
        raise replies_from_result(result, 1)[0]  # type: ignore[misc]  # an error stands for its row
    for read in (outputs_from_result, explanation_from_result):
        with pytest.raises(Defect):
            read(result)


def test_tensors_that_a_worker_packed_otherwise_are_no_fault_of_the_client() -> None:
    with pytest.raises(Defect):
        outputs_from_result({"outputs": {"y": {"dtype": "float32"}}, "model_version": 1})


@pytest.mark.parametrize(
    "feature",
    [
        {"name": "x", "dtype": "float32", "min": 10**400},
        {"name": "x", "dtype": "float32", "max": -(10**400)},
        {"name": "x" * 500, "dtype": "float"},
        {"name": "x", "dtype": "y" * 500},
        {"name": "x", "dtype": "float32", "shape": ["z" * 500]},
        {"name": "x", "dtype": "float32", "w" * 500: 1},
        {"name": "x", "dtype": "float32", "group": "g" * 500},
        {"name": "x", "dtype": "string", "categories": ["c" * 500], "default": "d" * 500},
    ],
)
def test_a_contract_is_refused_with_no_more_than_64_characters_of_it(feature: dict[str, Any]) -> None:
    with pytest.raises(ContractError) as told:
        FeatureContract.from_json({"features": [feature]})
    assert not any(letter * 65 in told.value.message for letter in "xywzgcd")


@pytest.mark.parametrize(
    "text",
    [
        f"[api]\nkeep_alive = {10**400}",
        "[api]\nkeep_alive = nan",
        f"[api]\nport = {'9' * 5000}",
        f"a = {'[' * 5000}{']' * 5000}",
        f'[celery]\nlinked_tasks = {{ "{"x" * 500}" = "q" }}',
        f'[api]\nkeep_alive = "{"x" * 500}"',
        f'[models.m]\npath = "m"\nbatch = {{ schedule = "{"x" * 500}" }}',
        f"[models.{'x' * 500}]",
        f"[{'x' * 500}]",
    ],
)
def test_settings_are_refused_with_no_more_than_64_characters_of_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "forecache.toml").write_text(text)
    with pytest.raises(SettingsError) as told:
        load_settings(tmp_path / "forecache.toml")
    assert "x" * 65 not in told.value.message


@pytest.mark.parametrize("name", ["my model", "list[int]", "float", "['m', 5]"])
def test_an_unknown_setting_of_a_model_with_an_odd_name_is_told_with_those_that_are_known(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "forecache.toml").write_text(f'[models."{name}"]\npath = "m"\n[models."{name}".batch]\nttk = 1\n')
    with pytest.raises(SettingsError, match="unknown setting 'ttk'; did you mean 'ttl'") as told:
        load_settings(tmp_path / "forecache.toml")
    assert f"[models.{name}.batch]" in told.value.message


def test_a_message_stays_on_its_line_whatever_it_repeats() -> None:
    assert Defect("a\0b\x1b[31m\x85\u2028\ud800 ä🚀").message == r"a\x00b\x1b[31m\x85\u2028\ud800 ä🚀"


#: a table of three instants; as written, or with the type of its column changed in one of two places
FOOTER = (
    "FQQZLDUAGAZzY2hlbWEVAgAVBCUCGAJhdCUUTIwSHCwAAAAAABYGGRwZHCYAHBUEGSUGABkYAmF0FQAWBhaqARaqASYIPBgIAwAAAAAAAAAY"
    "CAEAAAAAAAAAFgIoCAMAAAAAAAAAGAgBAAAAAAAAABERABkcFQAVABUCADwpBhkmAgQAAAAWqgEWBiYIFqoBACggcGFycXVldC1jcHAtYXJy"
    "b3cgdmVyc2lvbiAyNi4wLjEZHBwAAAC5AAAAUEFSMQ=="
)


@pytest.mark.parametrize("changed", [None, (18, 0), (19, 36), (20, 3), (47, 0), (47, 5)])
def test_statistics_that_end_the_process_in_arrow_are_not_asked_for(changed: tuple[int, int] | None) -> None:
    footer = bytearray(base64.b64decode(FOOTER))
    if changed is not None:
        footer[changed[0]] = changed[1]
    metadata = pq.ParquetFile(pa.BufferReader(bytes(footer))).metadata
    assert newest_instants(metadata, 0) == ({} if changed else {0: 3e-06})


def test_a_column_whose_name_is_no_text_is_told_so(tmp_path: Path) -> None:
    pq.write_table(pa.table({"name": [1]}), tmp_path / "t.parquet", store_schema=False)
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole.replace(b"name", b"n\xffme"))
    with pytest.raises(SourceError, match="a column whose name is not UTF-8"):
        read_footer(open_location(str(tmp_path / "t.parquet")))
