"""What Redis holds of runs, models, jobs, workers and rows: anybody who reaches it may write it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from fuzzing.deployment import keep_tracebacks
from fuzzing.in_redis import Awaited, Held, client_of
from fuzzing.rule import Parser, refusing
from inference.batch import RunState, RunView
from inference.batch.gates import BadRows, Gate
from inference.batch.ledger import Ledger
from inference.batch.publishing import bad_rows_of
from inference.batch.records import Chunk, Fingerprint, RunDetails, RunRecord, Trigger
from inference.batch.selection import pack_entities, unpack_entities
from inference.errors import Defect, ForecacheError, ModelUnavailable, NotFound, StoreUnavailable
from inference.features import Feature, FeatureContract, FeatureGroup
from inference.gpus import GpuUse
from inference.models import ModelRegistry, VersionRecord
from inference.monitoring.presence import Presence, WorkerBeat
from inference.monitoring.statistics import HitWindows
from inference.protocols.tensors import pack
from inference.redis.keys import Keys, TableKind
from inference.schema import DType, Signature, TensorSpec
from inference.serving.answer_sample import SampledAnswer, sampled_answers
from inference.serving.answers import explanation_from_result, outputs_from_result, replies_from_result
from inference.serving.job_queue import JobQueue
from inference.serving.jobs import run_part
from inference.sources import Slice, SourceFile
from inference.sources.partitions import PartitionValue
from inference.sources.reading import pack_mask
from inference.store import Manifest, Origin, Table
from inference.store.codec import codec_for, pack_outdated, pack_overlay, schema_digest, schema_text
from tasks.dispatch.dispatcher import result_of
from tasks.dispatch.waiter import _payload_of

_P = Keys("p")
_TABLE = _P.table(TableKind.PREDICTIONS, "m")
#: of one record that cannot be read; an outage of the store by its class, as every caller expects
_OURS = (StoreUnavailable, NotFound, ModelUnavailable, Defect)


def _of_runs(held: Held) -> None:
    ledger = Ledger(client_of(held), _P)
    record = ledger.load("r")
    record.check_format()
    RunView.of(record, now=1e9).to_json()
    ledger.newest("m", 5)
    RunDetails.look_at(record, ledger.chunk_states("r"), record.bad_rows, now=1e9).to_json()
    if record.fingerprint is not None:
        Fingerprint("f", "id", None, 1, "h", 1, 1).differences(record.fingerprint)


def _of_chunks(held: Held) -> None:
    ledger = Ledger(client_of(held), _P)
    ledger.active_run("m")
    bad_rows_of(ledger.results("r").values())
    ledger.histogram("r")
    ledger.chunk_states("r")


def _of_plans(held: Held) -> None:
    plans = Ledger(client_of(held), _P).plans
    chunk = plans.chunk("r", 0)
    if chunk is not None:
        _ = chunk.rows
    for _, file in zip(range(5), plans.files("r"), strict=False):
        _ = [value.scalar for value in file.partition]
    packed = plans.entities("r")
    if packed is not None:
        unpack_entities(packed)


def _of_models(held: Held) -> None:
    registry = ModelRegistry(client_of(held), _P)
    for record in registry.versions("m").values():
        _ = (record.contract_hash, record.remark, record.signature.model_outputs, record.contract.stored_fields)
    registry.get("m", 1)
    registry.micro_batch("m", 1, "cpu")
    registry.reloads("m")
    registry.unfinished_loads("m").interrupted(1)


def _of_workers(held: Held) -> None:
    roster = Presence(client_of(held), _P).roster("q")
    for worker in roster.alive:
        worker.to_json()
        _ = sum(len(versions) for versions in worker.versions.values()) + worker.started_at + worker.pid


def _of_hits(held: Held) -> None:
    windows = HitWindows(client_of(held), _P, lambda: 6_000_000.0)
    windows.totals("m")
    statistics = windows.statistics("m", 60)
    for histogram in (statistics.hit_latency, statistics.age):
        histogram.quantile(0.99)
    with suppress(StoreUnavailable):  # an outage, which its caller tells
        sampled_answers(client_of(held), _P, "m", 10)


def _of_jobs(held: Held) -> None:
    async def enqueue(*_: Any, **__: Any) -> None:
        pass

    queue: Any = JobQueue(Awaited(held), _P, enqueue, lambda: 1_800_000_000.0)  # type: ignore[arg-type]

    async def show() -> None:
        view = await queue.show("j")
        for row in await queue.rows(view):
            _ = row.answer.to_json() if isinstance(row.answer, Exception) else row.answer.to_json_text()

    _loop().run_until_complete(show())


def _of_parts(held: Held) -> None:
    scorer: Any = SimpleNamespace(
        predict_entities=lambda *_, **__: {"predictions": []}, predict_instances=lambda *_, **__: {"predictions": []}
    )
    with suppress(StoreUnavailable):  # an outage, which the task tells
        run_part(client_of(held), _P, scorer, "j", 0)


def _of_tables(held: Held) -> None:
    table = Table(client_of(held), _TABLE, kind=TableKind.PREDICTIONS, model="m")
    for read in (table.pointer, lambda: table.generations.manifest(1), lambda: table.read(["a", "b"])):
        with refusing(*_OURS, sent=None):
            read()
    with refusing(*_OURS, sent=None):
        table.read_block(["a", "b", "c"])
    with refusing(*_OURS, sent=None):
        table.read_for_change(["a"])
    with refusing(*_OURS, sent=None):
        table.read_generation(["a"], 1)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


_READERS: dict[str, Callable[[Held], None]] = {
    "runs": _of_runs, "chunks": _of_chunks, "plans": _of_plans, "models": _of_models, "workers": _of_workers,
    "hits": _of_hits, "jobs": _of_jobs, "parts": _of_parts,
}  # fmt: skip


def attempt_record(example: Any) -> None:
    """Read what stands in Redis by the code that reads it."""
    keep_tracebacks()
    if not isinstance(example, dict) or not isinstance(example.get("keys"), dict):
        return
    reader = _READERS.get(str(example.get("of")))
    if reader is not None:
        with refusing(*_OURS, sent=example):
            reader(Held(example["keys"]))


def attempt_table(example: Any) -> None:
    """Look rows up in what stands in Redis."""
    if isinstance(example, dict):
        _of_tables(Held(example))


def attempt_result(example: Any) -> None:
    """Read what stands under the key of a task's result."""
    if not isinstance(example, dict):
        return
    keep_tracebacks()
    payload = _payload_of(json.dumps(example))
    if payload is None:
        return
    with suppress(ForecacheError):  # it may be any that a worker told, in any words
        result = result_of(payload, "t")
        read = (lambda: replies_from_result(result, 1), lambda: outputs_from_result(result))
        for each in (*read, lambda: explanation_from_result(result)):
            with suppress(ForecacheError):
                each()


