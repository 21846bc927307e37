"""Where features are looked for that are not stored: databases are asked, functions only looked for."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from app.cli.doctor.at_once import at_once
from app.cli.doctor.findings import Check, Finding, error, ok, warning
from inference.errors import SettingsError
from inference.features.fallback_sources import SqlSource, describe_failure
from inference.features.functions import is_findable
from inference.settings import FunctionFallback, ModelSettings, Settings, SqlFallback

#: seconds for all databases, asked side by side
DATABASES_WITHIN_S = 4.0
#: an entity that hardly anyone has, by the type of ids
_NOBODY = {"text": "forecache-doctor", "integer": "-1"}


def check_fallbacks(settings: Settings) -> list[Finding]:
    """Return a line for each fallback of each model; one line where there is none."""
    found = {f"{name}, {one.name}": (model, one) for name, model in settings.models.items() for one in model.fallbacks}
    if not found:
        return [ok(Check.FALLBACK, "all models", "none set: what is not stored is unknown")]
    databases = {
        subject: partial(_seconds_to_answer, model, one)
        for subject, (model, one) in found.items()
        if isinstance(one, SqlFallback)
    }
    answers = at_once(databases, DATABASES_WITHIN_S)
    return [
        _function_line(subject, one, settings.root)
        if isinstance(one, FunctionFallback)
        else _database_line(subject, one, answers[subject])
        for subject, (_, one) in found.items()
    ]


def _seconds_to_answer(model: ModelSettings, settings: SqlFallback) -> float:
    """Run the query for an entity that is not there, as a worker that is connected would."""
    source = SqlSource(settings, model.entity_column)
    try:
        source.prepare()
        began = time.monotonic()
        source.fetch([_NOBODY[settings.id_type]])
        return time.monotonic() - began
    finally:
        source.close()


def _database_line(subject: str, settings: SqlFallback, answer: float | Exception) -> Finding:
    if isinstance(answer, SettingsError):  # only workers need its driver
        detail = f"not checked: {answer.message}"
        return warning(Check.FALLBACK, subject, detail, "run this on a real-time worker's machine")
    if isinstance(answer, Exception):
        silent = f"no answer within {DATABASES_WITHIN_S:g} s"
        detail = silent if isinstance(answer, TimeoutError) else describe_failure(answer)
        fix = "put the database, or the fallback's url and query, right: until then it is passed over"
        return error(Check.FALLBACK, subject, detail, fix)
    detail = f"the database answers in {answer * 1000:.0f} ms"
    if answer > settings.timeout:
        fix = "index the column that :ids is compared with, or wait longer: a late answer is not used"
        return warning(Check.FALLBACK, subject, f"{detail}, over its timeout of {settings.timeout * 1000:g} ms", fix)
    return ok(Check.FALLBACK, subject, detail)


def _function_line(subject: str, settings: FunctionFallback, root: Path) -> Finding:
    """Look for the function's module, without running its code: that is for workers."""
    module = settings.function.partition(":")[0]
    if not is_findable(module, root):
        fix = f"put it into {root}, or install it, where the real-time workers run"
        return error(Check.FALLBACK, subject, f"there is no module {module!r} for {settings.function}", fix)
    return ok(Check.FALLBACK, subject, f"{settings.function}: its module is there; only workers run it")
