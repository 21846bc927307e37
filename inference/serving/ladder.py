"""What to answer when nothing was computed in time: always the best that is left, always said so.

The rungs: the stale cached value, the previous generation's value, the model's default, and at the bottom the
error itself.
"""

from __future__ import annotations

from typing import Any

from inference.errors import Defect, ForecacheError, Unavailable
from inference.outcomes import AnswerSource, Outcome
from inference.serving.answers import Answer, answer_stored
from inference.serving.freshness import source_of
from inference.store import Entry, Pointer


def step_down(
    model: str,
    entity_id: str | None,
    error: ForecacheError,
    *,
    stale: Entry | None = None,
    previous: Entry | None = None,
    default: Any = None,
    now: float,
) -> Answer | ForecacheError:
    """Return the best answer left after `error`, or the error when there is none.

    `default`: the model's declared one; None for none. It stands in for an outage, a missed deadline or a fault of
    ours only: an entity that does not exist, or that the model fails on, has no default.
    """
    if stale is not None and entity_id is not None:
        return answer_stored(model, entity_id, stale, source_of(stale), Outcome.STALE)
    if previous is not None and entity_id is not None:
        return answer_stored(model, entity_id, previous, AnswerSource.BATCH, Outcome.PREVIOUS)
    if default is not None and isinstance(error, Unavailable | Defect):
        return Answer(entity_id, model, None, default, AnswerSource.DEFAULT, Outcome.DEFAULT, None, now)
    return error


def may_serve_previous(entry: Entry, pointer: Pointer) -> bool:
    """Whether a previous generation's entry may be shown: not if a rollback left its model version."""
    return entry.model_version not in pointer.held_versions
