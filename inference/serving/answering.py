"""Checks a message to a worker, computes its rows, and collects their predictions and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.entities import check_entity_id
from inference.errors import (
    BadEntityId,
    BadInput,
    ContractError,
    ForecacheError,
    PredictionFailed,
    UnknownEntity,
    quoted,
)
from inference.features import FeatureRows
from inference.features.rows import take
from inference.logs import get_logger
from inference.models import LoadedModel, prediction_values, score_rows
from inference.schema import Block

log = get_logger(__name__)

Result = dict[str, Any]


@dataclass
class Answers:
    """Predictions and errors by position in the request; instants in epoch seconds, Redis time."""

    count: int
    predictions: dict[int, Any] = field(default_factory=dict)
    as_of: dict[int, float] = field(default_factory=dict)
    #: the features whose missing value a default replaces, if there are any
    imputed: dict[int, list[str]] = field(default_factory=dict)
    errors: dict[int, ForecacheError] = field(default_factory=dict)
    version: int | None = None
    #: the version of rows that a different version than `version` computed
    versions: dict[int, int] = field(default_factory=dict)
    #: positions whose features may be known to a fallback that did not answer
    doubtful: set[int] = field(default_factory=set)

    def to_json(self, model: str | None, entity_ids: Sequence[str | None], computed_at: float) -> Result:
        """Return a worker's result, as `RealtimeScorer` describes it."""
        items = [self._item(position, entity_id) for position, entity_id in enumerate(entity_ids)]
        return {
            "model": model,
            "model_version": self.version,
            "computed_at": computed_at,
            "predictions": items,
        }

    def fail_rest(self, error: ForecacheError) -> None:
        """Set this error for every row that has neither a prediction nor an error."""
        for position in range(self.count):
            if position not in self.predictions:
                self.errors.setdefault(position, error)

    def computed_by(self, version: int, positions: Sequence[int]) -> None:
        """Note which version computes rows."""
        if version != self.version:
            self.versions.update(dict.fromkeys(positions, version))

    def _item(self, position: int, entity_id: str | None) -> dict[str, Any]:
        error = self.errors.get(position)
        item: dict[str, Any] = {"entity_id": entity_id}
        if error is not None:
            item["error"] = error.to_json()
        else:
            item["prediction"], item["as_of"] = self.predictions[position], self.as_of[position]
            if position in self.imputed:
                item["imputed_features"] = self.imputed[position]
        if position in self.versions:
            item["model_version"] = self.versions[position]
        return item


@dataclass
class Wanted:
    """Rows to compute: features by name, and for each row its position in the request and its `as_of`."""

    block: Block
    positions: npt.NDArray[np.intp]
    as_of: npt.NDArray[np.float64]

    def without(self, rows: npt.NDArray[np.bool_]) -> Wanted:
        """Return the rows that are not in the mask."""
        return Wanted(take(self.block, ~rows), self.positions[~rows], self.as_of[~rows]) if rows.any() else self


def compute(loaded: LoadedModel, wanted: Wanted, answers: Answers) -> tuple[Block, Wanted]:
    """Compute the rows, note their answers, and return the outputs of the good ones."""
    if not len(wanted.positions):
        return {}, wanted
    with loaded.gpu_lock():
        scored = score_rows(loaded, wanted.block)
    if scored.reasons:
        # clients never see the model's own message: it belongs here
        why = next(iter(scored.reasons.values()))
        log.warning("prediction.failed", model=loaded.model, rows=len(scored.reasons), error=why)
    for row, reason in scored.reasons.items():
        answers.errors[int(wanted.positions[row])] = PredictionFailed(reason)
    good = ~scored.failed
    outputs = take(scored.outputs, good)
    done = Wanted({}, wanted.positions[good], wanted.as_of[good])
    for position, as_of, value in zip(done.positions, done.as_of, prediction_values(outputs), strict=True):
        answers.predictions[int(position)] = value
        answers.as_of[int(position)] = float(as_of)
    return outputs, done


