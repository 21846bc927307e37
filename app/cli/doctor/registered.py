"""Checks a model that comes from an MLflow registry: what the registry names, and what answers."""

from __future__ import annotations

from collections.abc import Mapping

from app.cli.doctor.findings import Check, Finding, Start, at_once, error, not_checked, ok, start_fix, warning
from app.cli.doctor.models import LOADER, StoredModel
from inference.errors import BadInput, ModelUnavailable
from inference.models.mlflow_client import MlflowRegistry, RegisteredVersion, is_installed
from inference.models.registry import RegistryChoice
from inference.redaction import without_secrets
from inference.settings import Settings
from inference.settings.registered import RegisteredModel

#: with the import of MLflow, and less than all checks have
_WITHIN_S = 4.5


def check_registry(settings: Settings, name: str, registered: RegisteredModel) -> list[Finding]:
    """Return what the registry says to this machine. The workers may have other variables and another network."""
    subject = f"{name}, registry"
    if not is_installed():
        fix = "pip install 'forecache[mlflow]' here, or read the workers' logs"
        return [warning(Check.MODEL, subject, "not checked: MLflow's client is not installed here", fix)]
    registry = MlflowRegistry(settings.mlflow_uri)
    found = at_once({name: lambda: registry.find(registered)}, _WITHIN_S)[name]
    if isinstance(found, RegisteredVersion):
        return [ok(Check.MODEL, subject, f"{registered} is version {found.version}")]
    if isinstance(found, BadInput):
        fix = f"correct [models.{name}] path, the alias in the registry, or the credentials; what answers goes on"
        return [error(Check.MODEL, subject, found.message, fix)]
    if not isinstance(found, ModelUnavailable | TimeoutError):
        raise found
    fix = "what answers goes on; check [mlflow] tracking_uri or MLFLOW_TRACKING_URI, and the server"
    silent = f"the MLflow registry at {without_secrets(registry.uri)} gave no answer within {_WITHIN_S:g} s"
    detail = silent if isinstance(found, TimeoutError) else found.message
    return [warning(Check.MODEL, subject, detail, fix)]


def check_registered(
    name: str,
    registered: RegisteredModel,
    choice: RegistryChoice | None,
    known: StoredModel | None,
    *,
    start: Start | None = None,
) -> list[Finding]:
    """Return whether the version that the workers were told to serve answers. `known`: None if Redis is silent."""
    subject = f"{name}, what answers"
    if known is None:
        return [not_checked(Check.MODEL, subject)]
    active, held = known.pointer.active_version, known.pointer.held_versions
    wanted = registered.version if choice is None else choice.version
    record = known.records.get(wanted or 0)
    if active is None:
        detail = "no version answers"
        if record is not None and record.error:
            return [error(Check.MODEL, subject, f"{detail}: version {wanted} was refused: {record.error}", _fix(name))]
        detail += f": no worker has fetched {registered} yet"
        return [error(Check.MODEL, subject, detail, start_fix(start, LOADER))]
    if wanted in (None, active):
        return [ok(Check.MODEL, subject, f"version {active} answers")]
    detail = f"version {active} answers, not version {wanted}, which {registered} names"
    if record is not None and record.remark:
        return [warning(Check.MODEL, subject, f"{detail}: {record.remark}", _fix(name))]
    if wanted in held:
        fix = "`forecache batch release` lets it answer again"
        return [warning(Check.MODEL, subject, f"{detail}: a rollback holds that one", fix)]
    if labels := _labels(known.pointer.labels.versions):
        fix = f"`forecache models label stable {wanted}`, or `forecache models unlabel`"
        return [warning(Check.MODEL, subject, f"{detail}; labels decide: {labels}", fix)]
    fix = "ask again in a moment; if it stays so, read the workers' logs"
    return [warning(Check.MODEL, subject, f"{detail}: it waits for other workers", fix)]


def _labels(versions: Mapping[str, int]) -> str:
    return ", ".join(f"{label} is {version}" for label, version in versions.items())


def _fix(name: str) -> str:
    return f"put it right and register it anew, or `forecache models reload {name}`"
