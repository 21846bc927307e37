"""A model that an engine elsewhere computes: how it is asked, what its errors mean, what happens when it is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inference.errors import ModelError, ModelUnavailable, PredictionFailed
from inference.models import LoadedModel, ModelHost, ModelRegistry, Rollout, score_rows
from inference.models.loading import load_version
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.settings import Settings
from tests.support.models import float_features, write_features
from tests.support.open_inference import OpenInferenceServer
from tests.support.runtimes.cases import learnt_weights
from tests.support.runtimes.remote_cases import models
from tests.support.tensorflow_serving import ServedModel, TensorFlowServingServer
from tests.support.waiting import LONG_S

pytestmark = pytest.mark.integration

X = np.arange(20, dtype=np.float32).reshape(5, 4) / 10


@pytest.fixture
def engine() -> Iterator[TensorFlowServingServer]:
    with TensorFlowServingServer(models()) as server:
        yield server


def load(folder: Path, server: TensorFlowServingServer, name: str = "plain", **more: str) -> LoadedModel:
    engine = {"protocol": "tensorflow-serving", "name": name, "url": server.url, **more}
    (folder / "remote.toml").write_text("\n".join(f'{key} = "{value}"' for key, value in engine.items()))
    return load_version("m", folder, 1, folder)


def wanted() -> np.ndarray:
    weights, bias = learnt_weights()
    return (X @ weights + bias)[:, 0]


@pytest.mark.parametrize("which", [{}, {"version": "7"}, {"label": "stable"}])
def test_a_version_or_a_label_may_be_asked_for(
    tmp_path: Path, engine: TensorFlowServingServer, which: dict[str, str]
) -> None:
    assert load(tmp_path, engine, **which).predict({"x": X})["y"] == pytest.approx(wanted(), rel=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "nobody"}, r"answered 404 \(reference \w+ in the worker's log\)$"),
        ({"version": "8"}, "answered 404"),
        ({"label": "canary"}, "answered 400"),
        ({"signature": "other"}, "no signature 'other'; it has: serving_default"),
        ({"version": "7", "label": "stable"}, "version and label exclude each other"),
        ({"urll": "x"}, "urll: no such key; known: "),
        ({"url": "127.0.0.1:8501"}, "url: .* starts with http://"),
        ({"timeout": "soon"}, "timeout: .*is not a duration"),
    ],
)
def test_what_the_engine_does_not_have_or_the_file_gets_wrong_is_refused_by_name(
    tmp_path: Path, engine: TensorFlowServingServer, given: dict[str, str], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        load(tmp_path, engine, **given)


def test_open_inference_knows_versions_and_no_labels(tmp_path: Path) -> None:
    with OpenInferenceServer(models()) as engine:
        loaded = load(tmp_path, engine, protocol="open-inference", version="7")
        assert loaded.predict({"x": X})["y"] == pytest.approx(wanted(), rel=1e-5)
        with pytest.raises(ModelError, match="answered 404"):
            load(tmp_path, engine, protocol="open-inference", version="8")
        with pytest.raises(ModelError, match="label is TensorFlow Serving's"):
            load(tmp_path, engine, protocol="open-inference", label="stable")


def test_an_engine_that_does_not_say_what_a_model_takes_is_refused(tmp_path: Path) -> None:
    with (
        OpenInferenceServer({"plain": ServedModel({}, {}, dict)}) as engine,
        pytest.raises(ModelError, match="does not say what the inputs of model 'plain' are"),
    ):
        load(tmp_path, engine, protocol="open-inference")


def test_connections_are_kept(tmp_path: Path, engine: TensorFlowServingServer) -> None:
    loaded = load(tmp_path, engine)
    for _ in range(20):
        loaded.predict({"x": X})
    assert len(engine.connections) == 1


def test_a_request_that_was_turned_away_is_sent_again_once(tmp_path: Path, engine: TensorFlowServingServer) -> None:
    loaded = load(tmp_path, engine)
    engine.refuse_next = [503]
    assert loaded.predict({"x": X})["y"] == pytest.approx(wanted(), rel=1e-5)
    engine.refuse_next = [503, 503]
    with pytest.raises(ModelUnavailable, match="answered 503"):
        loaded.predict({"x": X})


def test_a_refused_request_is_not_sent_again(tmp_path: Path, engine: TensorFlowServingServer) -> None:
    loaded = load(tmp_path, engine)
    before = engine.predictions
    with pytest.raises(PredictionFailed, match="answered 400"):
        loaded.predict({"x": np.zeros((2, 9), np.float32)})
    assert engine.predictions == before + 1


def test_a_request_that_is_too_large_for_the_engine_is_sent_in_halves(
    tmp_path: Path, engine: TensorFlowServingServer
) -> None:
    loaded = load(tmp_path, engine)
    engine.refuse_next = [413]
    scored = score_rows(loaded, {"x": X})
    assert scored.too_many_rows == len(X)
    assert scored.outputs["y"] == pytest.approx(wanted(), rel=1e-5)


def test_an_engine_that_is_late_had_its_time_once(tmp_path: Path, engine: TensorFlowServingServer) -> None:
    loaded = load(tmp_path, engine, timeout="2s")
    engine.delay_s, before, started = 2 * LONG_S, engine.predictions, time.monotonic()
    with pytest.raises(ModelUnavailable, match="did not answer in time"):
        loaded.predict({"x": X})
    assert time.monotonic() - started < LONG_S
    assert engine.predictions == before + 1


def test_an_engine_that_is_gone_is_an_outage_and_no_fault_of_the_rows(tmp_path: Path) -> None:
    with TensorFlowServingServer(models()) as engine:
        loaded = load(tmp_path, engine)
        engine.close_connections()
    with pytest.raises(ModelUnavailable, match="does not answer"):
        score_rows(loaded, {"x": X})
    with pytest.raises(ModelError, match=rf"remote\.toml: {engine.url} does not answer"):
        load_version("m", tmp_path, 1, tmp_path)


def test_rows_are_not_halved_while_the_engine_turns_all_away(tmp_path: Path, engine: TensorFlowServingServer) -> None:
    loaded = load(tmp_path, engine)
    engine.refuse_next = [503] * 100
    before = engine.predictions
    with pytest.raises(ModelUnavailable):
        score_rows(loaded, {"x": X})
    assert engine.predictions == before + 2


def test_numbers_that_are_none_go_both_ways(tmp_path: Path, engine: TensorFlowServingServer) -> None:
    loaded = load(tmp_path, engine)
    x = X.copy()
    x[2, 1] = np.nan
    scored = score_rows(loaded, {"x": x})
    assert np.flatnonzero(scored.failed).tolist() == [2]
    assert scored.outputs["y"][[0, 4]] == pytest.approx(wanted()[[0, 4]], rel=1e-5)


def test_bytes_are_decoded_where_the_outputs_name_says_so(tmp_path: Path, engine: TensorFlowServingServer) -> None:
    as_bytes = np.array([{"b64": "w7xiZXI="}], object)
    engine.models["bytes"] = ServedModel(
        {"x": ("DT_FLOAT", ())},
        {"word_bytes": ("DT_STRING", ())},
        lambda x: {"word_bytes": np.repeat(as_bytes, len(x))},
    )
    assert load(tmp_path, engine, "bytes").predict({"x": X[:, 0]})["word_bytes"].tolist() == ["über"] * 5


def test_a_version_that_was_refused_while_its_engine_was_away_is_tried_again_when_workers_look(
    tmp_path: Path, engine: TensorFlowServingServer, redis_client: Client
) -> None:
    write_features(tmp_path / "m", float_features(4))
    (tmp_path / "m" / "1").mkdir()
    lines = f'protocol = "tensorflow-serving"\nname = "plain"\nurl = "{engine.url}"\n'
    (tmp_path / "m" / "1" / "remote.toml").write_text(lines)
    settings = Settings.model_validate({"models": {"m": {"path": str(tmp_path / "m")}}})
    registry = ModelRegistry(redis_client, Keys("t"))
    host = ModelHost(settings, registry)
    rollout = Rollout(settings, host, registry, "m", answers=True, others=list)
    served, engine.models = engine.models, {}
    host.start()
    for _ in range(3):
        rollout.look()
    assert registry.versions("m")[1].state == "refused"
    engine.models, engine.refuse_next = served, [503] * 100
    rollout.look()
    assert registry.active_version("m") is None
    engine.refuse_next = []
    assert rollout.look()
    assert (registry.active_version("m"), host.get("m").record.version) == (1, 1)
