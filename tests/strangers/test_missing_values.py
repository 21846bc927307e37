"""What is missing stays missing, for text too: the model is given what its training gave it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from app.cli.features import _values
from inference.errors import ContractError
from inference.features import Feature, FeatureContract, FeatureUpdate, FeatureWriter, Vectoriser
from inference.features.gathering import FeatureGatherer
from inference.models import score_rows
from inference.models.loaded import LoadedModel
from inference.models.loading import load_version
from inference.models.runtimes import LoadOptions
from inference.onboarding.trial import TrialRequest, try_row
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.schema import DType, Signature, TensorSpec
from inference.store import Table
from tests.support.any_table import AnyTable

ROWS = 200
REGION = {"name": "region", "dtype": "string", "nullable": True}
AGE = {"name": "age", "dtype": "float64", "nullable": True}


def people(missing: Any = None) -> pd.DataFrame:
    """Rows of which some lack a region, an age, or both; `missing`: how training spells a region that is not there."""
    rng = np.random.default_rng(7)
    region = np.array(["north", "south", "west"], dtype=object)[rng.integers(0, 3, ROWS)]
    region[rng.random(ROWS) < 0.25] = missing
    age = np.where(rng.random(ROWS) < 0.2, np.nan, rng.normal(40, 9, ROWS))
    return pd.DataFrame({"region": pd.Series(region, dtype=object), "age": age})


def target(frame: pd.DataFrame) -> Any:
    return (frame.age.fillna(30) > 38) ^ frame.region.isna()


def save(model: Any, folder: Path, features: list[dict[str, Any]] | None = None) -> Path:
    (folder / "1").mkdir(parents=True)
    joblib.dump(model, folder / "1" / "m.joblib")
    if features:
        (folder / "features.json").write_text(json.dumps({"features": features}))
    return folder


def loaded(folder: Path) -> LoadedModel:
    return load_version("m", folder, 1, folder / "1", options=LoadOptions(allow_code=True))


def served(model: LoadedModel, frame: pd.DataFrame) -> np.ndarray:
    """What a run over the frame as a Parquet table answers."""
    table = pa.Table.from_pandas(frame, preserve_index=False).combine_chunks()
    rows = model.vectoriser.features_from_arrow(table.to_batches()[0])
    assert not rows.rejected.any()
    scored = score_rows(model, rows.usable())
    assert not scored.failed.any(), scored.reasons
    return scored.outputs["probabilities"]


def encoded(encoder: Any, *, imputer: Any = None) -> Any:
    text = make_pipeline(imputer, encoder) if imputer is not None else encoder
    return make_pipeline(
        make_column_transformer((text, ["region"]), remainder="passthrough"), HistGradientBoostingClassifier(max_iter=8)
    )


MODELS = {
    "an encoder that learnt NaN": (np.nan, encoded(OrdinalEncoder())),
    "an encoder that learnt None as a category": (None, encoded(OrdinalEncoder())),
    "one-hot columns of None": (None, encoded(OneHotEncoder(handle_unknown="ignore", sparse_output=False))),
    "a text filled in for NaN": (
        np.nan,
        encoded(OneHotEncoder(sparse_output=False), imputer=SimpleImputer(strategy="constant", fill_value="none")),
    ),
    "the most frequent for None": (
        None,
        encoded(OrdinalEncoder(), imputer=SimpleImputer(missing_values=None, strategy="most_frequent")),
    ),
    "a text filled in for pandas' NA": (
        np.nan,
        encoded(OrdinalEncoder(), imputer=SimpleImputer(missing_values=pd.NA, strategy="constant", fill_value="")),
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_rows_that_lack_a_text_are_answered_as_by_the_model_itself(kind: str, tmp_path: Path) -> None:
    missing, model = MODELS[kind]
    frame = people(missing)
    model.fit(frame, target(frame))
    answers = served(loaded(save(model, tmp_path, [REGION, AGE])), people())
    np.testing.assert_array_equal(answers, model.predict_proba(frame))


def test_integers_and_flags_with_gaps_are_what_pandas_makes_of_them(tmp_path: Path) -> None:
    frame = pd.DataFrame({"rides": [1, 2, None, 4] * 20, "member": [1.0, None, 0.0, 1.0] * 20})
    model = HistGradientBoostingClassifier(max_iter=4, min_samples_leaf=2).fit(frame, frame.rides.isna())
    features = [
        {"name": "rides", "dtype": "int64", "nullable": True},
        {"name": "member", "dtype": "bool", "nullable": True},
    ]
    table = frame.assign(rides=frame.rides.astype("Int64"), member=frame.member.astype("boolean"))
    np.testing.assert_array_equal(served(loaded(save(model, tmp_path, features)), table), model.predict_proba(frame))


@pytest.mark.parametrize("value", [None, "north"])
def test_a_text_that_is_missing_is_legal_beside_its_categories(value: str | None) -> None:
    contract = FeatureContract.from_json({"features": [{**REGION, "categories": ["north", "south"]}, AGE]})
    vectoriser = Vectoriser(contract, Signature(contract.fields, ()))
    rows = vectoriser.features_from_rows([{"region": value, "age": None}, {"region": "east", "age": 1.0}])
    assert rows.rejected.tolist() == [False, True]
    assert rows.block["region"][0] is value
    assert np.isnan(rows.block["age"][0])


def test_a_tensor_of_text_cannot_say_missing_and_the_refusal_says_what_to_write(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    text = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.STRING, ["n"]) for name in ("region", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["region"], ["y"])], "g", text[:1], text[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "1").mkdir()
    onnx.save(model, tmp_path / "1" / "m.onnx")
    (tmp_path / "features.json").write_text(json.dumps({"features": [REGION]}))
    with pytest.raises(
        ContractError, match=r"'region' is text that may be missing.*\"default\" in place of \"nullable\""
    ):
        loaded(tmp_path)


NULLABLE = FeatureContract.from_json({"features": [REGION, AGE, {"name": "rides", "dtype": "int32", "default": 3}]})


def test_a_missing_text_is_stored_and_read_back_as_missing(redis_client: Client) -> None:
    def table(kind: TableKind) -> Table:
        return Table(redis_client, Keys("t").table(kind, "m"), kind=kind, model="m")

    features = table(TableKind.FEATURES)
    writer = FeatureWriter(features, table(TableKind.PREDICTIONS), NULLABLE, keep_s=60)
    writer.write([FeatureUpdate("a", {"region": "north", "age": 40.0}), FeatureUpdate("b", {"region": None, "age": 1})])
    writer.write([FeatureUpdate("a", {"region": None, "age": None})])
    gatherer = FeatureGatherer(features, Vectoriser(NULLABLE, Signature(NULLABLE.fields, ())))
    gathered = gatherer.gather(["a", "b"], now=features.now())
    assert not gathered.rows.rejected.any()
    assert gathered.rows.block["region"].tolist() == [None, None]
    np.testing.assert_array_equal(gathered.rows.block["age"], [np.nan, 1.0])
    assert gathered.rows.imputed_names() == [["rides"], ["rides"]]
    again = gatherer.gather(["b"], now=features.now(), overrides={"rides": 5, "region": "south"})
    assert again.rows.imputed_names() == [[]]
    assert gatherer.gather(["b"], now=features.now(), overrides={"rides": None}).rows.imputed_names() == [["rides"]]


def test_put_says_missing_by_nothing_after_the_sign() -> None:
    told = _values({"region": "", "age": "", "rides": "4"}, NULLABLE)
    assert told == {"region": None, "age": None, "rides": 4}
    assert _values({"region": '""', "age": "null", "rides": ""}, NULLABLE) == {"region": "", "age": None, "rides": None}
    assert _values({"region": "a=b"}, NULLABLE) == {"region": "a=b"}


@pytest.mark.parametrize("overrides", [{"rides": None}, {"region": None, "rides": None}, {"rides": float("nan")}])
def test_an_override_with_null_is_named_as_imputed(overrides: dict[str, Any]) -> None:
    vectoriser = Vectoriser(NULLABLE, Signature(NULLABLE.fields, ()))
    block = {
        "region": np.array(["north"], dtype=object),
        "age": np.array([40.0]),
        "rides": np.array([9], dtype=np.int32),
    }
    rows = vectoriser.features_from_columns(vectoriser.stored_columns(block, 1), 1, overrides=overrides)
    assert rows.imputed_names() == [["rides"]]
    assert rows.block["rides"].tolist() == [3]
    assert rows.block["region"][0] == overrides.get("region", "north")


def trial(folder: Path, frame: pd.DataFrame, features: list[dict[str, Any]]) -> Any:
    frame = frame.assign(id=[f"u{number}" for number in range(len(frame))])
    frame.to_parquet(folder / "t.parquet")
    contract = FeatureContract.from_json({"features": features})
    return try_row(
        TrialRequest(
            model="m",
            path=str(folder),
            version=1,
            contract=contract,
            source=str(folder / "t.parquet"),
            entity_column="id",
            allow_code=True,
            adapt=True,
        )
    )


PLAIN = [{"name": "region", "dtype": "string"}, {"name": "age", "dtype": "float64"}]


def test_init_finds_by_trying_which_gaps_the_model_bears(tmp_path: Path) -> None:
    frame = people()
    model = encoded(OrdinalEncoder()).fit(frame, target(frame))
    found = trial(save(model, tmp_path), frame, PLAIN)
    assert found.contract == FeatureContract.from_json({"features": [REGION, AGE]})
    assert (found.unusable, found.advice) == (0, None)


def test_init_says_which_default_to_write_and_how_many_rows_would_be_left_out(tmp_path: Path) -> None:
    frame = people()
    model = make_pipeline(
        make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["region"]), (StandardScaler(), ["age"])),
        LogisticRegression(),
    ).fit(frame.fillna({"age": 40}), target(frame))
    found = trial(save(model, tmp_path), frame, PLAIN)
    assert [feature.nullable for feature in found.contract.features] == [True, False]
    median = float(f"{frame.age.median():.6g}")
    assert f"{frame.age.isna().sum()} of all {ROWS} rows lack" in found.advice
    assert f'{{"name": "age", "dtype": "float64", "default": {median}}}' in found.advice


def test_a_column_that_is_nowhere_whole_is_tried_all_the_same(tmp_path: Path) -> None:
    frame = people()
    model = encoded(OrdinalEncoder()).fit(frame, target(frame))
    some = frame[frame.region.isna() != frame.age.isna()]
    assert all(one.nullable for one in trial(save(model, tmp_path), some, PLAIN).contract.features)


def test_features_of_numbers_still_know_no_missing_but_nan() -> None:
    contract = FeatureContract.from_json({"features": [{"name": "x", "dtype": "int8", "nullable": True}]})
    assert contract.fields == (TensorSpec("x", DType.FLOAT64),)


GAPS = [[1.0, None, 3.0], None, [4.0, float("nan"), 6.0]]


@pytest.mark.parametrize("layout", [pa.list_(pa.float64()), pa.list_(pa.float32(), 3), pa.large_list(pa.float64())])
def test_a_list_that_lacks_a_value_keeps_the_others_in_tables_and_requests(layout: pa.DataType) -> None:
    feature = {"name": "x", "dtype": "float64", "shape": [3], "nullable": True}
    vectoriser = of_one(feature)
    from_table = vectoriser.features_from_arrow(pa.record_batch({"x": pa.array(GAPS, layout)}))
    from_request = vectoriser.features_from_rows([{"x": values} for values in GAPS])
    right = [[1.0, np.nan, 3.0], [np.nan] * 3, [4.0, np.nan, 6.0]]
    for rows in (from_table, from_request):
        assert not rows.rejected.any()
        np.testing.assert_array_equal(rows.block["x"], right)


def test_a_nested_list_that_lacks_a_list_or_a_value_keeps_the_others() -> None:
    vectoriser = of_one({"name": "x", "dtype": "float32", "shape": [2, 2], "nullable": True})
    values = [[[1.0, None], [3.0, 4.0]], [None, [1.0, 2.0]]]
    right = [[[1.0, np.nan], [3.0, 4.0]], [[np.nan, np.nan], [1.0, 2.0]]]
    from_table = vectoriser.features_from_arrow(pa.record_batch({"x": pa.array(values)}))
    from_request = vectoriser.features_from_rows([{"x": one} for one in values])
    np.testing.assert_array_equal(from_table.block["x"], right)
    np.testing.assert_array_equal(from_request.block["x"], right)


@pytest.mark.parametrize(("default", "reason"), [(0.5, None), (None, "missing, and the feature has no default")])
def test_any_other_list_that_lacks_a_value_is_missing_in_tables_and_requests(default: Any, reason: str | None) -> None:
    vectoriser = of_one({"name": "x", "dtype": "float64", "shape": [3], "default": default})
    from_table = vectoriser.features_from_arrow(pa.record_batch({"x": pa.array(GAPS)}))
    from_request = vectoriser.features_from_rows([{"x": values} for values in GAPS])
    for rows in (from_table, from_request):
        assert [one.reason for one in rows.reasons] == ([] if reason is None else [reason])
        if default is not None:
            assert rows.block["x"].tolist() == [[default] * 3] * 3
            assert rows.imputed["x"].all()


def of_one(feature: dict[str, Any]) -> Vectoriser:
    contract = FeatureContract.from_json({"features": [feature]})
    return Vectoriser(contract, Signature(contract.fields, (TensorSpec("y", DType.FLOAT64),)))


def test_rows_of_which_none_has_the_right_shape_are_left_out_one_by_one() -> None:
    vectoriser = of_one({"name": "x", "dtype": "float64", "shape": [2, 2], "min": 0})
    batch = pa.record_batch({"x": pa.array([[], [], []], pa.list_(pa.list_(pa.float64())))})
    rows = vectoriser.features_from_arrow(batch)
    assert rows.rejected.all()
    assert [one.reason for one in rows.reasons] == ["wrong number of values"]
    assert not len(vectoriser.features_from_arrow(batch.slice(0, 0)).rejected)


@pytest.mark.integration
def test_a_list_that_lacks_a_value_is_stored_with_the_others(redis_client: Client, tmp_path: Path) -> None:
    world = AnyTable(redis_client, tmp_path, Feature("x", DType.FLOAT64, (3,), nullable=True))
    world.write(id=["a", "b"], x=pa.array([[1.0, None, 3.0], None], pa.list_(pa.float64())))
    assert world.load().rows == 2
    table = world.table_of(TableKind.FEATURES, "m")
    stored = [entry.values["x"] for entry in table.read(["a", "b"]) if entry]
    np.testing.assert_array_equal(stored, [[1.0, np.nan, 3.0], [np.nan] * 3])
