"""Real TensorFlow models: inspected, loaded, activated, refused, and computing on demand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pytest

from inference.errors import ContractError, ModelError, ModelUnavailable, SourceError, UnknownModel
from inference.features import load_features
from inference.models import (
    LoadedModel,
    ModelHost,
    ModelRegistry,
    find_versions,
    inspect_in_subprocess,
    inspect_versions,
    score_rows,
)
from inference.models.host import VersionWaits
from inference.models.loading import load_version
from inference.models.warm_up import SampleRows
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.schema import DType, TensorSpec
from inference.serving.scorer import RealtimeScorer
from inference.settings import Settings
from inference.store import Table
from tests.support.models import dense_predictions, export_models, float_features, write_features
from tests.support.redis_server import RedisServer
from tests.support.stack import run_worker

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one SavedModel of each kind, each version 1; tests must not change it."""
    folder = tmp_path_factory.mktemp("models")
    kinds = ("dense:4:0", "dense:4:1", "mixed", "several", "fussy", "fixed", "keras:3")
    export_models({folder / kind.replace(":", "-") / "1": kind for kind in kinds})
    write_features(folder / "dense-4-0", float_features(4))
    write_features(folder / "several", float_features(4))
    write_features(folder / "fussy", float_features(2, default=1.0))
    write_features(folder / "keras-3", float_features(3))
    return folder


@pytest.fixture
def models(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "models"))


@pytest.fixture
def keys() -> Keys:
    return Keys("t")


def settings_for(models: Path, *, features: str | None = None, **names: str) -> Settings:
    return Settings.model_validate(
        {"models": {name: {"path": str(models / folder), "features": features} for name, folder in names.items()}}
    )


def load(models: Path, folder: str) -> LoadedModel:
    return load_version(folder, models / folder, 1, models / folder / "1")


def table(client: Client, keys: Keys, kind: TableKind, model: str) -> Table:
    return Table(client, keys.table(kind, model), kind=kind, model=model)


# --- the runtime ---


def test_a_dense_model_computes_what_numpy_computes_in_the_order_of_its_rows(exported: Path) -> None:
    loaded = load(exported, "dense-4-0")
    assert loaded.record.signature.outputs == (TensorSpec("y", DType.FLOAT32),)
    x = np.random.default_rng(3).normal(size=(1000, 4)).astype(np.float32)
    y = loaded.predict({"x": x})["y"]
    assert y.shape == (1000,)
    np.testing.assert_allclose(y, dense_predictions(x), rtol=1e-5, atol=1e-6)


def test_text_goes_in_as_it_is_and_is_looked_up_inside_the_model(exported: Path) -> None:
    loaded = load(exported, "mixed")
    assert sorted(loaded.vectoriser.columns) == ["carat", "cut", "depth"]
    batch = pa.record_batch({"cut": ["Ideal", "Nonsense", "Fair"], "carat": [1.0, 2.0, 0.5], "depth": [60, 61, 62]})
    rows = loaded.vectoriser.features_from_arrow(batch)
    assert loaded.predict(loaded.vectoriser.inputs(rows.block))["price"].tolist() == [190.0, 261.0, 122.0]


def test_several_outputs_keep_their_names_shapes_and_text(exported: Path) -> None:
    loaded = load(exported, "several")
    assert {spec.name: (spec.dtype, spec.shape) for spec in loaded.record.signature.outputs} == {
        "score": (DType.FLOAT32, ()),
        "embedding": (DType.FLOAT32, (3,)),
        "label": (DType.STRING, ()),
    }
    outputs = loaded.predict({"x": np.array([[1, 2, 3, 4], [-1, -2, -3, -4]], np.float32)})
    assert outputs["score"].tolist() == [10, -10]
    assert outputs["embedding"].tolist() == [[2, 4, 6], [-2, -4, -6]]
    assert outputs["label"].tolist() == ["über", "unter"]


def test_a_model_exported_by_keras_is_served(exported: Path) -> None:
    loaded = load(exported, "keras-3")
    block = {f"f{i}": np.ones(5, np.float32) for i in range(3)}
    (values,) = loaded.predict(loaded.vectoriser.inputs(block)).values()
    assert values.shape == (5,)


