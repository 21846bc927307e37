"""Checks each model: its folder, its versions, its feature contract, its fallbacks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from app.cli.doctor.findings import Check, Finding, Start, at_once, error, not_checked, ok, start_fix, warning
from inference.errors import BadInput, SettingsError
from inference.features.fallback_sources import SqlSource, describe_failure
from inference.features.functions import is_findable
from inference.models import VersionRecord, find_versions
from inference.models.formats import ModelFile, check_allowed, require_model_file
from inference.models.versions import contract_change, unusable_folders, wanted_versions
from inference.settings import FunctionFallback, ModelSettings, Settings, SqlFallback
from inference.store import Pointer
from inference.wording import counted

CONTRACT_FIX = "put the old features.json back, or export a new version with the new one"
#: the process that loads models
LOADER = "python -P -m workers realtime"


@dataclass(frozen=True)
class StoredModel:
    """What Redis stores about a model: its version records, and which version answers."""

    records: Mapping[int, VersionRecord]
    pointer: Pointer

    @property
    def record(self) -> VersionRecord | None:
        """The record of the version that answers, else of the newest ready version."""
        ready = {number: record for number, record in self.records.items() if record.state == "ready"}
        return ready.get(self.pointer.active_version or 0) or ready.get(max(ready, default=0))


def check_model(
    name: str, model: ModelSettings, path: Path, known: StoredModel | None, *, start: Start | None = None
) -> list[Finding]:
    """Return the findings about one model. `path`: its folder; `known`: None if Redis does not answer."""
    try:
        found, wanted = _versions_of(model, path)
    except BadInput as problem:
        fix = f"correct [models.{name}] {problem.field or 'path'}, or put the model there"
        return [error(Check.MODEL, name, problem.message, fix)]
    findings = check_folders(name, model, path)
    if known is None:
        return [
            *findings,
            not_checked(Check.MODEL, f"{name}, what answers"),
            not_checked(Check.MODEL, f"{name}, contract"),
        ]
    serving = _check_serving(name, model, found, wanted, known, start)
    return [*findings, *serving, *_check_contract(name, path, found, known, start)]


def check_folders(name: str, model: ModelSettings, path: Path) -> list[Finding]:
    """Return the findings about the folders of a model's versions, without loading one.

    Raises:
        BadInput: there is no version that the settings want.
    """
    found, wanted = _versions_of(model, path)
    numbers = f"version{'' if len(found) == 1 else 's'} {', '.join(map(str, sorted(found)))}"
    return [
        _check_folder(name, model, f"{numbers} in {path}", [found[each] for each in wanted]),
        *(warning(Check.MODEL, name, fault, "until then it is passed over") for fault in unusable_folders(path)),
    ]


def _versions_of(model: ModelSettings, path: Path) -> tuple[Mapping[int, Path], list[int]]:
    found = find_versions(path)
    return found, wanted_versions(found, model.versions)


def _check_folder(name: str, model: ModelSettings, where: str, wanted: list[Path]) -> Finding:
    """Check the folder of the newest wanted version."""
    try:
        newest = require_model_file(wanted[0])
        check_allowed(newest, allow_code=model.allow_code)
    except BadInput as problem:
        others = len(wanted) > 1
        level = warning if others else error
        return level(Check.MODEL, name, problem.message, "export the model once more, in one of these formats")
    return ok(Check.MODEL, name, f"{where}, {_format(newest)}")


def _format(model: ModelFile) -> str:
    """Return a model's format, and a note if this machine cannot load it. Only the workers' machines need to."""
    if find_spec(model.format.library):
        return model.format.title
    return f"{model.format.title} (not to be loaded here: workers need forecache[{model.format.extra}])"


def _check_serving(
    name: str,
    model: ModelSettings,
    found: Mapping[int, Path],
    wanted: list[int],
    known: StoredModel,
    start: Start | None,
) -> list[Finding]:
    active, held = known.pointer.active_version, known.pointer.held_versions
    findings = [
        warning(
            Check.MODEL,
            f"{name}, version {number}",
            f"refused: {record.error}",
            f"put it right, then `forecache models reload {name}`",
        )
        for number, record in known.records.items()
        if record.state == "refused" and number in found
    ]
    findings += _check_proofs(name, found, known)
    subject = f"{name}, what answers"
    if active is None:
        return [*findings, _nothing_answers(subject, model, found, known, start)]
    if active not in found:
        detail = f"version {active} answers, but it is no longer in the folder"
        return [*findings, error(Check.MODEL, subject, detail, "put it back: a worker that starts now cannot load it")]
    newest = max(wanted)
    if newest > active and newest not in held and newest not in known.records:
        detail = f"version {active} answers; version {newest} is in the folder, but no worker has tried it"
        return [*findings, warning(Check.MODEL, subject, detail, "restart the workers: they load it and activate it")]
    rolled_back = f"; held after a rollback: {', '.join(map(str, sorted(held)))}" if held else ""
    return [*findings, ok(Check.MODEL, subject, f"version {active} answers{rolled_back}")]


def _nothing_answers(
    subject: str, model: ModelSettings, found: Mapping[int, Path], known: StoredModel, start: Start | None
) -> Finding:
    tried = {number: record for number, record in known.records.items() if number in found}
    refused = [number for number, record in tried.items() if record.state == "refused"]
    if refused and len(refused) == len(tried):
        detail = f"no version answers: version {max(refused)} was refused: {tried[max(refused)].error}"
        return error(Check.MODEL, subject, detail, "put it right, then `forecache models reload`")
    if tried and model.activate == "by-label":
        detail = f'no version answers yet: activate is "by-label", and none of {", ".join(map(str, tried))} is labelled'
        return error(Check.MODEL, subject, detail, f"`forecache models label stable {max(tried)}`")
    if tried:
        detail = f"no version answers yet: version {max(tried)} is loaded, and waits for other workers"
        return error(Check.MODEL, subject, detail, "ask again in a moment; if it stays so, read the workers' logs")
    detail = "no version has been activated: no worker has loaded one yet"
    return error(Check.MODEL, subject, detail, start_fix(start, LOADER))


def _check_proofs(name: str, found: Mapping[int, Path], known: StoredModel) -> list[Finding]:
    """Return a warning for each version that has a remark, such as an unproven one."""
    active = known.pointer.active_version
    findings = []
    for number, record in known.records.items():
        if record.remark is None or record.error or number not in found or number < (active or 0):
            continue
        if number == active or record.unproven is None:
            detail, fix = f"answers, but {record.remark}", "put that right, or bring another version"
        else:
            detail = f"waits while version {active} answers: {record.unproven}"
            fix = f"put that right, or `forecache models label stable {number}` has it answer all the same"
        findings.append(warning(Check.MODEL, f"{name}, version {number}", detail, fix))
    return findings


def _check_contract(
    name: str, path: Path, found: Mapping[int, Path], known: StoredModel, start: Start | None
) -> list[Finding]:
    subject, record = f"{name}, contract", known.record
    if record is None:
        detail = "not checked: no worker has loaded the model"
        return [warning(Check.MODEL, subject, detail, start_fix(start, LOADER))]
    if record.version not in found:
        detail = f"not checked: version {record.version} is not in the folder"
        return [warning(Check.MODEL, subject, detail, "put it back, then ask again")]
    try:
        change = contract_change(record, path, found[record.version])
    except BadInput as problem:
        return [error(Check.MODEL, subject, problem.message, "correct features.json to fit the model's inputs")]
    if change is not None:
        return [error(Check.MODEL, subject, change, CONTRACT_FIX)]
    count = len(record.contract.features)
    return [ok(Check.MODEL, subject, f"{counted(count, 'feature')}, as loaded ({record.contract_hash})")]


def check_shared_features(name: str, owner: str, known: StoredModel | None, of_owner: StoredModel | None) -> Finding:
    """Return whether the model `owner` stores every feature that a model with `features_of` reads."""
    subject = f"{name}, features of {owner}"
    record, written = (None if one is None else one.record for one in (known, of_owner))
    if record is None or written is None:
        return not_checked(Check.MODEL, subject)
    stored = {feature.name: feature for feature in written.contract.stored_form.features}
    for feature in record.contract.stored_form.features:
        there = stored.get(feature.name)
        if there is None:
            return error(Check.MODEL, subject, f"{owner} does not store feature {feature.name!r}", _SHARED_FIX)
        if (there.spec, there.group) != (feature.spec, feature.group):
            detail = f"feature {feature.name!r} is {there.dtype}, group {there.group!r}, in {owner}, and here "
            detail += f"{feature.dtype}, group {feature.group!r}"
            return error(Check.MODEL, subject, detail, _SHARED_FIX)
    return ok(Check.MODEL, subject, f"{len(record.contract.stored_form.features)} of the {len(stored)} stored ones")


_SHARED_FIX = "add it to that model's features.json and load again, or leave features_of out"

# --- fallbacks ---

#: seconds for all databases, which are asked at the same time
DATABASES_WITHIN_S = 4.0
#: type of ids → an id that probably does not exist
_NOBODY = {"text": "forecache-doctor", "integer": "-1"}


def check_fallbacks(settings: Settings) -> list[Finding]:
    """Return a finding for each fallback of each model, or one that says there is none.

    Runs the queries of databases. Does not run functions: it only looks for their modules.
    """
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
        _function_finding(subject, one, settings.root)
        if isinstance(one, FunctionFallback)
        else _database_finding(subject, one, answers[subject])
        for subject, (_, one) in found.items()
    ]


def _seconds_to_answer(model: ModelSettings, settings: SqlFallback) -> float:
    """Return how long the query takes for an entity that does not exist, once connected."""
    source = SqlSource(settings, model.entity_column)
    try:
        source.prepare()
        began = time.monotonic()
        source.fetch([_NOBODY[settings.id_type]])
        return time.monotonic() - began
    finally:
        source.close()


def _database_finding(subject: str, settings: SqlFallback, answer: float | Exception) -> Finding:
    if isinstance(answer, SettingsError):  # only workers need the driver
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


def _function_finding(subject: str, settings: FunctionFallback, root: Path) -> Finding:
    """Look for the function's module. Does not run its code: only workers do."""
    module = settings.function.partition(":")[0]
    if not is_findable(module, root):
        fix = f"put it into {root}, or install it, where the real-time workers run"
        return error(Check.FALLBACK, subject, f"there is no module {module!r} for {settings.function}", fix)
    return ok(Check.FALLBACK, subject, f"{settings.function}: its module is there; only workers run it")
