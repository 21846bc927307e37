"""What is scikit-learn's own: trust, names from contracts, estimators of several kinds."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.datasets import fetch_openml
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from inference.errors import BadInput, ContractError, ModelError
from inference.models import LoadedModel, inspect_in_subprocess
from inference.models.loading import load_version
from inference.models.runtimes import LoadOptions
from inference.schema import DType, TensorSpec
from inference.settings import Settings, load_settings
from tests.support.lazy_imports import LazyModule
from tests.support.runtimes.cases import ROOT
from tests.support.stack import run_cli

skops_io = LazyModule("skops.io")

pytestmark = pytest.mark.integration

X = np.random.default_rng(0).normal(size=(50, 2))


class Home(RegressorMixin, BaseEstimator):
    """An estimator of one's own, which skops does not know."""

    def fit(self, x: Any, y: Any) -> Home:
        self.n_features_in_ = x.shape[1]
        return self

    def predict(self, x: Any) -> Any:
        return np.asarray(x).sum(axis=1)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def saved(folder: Path, model: Any, features: list[str] | None = None) -> Path:
    skops_io.dump(model, folder / "m.skops")
    if features:
        contract = {"features": [{"name": name, "dtype": "float32"} for name in features]}
        (folder / "features.json").write_text(json.dumps(contract))
    return folder


def load(folder: Path, *, allow_code: bool = False) -> LoadedModel:
    return load_version("m", folder, 1, folder, options=LoadOptions(allow_code=allow_code))


