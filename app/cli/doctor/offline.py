"""`doctor --offline`: what the files alone tell, for CI, where no server and no worker runs."""

from __future__ import annotations

from functools import partial

from app.cli.doctor.checkup import CheckName, Findings, no_models, run_checks
from app.cli.doctor.findings import Check, Finding, error, warning
from app.cli.doctor.machine import check_environment, check_versions
from app.cli.doctor.models import check_folders
from app.cli.doctor.tables import check_table, open_table
from inference.errors import BadInput, ModelError
from inference.models import VersionRecord, inspect_in_subprocess
from inference.settings import ModelSettings, Settings

#: seconds to add to the time that the models may take to load
_BESIDE_LOADING_S = 60.0


def check_files(settings: Settings) -> list[Finding]:
    """Return the findings about settings, model folders and tables. Loads each model once; asks no server."""
    checks: dict[CheckName, Findings] = {
        (Check.VERSIONS, "versions"): check_versions,
        (Check.MACHINE, "environment"): check_environment,
    }
    for name, model in settings.models.items():
        checks[Check.MODEL, name] = partial(_model_and_table, settings, name, model)
    if not settings.models:
        checks[Check.MODEL, "models"] = no_models
    findings = run_checks(checks, settings.workers.load_timeout + _BESIDE_LOADING_S)
    order = list(Check)
    return sorted(findings, key=lambda finding: order.index(finding.check))


def _model_and_table(settings: Settings, name: str, model: ModelSettings) -> list[Finding]:
    if model.registered is not None:
        detail = f"not checked: {model.path} is in a registry"
        return [warning(Check.MODEL, name, detail, "`forecache doctor` asks the registry")]
    try:
        findings = check_folders(name, model, settings.path(model.path))
        records = inspect_in_subprocess(settings, name)
    except ModelError as problem:
        return [error(Check.MODEL, name, problem.message, "put it right, or install what the message names")]
    except BadInput as problem:
        fix = f"correct [models.{name}] {problem.field or 'path'}, or put the model there"
        return [error(Check.MODEL, name, problem.message, fix)]
    refused = [
        error(Check.MODEL, f"{name}, version {number}", f"refused: {record.error}", "put it right, or remove it")
        for number, record in records.items()
        if record.state != "ready"
    ]
    return [*findings, *refused, check_table(name, model, open_table(settings, name, model, None), _newest(records))]


def _newest(records: dict[int, VersionRecord]) -> VersionRecord | None:
    return next((records[number] for number in sorted(records, reverse=True) if records[number].state == "ready"), None)
