"""What a contract may say of groups, ranges and functions, and what values then become."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from inference.errors import ContractError, FunctionFailed, ModelError
from inference.features import (
    FeatureContract,
    FeatureFunctions,
    FeatureGatherer,
    GroupStatus,
    Vectoriser,
    explain,
)
from inference.features.functions import check_code_allowed
from inference.features.rows import StoredForm
from inference.schema import DType, Signature, TensorSpec
from inference.store import Origin, Table
from tests.support import feature_functions

NOW = float(int(time.time()))
NewTable = Callable[[], Table]


def feature(name: str = "x", dtype: str = "float32", **more: Any) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, **more}


def contract_of(*features: dict[str, Any], **groups: Any) -> FeatureContract:
    return FeatureContract.from_json({"features": list(features), **({"groups": groups} if groups else {})})


def vectoriser_of(contract: FeatureContract) -> Vectoriser:
    return Vectoriser(contract, Signature(contract.fields, (TensorSpec("y", DType.FLOAT32),)))


def computed(function: str, *, x: list[float], zone: str | None = None, **more: Any) -> Vectoriser:
    group = {"source": "function", "function": function, **({"timezone": zone} if zone else {})}
    return vectoriser_of(contract_of(feature(), feature("out", **({"group": "g"} | more)), g=group))


def path(name: str) -> str:
    return f"tests.support.feature_functions:{name}"


# --- the contract ---


def test_a_contract_without_groups_keeps_the_hash_that_stored_tables_hold() -> None:
    contract = contract_of(feature("a", shape=[2], default=[1, 2]), feature("b", "float64"))
    assert contract.hash == "aaa785d2a3146ab8"
    assert contract.to_json() == {
        "features": [{"name": "a", "dtype": "float32", "shape": [2], "default": [1, 2]},
                     {"name": "b", "dtype": "float64"}],
    }  # fmt: skip


def test_a_contract_with_groups_survives_json() -> None:
    contract = contract_of(
        feature("a", min=0, max=2.5, group="p"),
        feature("b", "string", categories=["x", "y"], default="x"),
        feature("c", nullable=True, group="q"),
        feature("d", "int64", group="h"),
        p={"max_age": "24h", "event_time_column": "at"},
        q={"source": "request"},
        h={"source": "function", "function": "hour_of_day", "timezone": "Europe/Berlin"},
    )
    assert FeatureContract.from_json(contract.to_json()) == contract
    assert [group.name for group in contract.groups] == ["p", "q", "h", "features"]
    assert contract.groups[0].max_age_s == 86400


@pytest.mark.parametrize(
    "change",
    [{"min": 0}, {"max": 1}, {"nullable": True}, {"group": "g"}],
)
def test_the_hash_changes_with_every_rule_and_with_a_groups_source(change: dict[str, Any]) -> None:
    groups = {"g": {}} if "group" in change else {}
    assert contract_of(feature(), feature("z")).hash != contract_of(feature(**change), feature("z"), **groups).hash
    one = contract_of(feature(group="g"), g={"source": "function", "function": "a:f"})
    other = contract_of(feature(group="g"), g={"source": "function", "function": "a:g"})
    assert one.hash != other.hash


@pytest.mark.parametrize(
    ("features", "groups", "names"),
    [
        ([feature(min=2, max=1)], {}, "min 2 is more than max 1"),
        ([feature(dtype="string", min=1)], {}, "min and max are for numbers"),
        ([feature(min="a")], {}, "min \"a\" is no number"),
        ([feature(min=float("inf"))], {}, "is no number"),
        ([feature(default=5, max=1)], {}, "default 5 is not 1 or less"),
        ([feature(dtype="int8", categories=[1, 400])], {}, "a category is no int8"),
        ([feature(dtype="string", categories=["a", "a"])], {}, "appears twice"),
        ([feature(dtype="string", categories=[])], {}, "list of the legal values"),
        ([feature(categories=[1])], {}, "categories are for text and integers"),
        ([feature(dtype="int8", categories=[1], min=0)], {}, "either categories, or min and max"),
        ([feature(column="")], {}, "no name of a table's column"),
        ([feature(default=1, nullable=True)], {}, "choose one"),
        ([feature(nullable="yes")], {}, "nullable must be true or false"),
        ([feature(group="p")], {}, "group 'p' is not declared"),
        ([feature()], {"p": {}}, "group 'p' has no feature"),
        ([feature(group="p")], {"p": {"source": "sql"}}, "source 'sql' is not one of table, function, request"),
        ([feature(group="p")], {"p": {"max_ag": "1h"}}, "takes no 'max_ag'"),
        ([feature(group="p")], {"p": {"max_age": "soon"}}, "max_age: 'soon' is not a duration"),
        ([feature(group="p")], {"p": {"source": "request", "max_age": "1h"}}, "takes no 'max_age'"),
        ([feature(group="p")], {"p": {"source": "function"}}, 'name its "function"'),
        ([feature(group="p")], {"p": {"source": "function", "function": "os.system"}}, "nor a path"),
        ([feature(group="p")], {"p": {"source": "function", "function": "weekend", "timezone": "Mars"}}, "timezone"),
        ([feature("a", group="p"), feature("b", group="p")],
         {"p": {"source": "function", "function": "weekend"}}, "is one feature, and the group has 2"),
        ([feature(group="p")], {"p": []}, "write an object"),
        ([feature(group="a b")], {"a b": {}}, "the name must be"),
    ],
)  # fmt: skip
def test_a_malformed_group_or_rule_is_refused_by_name(features: Any, groups: Any, names: str) -> None:
    with pytest.raises(ContractError) as caught:
        contract_of(*features, **groups)
    assert names in caught.value.message


# --- ranges, categories, missing values ---


def arrow(contract: FeatureContract, **columns: Any) -> Any:
    return vectoriser_of(contract).features_from_arrow(pa.record_batch(columns), at=NOW)


def test_both_ends_of_a_range_are_legal_and_what_lies_outside_is_rejected_by_name() -> None:
    contract = contract_of(feature(min=0.1, max=1, group="p"), p={})
    rows = arrow(contract, x=pa.array([0.1, 1.0, 0.05, 1.5, None], pa.float32()))
    assert rows.rejected.tolist() == [False, False, True, True, True]
    assert {why.reason for why in rows.reasons} == {
        "not 0.1 to 1 (group 'p')", "missing, and the feature has no default (group 'p')",
    }  # fmt: skip


def test_only_known_categories_are_legal_whether_text_or_integers() -> None:
    contract = contract_of(feature("t", "string", categories=["a", "b"]), feature("n", "int16", categories=[1, 3]))
    rows = arrow(contract, t=["a", "c", "b", "a"], n=[1, 1, 3, 2])
    assert rows.rejected.tolist() == [False, True, False, True]
    [item] = [why for why in rows.reasons if why.feature == "t"]
    assert item.reason == "not one of a, b"


def test_a_nullable_feature_hands_a_missing_value_on_as_nan() -> None:
    rows = arrow(contract_of(feature(nullable=True)), x=pa.array([None, 2.0]))
    assert np.isnan(rows.block["x"][0])
    assert (rows.rejected.any(), rows.imputed) == (False, {})


def test_defaults_that_stand_for_missing_values_are_named_row_by_row() -> None:
    rows = arrow(contract_of(feature(default=1), feature("z", default=2)), x=pa.array([None, 5.0]), z=[1.0, None])
    assert rows.imputed_names() == [["x"], ["z"]]


def test_the_values_of_a_request_keep_the_rules_too() -> None:
    vectoriser = vectoriser_of(contract_of(feature(max=1)))
    assert vectoriser.features_from_rows([[0.5], [2.0]]).rejected.tolist() == [False, True]
    with pytest.raises(ContractError, match="not 1 or less"):
        vectoriser.override_values({"x": 2})


# --- functions ---


def test_a_function_is_told_the_instant_in_its_own_zone_and_only_rows_that_are_whole() -> None:
    feature_functions.calls.clear()
    vectoriser = vectoriser_of(contract_of(
        feature(), feature("mixed", group="g"), feature("hour", "int64", group="g"),
        g={"source": "function", "function": path("mixture"), "timezone": "Asia/Kathmandu"},
    ))  # fmt: skip
    at = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
    rows = vectoriser.features_from_rows([[1, None, None], ["bad", None, None], [3, None, None]], at=at.timestamp())
    assert feature_functions.calls == [(2, at)]
    assert rows.block["hour"][[0, 2]].tolist() == [17, 17]  # 5 h 45 min ahead
    assert rows.rejected.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("name", "instant", "zone", "value"),
    [
        ("hour_of_day", "2026-03-29T00:59:59+00:00", "Europe/Berlin", 1),
        ("hour_of_day", "2026-03-29T01:00:00+00:00", "Europe/Berlin", 3),  # the hour between does not exist
        ("day_of_week", "2026-11-22T23:30:00+00:00", None, 6),
        ("day_of_week", "2026-11-22T23:30:00+00:00", "Europe/Berlin", 0),
        ("weekend", "2026-11-22T23:30:00+00:00", None, 1),
        ("weekend", "2026-11-22T23:30:00+00:00", "Europe/Berlin", 0),
    ],
)
def test_the_clock_of_a_zone_needs_no_code(name: str, instant: str, zone: str | None, value: int) -> None:
    vectoriser = computed(name, x=[1.0], zone=zone)
    rows = vectoriser.features_from_rows([{"x": 1.0}], at=datetime.fromisoformat(instant).timestamp())
    assert rows.block["out"].tolist() == [value]
    check_code_allowed(vectoriser.contract, allow_code=False)


def test_a_function_cannot_change_the_features_that_it_is_given() -> None:
    rows = computed(path("spoiler"), x=[1.0]).features_from_rows([{"x": 4.0}], at=NOW)
    assert (rows.block["x"].tolist(), rows.block["out"].tolist()) == ([4.0], [-1.0])


def test_a_value_that_comes_along_is_not_computed() -> None:
    vectoriser = computed(path("raises"), x=[1.0])
    assert vectoriser.features_from_rows([{"x": 4.0, "out": 2.0}], at=NOW).block["out"].tolist() == [2.0]
    block = {"x": np.float32([4.0])}
    stored = vectoriser.stored_columns(block, 1)
    assert vectoriser.features_from_columns(stored, 1, overrides={"out": 3.0}, at=NOW).block["out"].tolist() == [3.0]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("raises", "raised ZeroDivisionError"),
        ("too_short", "returned 2 rows for 1"),
        ("wrong_name", "returned the columns outt"),
        ("wrong_type", "returned a column that is large_string, but the feature is float32"),
        ("no_frame", "returned ndarray, not a pandas.DataFrame"),
    ],
)
def test_a_function_that_fails_is_told_by_group_and_feature(name: str, what: str) -> None:
    with pytest.raises(FunctionFailed) as caught:
        computed(path(name), x=[1.0]).features_from_rows([{"x": 1.0}], at=NOW)
    assert "feature group 'g' (out): function tests.support.feature_functions:" in caught.value.message
    assert what in caught.value.message
    assert "secret" not in caught.value.message
    assert caught.value.field == "out"


def test_what_a_function_has_no_value_for_takes_the_default_or_is_rejected() -> None:
    instances = [{"x": 0.0}, {"x": 1.0}, {"x": 2.0}]
    rows = computed(path("holes"), x=[], default=3, max=100).features_from_rows(instances, at=NOW)
    assert rows.block["out"][[0, 2]].tolist() == [3.0, 5.0]
    assert rows.rejected.tolist() == [False, True, False]
    assert rows.imputed["out"].tolist() == [True, False, False]
    assert computed(path("holes"), x=[]).features_from_rows(instances, at=NOW).rejected.tolist() == [True, False, False]


def test_a_number_of_a_function_that_the_feature_cannot_hold_rejects_its_row() -> None:
    instances = [{"x": 0.0}, {"x": 1.0}, {"x": 1.0, "out": 7}, {"x": 2.0}]
    rows = computed(path("large"), x=[], dtype="int8", default=3).features_from_rows(instances, at=NOW)
    assert rows.block["out"][[0, 2, 3]].tolist() == [5, 7, 5]
    assert [(one.feature, one.rows.tolist()) for one in rows.reasons] == [("out", [1])]
    assert rows.reasons[0].reason == "out of range for int8 (group 'g')"
    assert rows.imputed == {}


@pytest.mark.parametrize("function", ["no_such_module_here:f", path("no_such_function"), path("not_a_function")])
def test_a_function_that_is_not_there_is_named_with_its_group(function: str) -> None:
    with pytest.raises(ModelError, match="group 'g': ") as caught:
        FeatureFunctions(computed(function, x=[]).contract).import_all()
    assert function.split(":")[0] in caught.value.message


def test_code_runs_only_where_the_settings_allow_it() -> None:
    contract = computed(path("mixture"), x=[]).contract
    with pytest.raises(ModelError, match=r"group 'g' runs code \(tests.*set allow_code = true"):
        check_code_allowed(contract, allow_code=False)
    check_code_allowed(contract, allow_code=True)


def test_modules_beside_the_settings_are_found_after_all_others(tmp_path: Path) -> None:
    (tmp_path / "own_module_of_this_test.py").write_text("def f(frame, at):\n    return frame\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('it hides the real one')\n")
    FeatureFunctions(computed("own_module_of_this_test:f", x=[]).contract, tmp_path).import_all()
    FeatureFunctions(computed("json:loads", x=[]).contract, tmp_path).import_all()


# --- what is stored ---


def test_a_row_remembers_which_of_its_values_were_missing() -> None:
    contract = contract_of(*(feature(f"f{n}", default=0) for n in range(9)), feature("last"))
    form = contract.stored_form
    missing = {"f0": np.array([True, False]), "f8": np.array([False, True])}
    notes = form.notes(missing, {}, 2)
    assert {name: values.shape for name, values in notes.items()} == {"@missing": (2, 2)}
    assert {name: mask.tolist() for name, mask in form.missing(notes).items()} == {
        "f0": [True, False], "f8": [False, True],
    }  # fmt: skip


def test_a_groups_time_is_kept_as_a_whole_second_within_32_bits() -> None:
    form = contract_of(feature(group="p"), feature("b", group="q"), p={}, q={}).stored_form
    times = np.array([-5.0, 0.5, 1.0, 7.9, 2**32 - 1, 2**32, 1e12, np.nan])
    stored = form.notes({}, {"p": times, "q": times}, len(times))
    told = form.times(stored, "p")
    assert told is not None
    nothing = np.nan
    np.testing.assert_array_equal(told, [nothing, nothing, 1, 7, 2**32 - 1, 2**32 - 1, 2**32 - 1, nothing])


def test_a_table_without_defaults_and_groups_is_stored_as_ever() -> None:
    contract = contract_of(feature(), feature("z"))
    assert contract.stored_fields == contract.fields
    assert StoredForm(contract.features).notes({}, {}, 3) == {}


def test_the_newer_of_a_load_and_a_single_update_is_used_group_by_group(new_table: NewTable) -> None:
    contract = contract_of(
        feature("a", group="p"), feature("b", group="q", default=9), p={}, q={"max_age": "1h"}
    )  # fmt: skip
    table, form = new_table(), contract.stored_form
    manifest = table.generations.begin(form.fields, rows_expected=2, model_version=0, contract_hash="", keep_s=60)
    times = {"p": np.array([NOW - 10, NOW - 10]), "q": np.array([NOW - 5000, np.nan])}
    block = {"a": np.float32([1, 1]), "b": np.float32([2, 9])} | form.notes({}, times, 2)
    table.generations.write(manifest, pa.array(["e", "f"]), block, times["p"])
    table.generations.publish(manifest.number)
    for group, name, at in (("p", "a", NOW - 20), ("q", "b", NOW - 30)):
        fields = contract.group_form(group).fields
        part = {name: np.float32([5])} | contract.group_form(group).notes({}, {}, 1)
        table.part(group).overlay.upsert(["e"], fields, part, as_of=np.array([at]), computed_at=at, model_version=0,
                                 origin=Origin.UPSERT, keep_s=60)  # fmt: skip
    gathered = FeatureGatherer(table, vectoriser_of(contract)).gather(["e", "f", "nobody"], now=NOW)
    assert gathered.rows.block["a"][:2].tolist() == [1, 1], "the load is newer"
    assert gathered.rows.block["b"].tolist() == [5, 9, 9], "the update is newer; then there is none"
    assert gathered.groups["q"].status == [GroupStatus.PRESENT, GroupStatus.NOT_FOUND, GroupStatus.NOT_FOUND]
    assert gathered.as_of.tolist() == [NOW - 30, NOW - 10, NOW]
    assert gathered.known.tolist() == [True, True, False]
    assert gathered.rows.rejected.tolist() == [False, False, True]


@pytest.mark.parametrize(("later_s", "value"), [(-1, 1), (0, 5), (1, 5)])
def test_a_single_update_of_the_loads_own_second_is_used_and_an_older_one_is_not(
    new_table: NewTable, later_s: float, value: float
) -> None:
    contract = contract_of(feature("a", group="p"), feature("b", group="q", default=9), p={}, q={})
    table, form, at = new_table(), contract.stored_form, NOW - 100
    manifest = table.generations.begin(form.fields, rows_expected=2, model_version=0, contract_hash="", keep_s=60)
    times = {"p": np.array([at, np.nan]), "q": np.array([at, at])}  # of `f` the load has only the other group
    block = {"a": np.float32([1, 0]), "b": np.float32([2, 2])} | form.notes({}, times, 2)
    table.generations.write(manifest, pa.array(["e", "f"]), block, np.array([at, at]))
    table.generations.publish(manifest.number)
    part = {"a": np.float32([5, 5])} | contract.group_form("p").notes({}, {}, 2)
    table.part("p").overlay.upsert(
        ["e", "f"], contract.group_form("p").fields, part, as_of=np.full(2, at + later_s), computed_at=NOW,
        model_version=0, origin=Origin.UPSERT, keep_s=60,
    )  # fmt: skip
    gathered = FeatureGatherer(table, vectoriser_of(contract)).gather(["e", "f"], now=NOW)
    assert gathered.rows.block["a"].tolist() == [value, 5]
    assert gathered.groups["p"].as_of.tolist() == [max(at, at + later_s), at + later_s]


def test_values_of_a_moment_ahead_are_as_of_now(new_table: NewTable) -> None:
    contract = contract_of(feature())
    table, form = new_table(), contract.stored_form
    table.overlay.upsert(
        ["e"], form.fields, {"x": np.float32([1])}, as_of=np.array([NOW + 4]), computed_at=NOW + 4, model_version=0,
        origin=Origin.UPSERT, keep_s=60,
    )  # fmt: skip
    gathered = FeatureGatherer(table, vectoriser_of(contract)).gather(["e"], now=NOW)
    assert (gathered.groups["features"].as_of.tolist(), gathered.as_of.tolist()) == ([NOW], [NOW])


def test_where_nothing_is_stored_of_anybody_everybody_is_known(new_table: NewTable) -> None:
    contract = contract_of(feature(group="r"), feature("h", group="g"), r={"source": "request"},
                           g={"source": "function", "function": "hour_of_day"})  # fmt: skip
    gatherer = FeatureGatherer(new_table(), vectoriser_of(contract))
    told = gatherer.gather(["a", "b"], now=NOW, overrides={"x": 3})
    assert (told.known.tolist(), told.rows.rejected.tolist()) == ([True, True], [False, False])
    assert gatherer.gather(["a"], now=NOW).rows.rejected.tolist() == [True], "the request brings nothing along"


# --- explanation ---


def test_an_explanation_of_what_cannot_be_used_says_why(new_table: NewTable) -> None:
    contract = contract_of(feature(), feature("z", group="p", nullable=True), p={})
    gathered = FeatureGatherer(new_table(), vectoriser_of(contract)).gather(["nobody"], now=NOW)
    told = explain(gathered, contract, NOW, hash_of=lambda _: "h")
    assert (told["known"], told["vector_hash"]) == (False, None)
    assert told["problem"] == "feature 'x': missing, and the feature has no default"
    assert told["features"]["x"] == {"value": None, "group": "features", "source": None, "as_of": None, "age_s": None}
    assert told["groups"]["p"]["status"] == "not found"


def test_processes_that_only_read_contracts_import_no_pandas() -> None:
    code = "import sys, app.api.application, inference.deployment; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


# --- values that are too old ---


def loaded(table: Table, contract: FeatureContract, age_s: dict[str, float]) -> Table:
    """Return a table whose entities' features are so many seconds old."""
    form = contract.stored_form
    block = {feature.name: np.ones(len(age_s), np.float32) for feature in form.features}
    table.overlay.upsert(
        list(age_s), form.fields, block | form.notes({}, {}, len(age_s)),
        as_of=np.array([NOW - age for age in age_s.values()]),
        computed_at=NOW, model_version=0, origin=Origin.UPSERT, keep_s=86_400.0,
    )  # fmt: skip
    return table


