"""While a request is computed on a GPU, batch workers of the host can see that; on processors nothing is locked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from inference import host_locks
from inference.features import Feature, FeatureContract, Vectoriser
from inference.models import LoadedModel, ModelHost, VersionRecord
from inference.protocols.tensors import pack
from inference.schema import Block, DType, Signature, TensorSpec
from inference.serving.scorer import RealtimeScorer, TensorScorer
from inference.settings import Settings

SIGNATURE = Signature((TensorSpec("x", DType.FLOAT32),), (TensorSpec("y", DType.FLOAT32),))
SETTINGS = Settings.model_validate({"models": {"m": {"path": "m"}}})
LOCK = "gpu-GPU-1f_2"


class Model:
    """Notes whether the GPU's lock is held while it computes."""

    signature = SIGNATURE

    def __init__(self, device: str) -> None:
        self.device = device
        self.is_held: list[bool] = []

    def predict(self, inputs: Block) -> Block:
        self.is_held.append(host_locks.is_held(host_locks.lock_file(LOCK)))
        return {"y": inputs["x"]}


def scorers(model: Model) -> tuple[RealtimeScorer, TensorScorer]:
    contract = FeatureContract((Feature("x", DType.FLOAT32),))
    record = VersionRecord(
        version=1, state="ready", signature=SIGNATURE, contract=contract, fingerprint="f", inspected_at=0.0
    )
    loaded = LoadedModel("m", record, Vectoriser(contract, SIGNATURE), model)
    host = cast(ModelHost, SimpleNamespace(get=lambda *_: loaded))
    table: Any = SimpleNamespace(now=lambda: 0.0)
    scorer = RealtimeScorer(SETTINGS, host, lambda _: table, lambda _: table)
    return scorer, TensorScorer(SETTINGS, host, scorer.in_time)


@pytest.mark.parametrize(("device", "is_held"), [("NVIDIA H200", True), ("cpu-2", False)])
def test_batch_workers_see_that_a_request_is_computed_on_their_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, is_held: bool
) -> None:
    monkeypatch.setattr(host_locks, "FOLDER", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1f/2")
    model = Model(device)
    entities, tensors = scorers(model)
    [answer] = entities.predict_instances("m", [{"x": 1.5}])["predictions"]
    assert answer["prediction"] == 1.5
    assert "outputs" in tensors.predict_tensors("m", pack({"x": np.ones(1, np.float32)}))
    assert model.is_held == [is_held, is_held]
    assert not host_locks.is_held(host_locks.lock_file(LOCK))