def test_a_pickle_runs_nothing_unless_it_is_allowed(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(
        ModelError, match=r"may run code \(loading a pickle.*allow_code = true.*skops\.io\.dump\(model, '.*m\.skops'"
    ):
        load(tmp_path)
    assert not proof.exists()
    with pytest.raises(BadInput):  # what it unpickles to is no model
        load(tmp_path, allow_code=True)
    assert proof.exists()


def test_types_that_skops_does_not_know_are_named_and_not_loaded(tmp_path: Path) -> None:
    saved(tmp_path, Home().fit(X, X[:, 0]))
    with pytest.raises(ModelError, match=r"not known to be safe: .*Home.*allow_code"):
        load(tmp_path)
    assert load(tmp_path, allow_code=True).predict({"x": X})["prediction"] == pytest.approx(X.sum(axis=1))


@pytest.mark.parametrize(
    "model",
    [
        HistGradientBoostingRegressor(max_iter=3),
        RandomForestClassifier(3),
        CalibratedClassifierCV(LogisticRegression()),
        KNeighborsClassifier(),
        make_pipeline(SimpleImputer(), PoissonRegressor()),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_scikit_learns_own_models_are_made_of_needs_no_leave(tmp_path: Path, model: Any) -> None:
    model.fit(X, (X[:, 0] > 0).astype(int))
    loaded = load(saved(tmp_path, model))
    assert next(iter(loaded.predict({"x": X}).values())) == pytest.approx(model.predict(X))


def test_a_function_is_no_part_of_a_model_even_when_it_is_scikit_learns(tmp_path: Path) -> None:
    model = make_pipeline(FunctionTransformer(fetch_openml), LinearRegression())
    model.steps[1][1].fit(X, X[:, 0])
    saved(tmp_path, model)
    with pytest.raises(ModelError, match=r"not known to be safe: .*fetch_openml"):
        load(tmp_path)


@pytest.mark.slow
def test_the_setting_reaches_the_process_that_inspects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "m.pickle").write_bytes(pickle.dumps(LinearRegression().fit(X, X[:, 0])))
    allowed = Settings.model_validate({"models": {"m": {"path": str(tmp_path), "allow_code": True}}})
    assert inspect_in_subprocess(allowed, "m")[1].state == "ready"
    with pytest.raises(ModelError, match="loading a pickle runs"):
        inspect_in_subprocess(Settings.model_validate({"models": {"m": {"path": str(tmp_path)}}}), "m")


def test_without_names_the_contract_names_the_features_in_order(tmp_path: Path) -> None:
    model = LinearRegression().fit(X, X @ [1.0, 10.0])
    assert load(saved(tmp_path, model)).record.signature.inputs == (TensorSpec("x", DType.FLOAT64, (2,)),)
    loaded = load(saved(tmp_path, model, ["width", "height"]))
    assert loaded.record.signature.inputs == (TensorSpec("width", DType.FLOAT32), TensorSpec("height", DType.FLOAT32))
    rows = {"height": np.float32([2, 0]), "width": np.float32([1, 5])}
    assert loaded.predict(loaded.vectoriser.inputs(rows))["prediction"] == pytest.approx([21, 5], rel=1e-5)


def test_names_that_the_model_was_fitted_with_decide_whatever_the_contracts_order(tmp_path: Path) -> None:
    model = LinearRegression().fit(pd.DataFrame(X, columns=["a", "b"]), X @ [1.0, 10.0])
    loaded = load(saved(tmp_path, model, ["b", "a"]))
    rows = {"b": np.float32([2]), "a": np.float32([1])}
    assert loaded.predict(loaded.vectoriser.inputs(rows))["prediction"] == pytest.approx([21], rel=1e-5)
    with pytest.raises(ContractError, match=r"feature 'b': the model was fitted on the columns a, b"):
        load(saved(tmp_path, model, ["a", "c"]))


def test_a_contract_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="lists 3 values but the model takes 2"):
        load(saved(tmp_path, LinearRegression().fit(X, X[:, 0]), ["a", "b", "c"]))


def test_several_targets_and_clusters_have_their_own_shapes_and_dtypes(tmp_path: Path) -> None:
    loaded = load(saved(tmp_path, LinearRegression().fit(X, X @ np.ones((2, 3)))))
    assert loaded.record.signature.outputs == (TensorSpec("prediction", DType.FLOAT64, (3,)),)
    loaded = load(saved(tmp_path, KMeans(2, n_init=1, random_state=0).fit(X)))
    assert loaded.record.signature.outputs == (TensorSpec("prediction", DType.INT32),)


@pytest.mark.slow
def test_init_writes_the_contract_of_a_model_without_names(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    saved(tmp_path / "home", LinearRegression().fit(X, X @ [1.0, 10.0]))
    pd.DataFrame({"id": range(50), "width": X[:, 0], "height": X[:, 1]}).to_parquet(tmp_path / "t.parquet")
    arguments = ("--model", "home", "--features", "t.parquet", "--entity-column", "id")
    done = run_cli(tmp_path, "init", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "home" / "features.json").read_text())["features"]
    assert [feature["name"] for feature in written] == ["width", "height"]
    (scored,) = (line for line in done.stdout.splitlines() if line.startswith("scored:"))
    assert float(scored.rpartition(" ")[2]) == pytest.approx(X[0] @ [1.0, 10.0], rel=1e-5)


@pytest.mark.slow
def test_init_loads_a_pickle_only_when_told_to(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "m.pkl").write_bytes(pickle.dumps(LinearRegression().fit(X, X[:, 0])))
    pd.DataFrame({"id": range(50), "width": X[:, 0], "height": X[:, 1]}).to_parquet(tmp_path / "t.parquet")
    done = run_cli(tmp_path, "init", "--model", "home", "--features", "t.parquet", "--entity-column", "id")
    assert done.returncode == 1
    assert "loading a pickle runs" in done.stderr
    assert "--allow-code" in done.stderr
    done = run_cli(
        tmp_path, "init", "--model", "home", "--features", "t.parquet", "--entity-column", "id",
        "--columns", "width,height", "--allow-code",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert load_settings(tmp_path / "forecache.toml").model()[1].allow_code


def test_what_predicts_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="StandardScaler, which has no predict method"):
        load(saved(tmp_path, StandardScaler().fit(X)))