def test_an_entity_with_only_too_old_features_is_known_and_its_row_says_so(new_table: NewTable) -> None:
    contract = contract_of(feature(group="p"), p={"max_age": "60s"})
    table = loaded(new_table(), contract, {"old": 61, "just": 60, "new": 0})
    gathered = FeatureGatherer(table, vectoriser_of(contract)).gather(["old", "just", "new", "nobody"], now=NOW)
    assert gathered.known.tolist() == [True, True, True, False]
    assert gathered.rows.rejected.tolist() == [True, False, False, True]
    assert [status.value for status in gathered.groups["p"].status] == [
        GroupStatus.OUTSIDE_MAX_AGE, GroupStatus.PRESENT, GroupStatus.PRESENT, GroupStatus.NOT_FOUND,
    ]  # fmt: skip
    assert gathered.groups["p"].source == [None, "table", "table", None]
    assert gathered.groups["p"].too_old().tolist() == [True, False, False, False]
    assert [(one.reason, one.rows.tolist()) for one in gathered.rows.reasons] == [
        ("outside the maximum age of group 'p', and the feature has no default", [0]),
        ("missing, and the feature has no default (group 'p')", [3]),
    ]


def test_too_old_features_take_their_default_and_the_entity_stays_known(new_table: NewTable) -> None:
    contract = contract_of(feature(group="p", default=9.0), p={"max_age": "60s"})
    gathered = FeatureGatherer(loaded(new_table(), contract, {"old": 61}), vectoriser_of(contract)).gather(
        ["old"], now=NOW
    )
    assert (gathered.known.tolist(), gathered.rows.block["x"].tolist()) == ([True], [9.0])
    assert gathered.as_of.tolist() == [NOW], "nothing stored was used"