_FIELDS = (TensorSpec("x", DType.FLOAT32), TensorSpec("s", DType.STRING), TensorSpec("v", DType.INT64, (2,)))
_BLOCK = {"x": np.ones(1, np.float32), "s": np.array(["ä"], object), "v": np.array([[1, 2]])}
_PLAIN = (TensorSpec("y", DType.FLOAT32),)
_OPEN = (TensorSpec("o", DType.FLOAT64, (-1,)),)
_MANIFEST = Manifest(1, _FIELDS, 8, 1, "h", "r", 1.5e9, 2e9, 10)


def _text(data: bytes) -> str:
    return data.decode("latin-1")


def _seeds_of_records() -> Iterator[dict[str, Any]]:
    record = RunRecord(
        run_id="r", model="m", state=RunState.RUNNING, trigger=Trigger.API, source="t.parquet", created_at=1e9,
        started_at=1e9, chunks_total=3, rows_total=90, rows_done=30, chunks_done=1, model_version=1, entities_asked=2,
    )  # fmt: skip
    gates = json.dumps([asdict(Gate("size", True, "large"))])
    bad = BadRows("x", "missing", 2, ("a",))
    more = {
        "state": "running", "fingerprint": json.dumps(asdict(Fingerprint("f", "id", "at", 1, "h", 5, 6))),
        "gates": gates, "bad_rows": json.dumps([asdict(bad)]), "forced_by": "me", "forced_at": "1.5", "format": "1",
        "generation": "3", "spent": "1", "error": "e", "last_error": "l", "scored_at": "2e9", "finished_at": "2e9",
        "resumed_at": "1e9", "rows_before": "3", "feature_generation": "4",
    }  # fmt: skip
    claims = {"0": "1 token 1800000005000", "1": "2 - 5"}
    done = {"0": json.dumps({"rows": 30, "bad_rows": [asdict(bad)], "took_s": 1.5})}
    run = {
        "p:r:r": record.hash_after_loss("e") | more, "p:m:m:runs": ["r"], "p:r:r:claims": claims, "p:r:r:done": done,
        "p:r:r:sent": ["0", "1"],
    }  # fmt: skip
    yield {"of": "runs", "keys": run}
    yield {"of": "chunks", "keys": {**run, "p:m:m:active_run": "r", "p:r:r:histogram": {"y:-3": "5", "y:4": "1"}}}
    chunk = Chunk(0, (Slice(0, 0, 0, 8), Slice(1, 0, 3, 2, pack_mask(np.array([True, False])))))
    parts = (PartitionValue("day", "2026-01-31", "date32[day]"), PartitionValue("n", None, "int64"))
    file = json.dumps(SourceFile("t.parquet", 5, "s", "f", partition=parts).to_json())
    plan = {"0": json.dumps(chunk.to_json()), "f0": file, "f1": file}
    yield {"of": "plans", "keys": {"p:r:r:plan": plan, "p:r:r:entities": _text(pack_entities(["a", "b"]))}}
    features = (Feature("x", DType.FLOAT32, (), 0.5), Feature("s", DType.STRING, group="g", nullable=True))
    contract = FeatureContract(features, (FeatureGroup(), FeatureGroup("g", max_age_s=5.0)))
    version = VersionRecord(
        version=1, state="ready", signature=Signature(_FIELDS, _PLAIN, ("y",)), contract=contract, fingerprint="f",
        inspected_at=1e9, format="onnx", notice="odd",
    )  # fmt: skip
    models = {"1": json.dumps(version.to_json())}
    models["2"] = json.dumps(VersionRecord.refused(2, "bad", inspected_at=1.5).to_json())
    others = {
        "p:m:m:micro": {"1:cpu": '{"rows": 64, "fingerprint": "f"}'}, "p:m:m:reload": {"asked": "3", "w": "2"},
        "p:m:m:loads": {"1 host 5": "1.5"},
    }  # fmt: skip
    yield {"of": "models", "keys": {"p:m:m:record": models, **others}}
    beat = WorkerBeat(
        name="w@h", process="realtime", queues=("q",), host="h", pid=5, release="1.0", started_at=1e9, ready=True,
        versions={"m": (1, 2)}, gpus=(GpuUse(0, "g", 1, 2, 0.5),), breakers={"m": "closed"},
    )  # fmt: skip
    alive = {"p:q:q": ["w@h pid 5", "w2"], "p:w:w@h pid 5": json.dumps(beat.to_json())}
    yield {"of": "workers", "keys": alive}
    counts = {"hit_batch": "5", "computed": "2", "hit_s:3": "5", "hit_s:sum": "500", "age_s:2": "1"}
    answer = SampledAnswer("a", "v", {"y": [1.5]}, 1, 1e9)
    totals = {"p:h:m:total": counts, "p:h:m:100000": counts, "p:m:m:answers": [json.dumps(asdict(answer))]}
    yield {"of": "hits", "keys": totals}
    told = {"code": "prediction-failed", "message": "nan", "field": None}
    rows = [
        {"entity_id": "a", "prediction": 1.5, "as_of": 1e9, "imputed_features": ["x"]},
        {"entity_id": "b", "error": told},
    ]
    result = json.dumps({"model": "m", "model_version": 1, "computed_at": 1e9, "predictions": rows})
    job = {
        "state": "done", "model": "m", "kind": "entities", "overrides": '{"x": 1}', "deadline": "1.5",
        "priority": "low", "parts": "1", "minute": "5", "changed_at": "1799999990", "error": json.dumps(told),
    }  # fmt: skip
    yield {"of": "jobs", "keys": {"p:j:j": job, "p:j:j:parts": {"0": result}, "p:j:j:inputs": {"1": '["a"]'}}}
    yield {"of": "jobs", "keys": {"p:j:j": job | {"state": "running", "changed_at": "1799999850"}}}
    yield {"of": "parts", "keys": {"p:j:j": job, "p:j:j:inputs": {"0": '["a", "b"]'}}}
    yield {"of": "parts", "keys": {"p:j:j": job | {"kind": "instances"}, "p:j:j:inputs": {"0": '[{"x": 1}]'}}}


