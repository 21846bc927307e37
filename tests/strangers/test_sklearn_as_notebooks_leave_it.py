"""Estimators as notebooks leave them: lone files, categories, cleaned names, functions of one's own, other objects."""

from __future__ import annotations

import json
import pickle
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor, make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor, VotingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler

from app.cli.init import Asker, Options
from app.cli.onboarding import Onboarding
from inference.errors import BadInput, Conflict, ModelError, SourceError
from inference.features.contract import LOGGED_FILE
from inference.models import inspect_versions, score_rows
from inference.models.loaded import LoadedModel
from inference.models.loading import load_version
from inference.models.runtimes import LoadOptions
from inference.onboarding.trial import try_row
from inference.settings import load_settings
from tests.support.redis_server import missing

ROWS = 120


def people() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "region": np.array(["north", "south", "west"], dtype=object)[rng.integers(0, 3, ROWS)],
            "age": rng.normal(40, 9, ROWS),
            "trips": rng.integers(0, 9, ROWS),
            "kind": rng.integers(1, 4, ROWS),
        }
    )


PEOPLE = people()
MANY = (PEOPLE.trips > 4) ^ (PEOPLE.region == "north")


def save(model: Any, folder: Path, features: list[dict[str, Any]] | None = None) -> Path:
    (folder / "1").mkdir(parents=True)
    joblib.dump(model, folder / "1" / "m.joblib")
    if features:
        (folder / "features.json").write_text(json.dumps({"features": features}))
    return folder


def loaded(folder: Path, **options: Any) -> LoadedModel:
    return load_version("m", folder, 1, folder / "1", options=LoadOptions(allow_code=True, **options))


def answers(model: LoadedModel, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """What a run over the frame as a Parquet table answers."""
    table = pa.Table.from_pandas(frame, preserve_index=False).combine_chunks()
    model.vectoriser.check_schema(table.schema, "t.parquet")
    rows = model.vectoriser.features_from_arrow(table.to_batches()[0])
    assert not rows.rejected.any()
    scored = score_rows(model, rows.usable())
    assert not scored.failed.any(), scored.reasons
    return scored.outputs


def by_column(last: Any) -> Any:
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return make_pipeline(make_column_transformer((encoder, ["region"]), remainder=StandardScaler()), last)


def voting() -> Any:
    parts = [("a", by_column(LogisticRegression())), ("b", by_column(HistGradientBoostingClassifier(max_iter=3)))]
    return VotingClassifier(parts, voting="soft")


CLASSIFIERS = {
    "a column transformer": by_column(LogisticRegression()),
    "columns by position": make_pipeline(
        make_column_transformer((OrdinalEncoder(), [0]), remainder="passthrough"), LogisticRegression()
    ),
    "columns by a mask": make_pipeline(
        make_column_transformer((OrdinalEncoder(), [True, False, False, False]), remainder="passthrough"),
        LogisticRegression(),
    ),
    "columns by a slice of names": make_pipeline(
        make_column_transformer((OrdinalEncoder(), slice("region", "region")), (StandardScaler(), slice("age", None))),
        LogisticRegression(),
    ),
    "columns by dtype": make_pipeline(
        make_column_transformer(
            (OneHotEncoder(sparse_output=False), make_column_selector(dtype_exclude="number")), remainder="passthrough"
        ),
        LogisticRegression(),
    ),
    "a column of words": make_pipeline(
        make_column_transformer((TfidfVectorizer(), "region"), remainder="passthrough"), LogisticRegression()
    ),
    "a grid search": GridSearchCV(by_column(LogisticRegression()), {"logisticregression__C": [0.1, 1.0]}, cv=2),
    "calibration": CalibratedClassifierCV(by_column(LogisticRegression()), cv=2),
    "a vote": voting(),
    "an encoder of the whole table first": make_pipeline(
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), HistGradientBoostingClassifier(max_iter=4)
    ),
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_text_is_found_wherever_a_pipeline_keeps_its_encoder(kind: str, tmp_path: Path) -> None:
    model = CLASSIFIERS[kind].fit(PEOPLE, MANY)
    served = answers(loaded(save(model, tmp_path)), PEOPLE)
    np.testing.assert_allclose(served["probabilities"], model.predict_proba(PEOPLE), rtol=1e-12)
    assert served["label"].tolist() == model.predict(PEOPLE).tolist()


@pytest.mark.parametrize("to", ["category", "text and numbers"])
def test_categories_from_dtype_come_as_text_and_as_numbers(to: str, tmp_path: Path) -> None:
    categories = ["region", "kind"] if to == "category" else ["region"]
    frame = PEOPLE.astype(dict.fromkeys(categories, "category"))
    model = HistGradientBoostingRegressor(max_iter=6, categorical_features="from_dtype").fit(frame, PEOPLE.trips)
    served = answers(loaded(save(model, tmp_path)), PEOPLE)["prediction"]
    np.testing.assert_allclose(served, model.predict(frame), rtol=1e-12)


def test_a_regressor_with_a_transformed_target_knows_its_text(tmp_path: Path) -> None:
    model = TransformedTargetRegressor(by_column(Ridge()), func=np.log1p, inverse_func=np.expm1).fit(
        PEOPLE, PEOPLE.trips
    )
    np.testing.assert_allclose(answers(loaded(save(model, tmp_path)), PEOPLE)["prediction"], model.predict(PEOPLE))


def test_a_model_of_documents_takes_a_column_of_text(tmp_path: Path) -> None:
    texts = ["cheap flight", "late train", "cheap train", "late flight"] * 10
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, ["late" in text for text in texts])
    folder = save(model, tmp_path, [{"name": "review", "dtype": "string"}])
    served = answers(loaded(folder), pd.DataFrame({"review": texts}))
    np.testing.assert_allclose(served["probabilities"], model.predict_proba(texts), rtol=1e-12)


