"""Batch and real time cannot disagree: for random tables, contracts and functions both give the same bits."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.batch.scoring import PreparedRows, Preparer
from inference.features import (
    Feature,
    FeatureContract,
    FeatureGatherer,
    FeatureGroup,
    Gathered,
    GroupSource,
    GroupStatus,
    Vectoriser,
    load_features,
)
from inference.features.key_columns import group_times
from inference.features.rows import take
from inference.models.loaded import vector_hashes
from inference.schema import DType, Signature, TensorSpec
from inference.store import Table

NOW = float(int(time.time()))
NewTable = Callable[[], Table]
STORED = ("left", "right")


FUNCTIONS = [
    FeatureGroup(
        "code", GroupSource.FUNCTION, function=f"tests.support.feature_functions:{name}", timezone="Asia/Kathmandu"
    )
    for name in ("mixture", "distances", "spellings")
]
WEEKDAY = FeatureGroup("day", GroupSource.FUNCTION, function="day_of_week", timezone="Asia/Kathmandu")


NUMBERS = st.sampled_from([DType.FLOAT32, DType.FLOAT64, DType.INT32, DType.BOOL, DType.STRING])


@st.composite
def contracts(draw: st.DrawFn) -> FeatureContract:
    features = []
    for index in range(draw(st.integers(1, 5))):
        dtype = draw(NUMBERS)
        group = draw(st.sampled_from(STORED))
        kind = draw(st.sampled_from(["default", "nullable", "required"]))
        nullable = kind == "nullable" and dtype.is_float
        default = {"f": 0.1, "i": 7, "b": True, "O": "none"}[dtype.numpy.kind] if kind == "default" else None
        limits = (-100.0, 100.0) if dtype.is_float and draw(st.booleans()) else (None, None)
        features.append(Feature(f"f{index}", dtype, (), default, group, nullable, *limits))
    ages = draw(st.lists(st.sampled_from([None, 3600.0]), min_size=2, max_size=2))
    groups = [
        FeatureGroup(name, max_age_s=age, event_time_column=f"at_{name}")
        for name, age in zip(STORED, ages, strict=True)
    ]
    used = {feature.group for feature in features}
    computed = [
        Feature("mixed", DType.FLOAT32, group="code"),
        Feature("hour", DType.INT64, group="code"),
        Feature("day", DType.FLOAT32, group="day", minimum=0, maximum=6),
    ]
    return FeatureContract(
        (*features, *computed),
        (*(group for group in groups if group.name in used), draw(st.sampled_from(FUNCTIONS)), WEEKDAY),
    )


_VALUES = {
    "f": st.floats(-200, 200, width=32) | st.just(float("nan")),
    "i": st.integers(-5, 5),
    "b": st.booleans(),
    "O": st.sampled_from(["", "a", "☃"]),
}


@st.composite
def tables(draw: st.DrawFn, contract: FeatureContract) -> pa.Table:
    rows = draw(st.integers(1, 8))
    columns: dict[str, Any] = {"entity_id": [f"e{row}" for row in range(rows)]}
    for feature in contract.given:
        values = st.lists(_VALUES[feature.dtype.numpy.kind] | st.none(), min_size=rows, max_size=rows)
        type_ = pa.string() if feature.dtype is DType.STRING else pa.from_numpy_dtype(feature.dtype.numpy)
        columns[feature.name] = pa.array(draw(values), type_)
    for group in contract.table_groups:
        ages = st.lists(st.sampled_from([None, 10, 3000, 4000]), min_size=rows, max_size=rows)
        times = [None if age is None else int(NOW) - age for age in draw(ages)]
        columns[f"at_{group.name}"] = pa.array(times, pa.timestamp("s"))
    return pa.table(columns)


class Both:
    """One table on both ways."""

    def __init__(self, contract: FeatureContract, table: pa.Table, new_table: NewTable) -> None:
        output = (TensorSpec("y", DType.FLOAT32),)
        signature = Signature(tuple(feature.spec for feature in contract.features), output)
        self.vectoriser = Vectoriser(contract, signature)
        self.table = table
        self.new_table = new_table

    def batch(self) -> PreparedRows:
        preparer = Preparer(self.vectoriser, "entity_id", None, NOW)
        return preparer.prepare(self.table.combine_chunks().to_batches()[0])

    def realtime(self) -> Gathered:
        stored = self.new_table()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "t.parquet"
            pq.write_table(self.table, file)
            load_features(stored, str(file), self.vectoriser, entity_column="entity_id", keep_s=60)
        gatherer = FeatureGatherer(stored, self.vectoriser)
        return gatherer.gather(self.table["entity_id"].to_pylist(), now=NOW)

    def stored_by_a_run(self, prepared: PreparedRows) -> Gathered:
        """What real time gathers after a run that fills the feature table."""
        stored, contract = self.new_table(), self.vectoriser.contract
        rows = len(prepared.usable.ids)
        manifest = stored.generations.begin(
            contract.stored_fields, rows_expected=rows, model_version=0, contract_hash=contract.hash, keep_s=60
        )
        stored.generations.write(manifest, prepared.usable.ids, prepared.features, prepared.usable.as_of)
        stored.generations.publish(manifest.number)
        return FeatureGatherer(stored, self.vectoriser).gather(prepared.usable.ids.to_pylist(), now=NOW)


def predict(block: dict[str, np.ndarray]) -> np.ndarray:
    """A model in float32, whose sums depend on how many rows are multiplied at once."""
    numbers = [values.astype(np.float32) for _, values in sorted(block.items()) if values.dtype != object]
    inputs = np.nan_to_num(np.stack(numbers, axis=1))
    weights = np.cos(np.arange(inputs.shape[1], dtype=np.float32)) / np.float32(200 * inputs.shape[1])
    return np.tanh(inputs @ weights)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_vectors_are_equal_bit_for_bit_and_so_are_what_cannot_be_used_and_how_old_it_is(
    new_table: NewTable, data: st.DataObject
) -> None:
    contract = data.draw(contracts())
    table = data.draw(tables(contract))
    both = Both(contract, loadable(contract, table, new_table), new_table)
    if not both.table.num_rows:
        return
    batch, live = both.batch(), both.realtime()
    good = ~live.rows.rejected
    assert (
        batch.usable.ids.to_pylist() == pa.array(both.table["entity_id"].to_pylist()).filter(pa.array(good)).to_pylist()
    )
    names = contract.names
    left = {name: batch.features[name] for name in names}
    right = {name: take(live.rows.block, good)[name] for name in names}
    assert vector_hashes(left) == vector_hashes(right)
    for name in names:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name])
    np.testing.assert_array_equal(batch.usable.as_of, live.as_of[good])
    after_run = both.stored_by_a_run(batch)
    assert not after_run.rows.rejected.any()
    assert vector_hashes({name: after_run.rows.block[name] for name in names}) == vector_hashes(left)
    assert after_run.rows.imputed_names() == live.rows.imputed_names()
    alone = [predict({name: values[row : row + 1] for name, values in right.items()}) for row in range(good.sum())]
    if alone:
        np.testing.assert_allclose(predict(left), np.concatenate(alone), rtol=1e-5, atol=1e-6)


def loadable(contract: FeatureContract, table: pa.Table, new_table: NewTable) -> pa.Table:
    """Return the rows that a load takes: the others refuse the whole of it."""
    vectoriser = Both(contract, table, new_table).vectoriser
    keep = []
    for row in range(table.num_rows):
        one = table.slice(row, 1)
        if not contract.has_several_groups and one[f"at_{contract.table_groups[0].name}"].null_count:
            continue
        batch = one.combine_chunks().to_batches()[0]
        times = group_times(batch, contract, None, NOW)
        if not vectoriser.stored_from_arrow(batch, times).rejected.any():
            keep.append(row)
    return table.take(pa.array(keep, pa.int64()))


def test_the_property_is_about_something(new_table: NewTable) -> None:
    contract = FeatureContract(
        (Feature("f0", DType.FLOAT32, (), 0.1, "left"), Feature("f1", DType.FLOAT64, (), None, "right", True)),
        (FeatureGroup("left", max_age_s=3600.0, event_time_column="at_left"),
         FeatureGroup("right", event_time_column="at_right")),
    )  # fmt: skip
    at = pa.array([int(NOW) - 4000, int(NOW) - 10, None], pa.timestamp("s"))
    table = pa.table({
        "entity_id": ["old", "young", "bare"], "f0": [5.0, None, 1.0], "f1": [1.0, None, None],
        "at_left": at, "at_right": pa.array([int(NOW) - 20] * 3, pa.timestamp("s")),
    })  # fmt: skip
    both = Both(contract, table, new_table)
    live, batch = both.realtime(), both.batch()
    assert live.groups["left"].status == [GroupStatus.OUTSIDE_MAX_AGE, GroupStatus.NOT_FOUND, GroupStatus.NOT_FOUND]
    np.testing.assert_array_equal(live.rows.block["f0"], np.float32([0.1, 0.1, 0.1]))
    assert np.isnan(live.rows.block["f1"]).tolist() == [False, True, True]
    assert live.rows.imputed["f0"].all()
    np.testing.assert_array_equal(batch.features["f0"], live.rows.block["f0"])
