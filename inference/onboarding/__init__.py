"""From a model and a table to a deployment's first settings: what is guessed, why, and the proof that it works.

`head` reads little of the table; `guesses` and `matching` are pure rules; `trial` scores one row in a process of
its own, and `gaps` tries rows with missing values there; `model_file` lays a lone file into a version folder;
`signatures` chooses one of a SavedModel's; `proposal` holds what was decided, `rendering` spells it, `target` knows
what the file already holds, and `writing` puts files on disk, all or none.
"""

from inference.onboarding.files import ModelFolder, Target, check_model, check_writable, model_folder, staged
from inference.onboarding.key_columns import (
    Guess,
    check_entity_column,
    entity_candidates,
    given_event_time,
    guess_entity_column,
    guess_event_time,
    guess_model_name,
    newest_times,
    read_head,
    time_candidates,
    unfit_id_columns,
)
from inference.onboarding.matching import (
    Match,
    UserTable,
    WidthMismatch,
    choose_signature,
    match_columns,
    match_listed,
    match_written,
    needs_choice,
)
from inference.onboarding.proposal import Proposal, ages_for, render_contract, render_model, render_settings, spelled
from inference.onboarding.trial import Trial, TrialRequest, try_row_in_subprocess

__all__ = [
    "Guess",
    "Match",
    "ModelFolder",
    "Proposal",
    "Target",
    "Trial",
    "TrialRequest",
    "UserTable",
    "WidthMismatch",
    "ages_for",
    "check_entity_column",
    "check_model",
    "check_writable",
    "choose_signature",
    "entity_candidates",
    "given_event_time",
    "guess_entity_column",
    "guess_event_time",
    "guess_model_name",
    "match_columns",
    "match_listed",
    "match_written",
    "model_folder",
    "needs_choice",
    "newest_times",
    "read_head",
    "render_contract",
    "render_model",
    "render_settings",
    "spelled",
    "staged",
    "time_candidates",
    "try_row_in_subprocess",
    "unfit_id_columns",
]