# -- libraries that know pandas' categories, and clean names ------------------------------------------------------


def booster(library: str) -> Any:
    try:
        module = import_module(library)
    except ImportError:
        missing(library)
    if library == "lightgbm":
        return module.LGBMClassifier(n_estimators=6, min_child_samples=5, verbose=-1, n_jobs=1)
    return module.XGBClassifier(n_estimators=6, enable_categorical=True, n_jobs=1)


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_pandas_categories_of_boosters_are_served(library: str, tmp_path: Path) -> None:
    frame = PEOPLE.astype({"region": "category", "kind": "category"})
    model = booster(library).fit(frame, MANY)
    version = loaded(save(model, tmp_path))
    few = PEOPLE[PEOPLE.region != "north"]  # not all categories in one call
    served = answers(version, few)["probabilities"]
    np.testing.assert_allclose(served, model.predict_proba(frame)[PEOPLE.region != "north"], rtol=1e-6)


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_a_category_that_is_missing_is_missing(library: str, tmp_path: Path) -> None:
    frame = PEOPLE.assign(region=PEOPLE.region.where(PEOPLE.index % 3 > 0, None))
    model = booster(library).fit(frame.astype({"region": "category"}), MANY)
    features = [{"name": name, "dtype": "float64"} for name in PEOPLE.columns]
    features[0] = {"name": "region", "dtype": "string", "nullable": True}
    served = answers(loaded(save(model, tmp_path, features)), frame)["probabilities"]
    np.testing.assert_allclose(served, model.predict_proba(frame.astype({"region": "category"})), rtol=1e-6)


class LearntCategories:
    """Answers like LightGBM's estimator: it wants categories, and tells which columns they are."""

    n_features_in_ = 2

    def __init__(self, known: list[list[Any]] | None, columns: list[int]) -> None:
        self.feature_names_in_ = np.array(["region", "kind"])
        self.booster_ = ModuleType("booster")
        self.booster_ = _Booster(known, columns)

    def predict(self, table: pd.DataFrame) -> Any:
        return sum(table[name].cat.codes.to_numpy() * scale for name, scale in [("region", 1.0), ("kind", 10.0)])


class _Booster:
    def __init__(self, known: list[list[Any]] | None, columns: list[int]) -> None:
        self.pandas_categorical, self.params = known, {"categorical_column": columns}


def test_categories_are_those_of_training_whatever_a_call_holds(tmp_path: Path) -> None:
    model = LearntCategories([["west", "south", "north"], [3, 1, 2]], [0, 1])
    frame = pd.DataFrame({"region": ["north", "west", "east"], "kind": [1, 2, 3]})
    assert answers(loaded(save(model, tmp_path)), frame)["prediction"].tolist() == [12.0, 20.0, -1.0]


def test_categories_that_the_file_does_not_tell_are_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="was fitted on pandas categories, and its file does not say which values"):
        loaded(save(LearntCategories([["a"]], [0, 1]), tmp_path))


# -- init ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORECACHE_CONFIG", raising=False)
    table().to_parquet("t.parquet")
    return tmp_path


