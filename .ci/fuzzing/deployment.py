"""The HTTP application over a small Redis and a worker's own code, without a broker or processes."""

from __future__ import annotations

import atexit
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import structlog

from app.api import create_app
from app.api.process import ApiProcess
from inference.clock import system_clock
from inference.features import Feature, FeatureContract, FeatureWriter, Vectoriser
from inference.models import LoadedModel, VersionRecord
from inference.monitoring.presence import Roster
from inference.redis.clients import WORKER, open_client
from inference.redis.keys import TableKind
from inference.schema import Block, DType, Signature, TensorSpec
from inference.serving import PredictionService
from inference.serving.jobs import JobRequest
from inference.serving.scorer import RealtimeScorer, TensorScorer
from inference.settings import Settings
from inference.store import Entry, Origin, Pointer, Table
from tests.support.redis_server import RedisServer
from tests.support.serving_fakes import FakeRecorder
from tests.support.tables import new_table

#: of the log's last line with a traceback: what the application tells nobody
traceback_of: list[BaseException] = []

_FEATURES = [
    {"name": "x", "dtype": "float32", "default": 0.5},
    {"name": "n", "dtype": "int64", "min": 0, "max": 1000},
    {"name": "city", "dtype": "string", "categories": ["a", "b"], "default": "a"},
    {"name": "free", "dtype": "string", "nullable": True},
    {"name": "sure", "dtype": "bool"},
    {"name": "small", "dtype": "uint8", "shape": [2], "group": "own"},
    {"name": "half", "dtype": "float16", "nullable": True, "group": "own"},
]
_CONTRACT = FeatureContract.from_json({"features": _FEATURES, "groups": {"own": {"source": "table", "max_age": "24h"}}})
_PLAIN = FeatureContract((Feature("x", DType.FLOAT32),))
_NONE = FeatureContract(())


def _of(contract: FeatureContract) -> tuple[TensorSpec, ...]:
    return tuple(feature.spec for feature in contract.features)


def _spec(name: str, dtype: DType, *shape: int) -> TensorSpec:
    return TensorSpec(name, dtype, shape)


_MODELS: Mapping[str, tuple[FeatureContract, Signature]] = {
    "wide": (_CONTRACT, Signature(_of(_CONTRACT), (_spec("y", DType.FLOAT32),))),
    "plain": (_PLAIN, Signature((_spec("x", DType.FLOAT32),), (_spec("y", DType.FLOAT32),), ("y",))),
    "texts": (
        _NONE,
        Signature(
            (_spec("inputs", DType.STRING),), (_spec("scores", DType.FLOAT32, 2), _spec("classes", DType.STRING, 2))
        ),
    ),
    "regress": (_NONE, Signature((_spec("inputs", DType.STRING),), (_spec("outputs", DType.FLOAT32),))),
    "open": (
        _NONE,
        Signature(
            (_spec("a", DType.FLOAT64, -1, 2), _spec("b", DType.BOOL), _spec("c_bytes", DType.STRING, -1)),
            (_spec("a", DType.FLOAT64, -1, 2), _spec("c_bytes", DType.STRING, -1), _spec("n", DType.INT64)),
        ),
    ),
}


class _Model:
    """Gives back the input of an output's name, or zeros."""

    device = "cpu-1"

    def __init__(self, signature: Signature) -> None:
        self.signature = signature

    def predict(self, inputs: Block) -> Block:
        """Return the outputs."""
        rows = len(next(iter(inputs.values())))
        outputs = {}
        for spec in self.signature.outputs:
            shape = (rows, *(max(size, 0) for size in spec.shape))
            empty = np.full(shape, "" if spec.dtype is DType.STRING else 0, spec.dtype.numpy)
            outputs[spec.name] = inputs.get(spec.name, empty)
        return outputs