def test_a_fixed_row_dimension_is_refused_where_there_are_features(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported / "fixed", tmp_path / "fixed"))
    write_features(folder, float_features(2))
    told = "'x' has a fixed row dimension of 1: export it with None there"
    with pytest.raises(ModelError, match=told):
        load(tmp_path, "fixed")
    with pytest.raises(ModelError, match=told):
        load_version("m", exported / "fixed", 1, exported / "fixed" / "1", rows=SampleRows("t.parquet"))


def test_without_features_such_a_model_can_only_be_called(exported: Path) -> None:
    loaded = load(exported, "fixed")
    assert not loaded.record.computes_rows
    assert "'x' has a fixed row dimension of 1" in (loaded.record.unproven or "")
    outputs = loaded.call("serving_default", {"x": np.ones((1, 2), np.float32)})
    assert outputs["y"].tolist() == [[1.0, 1.0]]
    with pytest.raises(ContractError, match="the model computes no rows"):
        loaded.vectoriser  # noqa: B018 - raises


def test_a_version_without_rows_replaces_only_another_such(models: Path, registry: ModelRegistry) -> None:
    shutil.copytree(models / "fixed" / "1", models / "fixed" / "2")
    shutil.copytree(models / "fixed" / "1", models / "mixed" / "2")
    settings = settings_for(models, m="mixed", n="fixed")
    host = ModelHost(settings, registry)
    host.start()
    # nothing answered before: the newest one that answers rows goes first
    assert registry.active_version("m") == 1
    assert registry.active_version("n") == 2
    with pytest.raises(VersionWaits, match="only clients of /v1 can call it"):
        host.load("m", 2, must_answer=True)
    shutil.copytree(models / "fixed" / "1", models / "fixed" / "3")
    assert host.load("n", 3, must_answer=True).record.is_proved


def test_a_raising_row_fails_alone_and_so_does_a_non_finite_one(exported: Path) -> None:
    loaded = load(exported, "fussy")
    first = np.ones(64, np.float32)
    first[[5, 40]] = -1
    second = np.ones(64, np.float32)
    second[7] = 0
    scored = score_rows(loaded, {"f0": first, "f1": second})
    assert np.flatnonzero(scored.failed).tolist() == [5, 7, 40]
    assert scored.reasons[7] == "output 'y' is not a finite number"
    assert "negative distance" in scored.reasons[5]
    assert scored.outputs["y"][[0, 63]].tolist() == [0, 0]


# --- versions and inspection ---


@pytest.mark.parametrize("bare", [True, False])
def test_versions_are_numbered_folders_or_one_bare_model(models: Path, bare: bool) -> None:
    folder = models / "mixed"
    if bare:
        assert find_versions(folder / "1") == {1: folder / "1"}
    else:
        shutil.copytree(folder / "1", folder / "10")
        (folder / "notes").mkdir()
        assert find_versions(folder) == {1: folder / "1", 10: folder / "10"}


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone does not exist: correct the model's path"):
        find_versions(tmp_path / "gone")
    with pytest.raises(ModelError, match="holds no model: put one there"):
        find_versions(tmp_path)
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="is a file: give the folder that holds the model"):
        find_versions(tmp_path / "m.onnx")


