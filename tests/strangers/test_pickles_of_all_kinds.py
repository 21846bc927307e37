"""Pickles as people write them, damaged ones, those of other versions, and models that take texts or dicts."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.feature_extraction import DictVectorizer, FeatureHasher
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from inference.errors import ModelError
from inference.models import score_rows
from inference.models.loaded import LoadedModel
from inference.models.loading import load_version
from inference.models.runtimes import LoadOptions

ROWS = 60
RNG = np.random.default_rng(3)
PEOPLE = pd.DataFrame(
    {
        "region": np.array(["north", "south", "west"], dtype=object)[RNG.integers(0, 3, ROWS)],
        "age": RNG.normal(40, 9, ROWS),
        "trips": RNG.integers(0, 9, ROWS),
    }
)
NUMBERS = PEOPLE[["age", "trips"]]
MANY = (PEOPLE.trips > 4) ^ (PEOPLE.region == "north")
FEATURES = [
    {"name": "age", "dtype": "float64"}, {"name": "trips", "dtype": "int64"}, {"name": "region", "dtype": "string"},
]  # fmt: skip


def load(folder: Path, features: list[dict[str, Any]] | None = None) -> LoadedModel:
    if features:
        (folder / "features.json").write_text(json.dumps({"features": features}))
    return load_version("m", folder, 1, folder / "1", options=LoadOptions(allow_code=True))


def save(folder: Path, content: bytes, name: str = "m.pkl") -> Path:
    (folder / "1").mkdir(parents=True)
    (folder / "1" / name).write_bytes(content)
    return folder


def answers(model: LoadedModel, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    table = pa.Table.from_pandas(frame, preserve_index=False).combine_chunks()
    model.vectoriser.check_schema(table.schema, "t.parquet")
    scored = score_rows(model, model.vectoriser.features_from_arrow(table.to_batches()[0]).usable())
    assert not scored.failed.any(), scored.reasons
    return scored.outputs


FITTED = LogisticRegression().fit(NUMBERS, MANY)


def by_joblib(path: Path, *, compress: Any = 0) -> None:
    joblib.dump(FITTED, path, compress=compress)


WRITERS: dict[str, Callable[[Path], None]] = {
    "joblib": by_joblib,
    "joblib, compressed": lambda path: by_joblib(path, compress=3),
    "joblib, lzma": lambda path: by_joblib(path, compress=("lzma", 1)),
    "pickle": lambda path: path.write_bytes(pickle.dumps(FITTED)) and None,
    "pickle, the oldest protocol": lambda path: path.write_bytes(pickle.dumps(FITTED, 0)) and None,
    "pickle, gzipped": lambda path: path.write_bytes(gzip.compress(pickle.dumps(FITTED))) and None,
}


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".joblib"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_pickle_is_read_whoever_wrote_it_and_whatever_it_is_called(tmp_path: Path, writer: str, suffix: str) -> None:
    (tmp_path / "1").mkdir()
    WRITERS[writer]((tmp_path / "1" / "m").with_suffix(suffix))
    served = answers(load(tmp_path), NUMBERS)
    np.testing.assert_allclose(served["probabilities"], FITTED.predict_proba(NUMBERS))


@pytest.mark.parametrize("name", ["model.pkl.gz", "model.joblib.z", "model.sav"])
def test_a_pickle_under_another_name_is_told_the_name_to_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=rf"{name} has no name of a known model format.*call it model\.joblib"):
        load(save(tmp_path, pickle.dumps(FITTED), name))


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps(FITTED)[:-60]], ids=["empty", "text", "cut off"])
def test_a_damaged_pickle_is_called_so(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelError, match=r"it is damaged, cut off, or no pickle \("):
        load(save(tmp_path, content))


@pytest.mark.parametrize("name", ["m.pkl", "m.onnx", "saved_model.pb", "m.keras"])
def test_a_pointer_of_git_lfs_is_no_model(tmp_path: Path, name: str) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
    with pytest.raises(ModelError, match="is a pointer of Git LFS, not the model itself: git lfs pull"):
        load(save(tmp_path, pointer, name))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"csklearn.linear_model.logistic\nLogisticRegression\n.",
            r"needs 'sklearn\.linear_model\.logistic', which the",
        ),
        (b"csklearn.compose._column_transformer\n_RemainderColsList\n.", r"needs '.*\._RemainderColsList', which the"),
        (b"cnumpy._core_of_old.multiarray\n_reconstruct\n.", r"needs 'numpy\._core_of_old', which the numpy \d"),
    ],
)
def test_what_another_version_of_a_library_saved_is_told_so(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(ModelError, match=words + ".*saved with another version of it"):
        load(save(tmp_path, content))


def test_an_estimator_of_another_version_is_named_with_both_when_it_fails(tmp_path: Path) -> None:
    model = DecisionTreeClassifier().fit(NUMBERS, MANY)
    del model.tree_  # such as an attribute that a later version looks for
    content = pickle.dumps(model)
    here = model.__getstate__()["_sklearn_version"].encode()
    other = b"0.0.1".ljust(len(here), b"0")
    loaded = load(save(tmp_path, content.replace(here, other)))
    words = rf"saved by scikit-learn {other.decode()}, and {here.decode()} is installed here"
    assert words.replace("\\", "") in str(loaded.record.unproven)


def test_an_estimator_of_another_version_that_answers_is_told_so(tmp_path: Path) -> None:
    content = pickle.dumps(FITTED)
    here = FITTED.__getstate__()["_sklearn_version"].encode()
    record = load(save(tmp_path, content.replace(here, b"0.0.1".ljust(len(here), b"0")))).record
    assert record.is_proved
    assert "it was saved by scikit-learn 0.0.1" in str(record.notice)


@pytest.mark.parametrize("model", [LogisticRegression(), make_pipeline(StandardScaler(), Ridge())])
def test_an_estimator_that_has_learnt_nothing_is_refused_as_such(tmp_path: Path, model: Any) -> None:
    with pytest.raises(ModelError, match="that is not fitted: save it after fit"):
        load(save(tmp_path, pickle.dumps(model)))


def test_a_model_saved_beside_its_scaler_is_not_to_be_saved_alone(tmp_path: Path) -> None:
    both = {"scaler": StandardScaler().fit(NUMBERS), "model": FITTED}
    with pytest.raises(ModelError, match=r"rows pass the StandardScaler first, save make_pipeline\(\['scaler'\]"):
        load(save(tmp_path, pickle.dumps(both)))


@pytest.mark.parametrize("nothing", ["passthrough", None])
def test_a_pipeline_that_begins_with_nothing_knows_its_columns(tmp_path: Path, nothing: str | None) -> None:
    model = Pipeline([("nothing", nothing), ("scale", StandardScaler()), ("model", LogisticRegression())])
    model.fit(NUMBERS, MANY)
    served = answers(load(save(tmp_path, pickle.dumps(model))), NUMBERS)
    np.testing.assert_allclose(served["probabilities"], model.predict_proba(NUMBERS))


RECORDS = PEOPLE.to_dict("records")


@pytest.mark.parametrize("features", [None, FEATURES], ids=["alone", "with features.json"])
def test_a_model_of_dicts_is_given_dicts(tmp_path: Path, features: list[dict[str, Any]] | None) -> None:
    model = make_pipeline(DictVectorizer(), StandardScaler(with_mean=False), LogisticRegression()).fit(RECORDS, MANY)
    loaded = load(save(tmp_path, pickle.dumps(model)), features)
    assert {one.name: one.dtype.value for one in loaded.vectoriser.contract.features}["region"] == "string"
    np.testing.assert_allclose(answers(loaded, PEOPLE)["probabilities"], model.predict_proba(RECORDS))


def test_a_hasher_of_dicts_is_given_dicts(tmp_path: Path) -> None:
    model = make_pipeline(FeatureHasher(16), LogisticRegression()).fit(RECORDS, MANY)
    served = answers(load(save(tmp_path, pickle.dumps(model)), FEATURES), PEOPLE)
    np.testing.assert_allclose(served["probabilities"], model.predict_proba(RECORDS))


def of_texts() -> Any:
    return make_pipeline(TfidfVectorizer(), LogisticRegression())


TEXT_MODELS = {
    "a grid search": GridSearchCV(of_texts(), {"logisticregression__C": [0.1, 1.0]}, cv=2),
    "a union of vectorisers": make_pipeline(make_union(TfidfVectorizer(), CountVectorizer()), LogisticRegression()),
    "a pipeline in a pipeline": Pipeline([("nothing", "passthrough"), ("texts", of_texts())]),
}


@pytest.mark.parametrize("kind", TEXT_MODELS)
def test_a_model_of_texts_is_found_wherever_its_vectoriser_is(tmp_path: Path, kind: str) -> None:
    model = TEXT_MODELS[kind].fit(PEOPLE.region, MANY)
    loaded = load(save(tmp_path, pickle.dumps(model)))
    served = answers(loaded, PEOPLE[["region"]].rename(columns={"region": "x"}))
    np.testing.assert_allclose(served["probabilities"], model.predict_proba(PEOPLE.region))


class ByFormula:
    """Predicts from a table of named columns alone, and knows no empty text, as models of formulas do."""

    def predict(self, x: Any) -> Any:
        return x["age"] + x["region"].map({"north": 1.0, "south": 2.0, "west": 3.0}.__getitem__)


def test_an_object_that_looks_columns_up_is_given_their_names_when_rows_come(tmp_path: Path) -> None:
    features = [one for one in FEATURES if one["name"] != "trips"]
    loaded = load(save(tmp_path, pickle.dumps(ByFormula())), features)
    frame = PEOPLE[["age", "region"]]
    np.testing.assert_allclose(answers(loaded, frame)["prediction"], ByFormula().predict(frame).to_numpy())