def table() -> pd.DataFrame:
    return PEOPLE.assign(user_id=[f"u{number}" for number in range(ROWS)])


def init(model: str, **more: Any) -> None:
    options = Options(
        **{
            "model": model,
            "features": "t.parquet",
            "entity_column": "user_id",
            "event_time_column": None,
            "columns": None,
            "name": None,
            "schedule": "0 3 * * *",
            "force": False,
            "allow_code": True,
            **more,
        }
    )

    def inspect(settings: Any, name: str) -> Any:
        of_model = settings.models[name]
        load = LoadOptions(allow_code=of_model.allow_code, code_folder=settings.root, signature=of_model.signature)
        records = inspect_versions(of_model.path, "latest", options=load)
        refused = [record.error for record in records.values() if record.error]
        if refused:
            raise ModelError(refused[0])
        return records

    Onboarding(options, Asker(interactive=False, accepts=True), inspect=inspect, try_row=try_row).run()


def test_a_lone_file_becomes_the_first_version_of_a_folder(here: Path) -> None:
    model = by_column(LogisticRegression()).fit(PEOPLE, MANY)
    joblib.dump(model, "Churn model.joblib")
    init("Churn model.joblib")
    assert load_settings().models["churn-model"].path == Path("models/churn-model")
    home = here / "models" / "churn-model"
    assert [path.relative_to(home).as_posix() for path in sorted(home.rglob("*"))][:2] == ["1", "1/Churn model.joblib"]
    np.testing.assert_allclose(answers(loaded(home), PEOPLE)["probabilities"], model.predict_proba(PEOPLE))


def test_a_lone_file_that_cannot_be_served_leaves_nothing_behind(here: Path) -> None:
    joblib.dump({"model": by_column(LogisticRegression()), "scaler": None}, "bundle.joblib")
    before = sorted(here.rglob("*"))
    with pytest.raises(ModelError, match=r"bundle\.joblib holds a dict.*save \['model'\] of it alone") as caught:
        init("bundle.joblib")
    assert ".new" not in caught.value.message
    assert sorted(here.rglob("*")) == before


def test_a_folder_of_that_name_is_never_written_over(here: Path) -> None:
    joblib.dump(by_column(LogisticRegression()).fit(PEOPLE, MANY), "m.joblib")
    (here / "models" / "m").mkdir(parents=True)
    with pytest.raises(Conflict, match=r"models/m is there already: put m\.joblib into .*/2"):
        init("m.joblib")
    assert not (here / "forecache.toml").exists()


def test_a_file_in_a_version_folder_stays_where_it_is(here: Path) -> None:
    save(by_column(LogisticRegression()).fit(PEOPLE, MANY), here / "mine")
    init("mine/1/m.joblib")
    assert Path(load_settings().models["mine"].path) in (Path("mine"), here / "mine")
    assert not (here / "models").exists()


def test_init_takes_text_from_the_table_where_the_pipeline_does_not_tell(here: Path) -> None:
    model = make_pipeline(FunctionTransformer(lengths), Ridge()).fit(PEOPLE, PEOPLE.trips)
    save(model, here / "own")
    init("own")
    served = answers(loaded(here / "own"), PEOPLE)["prediction"]
    np.testing.assert_allclose(served, model.predict(PEOPLE))