@pytest.mark.slow
def test_inspecting_takes_no_tensorflow_into_this_process(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    records = inspect_in_subprocess(settings_for(exported, m="several"), "m")
    here = inspect_versions(exported / "several", "latest")
    assert list(records) == [1]
    assert records[1].state == "ready"
    assert records[1].signature == here[1].signature
    assert records[1].contract_hash == here[1].contract_hash
    assert records[1].fingerprint == here[1].fingerprint


@pytest.mark.slow
def test_inspecting_a_bad_folder_ends_in_one_line(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (models / "mixed" / "1" / "saved_model.pb").write_bytes(b"no protobuf")
    with pytest.raises(ModelError, match="cannot be loaded as a SavedModel") as caught:
        inspect_in_subprocess(settings_for(models, m="mixed"), "m")
    assert "\n" not in caught.value.message
    with pytest.raises(ModelError, match="does not exist"):
        inspect_in_subprocess(settings_for(models, m="gone"), "m")


def test_the_fingerprint_changes_with_the_weights(exported: Path) -> None:
    first = inspect_versions(exported / "dense-4-0", "latest")[1]
    write_features(exported / "dense-4-1", float_features(4))
    assert inspect_versions(exported / "dense-4-1", "latest")[1].fingerprint != first.fingerprint


# --- the host and the registry ---


@pytest.fixture
def registry(redis_client: Client, keys: Keys) -> ModelRegistry:
    return ModelRegistry(redis_client, keys)


def test_start_records_and_activates_what_warmed_up_well(exported: Path, registry: ModelRegistry) -> None:
    host = ModelHost(settings_for(exported, a="dense-4-0", b="mixed"), registry)
    with pytest.raises(ModelUnavailable, match="no active version yet"):
        registry.active("a")
    host.start()
    assert registry.active("a").contract.names == ["f0", "f1", "f2", "f3"]
    assert registry.active_version("b") == 1
    assert host.get("a").record == registry.get("a", 1)


def test_a_bad_model_stops_neither_the_others_nor_the_worker(models: Path, registry: ModelRegistry) -> None:
    (models / "damaged" / "1").mkdir(parents=True)
    (models / "damaged" / "1" / "saved_model.pb").write_bytes(b"no graph")
    host = ModelHost(settings_for(models, bad="damaged", gone="gone", good="mixed"), registry)
    host.start()
    assert registry.active_version("good") == 1
    assert registry.versions("bad")[1].state == "refused"
    with pytest.raises(ModelUnavailable, match="cannot be loaded as a SavedModel"):
        registry.get("bad", 1)
    for model in ("bad", "gone"):
        with pytest.raises(ModelUnavailable):
            host.get(model)
    with pytest.raises(UnknownModel):
        host.get("nobody")


def test_a_version_whose_folder_vanished_is_unavailable(models: Path, registry: ModelRegistry) -> None:
    settings = settings_for(models, m="mixed")
    ModelHost(settings, registry).start()
    shutil.rmtree(models / "mixed")
    with pytest.raises(ModelUnavailable, match="does not exist"):
        ModelHost(settings, registry).get("m")
    assert registry.versions("m")[1].state == "ready"


# --- on demand ---


class Deployment:
    """One model with its tables, and the scorer of a worker."""

    def __init__(self, client: Client, keys: Keys, settings: Settings) -> None:
        self.registry = ModelRegistry(client, keys)
        self.host = ModelHost(settings, self.registry)
        self.host.start()
        self.predictions = table(client, keys, TableKind.PREDICTIONS, "m")
        self.features = table(client, keys, TableKind.FEATURES, "m")
        self.scorer = RealtimeScorer(settings, self.host, lambda _: self.predictions, lambda _: self.features)

    def load(self, folder: Path, **columns: Any) -> None:
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), folder / "features.parquet")
        load_features(
            self.features,
            str(folder / "features.parquet"),
            self.host.get("m").vectoriser,
            entity_column="id",
            event_time_column="at" if "at" in columns else None,
            keep_s=3600,
        )


@pytest.fixture
def deploy(redis_client: Client, keys: Keys, exported: Path) -> Any:
    def build(folder: str, **realtime: Any) -> Deployment:
        model = {"path": str(exported / folder), "realtime": realtime}
        return Deployment(redis_client, keys, Settings.model_validate({"models": {"m": model}}))

    return build


def errors(result: dict[str, Any]) -> list[str | None]:
    return [item.get("error", {}).get("code") for item in result["predictions"]]


def test_entities_are_computed_from_stored_features_and_kept(deploy: Any, tmp_path: Path) -> None:
    one = deploy("dense-4-0")
    x = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    at = pa.array([1_700_000_000] * 50, pa.timestamp("s"))
    one.load(tmp_path, id=[f"e/{i}" for i in range(50)], at=at, **{f"f{i}": x[:, i] for i in range(4)})
    result = json.loads(json.dumps(one.scorer.predict_entities("m", ["e/3", "nobody", "e/1", "e/3"])))
    assert errors(result) == [None, "unknown-entity", None, None]
    assert [item["entity_id"] for item in result["predictions"]] == ["e/3", "nobody", "e/1", "e/3"]
    np.testing.assert_allclose(
        [result["predictions"][i]["prediction"] for i in (0, 2)],
        dense_predictions(x[[3, 1]]),
        rtol=1e-5,
        atol=1e-6,
    )
    assert result["model_version"] == 1
    assert result["predictions"][0]["as_of"] == 1_700_000_000
    kept = one.predictions.read(["e/3", "nobody"])
    assert kept[0].values == {"y": pytest.approx(result["predictions"][0]["prediction"])}
    assert kept[0].origin == "realtime"
    assert kept[1] is None