def test_rows_that_another_models_contract_wrote_are_read_by_that_contract(new_table: NewTable) -> None:
    owner = contract_of(feature("a"), feature("b", default=9), feature("c", default=1))
    reader = contract_of(feature("c", default=5), feature("a"))
    table, form = new_table(), owner.stored_form
    manifest = table.generations.begin(form.fields, rows_expected=1, model_version=0, contract_hash="", keep_s=60)
    missing = {"b": np.array([True])}
    block = {name: np.float32([value]) for name, value in (("a", 4), ("b", 9), ("c", 2))}
    table.generations.write(manifest, pa.array(["e"]), block | form.notes(missing, {}, 1), np.array([NOW - 10]))
    table.generations.publish(manifest.number)
    gathered = FeatureGatherer(table, vectoriser_of(reader), written_by=owner).gather(["e"], now=NOW)
    assert {name: values.tolist() for name, values in gathered.rows.block.items()} == {"c": [2], "a": [4]}
    assert gathered.rows.imputed == {}, "c was there: the mark is that of b"


def test_groups_and_single_updates_of_another_models_contract_are_read(new_table: NewTable) -> None:
    owner = contract_of(feature("a", group="p"), feature("b", group="q", default=9), p={}, q={})
    reader = contract_of(feature("b", group="q", default=3), q={"max_age": "1h"})
    table, form = new_table(), owner.stored_form
    manifest = table.generations.begin(form.fields, rows_expected=2, model_version=0, contract_hash="", keep_s=60)
    times = {"p": np.array([NOW - 10, NOW - 10]), "q": np.array([NOW - 50, NOW - 5000])}
    block = {"a": np.float32([1, 1]), "b": np.float32([2, 2])} | form.notes({}, times, 2)
    table.generations.write(manifest, pa.array(["e", "f"]), block, times["q"])
    table.generations.publish(manifest.number)
    fields = owner.group_form("q").fields
    part = {"b": np.float32([5])} | owner.group_form("q").notes({}, {}, 1)
    table.part("q").overlay.upsert(["e"], fields, part, as_of=np.array([NOW - 20]), computed_at=NOW, model_version=0,
                                   origin=Origin.UPSERT, keep_s=60)  # fmt: skip
    gathered = FeatureGatherer(table, vectoriser_of(reader), written_by=owner).gather(["e", "f"], now=NOW)
    assert gathered.rows.block["b"].tolist() == [5, 3], "the update; and what is too old"
    assert gathered.groups["q"].status == [GroupStatus.PRESENT, GroupStatus.OUTSIDE_MAX_AGE]