def _seeds_of_tables() -> Iterator[dict[str, Any]]:
    at = np.array([1.6e9])
    row = codec_for(_FIELDS).pack(_BLOCK, at).to_pylist()[0]
    plain = codec_for(_PLAIN).pack({"y": np.ones(1, np.float32)}, at).to_pylist()
    opened = np.empty(1, object)
    opened[0] = np.array([1.5, 2.5])
    loose = codec_for(_OPEN).pack({"o": opened}, at).to_pylist()
    pointer = {
        "current": "1", "previous": "0", "version": "1", "held": "2,3", "incarnation": "i", "canary_share": "0.5",
        "labels": "canary=4,stable=3",
    }  # fmt: skip
    base = _TABLE.base
    for fields, rows, version in ((_FIELDS, [row], 1), (_PLAIN, plain, 2**40), (_OPEN, loose, 4)):
        entry = pack_overlay(fields, rows, 1.7e9, version, Origin.REALTIME)[0]
        yield {
            f"{base}:pointer": pointer | {"version": str(version)},
            f"{base}:g:1": {"state": "current", "manifest": replace(_MANIFEST, fields=fields).to_json()},
            "rows": {"a": _text(rows[0]), "b": _text(rows[0])},
            f"{base}:o:a": _text(entry),
            f"{base}:o:b": _text(pack_outdated(1.7e9, 1_650_000_000)),
            f"{base}:schemas": {_text(schema_digest(fields)): schema_text(fields)},
        }
        yield {
            f"{base}:pointer": {"version": str(version)}, f"{base}:o:a": _text(entry),
            f"{base}:schemas": {_text(schema_digest(fields)): schema_text(fields)},
        }  # fmt: skip


def _seeds_of_results() -> Iterator[dict[str, Any]]:
    item = {"entity_id": "a", "prediction": 1.5, "as_of": 1e9, "imputed_features": ["x"]}
    told = {"code": "bad-input", "message": "no", "field": None}
    result = {"model": "m", "model_version": 1, "computed_at": 1e9, "predictions": [item]}
    yield {"status": "SUCCESS", "result": result, "traceback": None}
    yield {"status": "SUCCESS", "result": result | {"predictions": [{"entity_id": "a", "error": told}]}}
    yield {"status": "SUCCESS", "result": {"error": told}}
    outputs = pack({"y": np.ones((1, 2), np.float32), "s": np.array(["x"], object)})
    yield {"status": "SUCCESS", "result": {"model_version": 1, "outputs": outputs, "explanation": {"x": {}}}}
    yield {"status": "FAILURE", "result": {"exc_type": "BadInput", "exc_message": ["no"]}}
    yield {"status": "REVOKED", "result": None}


PARSERS = {
    "records": Parser(_seeds_of_records, attempt_record),
    "tables": Parser(_seeds_of_tables, attempt_table),
    "results": Parser(_seeds_of_results, attempt_result),
}