def test_overrides_change_the_answer_and_are_not_kept(deploy: Any, tmp_path: Path) -> None:
    one = deploy("mixed")
    one.load(tmp_path, id=[1, 2], carat=[1.0, 2.0], depth=[60.0, 60.0], cut=["Ideal", "Fair"])
    result = one.scorer.predict_entities("m", ["2"], overrides={"cut": "Ideal"})
    assert result["predictions"][0]["prediction"] == 290.0
    assert one.predictions.read(["2"]) == [None]
    assert errors(one.scorer.predict_entities("m", ["2"], overrides={"cutt": "x"})) == ["bad-features"]
    assert one.scorer.predict_entities("m", ["2"])["predictions"][0]["prediction"] == 270.0


def test_several_outputs_are_an_object_and_a_late_task_is_dropped(deploy: Any) -> None:
    one = deploy("several")
    result = one.scorer.predict_instances("m", [[1, 2, 3, 4], {"f0": 1}, {"f0": 0, "f1": 0, "f2": 0, "f3": 0}])
    assert result["predictions"][0]["prediction"] == {
        "score": 10.0,
        "embedding": [2.0, 4.0, 6.0],
        "label": "über",
    }
    assert errors(result) == [None, "bad-features", None]
    assert result["predictions"][1]["error"]["field"] == "f1"
    late = one.scorer.predict_instances("m", [[1, 2, 3, 4]], deadline=one.predictions.now() - 1)
    assert errors(late) == ["deadline-exceeded"]
    in_time = one.scorer.predict_instances("m", [[1, 2, 3, 4]], deadline=one.predictions.now() + 5)
    assert errors(in_time) == [None]


def test_a_failed_row_is_an_error_and_is_not_kept(deploy: Any, tmp_path: Path) -> None:
    one = deploy("fussy")
    one.load(tmp_path, id=["good", "raises", "infinite"], f0=[1.0, -1.0, 1.0], f1=[1.0, 1.0, 0.0])
    result = one.scorer.predict_entities("m", ["raises", "good", "infinite"])
    assert errors(result) == ["prediction-failed", None, "prediction-failed"]
    assert [entry is not None for entry in one.predictions.read(["raises", "good", "infinite"])] == [
        False,
        True,
        False,
    ]


def test_an_unknown_entity_may_be_computed_from_defaults(deploy: Any, tmp_path: Path) -> None:
    one = deploy("fussy", unknown_entity="defaults")
    result = one.scorer.predict_entities("m", ["nobody"])  # no features were ever loaded
    assert result["predictions"][0]["prediction"] == 0.0
    one.load(tmp_path, id=["a"], f0=[1.0], f1=[float(np.e)])
    result = one.scorer.predict_entities("m", ["nobody", "a"])
    assert [item["prediction"] for item in result["predictions"]] == pytest.approx([0.0, 1.0], abs=1e-6)


