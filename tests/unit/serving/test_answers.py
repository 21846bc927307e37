from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.clock import to_iso
from inference.outcomes import AnswerSource, Outcome
from inference.serving import Answer
from inference.serving.answers import failed_by_version

texts = st.text(st.characters(exclude_categories=["Cs"]))
instants = st.floats(0, 4e9)
numbers = st.floats(width=32) | st.integers(-(2**53), 2**53)
values = st.recursive(numbers | texts | st.booleans(), lambda inner: st.lists(inner) | st.dictionaries(texts, inner))


def without_nan(value: Any) -> Any:
    """JSON has no infinities and no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@given(
    texts | st.none(), texts, st.none() | st.integers(0, 2**40), values, st.sampled_from(AnswerSource),
    st.sampled_from(Outcome), instants | st.none(), instants,
)  # fmt: skip
def test_the_pieces_of_an_answer_make_up_the_body_of_the_contract(
    entity_id: str | None,
    model: str,
    version: int | None,
    prediction: Any,
    source: AnswerSource,
    outcome: Outcome,
    as_of: float | None,
    computed_at: float,
) -> None:
    answer = Answer(entity_id, model, version, prediction, source, outcome, as_of, computed_at)
    assert list(orjson.loads(answer.to_json_text()).items()) == [
        ("entity_id", entity_id),
        ("model", model),
        ("model_version", version),
        ("prediction", without_nan(prediction)),
        ("source", source),
        ("outcome", outcome),
        ("cache_hit", answer.cache_hit),
        ("stale", answer.stale),
        ("degraded", answer.degraded),
        ("as_of", None if as_of is None else to_iso(as_of)),
        ("computed_at", to_iso(computed_at)),
        ("timestamp", computed_at),
    ]


@given(values, st.lists(texts, min_size=1))
def test_the_features_that_defaults_stand_in_for_end_the_body(prediction: Any, names: list[str]) -> None:
    def body(imputed: tuple[str, ...]) -> list[tuple[str, Any]]:
        answer = Answer("e1", "m", 1, prediction, AnswerSource.REALTIME, Outcome.COMPUTED, 1.0, 2.0, imputed)
        return list(orjson.loads(answer.to_json_text()).items())

    assert body(tuple(names)) == [*body(()), ("imputed_features", names)]


@pytest.mark.parametrize("outcome", Outcome)
def test_each_outcome_says_whether_it_is_a_hit_stale_or_less_than_asked_for(outcome: Outcome) -> None:
    assert outcome.is_hit == outcome.value.startswith("hit_")
    assert outcome.is_stale == (outcome in (Outcome.STALE, Outcome.PREVIOUS))
    assert outcome.is_degraded == (outcome in (Outcome.STALE, Outcome.PREVIOUS, Outcome.DEFAULT))


def result(*items: dict[str, Any], version: Any = 3) -> dict[str, Any]:
    return {"model": "delay", "model_version": version, "computed_at": 1.0, "predictions": list(items)}


GOOD = {"prediction": 1.0, "as_of": 1.0}


def bad(code: str, **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": "no"}, **more}


@pytest.mark.parametrize(
    ("told", "failed"),
    [
        (result(GOOD, GOOD), {3: 0}),
        (result(GOOD, bad("prediction-failed"), bad("model-out-of-memory")), {3: 2}),
        # neither the entity, nor an outage, nor our own fault is the version's
        (result(bad("unknown-entity"), bad("store-unavailable"), bad("internal"), bad("nobody-knows")), {3: 0}),
        # the canary computed two of them
        (result(GOOD, {**GOOD, "model_version": 4}, bad("prediction-failed", model_version=4)), {3: 0, 4: 1}),
        (result(bad("unknown-model"), version=None), {}),
        ({"model_version": 3, "outputs": {}}, {3: 0}),
        ({"error": {"code": "prediction-failed"}, "model_version": 3}, {3: 7}),
        ({"error": {"code": "not-found"}}, {}),
        (result(GOOD, version="3"), {}),
        ({"predictions": [1]}, {}),
        ({"predictions": None}, {}),
        (result({"error": 5}), {}),
    ],
)
def test_the_rows_that_a_version_failed_on_are_counted(told: dict[str, Any], failed: dict[int, int]) -> None:
    assert failed_by_version(told, [7], brought=True) == failed


def test_each_call_of_a_message_counts_with_its_rows() -> None:
    more = [bad("prediction-failed", model_version=4), {"model_version": 4}]
    told = {"model_version": 3, "outputs": {}, "more": more}
    assert failed_by_version(told, [1, 2, 5], brought=True) == {3: 0, 4: 2}


def test_features_that_do_not_fit_are_the_versions_fault_unless_the_client_brought_them() -> None:
    refused = result(bad("bad-features"))
    assert failed_by_version(refused, [1], brought=True) == {3: 0}
    assert failed_by_version(refused, [1], brought=False) == {3: 1}