def lengths(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(region=table.region.str.len())


def test_a_pipeline_that_fails_on_made_up_numbers_says_where_text_is_declared(tmp_path: Path) -> None:
    model = make_pipeline(FunctionTransformer(lengths), Ridge()).fit(PEOPLE, PEOPLE.trips)
    unproven = loaded(save(model, tmp_path / "silent")).record.unproven
    assert "which of its columns are text: list them all in features.json" in str(unproven)
    features = [{"name": name, "dtype": "float64"} for name in PEOPLE.columns]
    features[0]["dtype"] = "string"
    served = answers(loaded(save(model, tmp_path / "told", features)), PEOPLE)["prediction"]
    np.testing.assert_allclose(served, model.predict(PEOPLE))


def test_a_model_of_an_array_takes_names_and_text_from_the_signature_of_its_registry(tmp_path: Path) -> None:
    columns = ["region", "age"]
    encoder = make_column_transformer((OneHotEncoder(), [0]), remainder="passthrough")
    model = make_pipeline(encoder, LogisticRegression()).fit(PEOPLE[columns].to_numpy(object), MANY)
    folder = save(model, tmp_path / "m")
    with pytest.raises(ModelError, match="knows no names of columns"):
        loaded(folder)
    features = [{"name": "region", "dtype": "string"}, {"name": "age", "dtype": "int64"}]
    (folder / "1" / LOGGED_FILE).write_text(json.dumps({"features": features}))
    known = loaded(folder)
    assert [(one.name, one.dtype.value) for one in known.record.contract.features] == [
        ("region", "string"),
        ("age", "float64"),
    ]
    expected = model.predict_proba(PEOPLE[columns].to_numpy(object))
    np.testing.assert_allclose(answers(known, PEOPLE)["probabilities"], expected)


def test_names_that_a_library_cleaned_are_found_in_the_table(here: Path) -> None:
    cleaned = pd.DataFrame({"trip_distance": PEOPLE.age, "fare_paid": PEOPLE.trips})
    model = LogisticRegression().fit(cleaned, MANY)
    save(model, here / "m")
    frame = table().rename(columns={"age": "trip distance", "trips": "fare [paid]"})
    frame.to_parquet("t.parquet")
    init("m")
    served = answers(loaded(here / "m"), frame)["probabilities"]
    np.testing.assert_allclose(served, model.predict_proba(cleaned))


def test_two_columns_that_one_name_may_mean_are_not_guessed_between(here: Path) -> None:
    save(LogisticRegression().fit(pd.DataFrame({"trip_distance": PEOPLE.age, "x": PEOPLE.trips}), MANY), here / "m")
    frame = table().rename(columns={"trips": "x", "age": "trip distance"}).assign(**{"trip.distance": 1.0})
    frame.to_parquet("t.parquet")
    with pytest.raises(SourceError, match=r"missing: 'trip_distance'.*\"column\" in features\.json"):
        init("m")


def test_a_key_says_which_column_of_the_table_is_a_feature(tmp_path: Path) -> None:
    model = Ridge().fit(PEOPLE[["age", "trips"]], PEOPLE.kind)
    features = [{"name": "trips", "dtype": "int64"}, {"name": "age", "dtype": "float64", "column": "AGE (years)"}]
    frame = PEOPLE.rename(columns={"age": "AGE (years)"})[["trips", "AGE (years)"]]
    served = answers(loaded(save(model, tmp_path, features)), frame)["prediction"]
    np.testing.assert_allclose(served, model.predict(PEOPLE[["age", "trips"]]))
    twice = [*features, {"name": "years", "dtype": "float64", "column": "AGE (years)"}]
    with pytest.raises(BadInput, match=r"'age' and 'years' are both the column 'AGE \(years\)'"):
        loaded(save(model, tmp_path / "twice", twice))


def test_an_unnamed_index_is_told_as_what_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(LogisticRegression().fit(PEOPLE[["age", "trips"]], MANY), here / "m")
    PEOPLE.set_index(table().user_id.rename(None)).to_parquet("t.parquet")
    init("m", entity_column="__index_level_0__")
    assert "the index of the DataFrame that wrote the table, which had no name" in capsys.readouterr().out


@pytest.mark.parametrize(
    "column",
    [pd.Timestamp("2026-01-01"), pd.Timestamp("2026-01-01").date(), pd.Timedelta("3h")],
    ids=["instant", "date", "duration"],
)
def test_dates_are_refused_with_the_way_out(here: Path, column: Any) -> None:
    save(LogisticRegression().fit(PEOPLE[["age", "trips"]], MANY), here / "m")
    table().assign(age=column).to_parquet("t.parquet")
    with pytest.raises(SourceError, match=r"'age' is .*dates and times are no features; write what the model needs"):
        init("m")


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("t.jsonl", 'pandas.read_json("t.jsonl", lines=True)'),
        ("t.feather", 'pandas.read_feather("t.feather")'),
        ("t.xlsx", 'pandas.read_excel("t.xlsx")'),
    ],
)
def test_a_table_in_another_format_gets_the_line_that_makes_it_parquet(here: Path, name: str, reader: str) -> None:
    save(LogisticRegression().fit(PEOPLE[["age", "trips"]], MANY), here / "m")
    (here / name).write_bytes(b"user_id,age\n1,2\n")
    with pytest.raises(SourceError) as caught:
        init("m", features=name)
    assert f"{name} is no Parquet file; make it one: python -c 'import pandas; {reader}" in caught.value.message