def test_what_was_computed_moments_ago_is_not_computed_again(deploy: Any, tmp_path: Path) -> None:
    one = deploy("fussy")
    one.load(tmp_path, id=["a"], f0=[1.0], f1=[1.0])
    first = one.scorer.predict_entities("m", ["a"])
    one.load(tmp_path, id=["a"], f0=[1.0], f1=[2.0])
    again = one.scorer.predict_entities("m", ["a"], recompute=False)
    assert again["predictions"][0]["prediction"] == first["predictions"][0]["prediction"]
    assert one.scorer.predict_entities("m", ["a"])["predictions"][0]["prediction"] == pytest.approx(np.log(2.0))


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (
            {"id": ["a", "a", "b"], "f0": [1.0, 2.0, 3.0]},
            "1 row repeats an entity id, such as 'a', in the entity column",
        ),
        ({"id": ["a", None, "b"], "f0": [1.0, 2.0, 3.0]}, "1 row has no legal id in 'id', such as None"),
        ({"id": ["a", "", "\x07"], "f0": [1.0, 2.0, 3.0]}, "2 rows have no legal id"),
        ({"id": [1.0, 2.0], "f0": [1.0, 2.0]}, "entity column 'id' is double: cast it"),
        ({"id": ["a"], "fo": [1.0]}, "has no column 'f0'; did you mean 'fo'"),
        ({"id": ["a"], "f0": ["1.0"]}, "column 'f0' is string, but the feature is float32"),
        ({"entity": ["a"], "f0": [1.0]}, r"has no column 'id' \(entity_column\): it has entity, f0, f1"),
        ({"id": pa.array([], pa.string()), "f0": pa.array([], pa.float32())}, "has no rows"),
    ],
)
def test_a_refused_feature_table_leaves_nothing_behind(
    deploy: Any, redis_client: Client, tmp_path: Path, columns: dict[str, Any], told: str
) -> None:
    one = deploy("fussy")
    one.load(tmp_path, id=["before"], f0=[1.0], f1=[1.0])
    before = one.features.pointer().current
    with pytest.raises(SourceError, match=told):
        one.load(tmp_path, **columns, f1=pa.array([1.0] * len(columns.get("f0", [0]))))
    assert one.features.pointer().current == before
    assert [entry is not None for entry in one.features.read(["before", "a"])] == [True, False]
    kept = [key for key in redis_client.keys("t:f:m:g:*") if not key.startswith(f"t:f:m:g:{before}".encode())]
    assert kept == []


# --- workers ---


def test_a_forking_pool_is_refused_with_one_sentence(tmp_path: Path) -> None:
    done = run_worker(tmp_path, "gpu", "-P", "prefork")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("the gpu worker cannot run on the ")
    assert "Traceback" not in done.stderr


def test_an_unknown_worker_gets_the_usage(tmp_path: Path) -> None:
    done = run_worker(tmp_path, "cpu")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "gpu|realtime|maintenance" in done.stderr


def test_a_misspelt_setting_ends_a_worker_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text("[redis]\nulr = 'x'\n")
    done = run_worker(tmp_path, "realtime")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean 'url'" in done.stderr


def test_a_real_worker_waits_for_redis_and_answers_beside_the_users_own_modules(models: Path, tmp_path: Path) -> None:
    from tasks.celery_app import make_celery

    for name in ("app", "tasks", "workers", "inference"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the user\\'s own module was imported')")
    server = RedisServer(tmp_path / "redis")
    settings = {
        "FORECACHE_REDIS__URL": server.url(0),
        "FORECACHE_REDIS__CACHE_URL": server.url(1),
        "FORECACHE_MODELS__D__PATH": str(models / "dense-4-0"),
    }
    with (tmp_path / "log").open("w+") as log:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "workers", "realtime"],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), **settings}, stderr=log, stdout=log,
        )  # fmt: skip
        try:
            _wait_for(log, "worker.waiting_for_store", worker)
            server.start()
            url = {"redis": {"url": server.url(0)}}
            with make_celery(Settings.model_validate(url)) as client:
                x = [[1.0, 2.0, 3.0, 4.0]]
                sent = client.send_task("forecache.predict_instances", kwargs={"model": "d", "instances": x})
                result = sent.get(timeout=60)
        finally:
            worker.terminate()
            worker.wait(20)
            server.stop()
        log.seek(0)
        text = log.read()
    assert result["predictions"][0]["prediction"] == pytest.approx(float(dense_predictions(np.array(x))[0]), rel=1e-5)
    assert "Traceback" not in text
    assert "InitializeLog" not in text


def _wait_for(log: TextIO, event: str, process: subprocess.Popen[bytes], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while event not in Path(log.name).read_text():
        assert process.poll() is None, Path(log.name).read_text()
        assert time.monotonic() < end, Path(log.name).read_text()
        time.sleep(0.1)