def usable(
    rows: FeatureRows, positions: npt.NDArray[np.intp], as_of: npt.NDArray[np.float64], answers: Answers
) -> Wanted:
    """Return the rows that can be computed; the others get the reason as their error."""
    for row, why in rows.first_reasons().items():
        named = why.feature and quoted(why.feature) not in why.reason
        message = f"feature {why.feature!r}: {why.reason}" if named else why.reason
        answers.errors[int(positions[row])] = ContractError(message, field=why.feature or "instances")
    good = ~rows.rejected
    if rows.imputed:
        answers.imputed |= dict(zip(positions[good].tolist(), rows.imputed_names(), strict=True))
    return Wanted(rows.usable(), positions[good], as_of[good])


def unknown_entity(model: str, entity_id: str, *, before_first_run: bool = False) -> UnknownEntity:
    """Return the error for an entity that nobody knows. `before_first_run`: no run of the model was published yet."""
    run = f", and no run was published yet (`forecache batch run {model}` scores the table)" if before_first_run else ""
    return UnknownEntity(
        f"model {model!r} knows no entity {quoted(entity_id)}: its features were never loaded{run}", field="entity_id"
    )


#: most rows of one message: a worker does nothing else meanwhile
MAX_MESSAGE_ROWS = 4096


def check_message(
    field: str, rows: Any, *, model: Any, deadline: Any, overrides: Any = None, recompute: Any = True
) -> None:
    """Refuse a message that cannot be answered row by row; `field` names the argument with the rows.

    Raises:
        BadInput: an argument has a wrong type, or there are no rows, or too many.
    """
    check_model(model)
    if not isinstance(rows, list):
        raise BadInput(f"{field} must be a list, not {_kind(rows)}", field=field)
    if not 0 < len(rows) <= MAX_MESSAGE_ROWS:
        raise BadInput(
            f"{field} holds {len(rows)}: send 1 to {MAX_MESSAGE_ROWS} in a message, or several messages", field=field
        )
    if isinstance(deadline, bool) or not isinstance(deadline, float | int | None):
        raise BadInput(f"deadline must be epoch seconds, not {_kind(deadline)}", field="deadline")
    if not isinstance(overrides, Mapping | None):
        raise BadInput(f"overrides must be an object of features, not {_kind(overrides)}", field="overrides")
    if not isinstance(recompute, bool):
        raise BadInput(f"recompute must be true or false, not {_kind(recompute)}", field="recompute")


def check_model(model: Any) -> None:
    """Refuse a model name of a wrong type.

    Raises:
        BadInput: it is neither text nor None.
    """
    if not isinstance(model, str | None):
        raise BadInput(f"model must be text, not {_kind(model)}", field="model")


def check_calls(more: Any) -> None:
    """Refuse further calls of a message of tensors if they are none.

    Raises:
        BadInput: it is neither a list of objects nor None.
    """
    if not isinstance(more, list | None) or not all(isinstance(call, Mapping) for call in more or ()):
        raise BadInput("more must be a list of objects, one for each further call", field="more")


def check_tensor_message(*, model: Any, deadline: Any, version: Any, signature: Any) -> None:
    """Refuse a call in a message of tensors if one of its other arguments has a wrong type.

    Raises:
        BadInput: an argument has a wrong type.
    """
    if not isinstance(model, str):
        raise BadInput(f"model must be text, not {_kind(model)}", field="model")
    if isinstance(deadline, bool) or not isinstance(deadline, float | int | None):
        raise BadInput(f"deadline must be epoch seconds, not {_kind(deadline)}", field="deadline")
    if isinstance(version, bool) or not isinstance(version, int | None):
        raise BadInput(f"version must be a number, not {_kind(version)}", field="version")
    if not isinstance(signature, str | None):
        raise BadInput(f"signature must be text, not {_kind(signature)}", field="signature")


def illegal_ids(entity_ids: Sequence[Any]) -> dict[int, BadEntityId]:
    """Return the errors of illegal ids by position."""
    wrong = {}
    for position, entity_id in enumerate(entity_ids):
        try:
            _check(entity_id)
        except BadEntityId as error:
            wrong[position] = error
    return wrong


def _check(entity_id: Any) -> None:
    if not isinstance(entity_id, str):
        hint = f": send {quoted(entity_id)}" if isinstance(entity_id, int) else ""
        raise BadEntityId(f"entity_id must be text, not {_kind(entity_id)}{hint}", field="entity_id")
    check_entity_id(entity_id)


def _kind(value: Any) -> str:
    """Return the JSON name of a value's type."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "null")