def test_a_csv_or_a_delta_table_beside_the_model_is_enough(here: Path) -> None:
    save(LogisticRegression().fit(PEOPLE[["age", "trips"]], MANY), here / "m")
    table().to_csv("people.csv", index=False)
    write_deltalake("lake/people", table())
    for spelled in ("people.csv", "delta:lake/people"):
        init("m", features=spelled, force=True)
        settings = load_settings(here / "forecache.toml")
        assert settings.models["m"].features == spelled
        assert settings.models["m"].entity_column == "user_id"
    assert sorted(path.name for path in here.iterdir()) == ["forecache.toml", "lake", "m", "people.csv", "t.parquet"]


# -- pickles and what they need -----------------------------------------------------------------------------------


def pickle_of(module: ModuleType, name: str) -> bytes:
    """A pickle that names a class of a module which is gone when it is loaded."""
    sys.modules[module.__name__] = module
    try:
        return pickle.dumps(getattr(module, name)())
    finally:
        del sys.modules[module.__name__]


def module_with(name: str, source: str) -> ModuleType:
    module = ModuleType(name)
    exec(source, module.__dict__)
    return module


SCALER = "class Doubler:\n    n_features_in_ = 1\n    def predict(self, x):\n        return x[:, 0] * 2\n"
ONE = [{"name": "x", "dtype": "float64"}]


def write_pickle(folder: Path, content: bytes) -> Path:
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "m.pkl").write_bytes(content)
    (folder / "features.json").write_text(json.dumps({"features": ONE}))
    return folder


def test_a_module_beside_the_settings_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = write_pickle(tmp_path / "m", pickle_of(module_with("steps_of_mine", SCALER), "Doubler"))
    with pytest.raises(ModelError, match=r"needs the module 'steps_of_mine'.*put it beside forecache\.toml"):
        loaded(folder)
    (tmp_path / "steps_of_mine.py").write_text(SCALER)
    try:
        version = loaded(folder, code_folder=tmp_path)
        assert answers(version, pd.DataFrame({"x": [1.0, 4.0]}))["prediction"].tolist() == [2.0, 8.0]
    finally:
        sys.modules.pop("steps_of_mine", None)


def test_what_a_notebook_defined_is_refused_by_name_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = sys.modules["__main__"]
    monkeypatch.setattr(
        main, "clean_text", module_with("__main__", "def clean_text(x): return x\n").clean_text, raising=False
    )
    model = make_pipeline(TfidfVectorizer(preprocessor=main.clean_text), LogisticRegression())
    content = pickle.dumps(model.fit(["cheap flight", "late train"] * 4, [0, 1] * 4))
    monkeypatch.undo()
    with pytest.raises(ModelError, match=r"needs 'clean_text'.*notebook.*module beside forecache\.toml"):
        loaded(write_pickle(tmp_path, content))


class Plain:
    """Predicts, and is no estimator of scikit-learn's."""

    def predict(self, x: Any) -> Any:
        return np.asarray(x)[:, 0] + 1


class ByName:
    """Looks its columns up by name."""

    def predict(self, x: Any) -> Any:
        return x["x"] + 2


@pytest.mark.parametrize(("model", "answer"), [(Plain(), 4.0), (ByName(), 5.0)])
def test_any_object_that_predicts_rows_is_served_with_a_contract(model: Any, answer: float, tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [3.0]})
    assert answers(loaded(save(model, tmp_path, ONE)), frame)["prediction"].tolist() == [answer]


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_a_booster_is_refused_with_what_to_save_instead(library: str, tmp_path: Path) -> None:
    made = module_with(f"{library}.basic", "class Booster:\n    def predict(self, x): return x\n")
    made.Booster.__module__ = f"{library}.basic"
    package = ModuleType(library)
    sys.modules.update({library: package, made.__name__: made})
    try:
        save(made.Booster(), tmp_path, ONE)
        with pytest.raises(
            ModelError, match=rf"holds a {library} Booster, which is no scikit-learn estimator: save the"
        ):
            loaded(tmp_path)
    finally:
        del sys.modules[library], sys.modules[made.__name__]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (StandardScaler(), "holds a StandardScaler, which has no predict method"),
        ((StandardScaler(), Ridge()), r"holds a tuple, .*save \[1\] of it alone, which is a Ridge"),
        (Ridge, "holds the class Ridge itself: save a fitted object of it"),
    ],
)
def test_what_is_no_model_is_named_with_what_to_save(model: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words):
        loaded(save(model, tmp_path, ONE))