class _Host:
    """Holds one version of each model."""

    def __init__(self) -> None:
        self.loaded = {}
        for name, (contract, signature) in _MODELS.items():
            record = VersionRecord(
                version=1, state="ready", signature=signature, contract=contract, fingerprint="f", inspected_at=0.0
            )
            vectoriser = Vectoriser(contract, signature) if contract.features else None
            self.loaded[name] = LoadedModel(name, record, vectoriser, _Model(signature))

    def versions(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(self.loaded, (1,))

    def get(self, model: str, version: int | None = None) -> LoadedModel:
        return self.loaded[model]

    def share_out(self, model: str, _: Sequence[str], positions: list[int]) -> list[Any]:
        return [(self.loaded[model], positions)]


class _Reader:
    """A prediction table that an event loop reads."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def pointer(self) -> Pointer:
        return self._table.pointer()

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        return self._table.read(ids)

    async def read_generation(self, ids: Sequence[str], number: int) -> list[Entry | None]:
        return self._table.read_generation(ids, number)


class _Worker:
    """A real-time worker's code, which is given what a message would hold."""

    def __init__(self, settings: Settings, predictions: Any, features: Any) -> None:
        self.host: Any = _Host()
        self.scorer = RealtimeScorer(settings, self.host, predictions, features)
        self._tensors = TensorScorer(settings, self.host, self.scorer.in_time)

    async def __call__(
        self, task: str, kwargs: Mapping[str, Any], *, deadline: float, timeout_s: float
    ) -> dict[str, Any]:
        """Do a task."""
        did = {
            "forecache.predict_entities": self.scorer.predict_entities,
            "forecache.predict_instances": self.scorer.predict_instances,
            "forecache.predict_explained": self.scorer.explain_entity,
            "forecache.predict_tensors": self._tensors.predict_tensors,
        }[task]
        result = did(**json.loads(json.dumps(dict(kwargs))))  # type: ignore[operator]
        return json.loads(json.dumps(result))


class _Jobs:
    """Computes the parts of a job at once."""

    def __init__(self, scorer: RealtimeScorer) -> None:
        self._scorer = scorer

    async def create(self, request: JobRequest, *, idempotency_key: str | None = None) -> str:
        """Do a job."""
        packed = request.packed()
        for part in packed.parts:
            rows = json.loads(part)
            if request.entity_ids is None:
                result = self._scorer.predict_instances(request.model, rows)
            else:
                overrides = json.loads(packed.overrides) if packed.overrides else None
                result = self._scorer.predict_entities(request.model, rows, overrides=overrides)
            check_codes(json.loads(json.dumps(result)))
        return "a-job"


def check_codes(told: Any) -> None:
    """Refuse an answer that says that something of ours failed."""
    waiting = [told]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if one.get("code") == "internal":
                raise AssertionError("a defect") from (traceback_of or [None])[-1]
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def make_application() -> Any:
    """Return the application, with some predictions and features stored."""
    keep_tracebacks()
    models = {name: {"path": "m", "features": "t.parquet", "realtime": {"timeout_ms": 20_000}} for name in _MODELS}
    settings = Settings.model_validate({"models": models})
    client = open_client(_redis().url(), WORKER)
    predictions, features = ({name: new_table(client, kind) for name in _MODELS} for kind in TableKind)
    for table in predictions.values():
        table.versions.activate(1)
    _store(predictions["plain"], (_spec("y", DType.FLOAT32),), {"y": np.array([1.5], np.float32)})
    _store(features["plain"], _PLAIN.stored_fields, {"x": np.array([0.5], np.float32)})
    worker = _Worker(settings, predictions.__getitem__, features.__getitem__)
    readers = {name: _Reader(table) for name, table in predictions.items()}
    service = PredictionService(settings, readers.__getitem__, worker, FakeRecorder(), system_clock)
    app = create_app(settings)

    def writer(model: str, contract: FeatureContract) -> FeatureWriter:
        return FeatureWriter(features[model], predictions[model], contract, keep_s=3600)

    deployment: Any = SimpleNamespace(
        settings=settings,
        registry=SimpleNamespace(versions=lambda model: {1: worker.host.loaded[model].record}),
        presence=SimpleNamespace(roster=lambda _: Roster((), {})),
        feature_writer=writer,
    )
    jobs: Any = _Jobs(worker.scorer)
    enqueue: Any = None
    process = ApiProcess(deployment, service, readers, jobs, enqueue)
    app.process = process
    return app


@cache
def _redis() -> RedisServer:
    """Return a Redis that ends with this process."""
    server = RedisServer(Path(tempfile.mkdtemp()))
    atexit.register(server.stop)
    return server.start()


def _store(table: Table, fields: tuple[TensorSpec, ...], block: Block) -> None:
    version = 0 if "x" in block else 1
    table.overlay.upsert(
        ["a"], fields, block, as_of=np.array([system_clock()]), computed_at=system_clock(), model_version=version,
        origin=Origin.UPSERT, keep_s=86_400,
    )  # fmt: skip


def keep_tracebacks() -> None:
    """Have the log keep the last exception that it is told of, and print nothing."""

    def keep(_: Any, __: str, line: dict[str, Any]) -> dict[str, Any]:
        error = line.get("exc_info")
        if isinstance(error, BaseException):
            traceback_of[:] = [error]
        raise structlog.DropEvent

    structlog.configure(processors=[keep], cache_logger_on_first_use=False)
