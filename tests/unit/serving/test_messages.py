"""What other applications may put into a message, and what they are told."""

from __future__ import annotations

from typing import Any

import pytest

from inference.errors import BadInput
from inference.serving.answering import MAX_MESSAGE_ROWS, check_message, illegal_ids
from tasks.maintenance import start_run


def check(rows: Any = None, **arguments: Any) -> None:
    check_message("entity_ids", ["a"] if rows is None else rows, **{"model": None, "deadline": None, **arguments})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"rows": "abc"}, "entity_ids must be a list, not text"),
        ({"rows": {"a": 1}}, "entity_ids must be a list, not an object"),
        ({"rows": []}, "entity_ids holds 0"),
        ({"rows": ["a"] * (MAX_MESSAGE_ROWS + 1)}, "or several messages"),
        ({"model": ["delay"]}, "model must be text, not a list"),
        ({"deadline": "soon"}, "deadline must be epoch seconds, not text"),
        ({"deadline": True}, "deadline must be epoch seconds, not a boolean"),
        ({"overrides": [1]}, "overrides must be an object of features, not a list"),
        ({"recompute": "no"}, "recompute must be true or false, not text"),
    ],
)
def test_a_message_of_another_form_is_refused_by_name(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as caught:
        check(**arguments)
    assert caught.value.field == next(iter(arguments)).replace("rows", "entity_ids")


def test_a_message_may_leave_out_everything_but_its_rows() -> None:
    check(["a"] * MAX_MESSAGE_ROWS)
    check(deadline=1.5, overrides={"x": 1}, recompute=False, model="delay")


def test_an_id_that_is_no_text_is_an_error_of_its_own_row() -> None:
    wrong = illegal_ids(["a", 42, "", None, "b\x00", 1.5])
    assert sorted(wrong) == [1, 2, 3, 4, 5]
    assert wrong[1].message == "entity_id must be text, not a number: send '42'"
    assert wrong[3].message == "entity_id must be text, not null"
    assert wrong[5].message == "entity_id must be text, not a number"


def test_ids_in_the_place_of_the_model_are_told_so() -> None:
    with pytest.raises(BadInput, match="model must be text, not a list") as caught:
        check([], model=["C1"])
    assert caught.value.field == "model"


@pytest.mark.parametrize("model", [["delay"], {"model": "delay"}, 5, True])
def test_a_run_of_what_is_no_name_is_refused_as_the_senders_mistake(model: Any) -> None:
    error = start_run.run(model=model)["error"]
    assert (error["code"], error["field"]) == ("bad-input", "model")
